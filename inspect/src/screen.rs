//! What is written over and over at the same place of a terminal.

/// What is shown at one time.
pub struct Screen<'a> {
    pub body: &'a str,
    pub below: &'a [String],
}

/// The sequences of ECMA-48 and the DEC terminals that every terminal understands.
mod sequence {
    /// To the upper left, and long lines are cut.
    pub const BEGIN: &str = "\x1b[H\x1b[?7l";
    /// Clears the rest of a line.
    pub const END_OF_LINE: &str = "\x1b[K\n";
    /// Clears what is below, and long lines go on in the next.
    pub const END: &str = "\x1b[J\x1b[?7h";
}

impl Screen<'_> {
    /// Fits into so many lines, the last of which is left free for the cursor. What is below the body is more wanted
    /// than its end.
    pub fn draw(&self, height: usize) -> String {
        let room = height.saturating_sub(1);
        let below = self.below.len().min(room / 2);
        let lines: Vec<&str> = self.body.lines().collect();
        let mut shown = lines.len().min(room - below);
        let mut text = sequence::BEGIN.to_owned();
        let mut add = |line: &str| text.extend([line, sequence::END_OF_LINE]);
        if shown < lines.len() {
            shown = shown.saturating_sub(1);
        }
        lines[..shown].iter().for_each(|line| add(line));
        if shown < lines.len() && room > 0 {
            add(&format!("({} more lines)", lines.len() - shown));
        }
        // The last ones have the counts.
        self.below[self.below.len() - below..].iter().for_each(|line| add(line));
        text + sequence::END
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(body: &str, below: &[&str], height: usize) -> Vec<String> {
        let below: Vec<String> = below.iter().map(|line| (*line).to_owned()).collect();
        let screen = Screen { body, below: &below }.draw(height);
        let inner = screen.strip_prefix(sequence::BEGIN).and_then(|rest| rest.strip_suffix(sequence::END));
        let inner = inner.expect("begun and ended");
        inner.split_terminator(sequence::END_OF_LINE).map(str::to_owned).collect()
    }

    #[test]
    fn what_has_no_room_is_counted() {
        assert_eq!(drawn("a\nb\n", &["x"], 9), ["a", "b", "x"]);
        assert_eq!(drawn("a\nb\nc\nd\n", &["x"], 4), ["a", "(3 more lines)", "x"]);
        assert_eq!(drawn("a\nb\n", &["x", "y", "z"], 4), ["a", "b", "z"]);
        assert_eq!(drawn("a\n", &["x"], 0), Vec::<String>::new());
    }
}
