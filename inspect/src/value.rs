//! What a column shows of a mount.

use std::borrow::Cow;
use std::fmt;

use serde::{Serialize, Serializer};

use autofs_cr_common::model::TextPath;

use crate::span::Span;

/// What stands where there is nothing to show.
const NOTHING: &str = "-";

/// What stands where there may be something that this user may not see.
const HIDDEN: &str = "?";

/// A cell of the table, with the type that it has in JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// There is nothing.
    Nothing,
    /// This user may not see it.
    Hidden,
    /// A text without control characters.
    Text(Cow<'a, str>),
    /// A path, written so that every byte of it can be told.
    Path(&'a TextPath),
    /// A number.
    Number(u64),
    /// Whether something is so.
    Flag(bool),
    /// Seconds.
    Span(Span),
    /// Texts. The table shows the first, and how many more there are.
    List(Vec<String>),
}

impl Value<'_> {
    /// A text that is known when the program is built.
    pub fn word(text: &'static str) -> Self {
        Self::Text(Cow::Borrowed(text))
    }

    /// A text, or nothing.
    pub fn text(text: Option<String>) -> Self {
        text.map_or(Self::Nothing, |text| Self::Text(Cow::Owned(text)))
    }

    /// A number, or nothing.
    pub fn number(number: Option<impl Into<u64>>) -> Self {
        number.map_or(Self::Nothing, |number| Self::Number(number.into()))
    }

    /// A path, or nothing.
    pub fn path<'a>(path: Option<&'a TextPath>) -> Value<'a> {
        path.map_or(Value::Nothing, Value::Path)
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Nothing => true,
            Self::List(list) => list.is_empty(),
            _ => false,
        }
    }

    /// For raw output: without any white space, as one word.
    pub fn as_word(&self) -> String {
        let mut word = String::new();
        let whole = match self {
            Self::List(list) if !list.is_empty() => list.join(","),
            Self::Span(span) => span.seconds().to_string(),
            other => other.to_string(),
        };
        for c in whole.chars() {
            if c.is_whitespace() {
                // As TextPath writes control characters.
                let mut buffer = [0; 4];
                let bytes = c.encode_utf8(&mut buffer).bytes();
                word.extend(bytes.map(|byte| format!("\\x{byte:02x}")));
            } else {
                word.push(c);
            }
        }
        if word.is_empty() { NOTHING.to_owned() } else { word }
    }
}

/// For people.
impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str(NOTHING),
            Self::Hidden => f.write_str(HIDDEN),
            Self::Text(text) => f.write_str(text),
            Self::Path(path) => path.fmt(f),
            Self::Number(number) => number.fmt(f),
            Self::Flag(flag) => f.write_str(if *flag { "yes" } else { "no" }),
            Self::Span(span) => span.fmt(f),
            Self::List(list) => match list.as_slice() {
                [] => f.write_str(NOTHING),
                [one] => f.write_str(one),
                [first, more @ ..] => write!(f, "{first} (+{})", more.len()),
            },
        }
    }
}

/// For JSON: nothing and what is hidden are both `null`; STATE and the messages tell them apart.
impl Serialize for Value<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Nothing | Self::Hidden => serializer.serialize_none(),
            Self::Text(text) => serializer.serialize_str(text),
            Self::Path(path) => path.serialize(serializer),
            Self::Number(number) => serializer.serialize_u64(*number),
            Self::Flag(flag) => serializer.serialize_bool(*flag),
            Self::Span(span) => serializer.serialize_u64(span.seconds()),
            Self::List(list) => list.serialize(serializer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(texts: &[&str]) -> Value<'static> {
        Value::List(texts.iter().map(|text| (*text).to_owned()).collect())
    }

    #[test]
    fn each_kind_of_value_has_a_form_for_people_scripts_and_programs() {
        let path = TextPath::from_bytes(b"/a b\n\xff\\".to_vec());
        for (value, shown, word, json) in [
            (Value::Nothing, "-", "-", "null"),
            (Value::Hidden, "?", "?", "null"),
            (Value::word("direct"), "direct", "direct", "\"direct\""),
            (Value::text(Some(String::new())), "", "-", "\"\""),
            (Value::Path(&path), r"/a b\x0a\xff\\", r"/a\x20b\x0a\xff\\", r#""/a b\\x0a\\xff\\\\""#),
            (Value::Number(7), "7", "7", "7"),
            (Value::Flag(true), "yes", "yes", "true"),
            (Value::Span(Span::from_seconds(312)), "5m 12s", "312", "312"),
            (list(&[]), "-", "-", "[]"),
            (list(&["a b"]), "a b", r"a\x20b", r#"["a b"]"#),
            (list(&["a", "b", "c"]), "a (+2)", "a,b,c", r#"["a","b","c"]"#),
        ] {
            assert_eq!(value.to_string(), shown);
            assert_eq!(value.as_word(), word);
            assert_eq!(serde_json::to_string(&value).expect("it can be written"), json);
        }
    }
}
