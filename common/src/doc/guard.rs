//! What is refused before a document is parsed, as it costs the parser far more than its size: deep
//! nesting (quadratic in libyaml's scanner) and anchors, by which a few lines stand for gigabytes.
//! No document of this project needs either.

/// More than any document needs.
const MAX_DEPTH: usize = 16;

/// Why a document is not even parsed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Refused {
    /// Too many brackets are open.
    #[error("line {0}: brackets are nested more than {MAX_DEPTH} deep")]
    Depth(usize),
    /// There is an anchor.
    #[error("line {0}: YAML anchors are not taken; put the text in quotes if it is none")]
    Anchor(usize),
}

/// Checks a text, without understanding more of YAML than its quotes.
pub fn check(text: &str) -> Result<(), Refused> {
    text.lines().try_fold(State::default(), check_line).map(drop)
}

/// What goes on from one line to the next.
#[derive(Default)]
struct State {
    number: usize,
    depth: usize,
    quote: Option<u8>,
}

fn check_line(mut state: State, line: &str) -> Result<State, Refused> {
    state.number += 1;
    let mut before = b' ';
    let mut bytes = line.bytes().peekable();
    while let Some(byte) = bytes.next() {
        match (state.quote, byte) {
            (Some(b'"'), b'\\') => drop(bytes.next()),
            (Some(quote), byte) if byte == quote => state.quote = None,
            (Some(_), _) => {}
            (None, b'"' | b'\'') if starts_a_token(before) => state.quote = Some(byte),
            (None, b'#') if before.is_ascii_whitespace() => break,
            (None, b'&') if starts_a_token(before) => return Err(Refused::Anchor(state.number)),
            (None, b'[' | b'{') => state.depth += 1,
            (None, b']' | b'}') => state.depth = state.depth.saturating_sub(1),
            (None, _) => {}
        }
        if state.depth > MAX_DEPTH {
            return Err(Refused::Depth(state.number));
        }
        before = byte;
    }
    Ok(state)
}

fn starts_a_token(before: u8) -> bool {
    before.is_ascii_whitespace() || b"[{,:-".contains(&before)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brackets_and_ampersands_in_strings_are_text() {
        let deep = "[".repeat(40);
        for text in
            [format!("a: \"{deep} &x \\\" {deep}\""), format!("a: '{deep} &x'"), format!("a: b # {deep}")]
        {
            assert_eq!(check(&text), Ok(()), "{text}");
        }
        assert_eq!(check("a: b&c"), Ok(()));
    }

    #[test]
    fn nesting_and_anchors_are_refused_with_their_line() {
        assert_eq!(check(&format!("a:\n {}", "[".repeat(17))), Err(Refused::Depth(2)));
        assert_eq!(check(&format!("a:\n{}", " [\n".repeat(17))), Err(Refused::Depth(18)));
        assert_eq!(check("a: &b c"), Err(Refused::Anchor(1)));
        assert_eq!(check("- [&b c]"), Err(Refused::Anchor(1)));
    }
}
