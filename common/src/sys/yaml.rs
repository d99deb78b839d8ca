//! The scanner of libyaml, which is the one that serde_yaml parses with: what it takes for a token is one.

use std::marker::PhantomData;
use std::mem::MaybeUninit;

use libyaml_rs::{
    YAML_UTF8_ENCODING, yaml_parser_delete, yaml_parser_initialize, yaml_parser_scan,
    yaml_parser_set_encoding, yaml_parser_set_input_string, yaml_parser_t, yaml_token_delete,
    yaml_token_type_t,
};

/// What a token is, as far as this project asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    /// A list or a map begins.
    Open,
    /// A list or a map ends.
    Close,
    /// `&name`, or `*name`.
    Anchor,
    /// `!name`.
    Tag,
    /// A value, or a mark between values.
    Other,
}

/// The tokens of a text, each with the number of its line.
pub struct Tokens<'a> {
    /// In a box, as libyaml keeps pointers into it.
    parser: Box<MaybeUninit<yaml_parser_t>>,
    is_at_end: bool,
    text: PhantomData<&'a str>,
}

impl<'a> Tokens<'a> {
    /// The tokens of `text`.
    pub fn of(text: &'a str) -> Self {
        let mut parser = Box::new(MaybeUninit::uninit());
        let raw: *mut yaml_parser_t = parser.as_mut_ptr();
        // SAFETY: initialize writes the whole parser; the text outlives it by the lifetime of Self; both setters are
        // called once, before the first token.
        let is_made = unsafe {
            let is_made = yaml_parser_initialize(raw).ok;
            yaml_parser_set_encoding(raw, YAML_UTF8_ENCODING);
            yaml_parser_set_input_string(raw, text.as_ptr(), text.len() as u64);
            is_made
        };
        Self { parser, is_at_end: !is_made, text: PhantomData }
    }
}

impl Iterator for Tokens<'_> {
    type Item = (Token, usize);

    /// `None` also where the text is no YAML any more.
    fn next(&mut self) -> Option<Self::Item> {
        if self.is_at_end {
            return None;
        }
        let mut token = MaybeUninit::uninit();
        // SAFETY: `of` has initialized the parser, and it was not moved since. A scan writes the whole token, and that is
        // deleted once. After a failure no scan follows.
        let (kind, line) = unsafe {
            if yaml_parser_scan(self.parser.as_mut_ptr(), token.as_mut_ptr()).fail {
                self.is_at_end = true;
                return None;
            }
            let mut token = token.assume_init();
            let found = (token.type_, token.start_mark.line);
            yaml_token_delete(&raw mut token);
            found
        };
        self.is_at_end = kind == yaml_token_type_t::YAML_STREAM_END_TOKEN;
        Some((Token::of(kind), usize::try_from(line).unwrap_or(usize::MAX).saturating_add(1)))
    }
}

impl Token {
    fn of(kind: yaml_token_type_t) -> Self {
        use yaml_token_type_t as T;
        match kind {
            T::YAML_FLOW_SEQUENCE_START_TOKEN
            | T::YAML_FLOW_MAPPING_START_TOKEN
            | T::YAML_BLOCK_SEQUENCE_START_TOKEN
            | T::YAML_BLOCK_MAPPING_START_TOKEN => Self::Open,
            T::YAML_FLOW_SEQUENCE_END_TOKEN | T::YAML_FLOW_MAPPING_END_TOKEN | T::YAML_BLOCK_END_TOKEN => {
                Self::Close
            }
            T::YAML_ANCHOR_TOKEN | T::YAML_ALIAS_TOKEN => Self::Anchor,
            T::YAML_TAG_TOKEN => Self::Tag,
            _ => Self::Other,
        }
    }
}

impl Drop for Tokens<'_> {
    fn drop(&mut self) {
        // SAFETY: `of` has initialized it, and nothing uses it after this.
        unsafe { yaml_parser_delete(self.parser.as_mut_ptr()) };
    }
}
