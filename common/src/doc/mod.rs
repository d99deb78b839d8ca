//! The documents by which the tools speak to each other: YAML, each with a first key `format`.
//!
//! They are written with one line for each entry of a list, in YAML's flow style, so that two of them
//! can be compared with diff and 20,000 entries are written in a moment; they are read by a full YAML
//! parser, so that a person may write them in any style.

mod flow;
mod format;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod guard;
pub mod image;
mod output;
mod reach;
pub mod report;
#[cfg(test)]
mod round_trip;
pub mod stage;

use std::borrow::Cow;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use format::{Format, Kind};
pub use image::Image;
pub use output::Output;
pub use report::Report;
pub use stage::Stage;

/// The largest document that is read, in bytes: some ten times an image of 20,000 mounts.
pub const MAX_SIZE: u64 = 64 << 20;

/// The last line of every document: YAML's mark for the end.
pub const END: &str = "...";

/// Why a document could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum DocError {
    /// It could not be read.
    #[error("cannot read {name}")]
    Read {
        /// The file, or what stands for it.
        name: String,
        /// The cause.
        source: io::Error,
    },
    /// It could not be written.
    #[error("cannot write {name}")]
    Write {
        /// The file, or what stands for it.
        name: String,
        /// The cause.
        source: io::Error,
    },
    /// There is nothing in it.
    #[error("{name} is empty; did the stage before fail? Its own message says why")]
    Empty {
        /// The file, or what stands for it.
        name: String,
    },
    /// It is larger than any that could be valid.
    #[error("{name} is larger than {} MiB", MAX_SIZE >> 20)]
    TooLarge {
        /// The file, or what stands for it.
        name: String,
    },
    /// It is not what was expected.
    #[error("{name} is no valid {kind}: {cause}")]
    Invalid {
        /// The file, or what stands for it.
        name: String,
        /// The kind of document that was expected.
        kind: &'static str,
        /// What is wrong, with the field and the line.
        cause: String,
    },
}

/// A document that was read and is not understood yet.
#[derive(Debug)]
pub struct Text {
    /// What is written.
    pub bytes: Vec<u8>,
    /// The file, or what stands for it.
    name: String,
}

impl Text {
    /// Reads one from a file, or from standard input if there is none or it is `-`.
    pub fn read(path: Option<&Path>) -> Result<Self, DocError> {
        match path {
            Some(path) if path != Path::new("-") => {
                let name = path.display().to_string();
                let file =
                    reach::input(path).map_err(|source| DocError::Read { name: name.clone(), source })?;
                Self::read_from(file, &name)
            }
            _ => Self::read_from(io::stdin().lock(), "standard input"),
        }
    }

    /// Reads one from a stream that messages call `name`, up to its end mark: the writer may live on (restore does),
    /// and so may a program between it and us that holds the other end (sudo, timeout).
    fn read_from(stream: impl Read, name: &str) -> Result<Self, DocError> {
        Ok(Self { bytes: read_bytes(stream, name)?, name: name.to_owned() })
    }

    /// Understands it.
    pub fn parse<D: Kind + DeserializeOwned>(&self) -> Result<D, DocError> {
        parse(&self.bytes, &self.name)
    }
}

/// Reads a document from a file, or from standard input if there is none or it is `-`.
pub fn read<D: Kind + DeserializeOwned>(path: Option<&Path>) -> Result<D, DocError> {
    Text::read(path)?.parse()
}

fn read_bytes(stream: impl Read, name: &str) -> Result<Vec<u8>, DocError> {
    let mut stream = BufReader::with_capacity(1 << 16, stream.take(MAX_SIZE + 1));
    let mut text = Vec::new();
    loop {
        let start = text.len();
        let read = stream.read_until(b'\n', &mut text);
        let read = read.map_err(|source| DocError::Read { name: name.to_owned(), source })?;
        if read == 0 || text[start..].trim_ascii_end() == END.as_bytes() {
            break;
        }
    }
    if text.len() as u64 > MAX_SIZE {
        return Err(DocError::TooLarge { name: name.to_owned() });
    }
    Ok(text)
}

/// Reads a document from memory.
pub fn parse<D: Kind + DeserializeOwned>(text: &[u8], name: &str) -> Result<D, DocError> {
    if text.iter().all(u8::is_ascii_whitespace) {
        return Err(DocError::Empty { name: name.to_owned() });
    }
    let invalid = |cause: String| DocError::Invalid { name: name.to_owned(), kind: D::NAME, cause };
    let text = std::str::from_utf8(text).map_err(|error| invalid(error.to_string()))?;
    // The parser of YAML counts the mark of the encoding as a column, and so takes the first line for indented.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if !is_whole(text) {
        return Err(invalid(format!("it is cut off: its last line is not '{END}'")));
    }
    // The usual form or JSON, if nothing is wrong with it; what is wrong the parser can tell with its line.
    let json = if is_json(text) { Some(text.as_bytes().into()) } else { flow::to_json(text).map(Cow::from) };
    if let Some(Ok(document)) = json.map(|json| serde_json::from_slice(&json)) {
        return Ok(document);
    }
    guard::check(text).map_err(|error| invalid(error.to_string()))?;
    serde_yaml::from_str(text).map_err(|error| invalid(error.to_string()))
}

/// Whether the end of a document is there. Without the mark, a list that was cut off between two
/// entries would be taken for a shorter one. A document in one pair of braces (JSON) needs none.
fn is_whole(text: &str) -> bool {
    is_json(text) || text.trim().lines().next_back().is_some_and(|line| line.trim_end() == END)
}

fn is_json(text: &str) -> bool {
    text.trim_start().starts_with('{')
}

/// Writes a document in its usual form.
pub fn write<D: Kind + Serialize>(document: &D, out: &mut impl Write) -> io::Result<()> {
    flow::write(document, out)?;
    writeln!(out, "{END}")
}

/// Writes a document as JSON: the same fields, for other programs.
pub fn write_json<D: Kind + Serialize>(document: &D, out: &mut impl Write) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, document)?;
    writeln!(out)
}

#[cfg(test)]
mod tests {
    use super::image::{Directory, End, Master, Mode, Mount, Pipe, Superblock, Symlink};
    use super::*;
    use crate::masters::MasterKind;
    use crate::model::{Device, FdFlags, MountType, Options, Pid, Propagation, State, TextPath};

    fn path(text: &str) -> TextPath {
        TextPath::from_bytes(text.into())
    }

    fn image() -> Image {
        let options = Options {
            mount_type: MountType::Indirect,
            timeout: 300,
            minproto: 5,
            maxproto: 5,
            uid: 0,
            gid: 7,
            strictexpire: true,
            ignore: false,
        };
        let flags = FdFlags { nonblock: true, cloexec: true };
        Image {
            format: Format::CURRENT,
            masters: vec![Master {
                id: "automount-312".into(),
                kind: MasterKind::Automount,
                command: path("automount"),
                pid: Pid::new(312),
                pgrp: Pid::new(312),
                session: None,
                pipes: vec![Pipe {
                    inode: 32411,
                    read_end: Some(End { fd: 5, flags }),
                    write_end: None,
                    requests: Vec::new(),
                }],
            }],
            superblocks: vec![Superblock {
                device: Device::anonymous(45),
                options,
                state: State::Connected,
                master: Some("automount-312".into()),
                pipe: Some(32411),
                pgrp: None,
                inode: Some(77),
                directories: vec![Directory { path: path("a b"), mode: Mode(0o555) }],
                symlinks: vec![Symlink {
                    path: TextPath::from_bytes(b"l\xff\n".to_vec()),
                    target: path("a: {b}\u{e9}"),
                }],
                control_fds: vec![End { fd: 7, flags: FdFlags::default() }],
            }],
            mounts: vec![Mount {
                mount_point: path("/net \"x\" # \\ y"),
                device: Device::anonymous(45),
                root: path("/"),
                source: path("auto.net"),
                options: "rw,relatime".into(),
                propagation: Propagation::PRIVATE,
                within: report::Within::Other,
                covers: false,
            }],
        }
    }

    fn written(image: &Image) -> String {
        let mut text = Vec::new();
        write(image, &mut text).expect("writing to memory");
        String::from_utf8(text).expect("documents are UTF-8")
    }

    fn error_of(text: &str) -> String {
        parse::<Image>(text.as_bytes(), "the image").expect_err("an invalid image was taken").to_string()
    }

    #[test]
    fn an_image_survives_being_written_and_read() {
        let image = image();
        let text = written(&image);
        assert_eq!(parse::<Image>(text.as_bytes(), "image").expect(&text), image);
    }

    #[test]
    fn what_is_written_is_read_without_the_yaml_parser() {
        let json = flow::to_json(&written(&image())).expect("the usual form");
        assert_eq!(serde_json::from_slice::<Image>(&json).expect("JSON"), image());
    }

    #[test]
    fn a_document_has_one_line_for_each_entry() {
        let mut image = image();
        image.superblocks.clear();
        let expected = r#"format: "autofs-cr/image/1"
masters:
- {id: "automount-312", kind: "automount", command: "automount", pid: 312, pgrp: 312, pipes: [{inode: 32411, read_end: {fd: 5, flags: ["nonblock", "cloexec"]}}]}
superblocks: []
mounts:
- {mount_point: "/net \"x\" # \\\\ y", device: "0:45", root: "/", source: "auto.net", options: "rw,relatime", propagation: "private"}
...
"#;
        assert_eq!(written(&image), expected);
    }

    #[test]
    fn a_stream_is_read_up_to_the_end_mark_only() {
        struct Open<'a>(&'a [u8]);
        impl Read for Open<'_> {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                assert!(!self.0.is_empty(), "it would wait for more");
                self.0.read(buffer)
            }
        }
        let text = written(&image());
        let read = Text::read_from(Open(text.as_bytes()), "a pipe").expect("a whole document");
        assert_eq!(read.parse::<Image>().expect("an image"), image());
    }

    #[test]
    fn block_style_is_read_too() {
        let text = "format: autofs-cr/stage/1\nsegment:\n  name: /x\n  coordinator: 7\n  start_time: 1\n  fd: 3\nmasters: []\n...\n";
        let stage: Stage = parse(text.as_bytes(), "stage").expect("block style");
        assert_eq!(stage.segment.map(|segment| segment.coordinator), Pid::new(7));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let good = written(&image());
        for (from, to, named) in [
            ("image/1", "image/2", "version 2 of the image format"),
            ("image/1", "report/1", "autofs-dump writes one"),
            ("autofs-cr/image/1", "what", "unknown format 'what'"),
            ("timeout: 300", "timeout: x", "timeout"),
            ("timeout: 300, ", "", "missing field `timeout`"),
            ("timeout: 300", "timeout: 300, tiemout: 5", "unknown field `tiemout`"),
            ("timeout: 300", "timeout: 300, timeout: 300", "duplicate field `timeout`"),
            ("0:45", "0-45", "'0-45' is no device number"),
            ("pid: 312", "pid: 0", "'0' is no process id"),
            ("0555", "0999", "'0999' is no file mode"),
            ("\"private\"", "\"shared\"", "'shared' is no propagation"),
            ("type: \"indirect\"", "type: \"round\"", "unknown variant `round`"),
            ("nonblock", "append", "unknown variant `append`"),
        ] {
            assert!(good.contains(from), "{from} is not in {good}");
            let error = error_of(&good.replacen(from, to, 1));
            assert!(error.contains(named), "{to}: {error}");
        }
    }

    #[test]
    fn a_document_cut_at_any_byte_is_refused() {
        let good = written(&image());
        for end in 0..good.len() - 1 {
            if let Ok(read) = parse::<Image>(&good.as_bytes()[..end], "image") {
                panic!("cut at byte {end} it is read as {read:?}");
            }
        }
    }

    #[test]
    fn empty_and_foreign_input_is_refused() {
        assert!(error_of(" \n").contains("is empty"));
        assert!(error_of("format: [\n...\n").contains("no valid image"));
        assert!(parse::<Image>(b"format: \xff", "x").is_err());
        assert!(error_of("masters: []\n...\n").contains("missing field"));
        let bomb = "a: &a [x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nformat: autofs-cr/image/1\n...\n";
        assert!(error_of(bomb).contains("anchor"), "{}", error_of(bomb));
        let deep = format!("format: {}\n...\n", "[".repeat(100_000));
        assert!(error_of(&deep).contains("nested"), "{}", error_of(&deep));
    }
}
