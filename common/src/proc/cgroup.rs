//! /proc/PID/cgroup: in which container and in which unit a process is (cgroups(7)).
//!
//! The kernel knows neither. Both are in the names that systemd and the runtimes of containers give to the groups:
//! "Control Group APIs and Delegation" of systemd, and the `cgroupsPath` of runc, whose systemd driver writes
//! `RUNTIME-ID.scope`.

use std::io;

use super::{Proc, ProcessDir};
use crate::model::{Pid, RunsIn, TextPath};

/// Digits of an id that people see.
const SHORT_ID: usize = 12;

/// Digits of an id as the runtimes write it.
const LONG_ID: usize = 64;

impl Proc {
    /// Where a process runs that started then; nothing where it is gone, or its group tells nothing.
    pub fn runs_in(&self, pid: Pid, start_time: u64) -> RunsIn {
        let runs_in = || {
            let process = self.process(pid)?;
            let found = process.runs_in()?;
            let is_same = process.stat()?.start_time == start_time;
            io::Result::Ok(if is_same { found } else { RunsIn::default() })
        };
        runs_in().unwrap_or_default()
    }
}

impl ProcessDir {
    /// Where the process runs.
    pub fn runs_in(&self) -> io::Result<RunsIn> {
        Ok(parse(&self.read("cgroup", 512)?))
    }
}

/// Reads the lines of the file, `NUMBER:CONTROLLERS:PATH` each. A container can be in any of them. Units are in the
/// second hierarchy (number 0), and in the one that systemd has of the first.
pub(super) fn parse(text: &[u8]) -> RunsIn {
    let mut lines: Vec<Line<'_>> = text.split(|&byte| byte == b'\n').filter_map(Line::parse).collect();
    lines.sort_by_key(|line| line.rank);
    let mut found = None;
    for line in &lines {
        let place = Place::of(line.path);
        if place.container.is_some() {
            found = Some(place);
            break;
        }
        if line.rank != Rank::Other && found.is_none() && place.unit.is_some() {
            found = Some(place);
        }
    }
    let place = found.unwrap_or_default();
    RunsIn {
        container: place.container.map(TextPath::from_bytes),
        unit: place.unit.map(|unit| TextPath::from_bytes(unit.to_vec())),
    }
}

/// Which hierarchy is asked first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Second,
    Systemd,
    Other,
}

struct Line<'a> {
    rank: Rank,
    path: &'a [u8],
}

impl<'a> Line<'a> {
    fn parse(line: &'a [u8]) -> Option<Self> {
        let mut fields = line.splitn(3, |&byte| byte == b':');
        let rank = match (fields.next()?, fields.next()?) {
            (b"0", b"") => Rank::Second,
            (_, b"name=systemd") => Rank::Systemd,
            _ => Rank::Other,
        };
        Some(Self { rank, path: fields.next()? })
    }
}

/// What the path of a group says.
#[derive(Debug, Default)]
struct Place<'a> {
    container: Option<Vec<u8>>,
    unit: Option<&'a [u8]>,
}

impl<'a> Place<'a> {
    fn of(path: &'a [u8]) -> Self {
        let parts: Vec<&[u8]> = path.split(|&byte| byte == b'/').filter(|part| !part.is_empty()).collect();
        let found = parts.iter().enumerate().find_map(|(at, part)| {
            let next = parts.get(at + 1).copied().unwrap_or_default();
            let before = at.checked_sub(1).map(|before| parts[before]);
            Some((at, container(before, part, next)?))
        });
        match found {
            Some((at, name)) => Self { container: Some(name), unit: unit(&parts[at + 1..]) },
            None => Self { container: None, unit: unit(&parts) },
        }
    }
}

/// The innermost part that is a service or a scope, else one of another kind that has processes.
fn unit<'a>(parts: &[&'a [u8]]) -> Option<&'a [u8]> {
    let innermost = |suffixes: &[&str]| {
        let is_unit = |part: &&&[u8]| suffixes.iter().any(|suffix| is_named(part, suffix));
        parts.iter().rev().find(is_unit).copied()
    };
    innermost(&[".service", ".scope"])
        .or_else(|| innermost(&[".mount", ".socket", ".swap"]))
        .or_else(|| innermost(&[".slice"]))
}

fn is_named(part: &[u8], suffix: &str) -> bool {
    part.len() > suffix.len() && part.ends_with(suffix.as_bytes())
}

/// The container that a group is the one of, by its name and those of the groups around it.
fn container(before: Option<&[u8]>, part: &[u8], next: &[u8]) -> Option<Vec<u8>> {
    machine(part, next).or_else(|| lxc(before, part)).or_else(|| by_id(part))
}

/// systemd-nspawn and machined. systemd-nspawn itself is in the group `supervisor` below. A machine of libvirt with a
/// kernel of its own is none.
fn machine(part: &[u8], next: &[u8]) -> Option<Vec<u8>> {
    let escaped =
        between(part, "systemd-nspawn@", ".service").or_else(|| between(part, "machine-", ".scope"))?;
    let name = unescape(escaped);
    let is_outside = next == b"supervisor" || name.starts_with(b"qemu-");
    (!is_outside).then_some(name)
}

/// LXC, and what is built on it. Its monitor is in `lxc.monitor.NAME`.
fn lxc(before: Option<&[u8]>, part: &[u8]) -> Option<Vec<u8>> {
    let name = match part.strip_prefix(b"lxc.payload.") {
        Some(name) => name,
        None if before == Some(b"lxc") => part,
        None => return None,
    };
    (!name.is_empty()).then(|| name.to_vec())
}

/// Docker, podman, containerd, CRI-O: a long id, with the name of the runtime before it where systemd made the group.
/// The monitors of podman and CRI-O (`conmon`) are outside of their containers.
fn by_id(part: &[u8]) -> Option<Vec<u8>> {
    let name = part.strip_suffix(b".scope").unwrap_or(part);
    let (runtime, id) = name.split_at(name.len().checked_sub(LONG_ID)?);
    let is_id = id.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let is_inside = runtime.is_empty() || runtime.ends_with(b"-") && !runtime.ends_with(b"conmon-");
    (is_id && is_inside).then(|| id[..SHORT_ID].to_vec())
}

/// What is between the two, if it is something.
fn between<'a>(part: &'a [u8], prefix: &str, suffix: &str) -> Option<&'a [u8]> {
    let inner = part.strip_prefix(prefix.as_bytes())?.strip_suffix(suffix.as_bytes())?;
    (!inner.is_empty()).then_some(inner)
}

/// Undoes the escapes `\xHH` of the names of units (systemd.unit(5)).
fn unescape(name: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((&first, tail)) = rest.split_first() {
        let (byte, after) = escape(rest).unwrap_or((first, tail));
        bytes.push(byte);
        rest = after;
    }
    bytes
}

fn escape(text: &[u8]) -> Option<(u8, &[u8])> {
    let (digits, rest) = text.strip_prefix(b"\\x")?.split_at_checked(2)?;
    if !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    Some((u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    /// Container and unit of a path in the second hierarchy.
    fn at(path: &str) -> (String, String) {
        both(&format!("0::{}\n", path.replace("ID", ID)))
    }

    fn both(text: &str) -> (String, String) {
        let RunsIn { container, unit } = parse(text.as_bytes());
        let text = |part: Option<TextPath>| part.map(|part| part.to_string()).unwrap_or_default();
        (text(container), text(unit))
    }

    fn pair(container: &str, unit: &str) -> (String, String) {
        (container.to_owned(), unit.to_owned())
    }

    #[test]
    fn the_unit_is_the_innermost_service_or_scope() {
        for (path, unit) in [
            ("/system.slice/autofs.service", "autofs.service"),
            ("/init.scope", "init.scope"),
            ("/user.slice/user-0.slice/session-3.scope", "session-3.scope"),
            ("/user.slice/user-1.slice/user@1.service/app.slice/app-x.service", "app-x.service"),
            ("/system.slice/docker.service/sub/group", "docker.service"),
            ("/system.slice/a.service/b.slice", "a.service"),
            ("/system.slice/data.mount", "data.mount"),
            ("/../../system.slice/a.service", "a.service"),
            ("/system.slice", "system.slice"),
            ("/.service", ""),
            ("/", ""),
        ] {
            assert_eq!(at(path), pair("", unit), "{path}");
        }
    }

    #[test]
    fn containers_are_told_by_the_names_of_their_groups() {
        for (path, container, unit) in [
            ("/machine.slice/systemd-nspawn@web.service/payload/init.scope", "web", "init.scope"),
            ("/machine.slice/systemd-nspawn@web.service/payload/system.slice/a.service", "web", "a.service"),
            ("/machine.slice/systemd-nspawn@web.service/supervisor", "", "systemd-nspawn@web.service"),
            ("/machine.slice/machine-my\\x2dweb.scope/payload", "my-web", ""),
            ("/machine.slice/machine-my\\x2dweb.scope/supervisor", "", "machine-my\\\\x2dweb.scope"),
            (
                "/machine.slice/machine-qemu\\x2d1\\x2dvm.scope/libvirt",
                "",
                "machine-qemu\\\\x2d1\\\\x2dvm.scope",
            ),
            ("/system.slice/docker-ID.scope", "0123456789ab", ""),
            ("/system.slice/docker-ID.scope/init.scope", "0123456789ab", "init.scope"),
            ("/docker/ID", "0123456789ab", ""),
            ("/docker/ID/system.slice/a.service", "0123456789ab", "a.service"),
            ("/machine.slice/libpod-ID.scope/container", "0123456789ab", ""),
            (
                "/user.slice/user-1.slice/user@1.service/user.slice/libpod-ID.scope/container",
                "0123456789ab",
                "",
            ),
            ("/machine.slice/machine-libpod_pod_ID.slice/libpod-ID.scope", "0123456789ab", ""),
            ("/kubepods.slice/kubepods-podf.slice/cri-containerd-ID.scope", "0123456789ab", ""),
            ("/kubepods.slice/kubepods-podf.slice/crio-ID.scope/container", "0123456789ab", ""),
            ("/kubepods/burstable/podf00d/ID", "0123456789ab", ""),
            ("/lxc.payload.db/system.slice/a.service", "db", "a.service"),
            ("/lxc/101/ns/init.scope", "101", "init.scope"),
            ("/lxc.monitor.db", "", ""),
        ] {
            assert_eq!(at(path), pair(container, unit), "{path}");
        }
        for monitor in ["libpod-conmon-ID.scope", "crio-conmon-ID.scope"] {
            assert_eq!(at(&format!("/machine.slice/{monitor}")).0, "", "{monitor}");
        }
        let inner = at("/system.slice/docker-ID.scope/system.slice/cri-containerd-ID.scope");
        assert_eq!(inner, pair("0123456789ab", &format!("cri-containerd-{ID}.scope")));
    }

    #[test]
    fn both_hierarchies_are_read() {
        let systemd = "9:name=systemd:/system.slice/a.service\n8:pids:/system.slice/b.service\n0::/\n";
        assert_eq!(both(systemd), pair("", "a.service"));
        let nspawn = "9:name=systemd:/systemd-nspawn@b.service\n0::/systemd-nspawn@b.service/payload/system.slice/a.service\n";
        assert_eq!(both(nspawn), pair("b", "a.service"));
        let second = "9:name=systemd:/system.slice/a.service\n0::/system.slice/c.service\n";
        assert_eq!(both(second), pair("", "c.service"));
        let docker =
            format!("8:pids:/docker/{ID}\n9:name=systemd:/docker/{ID}\n0::/system.slice/docker.service\n");
        assert_eq!(both(&docker), pair("0123456789ab", ""));
        assert_eq!(both("8:pids:/system.slice/b.service\n"), pair("", ""));
    }

    #[test]
    fn any_text_is_read() {
        for text in ["", "\n\n", "0", "0:", "0::", "::::", "0::/lxc/", "0::/lxc.payload."] {
            assert_eq!(both(text), pair("", ""), "{text}");
        }
        assert_eq!(unescape(b"a\\x2d\\x2\\xzz\\"), b"a-\\x2\\xzz\\");
    }
}
