//! Names of users.
//!
//! They may come from a server that does not answer, or from a file behind an automount: a child asks, under a deadline,
//! and who has no name is shown by number.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use autofs_cr_common::child::{Child, ask};
use nix::unistd::{Uid, User};

/// How long all names together may take.
const PATIENCE: Duration = Duration::from_secs(1);

/// The names of some users.
#[derive(Debug, Default)]
pub struct Users(HashMap<u32, String>);

impl Users {
    /// Looks up those users, as far as that can be done in a second.
    pub fn find(uids: &BTreeSet<u32>) -> Self {
        let mut users = Self::default();
        if uids.is_empty() {
            return users;
        }
        let Ok(child) = Child::spawn(|channel| {
            loop {
                let (uid, _) = channel.receive::<u32>(None)?;
                let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
                channel.send(&user.map(|user| user.name), &[])?;
            }
        }) else {
            return users;
        };
        let deadline = Instant::now() + PATIENCE;
        for &uid in uids {
            match ask::<_, Option<String>>(&child, &uid, Some(deadline)) {
                Ok(name) => users.0.extend(name.map(|name| (uid, name))),
                Err(_) => break,
            }
        }
        users
    }

    /// Names that a test made up.
    #[cfg(test)]
    pub fn known<const N: usize>(names: [(u32, &str); N]) -> Self {
        Self(names.into_iter().map(|(uid, name)| (uid, name.to_owned())).collect())
    }

    /// The name of a user, or the number.
    pub fn name(&self, uid: u32) -> String {
        self.0.get(&uid).cloned().unwrap_or_else(|| uid.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_no_name_is_shown_by_number() {
        let users = Users::known([(0, "root")]);
        assert_eq!((users.name(0), users.name(7)), ("root".into(), "7".into()));
    }
}
