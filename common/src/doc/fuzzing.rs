//! A document from any text, and back.

use std::fmt::Debug;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Kind, flow, guard, parse, write, write_json};

/// Reads a text. What could be read is written and read again, and must be the same; and so must be what the parser of YAML
/// makes of a text that was read without it.
pub fn round_trip<D>(text: &[u8]) -> Option<D>
where
    D: Kind + Serialize + DeserializeOwned + PartialEq + Debug,
{
    let document: D = parse(text, "the text").ok()?;
    let (mut usual, mut json) = (Vec::new(), Vec::new());
    write(&document, &mut usual).expect("writing to memory");
    write_json(&document, &mut json).expect("writing to memory");
    assert_eq!(parse::<D>(&usual, "the usual form").expect("what was written"), document);
    assert_eq!(parse::<D>(&json, "JSON").expect("what was written"), document);
    let text = std::str::from_utf8(text).expect("it was read");
    let is_plain = !text.contains(flow::needs_escape) && guard::check(text).is_ok();
    if let Some(Ok(by_yaml)) = is_plain.then(|| serde_yaml::from_str::<D>(text)) {
        assert_eq!(by_yaml, document, "read by the parser of YAML");
    }
    Some(document)
}
