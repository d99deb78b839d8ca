//! Whether a report fits together. One that was not made by a scan may be in any order, or say what cannot be.

use std::collections::{HashMap, HashSet};

use anyhow::{Result, bail, ensure};
use autofs_cr_common::doc::Report;

/// Checks a report.
pub fn check(report: &Report) -> Result<()> {
    check_order(report)?;
    check_references(report)?;
    check_parents(report)
}

fn check_order(report: &Report) -> Result<()> {
    ensure!(
        report.superblocks.is_sorted_by(|one, other| one.device < other.device),
        "superblocks of the report: they are not sorted by device, or one is there twice"
    );
    ensure!(
        report.processes.is_sorted_by(|one, other| one.pid < other.pid),
        "processes of the report: they are not sorted by pid, or one is there twice"
    );
    Ok(())
}

fn check_references(report: &Report) -> Result<()> {
    for mount in &report.mounts {
        let place = &mount.mount_point;
        ensure!(place.is_absolute(), "mount_point '{place}' of the report is not absolute");
        ensure!(
            report.superblock(mount.device).is_some(),
            "device {} of mount '{place}' is no superblock of the report",
            mount.device
        );
    }
    for superblock in &report.superblocks {
        let Some(master) = superblock.master else { continue };
        ensure!(
            report.process(master).is_some(),
            "master {master} of superblock {} is no process of the report",
            superblock.device
        );
    }
    Ok(())
}

/// Each mount is there once, and none is on itself.
fn check_parents(report: &Report) -> Result<()> {
    let mounts = report.mounts.iter().map(|mount| (mount.id, mount.parent, &mount.mount_point));
    let content = report.content.iter().map(|content| (content.id, content.parent, &content.mount_point));
    let mut parents = HashMap::with_capacity(report.mounts.len() + report.content.len());
    for (id, parent, place) in mounts.chain(content) {
        if parents.insert(id, (parent, place)).is_some() {
            bail!("id {id} of mount '{place}' of the report stands twice");
        }
    }
    // Those of which it is known that they lead to the outside.
    let mut good: HashSet<u64> = HashSet::with_capacity(parents.len());
    for &start in parents.keys() {
        let mut way = HashSet::new();
        let mut at = start;
        while let Some(&(parent, place)) = parents.get(&at).filter(|_| !good.contains(&at)) {
            if !way.insert(at) {
                bail!(
                    "parent {parent} of mount '{place}' (id {at}) of the report: it is on itself in the end"
                );
            }
            at = parent;
        }
        good.extend(way);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = r#"format: autofs-cr/report/1
hidden: []
namespaces: []
processes: []
superblocks:
- {device: "0:45", options: {type: direct, timeout: 1, minproto: 5, maxproto: 5}, state: catatonic, reason: ""}
content: []
requests: []
mounts:
"#;

    fn fault(mounts: &[(u64, u64)]) -> Option<String> {
        let line = |(id, parent): &(u64, u64)| {
            format!(
                "- {{namespace: 1, id: {id}, parent: {parent}, device: \"0:45\", root: /, mount_point: /m{id}, options: rw, propagation: private, source: x}}\n"
            )
        };
        let text = format!("{HEAD}{}...\n", mounts.iter().map(line).collect::<String>());
        let report: Report = autofs_cr_common::doc::parse(text.as_bytes(), "the report").expect(&text);
        check(&report).err().map(|error| error.to_string())
    }

    #[test]
    fn mounts_on_each_other_are_refused() {
        assert_eq!(fault(&[(5, 1), (6, 5), (7, 6)]), None);
        for circle in [&[(5, 5)][..], &[(5, 6), (6, 5)], &[(4, 5), (5, 6), (6, 7), (7, 5)]] {
            let fault = fault(circle).unwrap_or_default();
            assert!(fault.contains("on itself") && fault.contains("parent"), "{fault}");
        }
        assert_eq!(
            fault(&[(5, 1), (5, 2)]).as_deref(),
            Some("id 5 of mount '/m5' of the report stands twice")
        );
    }

    #[test]
    fn a_long_chain_takes_no_stack() {
        let chain: Vec<(u64, u64)> = (1..20_000).map(|id| (id, id + 1)).collect();
        assert_eq!(fault(&chain), None);
    }
}
