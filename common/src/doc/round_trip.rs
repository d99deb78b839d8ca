//! Whatever is in a document, it is read back as it was written: in the usual form, as JSON, and by any parser of YAML.

use std::fmt::{Debug, Display};
use std::str::FromStr;

use arbitrary::{Arbitrary, Unstructured};
use arbtest::arbtest;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::image::Mode;
use super::{Image, Kind, Report, Stage, flow, parse, write, write_json};
use crate::model::{Device, Options, Pid, Propagation, TextPath};

fn survives<D>() -> impl FnMut(&mut Unstructured<'_>) -> arbitrary::Result<()>
where
    D: Kind + Serialize + DeserializeOwned + PartialEq + Debug + for<'a> Arbitrary<'a>,
{
    |u| {
        let document: D = u.arbitrary()?;
        let (mut text, mut json) = (Vec::new(), Vec::new());
        write(&document, &mut text).expect("writing to memory");
        write_json(&document, &mut json).expect("writing to memory");
        let text = String::from_utf8(text).expect("documents are UTF-8");
        assert!(flow::to_json(&text).is_some(), "not the usual form: {text}");
        for read in [parse::<D>(text.as_bytes(), "text"), parse::<D>(&json, "json")] {
            assert_eq!(read.unwrap_or_else(|error| panic!("{error}: {text}")), document, "{text}");
        }
        let read = serde_yaml::from_str::<D>(&text);
        assert_eq!(read.unwrap_or_else(|error| panic!("{error}: {text}")), document, "{text}");
        Ok(())
    }
}

#[test]
fn every_report_is_read_back_as_it_was_written() {
    arbtest(survives::<Report>()).size_max(1 << 14);
}

#[test]
fn every_image_is_read_back_as_it_was_written() {
    arbtest(survives::<Image>()).size_max(1 << 14);
}

#[test]
fn every_stage_is_read_back_as_it_was_written() {
    arbtest(survives::<Stage>()).size_max(1 << 12);
}

fn same<T>(value: &T)
where
    T: Display + FromStr<Err: Debug> + PartialEq + Debug,
{
    assert_eq!(&value.to_string().parse::<T>().expect("what was written"), value);
}

#[test]
fn every_value_is_read_back_as_it_was_written() {
    arbtest(|u| {
        same::<Device>(&u.arbitrary()?);
        same::<Pid>(&u.arbitrary()?);
        same::<Propagation>(&u.arbitrary()?);
        let mode: Mode = u.arbitrary()?;
        assert_eq!(Mode::try_from(String::from(mode)), Ok(mode));
        let device: Device = u.arbitrary()?;
        assert_eq!(Device::decode(device.encode()), device);
        let path: TextPath = u.arbitrary()?;
        assert_eq!(TextPath::parse(&path.to_string()), Ok(path));
        Ok(())
    });
}

/// One character after the other, as a path and as a text: those that a parser of YAML takes for the end of a line, for no
/// text or for the mark of an encoding are rare in arbitrary ones.
#[test]
fn every_character_is_read_back_as_it_was_written() {
    let characters: Vec<char> = ('\0'..='\u{ffff}').chain('\u{1fff0}'..='\u{20010}').collect();
    for some in characters.chunks(1 << 12) {
        let mut report = parse::<Report>(EMPTY.as_bytes(), "report").expect("a report");
        report.hidden = some.iter().map(|c| format!("a {c} b")).collect();
        let mut text = Vec::new();
        write(&report, &mut text).expect("writing to memory");
        let text = String::from_utf8(text).expect("documents are UTF-8");
        let read = serde_yaml::from_str::<Report>(&text);
        let read = read.unwrap_or_else(|error| panic!("from {:?}: {error}", some.first()));
        for (read, written) in read.hidden.iter().zip(&report.hidden) {
            assert_eq!(read, written);
        }
        assert_eq!(parse::<Report>(text.as_bytes(), "report").expect("a report"), report);
    }
}

const EMPTY: &str = "format: autofs-cr/report/1\nhidden: []\nnamespaces: []\nprocesses: []\nsuperblocks: []\nmounts: []\ncontent: []\nrequests: []\n...\n";

#[test]
fn options_mean_the_same_in_mountinfo_and_in_a_document() {
    arbtest(|u| {
        let options: Options = u.arbitrary()?;
        let text = super_options(&options);
        let read = crate::model::SuperOptions::parse(&text).expect("what the kernel writes");
        assert_eq!(read.options, options, "{text}");
        Ok(())
    });
}

/// As `autofs_show_options` in fs/autofs/inode.c writes them.
fn super_options(options: &Options) -> String {
    let Options { mount_type, timeout, minproto, maxproto, uid, gid, strictexpire, ignore } = options;
    let mut text = "rw,fd=5,pgrp=7".to_owned();
    for (name, id) in [("uid", uid), ("gid", gid)] {
        if *id != 0 {
            text.push_str(&format!(",{name}={id}"));
        }
    }
    text.push_str(&format!(",timeout={timeout},minproto={minproto},maxproto={maxproto},{mount_type}"));
    for (name, is_set) in [("strictexpire", strictexpire), ("ignore", ignore)] {
        if *is_set {
            text.push_str(&format!(",{name}"));
        }
    }
    text + ",pipe_ino=9"
}
