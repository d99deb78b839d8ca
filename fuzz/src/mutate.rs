//! Changes a document at one place: a value becomes another one of the same document or one that is special, an entry or
//! a field is left out, doubled or moved.

use libfuzzer_sys::fuzzer_mutate;
use serde_json::{Value, json};

/// Numbers drawn from a seed (splitmix64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % end.max(1) as u64) as usize
    }
}

/// Changes the document in `data[..size]`, and gives its new size. As bytes where it is none, and now and then anyway.
pub fn mutate(data: &mut [u8], size: usize, max_size: usize, seed: u32) -> usize {
    let mut dice = Dice(seed.into());
    let parsed = std::str::from_utf8(&data[..size]).ok().and_then(|text| serde_yaml::from_str::<Value>(text).ok());
    let Some(mut document) = parsed.filter(|value| value.is_object() && dice.below(8) > 0) else {
        return fuzzer_mutate(data, size, max_size);
    };
    for _ in 0..=dice.below(3) {
        change(&mut document, &mut dice);
    }
    let text = crate::print::document(&document);
    match data.get_mut(..text.len()).filter(|_| text.len() <= max_size) {
        Some(place) => {
            place.copy_from_slice(text.as_bytes());
            text.len()
        }
        None => fuzzer_mutate(data, size, max_size),
    }
}

fn change(document: &mut Value, dice: &mut Dice) {
    let count = count(document);
    let other = nth(document, dice.below(count)).cloned().unwrap_or_default();
    let place = dice.below(count);
    let Some(value) = nth_mut(document, place) else { return };
    match (dice.below(6), value) {
        (0, Value::Array(entries)) if !entries.is_empty() => drop(entries.remove(dice.below(entries.len()))),
        (1 | 2, Value::Array(entries)) if !entries.is_empty() => {
            let entry = entries[dice.below(entries.len())].clone();
            entries.insert(dice.below(entries.len() + 1), entry);
        }
        (3, Value::Array(entries)) if entries.len() > 1 => {
            let (one, two) = (dice.below(entries.len()), dice.below(entries.len()));
            entries.swap(one, two);
        }
        (0, Value::Object(fields)) if !fields.is_empty() => {
            let name = fields.keys().nth(dice.below(fields.len())).cloned().unwrap_or_default();
            fields.remove(&name);
        }
        (1 | 2, Value::Object(fields)) => drop(fields.insert(name(dice), special(dice))),
        (_, value) if value.is_array() || value.is_object() => {}
        (0 | 1, value) => *value = other,
        (2 | 3, Value::Number(number)) => *number = near(number, dice),
        (2 | 3, Value::String(text)) => edit(text, dice),
        (_, value) => *value = special(dice),
    }
}

/// The optional fields, so that they come to be where none was.
fn name(dice: &mut Dice) -> String {
    const NAMES: [&str; 22] = [
        "covers", "within", "buried", "copy", "pipe", "pgrp", "master", "fd", "flags", "inode", "directories",
        "symlinks", "control_fds", "pid", "session", "read_end", "write_end", "requests", "uid", "ignore",
        "strictexpire", "segment",
    ];
    NAMES[dice.below(NAMES.len())].to_owned()
}

fn near(number: &serde_json::Number, dice: &mut Dice) -> serde_json::Number {
    match (number.as_u64(), dice.below(3)) {
        (Some(number), 0) => number.wrapping_add(1).into(),
        (Some(number), 1) => number.wrapping_sub(1).into(),
        (Some(number), _) => (number ^ (1 << dice.below(64))).into(),
        (None, _) => 0.into(),
    }
}

fn edit(text: &mut String, dice: &mut Dice) {
    const PARTS: [&str; 14] = ["/", "/..", "/a", "//", ".", ":", ",", "\\x00", "\\\\", "\n", "\u{2028}", "0", "é", "-1"];
    let at = (0..=text.len()).filter(|at| text.is_char_boundary(*at)).nth(dice.below(text.len() + 1)).unwrap_or(0);
    match dice.below(3) {
        0 => text.truncate(at),
        _ => text.insert_str(at, PARTS[dice.below(PARTS.len())]),
    }
}

fn special(dice: &mut Dice) -> Value {
    let texts = [
        "", "/", "/m", "/m/a", "a", "..", "0:45", "0:0", "0:262144", "4095:1048575", "private", "shared:1", "slave:1",
        "shared:1,slave:2", "connected", "catatonic", "delegated", "orphaned", "unknown", "autofs", "content", "direct",
        "indirect", "offset", "rw", "ro,nosuid,relatime", "0755", "severed", "stale", "mount", "expire", "read", "write",
        "both", "first", "joined", "systemd", "automount",
    ];
    let numbers = [0, 1, 2, 5, 45, (1 << 31) - 1, 1 << 31, u64::from(u32::MAX), 1 << 32, u64::MAX >> 1, u64::MAX];
    match dice.below(8) {
        0..3 => Value::from(texts[dice.below(texts.len())]),
        3..6 => Value::from(numbers[dice.below(numbers.len())]),
        _ => [json!(-1), json!(true), json!(null), json!([]), json!({}), json!(1.5), json!({"fd": 3}), json!([1, 0])]
            [dice.below(8)]
        .clone(),
    }
}

/// How many values there are, those inside others too.
fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(entries) => entries.iter().map(count).sum(),
        Value::Object(fields) => fields.values().map(count).sum(),
        _ => 0,
    }
}

fn nth(value: &Value, at: usize) -> Option<&Value> {
    let mut left = at;
    let mut open = vec![value];
    while let Some(value) = open.pop() {
        if left == 0 {
            return Some(value);
        }
        left -= 1;
        match value {
            Value::Array(entries) => open.extend(entries),
            Value::Object(fields) => open.extend(fields.values()),
            _ => {}
        }
    }
    None
}

fn nth_mut(value: &mut Value, at: usize) -> Option<&mut Value> {
    let mut left = at;
    let mut open = vec![value];
    while let Some(value) = open.pop() {
        if left == 0 {
            return Some(value);
        }
        left -= 1;
        match value {
            Value::Array(entries) => open.extend(entries),
            Value::Object(fields) => open.extend(fields.values_mut()),
            _ => {}
        }
    }
    None
}
