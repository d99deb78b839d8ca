//! What is refused before a document goes through the parser of YAML, as it costs that far more than its size: deep
//! nesting (quadratic in libyaml's scanner), anchors, by which a few lines stand for gigabytes, and more values than any
//! document has (the parser keeps some hundred bytes for each). No document of this project needs any of it.
//!
//! The text is cut into tokens by the parser's own scanner, so that both agree on what is in quotes and what is not.

use crate::sys::yaml::{Token, Tokens};

/// More than any document needs.
const MAX_DEPTH: usize = 16;

/// More than an image of 20,000 mounts has, which are some 2.4 million. What the tools write is not bound by this, as it is not read by that
/// parser.
const MAX_TOKENS: usize = 4_000_000;

/// Why a document is not even parsed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Refused {
    /// Too much is open.
    #[error("line {0}: lists and maps are nested more than {MAX_DEPTH} deep")]
    Depth(usize),
    /// There is an anchor or an alias.
    #[error("line {0}: YAML anchors are not taken; put the text in quotes if it is none")]
    Anchor(usize),
    /// There is a tag.
    #[error("line {0}: YAML tags are not taken; put the text in quotes if it is none")]
    Tag(usize),
    /// There is too much.
    #[error(
        "line {0}: it has more than {MAX_TOKENS} values and marks; only what the tools write may be as long"
    )]
    Tokens(usize),
}

/// Checks a text. Where it is no YAML the parser will say so.
pub fn check(text: &str) -> Result<(), Refused> {
    check_tokens(text, MAX_TOKENS)
}

fn check_tokens(text: &str, most: usize) -> Result<(), Refused> {
    let mut depth = 0_usize;
    for (count, (token, line)) in Tokens::of(text).enumerate() {
        match token {
            Token::Open => depth += 1,
            Token::Close => depth = depth.saturating_sub(1),
            Token::Anchor => return Err(Refused::Anchor(line)),
            Token::Tag => return Err(Refused::Tag(line)),
            Token::Other => {}
        }
        if depth > MAX_DEPTH {
            return Err(Refused::Depth(line));
        }
        if count >= most {
            return Err(Refused::Tokens(line));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brackets_and_ampersands_in_strings_are_text() {
        let deep = "[".repeat(40);
        for text in [
            format!("a: \"{deep} &x \\\" {deep}\""),
            format!("a: '{deep} &x'"),
            format!("a: b # {deep} &x"),
            format!("a: \"x\n  {deep} &x\""),
            format!("a: |\n  {deep}\n  &x"),
        ] {
            assert_eq!(check(&text), Ok(()), "{text}");
        }
        assert_eq!(check("a: b&c"), Ok(()));
        assert_eq!(check("a: b &c"), Ok(()));
    }

    #[test]
    fn nesting_anchors_and_tags_are_refused_with_their_line() {
        assert_eq!(check(&format!("a:\n {}", "[".repeat(17))), Err(Refused::Depth(2)));
        assert_eq!(check(&format!("a:\n{}", " [\n".repeat(17))), Err(Refused::Depth(17)));
        assert_eq!(check(&"- ".repeat(17)), Err(Refused::Depth(1)));
        for text in ["a: &x b", "&x a: b", "a: [&x b]", "a: {&x b: c}", "- &x b", "? &x b", "a: [b, *x]"] {
            assert!(matches!(check(text), Err(Refused::Anchor(_))), "{text}: {:?}", check(text));
        }
        assert_eq!(check("a:\n  !!str b"), Err(Refused::Tag(2)));
    }

    /// Each of these looks as if it were in quotes or in a comment, and is not.
    #[test]
    fn nothing_hides_an_anchor() {
        for text in [
            "a: 1 # c\r&x b: 1",
            "a: 1 # c\u{85}&x b: 1",
            "a: 1 # c\u{2028}&x b: 1",
            "{a: b\n \"c, &x [d]}",
            "{a: b\n 'c, *x }",
            "- - &x b",
            "a: 'b''c'\nd: &x e",
            "a: \"b\\\\\"\nd: &x e",
            "%YAML 1.1\n--- &x\na: b",
            "a: |\n b\n&x c: d",
        ] {
            assert!(matches!(check(text), Err(Refused::Anchor(_))), "{text:?}: {:?}", check(text));
        }
        assert!(matches!(check("a: !t &x b"), Err(Refused::Tag(1))));
        let deep = "[".repeat(17);
        assert_eq!(check(&format!("format: x \"\nmasters: {deep}")), Err(Refused::Depth(2)));
    }

    #[test]
    fn more_tokens_than_any_document_has_are_refused() {
        // Two for each entry, and six around them.
        let many = format!("a:\n{}", "- b\n".repeat(100));
        assert_eq!(check_tokens(&many, 210), Ok(()));
        assert!(matches!(check_tokens(&many, 200), Err(Refused::Tokens(97..=101))));
        assert_eq!(check_tokens(&format!("[{}]", "b,".repeat(100)), 100), Err(Refused::Tokens(1)));
    }
}
