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
    /// A quoted text goes on in the next line.
    #[error("line {0}: a quoted text does not end on its line")]
    Quote(usize),
}

/// Checks a text, without understanding more of YAML than its quotes. Where that is not enough to be
/// sure that something is quoted, it counts as not quoted.
pub fn check(text: &str) -> Result<(), Refused> {
    let mut depth = 0;
    for (index, line) in text.lines().enumerate() {
        depth = check_line(index + 1, depth, line.as_bytes())?;
    }
    Ok(())
}

/// Checks one line that begins in `depth` open brackets, and gives the number at its end.
fn check_line(number: usize, mut depth: usize, line: &[u8]) -> Result<usize, Refused> {
    let mut quote = None;
    let mut at = 0;
    while let Some(&byte) = line.get(at) {
        let before = &line[..at];
        match (quote, byte) {
            (Some(b'"'), b'\\') => at += 1,
            (Some(open), _) if open == byte => quote = None,
            (Some(_), _) => {}
            (None, b'"' | b'\'') if starts_a_token(before, depth) => quote = Some(byte),
            (None, b'#') if before.last().is_none_or(u8::is_ascii_whitespace) => break,
            (None, b'&') if starts_a_token(before, depth) => return Err(Refused::Anchor(number)),
            (None, b'[' | b'{') => depth += 1,
            (None, b']' | b'}') => depth = depth.saturating_sub(1),
            (None, _) => {}
        }
        if depth > MAX_DEPTH {
            return Err(Refused::Depth(number));
        }
        at += 1;
    }
    if quote.is_some() { Err(Refused::Quote(number)) } else { Ok(depth) }
}

/// Whether a new value can start behind this part of a line. Elsewhere a quote is a character of a plain
/// text, which goes on.
fn starts_a_token(before: &[u8], depth: usize) -> bool {
    let trimmed = before.trim_ascii_end();
    let is_spaced = trimmed.len() < before.len();
    match trimmed.last() {
        None | Some(b'[' | b'{') => true,
        Some(b',') => depth > 0,
        Some(b':') => is_spaced || depth > 0,
        // The dashes of a list in block style.
        Some(b'-') => is_spaced && trimmed.iter().all(|byte| matches!(byte, b'-' | b' ')),
        Some(_) => false,
    }
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

    #[test]
    fn a_quote_inside_a_plain_text_hides_nothing() {
        let deep = "[".repeat(17);
        assert_eq!(check(&format!("format: x \"\nmasters: {deep}")), Err(Refused::Depth(2)));
        assert_eq!(check(&format!("a, \": {deep} \"")), Err(Refused::Depth(1)));
        assert_eq!(check(&format!("[a - \" , {deep} \"]")), Err(Refused::Depth(1)));
        assert_eq!(check("a: \"b"), Err(Refused::Quote(1)));
    }
}
