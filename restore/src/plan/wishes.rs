//! What the user asked for, also in the words of the command line.

use autofs_cr_common::masters::Identity;

/// What the user asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// Replace autofs mounts that are in the way.
    pub replace: bool,
    /// Connect only by a fixup, also where it is not needed.
    pub fixup_only: bool,
    /// What every master compares, in place of what is known of its kind.
    pub identity: Option<Identity>,
    /// Go back to what was there before a restore that was killed.
    pub undo: bool,
}

const REPLACE: &str = "--replace";
const BY_FIXUP: &str = "--connect=fixup";
const IDENTITIES: [(&str, Identity); 3] = [
    ("--identity=none", Identity::None),
    ("--identity=device", Identity::Device),
    ("--identity=inode", Identity::Inode),
];

impl Wishes {
    /// The options that say so, but for the one to go back.
    pub fn options(&self) -> Vec<String> {
        let replace = self.replace.then_some(REPLACE);
        let by_fixup = self.fixup_only.then_some(BY_FIXUP);
        let identity = IDENTITIES.iter().find(|(_, identity)| self.identity == Some(*identity));
        let words = replace.into_iter().chain(by_fixup).chain(identity.map(|(word, _)| *word));
        words.map(str::to_owned).collect()
    }

    /// What such options say.
    pub fn of(options: &[String]) -> Self {
        let has = |word: &str| options.iter().any(|option| option == word);
        let identity = IDENTITIES.iter().find(|(word, _)| has(word)).map(|(_, identity)| *identity);
        Self { replace: has(REPLACE), fixup_only: has(BY_FIXUP), identity, undo: false }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Arguments, Connect};

    #[test]
    fn the_options_say_what_was_asked_for() {
        for (_, identity) in IDENTITIES {
            let wishes = Wishes { replace: true, fixup_only: true, identity: Some(identity), undo: false };
            assert_eq!(Wishes::of(&wishes.options()), wishes);
            let words = std::iter::once("autofs-restore".to_owned()).chain(wishes.options());
            let arguments = Arguments::try_parse_from(words).expect("they are options");
            assert!(arguments.replace && arguments.connect == Connect::Fixup);
            assert_eq!(arguments.identity.map(Identity::from), Some(identity));
        }
        assert_eq!(Wishes::of(&[]), Wishes::default());
        assert!(Wishes::default().options().is_empty());
    }
}
