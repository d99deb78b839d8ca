//! Arbitrary values of the types whose fields do not go together at will: for the property tests, and for fuzzing. All other
//! types derive this.

use arbitrary::{Arbitrary, Result, Unstructured};

use super::{Device, Pid, Propagation, TextPath};

impl<'a> Arbitrary<'a> for Device {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        u.arbitrary().map(Self::decode)
    }
}

impl<'a> Arbitrary<'a> for Pid {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        u.int_in_range(1..=i32::MAX).map(|pid| Self::new(pid).unwrap_or_else(Self::this))
    }
}

impl<'a> Arbitrary<'a> for Propagation {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let (shared, slave_of): (Option<u32>, Option<u32>) = u.arbitrary()?;
        let unbindable = shared.is_none() && slave_of.is_none() && u.arbitrary()?;
        Ok(Self { shared, slave_of, unbindable })
    }
}

impl<'a> Arbitrary<'a> for TextPath {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let bytes: Vec<u8> = u.arbitrary()?;
        Ok(Self::from_bytes(bytes.into_iter().filter(|&byte| byte != 0).collect()))
    }
}
