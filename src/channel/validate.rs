//! One payload against its channel's schema, at the door.
//!
//! Pure: must not know requests, queues or storage. What was accepted once is never judged here again.

use super::nearest::nearest;
use super::schema::{OnUnknown, Schema};
use crate::json::{self, MAX_VIOLATIONS, Violation};

/// The most bytes that the values under one index may have together: below what PostgreSQL (2,704) and
/// MySQL (3,072) take for a whole entry, with room for the canonical columns.
pub const MAX_INDEXED_BYTES: usize = 2_000;

/// Adds to `out` what is wrong with `payload`, the event `index` of its request, up to
/// [`MAX_VIOLATIONS`] in all. The payload keeps the portable profile already.
pub fn validate(schema: &Schema, payload: &[u8], index: usize, out: &mut Vec<Violation>) {
    let mut report = Report { index, out };
    let mut values: Vec<Option<&[u8]>> = vec![None; schema.columns.len()];
    let mut next = 0;
    for (key, raw) in json::members(payload) {
        if report.is_full() {
            return;
        }
        let Some(at) = schema.position(&key, next) else {
            if schema.on_unknown == OnUnknown::Reject {
                report.add(&key, unknown(schema, &key));
            }
            continue;
        };
        next = at + 1;
        values[at] = Some(raw);
        if raw != b"null"
            && let Err(reason) = schema.columns[at].ty.check(raw)
        {
            report.add(&key, reason);
        }
    }
    for (column, value) in schema.columns.iter().zip(values.iter().copied()) {
        if column.required {
            match value {
                None => report.add(column.name.as_str(), "is required, but missing"),
                Some(b"null") => report.add(column.name.as_str(), "is required, but null"),
                Some(_) => {}
            }
        }
    }
    // Decoding never makes a value longer.
    if payload.len() > MAX_INDEXED_BYTES {
        check_indexes(schema, &values, &mut report);
    }
}

fn check_indexes(schema: &Schema, values: &[Option<&[u8]>], report: &mut Report<'_>) {
    for spec in &schema.indexes {
        let sum: usize = spec
            .columns
            .iter()
            .filter_map(|(name, _)| schema.position(name.as_str(), 0))
            .filter_map(|at| values[at])
            .map(stored_len)
            .sum();
        if sum > MAX_INDEXED_BYTES {
            let names: Vec<&str> = spec.columns.iter().map(|(name, _)| name.as_str()).collect();
            report.add_item(format!(
                "the values under the index on {} have {sum} bytes together: at most \
                 {MAX_INDEXED_BYTES} are allowed",
                names.join(", ")
            ));
        }
    }
}

/// What a value weighs in an index: the decoded text of a string, nothing for null, else its JSON text.
fn stored_len(raw: &[u8]) -> usize {
    match raw.first() {
        Some(b'"') => json::decode_string(raw).len(),
        Some(b'n') => 0,
        _ => raw.len(),
    }
}

fn unknown(schema: &Schema, key: &str) -> String {
    let known = schema.columns.iter().map(|column| column.name.as_str());
    match nearest(key, known) {
        Some(column) => format!("is not a column of this channel; did you mean {column:?}?"),
        None => "is not a column of this channel".to_owned(),
    }
}

/// Where the violations of one event go.
struct Report<'a> {
    index: usize,
    out: &'a mut Vec<Violation>,
}

impl Report<'_> {
    fn is_full(&self) -> bool {
        self.out.len() >= MAX_VIOLATIONS
    }

    fn add(&mut self, key: &str, reason: impl Into<String>) {
        let mut pointer = String::new();
        json::push_segment(&mut pointer, key);
        self.push(pointer, reason.into());
    }

    fn add_item(&mut self, reason: String) {
        self.push(String::new(), reason);
    }

    fn push(&mut self, pointer: String, reason: String) {
        if !self.is_full() {
            self.out.push(Violation { index: self.index, pointer, reason });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::channel::schema::{IndexSource, SchemaSource};

    fn strings(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    fn schema(on_unknown: OnUnknown) -> Schema {
        Schema::new(&SchemaSource {
            table: "reports".to_owned(),
            columns: strings(&["at", "ip", "service", "comment", "tags"]),
            required: strings(&["at", "service"]),
            field_types: BTreeMap::from([
                ("at".to_owned(), "timestamptz".to_owned()),
                ("ip".to_owned(), "inet".to_owned()),
                ("tags".to_owned(), "text[]".to_owned()),
            ]),
            on_unknown,
            indexes: vec![
                IndexSource {
                    name: None,
                    unique: false,
                    columns: strings(&["service", "comment DESC", "received_at"]),
                },
                IndexSource { name: None, unique: false, columns: strings(&["tags"]) },
            ],
        })
        .unwrap()
    }

    fn found(schema: &Schema, payload: &str) -> Vec<Violation> {
        let mut out = Vec::new();
        validate(schema, payload.as_bytes(), 7, &mut out);
        out
    }

    /// Checks the violations of a payload: (pointer, a part of the reason) each.
    fn check(on_unknown: OnUnknown, payload: &str, expect: &[(&str, &str)]) {
        let found = found(&schema(on_unknown), payload);
        assert_eq!(found.len(), expect.len(), "{payload}: {found:?}");
        for (violation, (pointer, reason)) in found.iter().zip(expect) {
            assert_eq!(violation.index, 7);
            assert_eq!(violation.pointer, *pointer, "{violation:?}");
            assert!(violation.reason.contains(reason), "{violation:?}");
        }
    }

    /// A payload whose indexed values weigh `len` bytes together.
    fn weighing(len: usize) -> String {
        format!(
            "{{\"at\":\"2024-05-01T12:00:00Z\",\"service\":\"ssh\",\"comment\":\"{}\"}}",
            "\\u0041".repeat(len - 3)
        )
    }

    const GOOD: &str = "{\"at\":\"2024-05-01T12:00:00Z\",\"service\":\"ssh\"}";

    #[test]
    fn what_is_not_required_may_be_absent_or_null() {
        check(OnUnknown::Reject, GOOD, &[]);
        check(
            OnUnknown::Reject,
            r#"{"tags":null,"comment":null,"service":"","at":"2024-05-01 12:00:00+02:00","ip":"::1"}"#,
            &[],
        );
    }

    #[test]
    fn what_is_required_is_present_and_not_null() {
        check(
            OnUnknown::Reject,
            r#"{"service":null}"#,
            &[("/at", "missing"), ("/service", "but null")],
        );
        check(OnUnknown::Drop, "{}", &[("/at", "missing"), ("/service", "missing")]);
    }

    #[test]
    fn unknown_fields_are_refused_or_dropped() {
        let payload = r#"{"at":"2024-05-01T12:00:00Z","Service":"a","service":"ssh","servcie":"b","x/~y":1,"origin_dc":"dc9"}"#;
        check(
            OnUnknown::Reject,
            payload,
            &[
                ("/Service", "did you mean \"service\"?"),
                ("/servcie", "did you mean \"service\"?"),
                ("/x~1~0y", "is not a column"),
                ("/origin_dc", "is not a column"),
            ],
        );
        check(OnUnknown::Drop, payload, &[]);
    }

    #[test]
    fn an_escaped_key_names_its_column() {
        check(OnUnknown::Reject, r#"{"a\u0074":"2024-05-01T12:00:00Z","service":"ssh"}"#, &[]);
    }

    #[test]
    fn types_are_checked() {
        check(
            OnUnknown::Reject,
            r#"{"at":"yesterday","service":1,"ip":"192.0.2.300","tags":["a",1]}"#,
            &[
                ("/at", "must be a time with offset"),
                ("/service", "must be a string, but is a number"),
                ("/ip", "must be an IP address"),
                ("/tags", "element 1 must be a string"),
            ],
        );
    }

    #[test]
    fn the_values_under_one_index_are_bounded_after_decoding() {
        check(OnUnknown::Reject, &weighing(MAX_INDEXED_BYTES), &[]);
        check(
            OnUnknown::Reject,
            &weighing(MAX_INDEXED_BYTES + 1),
            &[("", "service, comment, received_at have 2001 bytes together")],
        );
        let tags = format!("[\"{}\"]", "x".repeat(1_996));
        let payload = GOOD.replace('}', &format!(",\"tags\":{tags}}}"));
        check(OnUnknown::Reject, &payload, &[]);
        let payload = payload.replace("xxx", "xxxx");
        check(OnUnknown::Reject, &payload, &[("", "index on tags")]);
    }

    #[test]
    fn a_long_value_under_no_index_is_good() {
        let payload = GOOD.replace('}', &format!(",\"unknown\":\"{}\"}}", "x".repeat(9_000)));
        check(OnUnknown::Drop, &payload, &[]);
    }

    #[test]
    fn violations_stop_at_their_bound() {
        let members: Vec<String> = (0..500).map(|n| format!("\"field{n}\":1")).collect();
        let payload = format!("{{{}}}", members.join(","));
        let schema = schema(OnUnknown::Reject);
        assert_eq!(found(&schema, &payload).len(), MAX_VIOLATIONS);
        let mut out = found(&schema, "{}");
        while out.len() < MAX_VIOLATIONS {
            validate(&schema, b"{\"z_unknown\":1}", 8, &mut out);
        }
        assert_eq!(out.len(), MAX_VIOLATIONS);
    }
}
