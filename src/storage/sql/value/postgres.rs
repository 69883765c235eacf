//! Values on their way to PostgreSQL: rows of `COPY … (FORMAT text)`, and the texts of parameters.
//!
//! The server's own input functions read the canonical texts; only arrays have a form of its own.
//! Must not know a connection.

use std::borrow::Cow;

use super::{Head, Value};

/// Appends one row of COPY's text format: the canonical columns, then `values`.
pub fn copy_text(head: &Head<'_>, values: &[Option<Value<'_>>], out: &mut Vec<u8>) {
    escape(head.origin.as_bytes(), out);
    out.push(b'\t');
    out.extend_from_slice(head.seq.to_string().as_bytes());
    for text in [head.node, head.channel, head.received_at] {
        out.push(b'\t');
        escape(text.as_bytes(), out);
    }
    for value in values {
        out.push(b'\t');
        match value {
            None => out.extend_from_slice(b"\\N"),
            Some(Value::Json(json)) => escape(json, out),
            Some(value) => escape(text(value).as_bytes(), out),
        }
    }
    out.push(b'\n');
}

/// The parameters of one row: the canonical columns, then `values`. Every one is text.
#[must_use]
pub fn binds<'v>(head: &Head<'v>, values: &'v [Option<Value<'_>>]) -> Vec<Option<Cow<'v, str>>> {
    let mut binds = Vec::with_capacity(5 + values.len());
    binds.extend([
        Some(Cow::Borrowed(head.origin)),
        Some(Cow::Owned(head.seq.to_string())),
        Some(Cow::Borrowed(head.node)),
        Some(Cow::Borrowed(head.channel)),
        Some(Cow::Borrowed(head.received_at)),
    ]);
    binds.extend(values.iter().map(|value| value.as_ref().map(text)));
    binds
}

/// A value as PostgreSQL reads it.
fn text<'v>(value: &'v Value<'_>) -> Cow<'v, str> {
    match value {
        Value::Array(elements) => Cow::Owned(array_literal(elements)),
        _ => value.text(),
    }
}

/// `{"1","2",NULL}`: every element in quotes, which all types take.
fn array_literal(elements: &[Option<Value<'_>>]) -> String {
    let mut literal = String::from("{");
    for (at, element) in elements.iter().enumerate() {
        if at > 0 {
            literal.push(',');
        }
        match element {
            None => literal.push_str("NULL"),
            Some(element) => push_quoted(&element.text(), &mut literal),
        }
    }
    literal.push('}');
    literal
}

fn push_quoted(text: &str, literal: &mut String) {
    literal.push('"');
    for character in text.chars() {
        if matches!(character, '"' | '\\') {
            literal.push('\\');
        }
        literal.push(character);
    }
    literal.push('"');
}

/// Appends a field, with a backslash before what would end it, its row, or be an escape itself.
fn escape(field: &[u8], out: &mut Vec<u8>) {
    let mut from = 0;
    for (at, byte) in field.iter().enumerate() {
        let letter = match byte {
            b'\\' => b'\\',
            b'\t' => b't',
            b'\n' => b'n',
            b'\r' => b'r',
            _ => continue,
        };
        out.extend_from_slice(&field[from..at]);
        out.extend_from_slice(&[b'\\', letter]);
        from = at + 1;
    }
    out.extend_from_slice(&field[from..]);
}
