//! A value as the tools write a document: a line for each field of the top level, and one for each entry of a list there.

use serde_json::Value;

/// The text of a document.
pub fn document(value: &Value) -> String {
    let Value::Object(fields) = value else { return value.to_string() };
    let mut text = String::new();
    // What it is comes first.
    let (first, rest): (Vec<_>, Vec<_>) = fields.iter().partition(|(name, _)| *name == "format");
    for (name, value) in first.into_iter().chain(rest) {
        text.push_str(name);
        text.push(':');
        match value {
            Value::Array(entries) if !entries.is_empty() => {
                for entry in entries {
                    text.push_str("\n- ");
                    flow(entry, &mut text);
                }
            }
            value => {
                text.push(' ');
                flow(value, &mut text);
            }
        }
        text.push('\n');
    }
    text + "...\n"
}

fn flow(value: &Value, text: &mut String) {
    match value {
        Value::Object(fields) => {
            let write = |(name, value): (&String, &Value), text: &mut String| {
                text.push_str(name);
                text.push_str(": ");
                flow(value, text);
            };
            list('{', fields, '}', write, text);
        }
        Value::Array(entries) => list('[', entries, ']', flow, text),
        value => text.push_str(&value.to_string()),
    }
}

fn list<T>(
    open: char,
    entries: impl IntoIterator<Item = T>,
    close: char,
    write: impl Fn(T, &mut String),
    text: &mut String,
) {
    text.push(open);
    for (at, entry) in entries.into_iter().enumerate() {
        if at > 0 {
            text.push_str(", ");
        }
        write(entry, text);
    }
    text.push(close);
}
