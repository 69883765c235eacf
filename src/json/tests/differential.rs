//! The scanner against `serde_json`: whatever the profile has no rule for, both judge alike, and what
//! is accepted means the same. Knows the public face only.

use bytes::Bytes;
use proptest::prelude::*;
use serde_json::Value;

use crate::json::{Form, MAX_VIOLATIONS, Profile, members, scan};

/// The reasons for which we refuse what `serde_json` takes.
const PROFILE_RULES: &[&str] = &[
    "is not a JSON object",
    "at least one event",
    "more than",
    "deeper than",
    "\\u0000",
    "number of",
    "too large for a double",
    "too close to zero",
    "zero with an exponent",
    "the key has",
];

fn compare_with_serde(body: &[u8]) {
    let theirs = serde_json::from_slice::<Value>(body);
    match scan(body, Form::Json, &Profile::default()) {
        Ok(items) => {
            let theirs = match theirs.unwrap() {
                Value::Array(values) => values,
                other => vec![other],
            };
            let body = Bytes::copy_from_slice(body);
            let ours: Vec<Value> = items
                .iter()
                .map(|item| serde_json::from_slice(&item.payload(&body)).unwrap())
                .collect();
            assert_eq!(ours, theirs);
            for item in items {
                compare_members(&item.payload(&body));
            }
        }
        Err(violations) => {
            assert!(!violations.is_empty() && violations.len() <= MAX_VIOLATIONS);
            if theirs.is_ok() {
                for violation in violations {
                    assert!(
                        PROFILE_RULES.iter().any(|rule| violation.reason.contains(rule)),
                        "{violation:?}"
                    );
                }
            }
        }
    }
}

fn compare_members(payload: &[u8]) {
    let theirs: serde_json::Map<String, Value> = serde_json::from_slice(payload).unwrap();
    let ours: serde_json::Map<String, Value> = members(payload)
        .map(|(key, raw)| (key.into_owned(), serde_json::from_slice(raw).unwrap()))
        .collect();
    assert_eq!(members(payload).count(), theirs.len());
    assert_eq!(ours, theirs);
}

fn scalar() -> impl Strategy<Value = String> {
    proptest::sample::select(vec![
        "0",
        "-0",
        "1.10",
        "-12e3",
        "1E-5",
        "1e309",
        "5e-324",
        "0e999",
        "12345678901234567890123",
        "01",
        "true",
        "false",
        "null",
        "nul",
        "\"\"",
        "\"plain text of some length\"",
        "\"é😀\"",
        "\"\\u00e9\\n\\\\\"",
        "\"\\ud83d\\ude00\"",
        "\"\\ud83d\"",
        "\"\\u0000\"",
        "\"\t\"",
    ])
    .prop_map(str::to_owned)
}

fn key() -> impl Strategy<Value = String> {
    proptest::sample::select(vec![
        "\"a\"",
        "\"\\u0061\"",
        "\"b\"",
        "\"\"",
        "\"long key 1\"",
        "\"long key 2\"",
        "\"é\"",
    ])
    .prop_map(str::to_owned)
}

fn space() -> impl Strategy<Value = &'static str> {
    proptest::sample::select(vec!["", "", "", " ", "\n", "\r\n\t"])
}

fn document() -> impl Strategy<Value = String> {
    let tree = scalar().prop_recursive(5, 48, 6, |inner| {
        let object = prop::collection::vec((space(), key(), space(), inner.clone()), 0..6);
        let array = prop::collection::vec((space(), inner), 0..4);
        prop_oneof![
            3 => object.prop_map(|members| {
                let members: Vec<String> = members
                    .into_iter()
                    .map(|(before, key, between, value)| format!("{before}{key}{between}:{value}"))
                    .collect();
                format!("{{{}}}", members.join(","))
            }),
            1 => array.prop_map(|elements| {
                let elements: Vec<String> = elements
                    .into_iter()
                    .map(|(before, value)| format!("{before}{value}"))
                    .collect();
                format!("[{}]", elements.join(" ,"))
            }),
        ]
    });
    // Most bodies are to be accepted: objects, and arrays of objects.
    (tree, key(), 0..3_usize).prop_map(|(value, key, form)| match form {
        0 => value,
        1 => format!("{{{key}:{value}}}"),
        _ => format!("[{{{key}:{value}}},{{{key}:1,{key}:{value}}}]"),
    })
}

/// Single bytes replaced, inserted or taken out.
fn mutations() -> impl Strategy<Value = Vec<(prop::sample::Index, u8, u8)>> {
    let byte = prop_oneof![
        4 => proptest::sample::select(b"{}[]\",:\\ue0.-19 \n\t".to_vec()),
        1 => any::<u8>(),
    ];
    prop::collection::vec((any::<prop::sample::Index>(), 0..3_u8, byte), 0..4)
}

fn mutate(text: &str, mutations: &[(prop::sample::Index, u8, u8)]) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    for (place, kind, byte) in mutations {
        let at = place.index(bytes.len() + 1);
        match kind {
            0 => bytes.insert(at, *byte),
            _ if at == bytes.len() => {}
            1 => bytes[at] = *byte,
            _ => {
                bytes.remove(at);
            }
        }
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn documents_are_judged_as_serde_json_does(text in document()) {
        compare_with_serde(text.as_bytes());
    }

    #[test]
    fn mutated_documents_are_judged_as_serde_json_does(
        text in document(),
        mutations in mutations(),
    ) {
        compare_with_serde(&mutate(&text, &mutations));
    }

    #[test]
    fn any_bytes_are_judged_as_serde_json_does(body in prop::collection::vec(any::<u8>(), 0..40)) {
        compare_with_serde(&body);
        let _ = scan(&body, Form::Lines, &Profile::default());
    }

    #[test]
    fn lines_are_judged_one_by_one(
        lines in prop::collection::vec((document(), mutations()), 1..5),
    ) {
        let lines: Vec<Vec<u8>> = lines
            .iter()
            .map(|(text, mutations)| {
                let mut line = mutate(text, mutations);
                line.retain(|byte| *byte != b'\n');
                line
            })
            .filter(|line| std::str::from_utf8(line).is_ok())
            .filter(|line| line.iter().any(|byte| !b" \t\r".contains(byte)))
            .collect();
        let good: Vec<bool> = lines
            .iter()
            .map(|line| {
                let object = line
                    .iter()
                    .find(|byte| !b" \t\r".contains(byte))
                    .is_some_and(|byte| *byte == b'{');
                object && scan(line, Form::Json, &Profile::default()).is_ok()
            })
            .collect();
        match scan(&lines.join(&b'\n'), Form::Lines, &Profile::default()) {
            Ok(items) => {
                prop_assert_eq!(items.len(), lines.len());
                prop_assert!(good.iter().all(|good| *good));
            }
            Err(_) => prop_assert!(lines.is_empty() || good.contains(&false)),
        }
    }
}
