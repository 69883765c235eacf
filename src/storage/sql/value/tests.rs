//! What values become, on the way in and on the way back. No database is asked.

use std::collections::BTreeMap;

use super::sqlite::Bind;
use super::*;
use crate::channel::schema::SchemaSource;

/// A type, what a client sends, and the canonical text.
const CASES: &[(&str, &str, &str)] = &[
    ("text", r#""""#, ""),
    ("text", r#""ünï\n\t\u0041\ud83d\ude00\\""#, "ünï\n\tA\u{1F600}\\"),
    ("timestamptz", r#""2024-05-01T12:00:00Z""#, "2024-05-01 12:00:00.000000+00:00"),
    ("timestamptz", r#""2024-05-01 12:00:00.5+02:00""#, "2024-05-01 10:00:00.500000+00:00"),
    ("timestamptz", r#""2024-02-29T23:30:00-01:00""#, "2024-03-01 00:30:00.000000+00:00"),
    ("timestamptz", r#""2024-02-28T23:59:59.9999999Z""#, "2024-02-29 00:00:00.000000+00:00"),
    ("timestamptz", r#""0001-01-01T02:00:00+02:00""#, "0001-01-01 00:00:00.000000+00:00"),
    ("timestamptz", r#""9999-12-31T21:59:59.999999-02:00""#, "9999-12-31 23:59:59.999999+00:00"),
    ("timestamptz", r#""9999-12-31T23:59:59.9999999+00:01""#, "9999-12-31 23:59:00.000000+00:00"),
    ("timestamp", r#""2024-05-01T12:00:00""#, "2024-05-01 12:00:00.000000"),
    ("timestamp", r#""1969-12-31 23:59:59.999999""#, "1969-12-31 23:59:59.999999"),
    ("timestamp", r#""0001-01-01 00:00:00""#, "0001-01-01 00:00:00.000000"),
    ("timestamp", r#""9999-12-31 23:59:59.9999994""#, "9999-12-31 23:59:59.999999"),
    ("date", r#""0001-01-01""#, "0001-01-01"),
    ("date", r#""9999-12-31""#, "9999-12-31"),
    ("time", r#""00:00:00""#, "00:00:00.000000"),
    ("time", r#""23:59:59.123456789""#, "23:59:59.123457"),
    // ties go to the even microsecond
    ("time", r#""12:00:00.0000005""#, "12:00:00.000000"),
    ("time", r#""12:00:00.0000015""#, "12:00:00.000002"),
    ("time", r#""12:00:00.1234565""#, "12:00:00.123456"),
    ("timetz", r#""12:00:00Z""#, "12:00:00.000000+00:00"),
    ("timetz", r#""12:00:00-00:00""#, "12:00:00.000000+00:00"),
    ("timetz", r#""12:00:00.5-15:59""#, "12:00:00.500000-15:59"),
    ("timetz", r#""12:00:00+02:00""#, "12:00:00.000000+02:00"),
    ("inet", r#""192.0.2.1""#, "192.0.2.1"),
    ("inet", r#""192.0.2.1/32""#, "192.0.2.1"),
    ("inet", r#""192.0.2.1/24""#, "192.0.2.1/24"),
    ("inet", r#""2001:DB8:0:0:1:0:0:1""#, "2001:db8::1:0:0:1"),
    ("inet", r#""::1/128""#, "::1"),
    ("inet", r#""0:0:0:0:0:0:0:0/0""#, "::/0"),
    ("inet", r#""::ffff:192.0.2.1""#, "::ffff:192.0.2.1"),
    ("inet", r#""::c000:201""#, "::192.0.2.1"),
    ("inet", r#""2001:db8:0:1:1:1:1:1""#, "2001:db8:0:1:1:1:1:1"),
    ("cidr", r#""192.0.2.0/24""#, "192.0.2.0/24"),
    ("cidr", r#""192.0.2.1""#, "192.0.2.1/32"),
    ("cidr", r#""2001:DB8::/32""#, "2001:db8::/32"),
    ("cidr", r#""::1""#, "::1/128"),
    ("macaddr", r#""08-00-2B-01-02-03""#, "08:00:2b:01:02:03"),
    ("macaddr", r#""0800.2b01.0203""#, "08:00:2b:01:02:03"),
    ("macaddr8", r#""08002b0102030405""#, "08:00:2b:01:02:03:04:05"),
    ("smallint", "-32768", "-32768"),
    ("integer", "-0", "0"),
    ("bigint", "9223372036854775807", "9223372036854775807"),
    ("bigint", "-9223372036854775808", "-9223372036854775808"),
    ("boolean", "true", "true"),
    ("boolean", "false", "false"),
    ("real", "0.1", "0.1"),
    ("real", "1.00000001", "1.0"),
    // the shortest digits would lie beyond what the door and MySQL take
    ("real", "3.4028234e38", "3.4028234663852886e38"),
    ("real", "1.1754944e-38", "1.1754944e-38"),
    ("real", "-0", "-0.0"),
    ("double precision", "1e-300", "1e-300"),
    ("double precision", "0.1000000000000000055", "0.1"),
    ("double precision", "12345678901234567890", "1.2345678901234567e19"),
    ("double precision", "100", "100.0"),
    ("double precision", "1.7976931348623157e308", "1.7976931348623157e308"),
    ("numeric", "1.10", "1.10"),
    ("numeric", r#""+007.50""#, "7.50"),
    ("numeric", "-0", "0"),
    ("numeric", r#""-0.00""#, "0.00"),
    ("numeric", "1e5", "100000"),
    ("numeric", "1.50e1", "15.0"),
    ("numeric", "-123.45E-2", "-1.2345"),
    ("numeric", "1e-30", "0.000000000000000000000000000001"),
    ("numeric", "0e-5", "0.00000"),
    ("numeric", "0e5", "0"),
    ("numeric", "0e-308", "0"),
    ("uuid", r#""123E4567-E89B-12D3-A456-426614174000""#, "123e4567-e89b-12d3-a456-426614174000"),
    ("bytea", r#""\\x""#, "\\x"),
    ("bytea", r#""\\x00DEADbeef""#, "\\x00deadbeef"),
    ("jsonb", r#"{ "a" : [1.10, "\u0041"] }"#, r#"{ "a" : [1.10, "\u0041"] }"#),
    ("jsonb", r#""text""#, r#""text""#),
    ("text[]", "[]", "[]"),
    ("text[]", r#"["a\"b\\c", null, "ü,{}", "NULL", ""]"#, r#"["a\"b\\c",null,"ü,{}","NULL",""]"#),
    ("integer[]", "[ 1 , null , -3 ]", "[1,null,-3]"),
    ("boolean[]", "[true,null]", "[true,null]"),
    ("double precision[]", "[1e300,0.5]", "[1e300,0.5]"),
    ("numeric[]", r#"["1e2",1.50]"#, "[100,1.50]"),
    ("timestamptz[]", r#"["2024-05-01T12:00:00Z"]"#, r#"["2024-05-01 12:00:00.000000+00:00"]"#),
    ("bytea[]", r#"["\\x00FF"]"#, r#"["\\x00ff"]"#),
    ("jsonb[]", r#"[{"a":[1,null]}, null, "x"]"#, r#"[{"a":[1,null]},null,"x"]"#),
];

fn schema(columns: &[(&str, &str)]) -> Schema {
    Schema::new(&SchemaSource {
        table: "t".to_owned(),
        columns: columns.iter().map(|(name, _)| (*name).to_owned()).collect(),
        field_types: columns
            .iter()
            .map(|(name, ty)| ((*name).to_owned(), (*ty).to_owned()))
            .collect::<BTreeMap<_, _>>(),
        ..SchemaSource::default()
    })
    .unwrap()
}

fn ty(name: &str) -> FieldType {
    FieldType::parse(name).unwrap()
}

/// The value of a column of this type.
fn mapped<'a>(name: &str, payload: &'a str) -> Option<Value<'a>> {
    let schema = schema(&[("f", name)]);
    row(&schema, payload.as_bytes(), OnUnknown::Reject).unwrap().remove(0)
}

fn payload(raw: &str) -> String {
    format!("{{\"f\":{raw}}}")
}

#[test]
fn every_type_has_one_canonical_text() {
    for &(name, raw, text) in CASES {
        let payload = payload(raw);
        assert_eq!(mapped(name, &payload).unwrap().text(), text, "{name}: {raw}");
    }
}

#[test]
fn what_is_held_is_read_back_as_what_was_written() {
    for &(name, raw, text) in CASES {
        let payload = payload(raw);
        let written = mapped(name, &payload);
        assert!(same_values(&[written], &[Some(held(ty(name), text))]), "{name}: {raw}");
    }
}

#[test]
fn the_payload_of_a_row_gives_the_same_row_again() {
    for &(name, raw, text) in CASES {
        let schema = schema(&[("f", name)]);
        let again = payload_of(&schema, &[Some(text)]);
        let again = String::from_utf8(again).unwrap();
        let profile = json::Profile::default();
        assert!(json::scan(again.as_bytes(), json::Form::Json, &profile).is_ok(), "{again}");
        let raw = payload(raw);
        assert!(same_values(&[mapped(name, &raw)], &[mapped(name, &again)]), "{raw} {again}");
    }
}

#[test]
fn the_forms_of_postgres_are_read_as_the_canonical_ones() {
    for (name, shown, text) in [
        ("timestamptz", "2024-05-01 12:00:00+00", "2024-05-01 12:00:00.000000+00:00"),
        ("timestamptz", "2024-05-01 12:00:00.5+02", "2024-05-01 10:00:00.500000+00:00"),
        ("timestamp", "2024-05-01 12:00:00.123", "2024-05-01 12:00:00.123000"),
        ("time", "12:00:00", "12:00:00.000000"),
        ("timetz", "12:00:00-03", "12:00:00.000000-03:00"),
        ("timetz", "12:00:00.5+05:30", "12:00:00.500000+05:30"),
        ("real", "1e+20", "1e20"),
        ("double precision", "1e+300", "1e300"),
        ("double precision", "-0", "-0.0"),
        (
            "timestamp[]",
            r#"["2024-05-01T12:00:00",null]"#,
            r#"["2024-05-01 12:00:00.000000",null]"#,
        ),
        ("timetz[]", r#"["12:00:00+02"]"#, r#"["12:00:00.000000+02:00"]"#),
        ("double precision[]", "[1e+300]", "[1e300]"),
    ] {
        assert_eq!(held(ty(name), shown).text(), text, "{name}: {shown}");
    }
    assert!(held(ty("numeric"), "1.100").is_same(&held(ty("numeric"), "1.1")));
    assert!(held(ty("numeric"), "0.0").is_same(&held(ty("numeric"), "0")));
    assert!(!held(ty("numeric"), "10").is_same(&held(ty("numeric"), "1")));
    assert!(
        held(ty("jsonb"), r#"{"b": 1.0, "a": 2}"#).is_same(&held(ty("jsonb"), r#"{"a":2,"b":1}"#))
    );
}

#[test]
fn what_somebody_else_wrote_equals_nothing_of_ours_and_goes_as_a_string() {
    for (name, shown) in [
        ("timestamptz", "infinity"),
        ("timestamptz", "10000-01-01 00:00:00+00"),
        ("timestamp", "0044-03-15 12:00:00 BC"),
        ("date", "-infinity"),
        ("time", "24:00:00"),
        ("double precision", "NaN"),
        ("double precision", "Infinity"),
        ("numeric", "NaN"),
        ("integer[]", "{1,2}"),
        ("integer[]", "[[1],[2]]"),
        ("double precision[]", "[1,\"NaN\"]"),
        ("inet", "é"),
    ] {
        assert_eq!(held(ty(name), shown), Value::Text(Cow::Borrowed(shown)), "{name}");
        let payload = payload_of(&schema(&[("f", name)]), &[Some(shown)]);
        let string = serde_json::to_string(shown).unwrap();
        assert_eq!(String::from_utf8(payload).unwrap(), format!("{{\"f\":{string}}}"));
    }
}

#[test]
fn absent_and_null_are_one() {
    let schema = schema(&[("a", "text"), ("b", "integer"), ("c", "jsonb")]);
    let read = |payload: &'static str| row(&schema, payload.as_bytes(), OnUnknown::Reject).unwrap();
    assert_eq!(read("{}"), [None, None, None]);
    assert_eq!(read(r#"{"c":null,"a":null}"#), [None, None, None]);
    assert_eq!(read(r#" { "b" : 7 } "#), [None, Some(Value::Int(7)), None]);
    assert_eq!(payload_of(&schema, &[None, None, None]), b"{}");
    assert_eq!(payload_of(&schema, &[None, Some("7"), Some("[]")]), br#"{"b":7,"c":[]}"#);
}

#[test]
fn fields_without_a_column_are_dropped_or_name_the_column_that_is_gone() {
    let schema = schema(&[("a", "text")]);
    let payload = br#"{"a":"x","gone":"secret"}"#;
    assert_eq!(row(&schema, payload, OnUnknown::Drop).unwrap().len(), 1);
    let error = row(&schema, payload, OnUnknown::Reject).unwrap_err();
    assert_eq!(error.code(), "column gone");
    assert_eq!(error.to_string(), "its field gone has no column in today's channel");
    // null is absent, and no column was ever called so
    for payload in [r#"{"gone":null}"#, r#"{"x y":1,"origin_seq":2,"":3,"1st":4}"#] {
        assert_eq!(row(&schema, payload.as_bytes(), OnUnknown::Reject).unwrap(), [None]);
    }
}

#[test]
fn what_yesterdays_schema_took_is_refused_without_showing_it() {
    for (name, raw) in [
        ("integer", r#""secret""#),
        ("integer", "70000000000"),
        ("timestamptz", r#""secret""#),
        ("date", r#""2023-02-29""#),
        ("text", "{\"secret\":1}"),
        ("inet[]", r#"["::1","secret"]"#),
    ] {
        let payload = payload(raw);
        let schema = schema(&[("f", name)]);
        let error = row(&schema, payload.as_bytes(), OnUnknown::Reject).unwrap_err();
        assert_eq!(error.code(), "column type");
        let text = error.to_string();
        assert!(text.starts_with("its field f ") && !text.contains("secret"), "{text}");
    }
}

#[test]
fn a_moment_is_written_and_read_back() {
    for (micros_since, text) in [
        (0, "1970-01-01 00:00:00.000000+00:00"),
        (-1, "1969-12-31 23:59:59.999999+00:00"),
        (1_771_502_400_000_001, "2026-02-19 12:00:00.000001+00:00"),
        (-62_135_596_800_000_000, "0001-01-01 00:00:00.000000+00:00"),
        (253_402_300_799_999_999, "9999-12-31 23:59:59.999999+00:00"),
        (951_782_400_000_000, "2000-02-29 00:00:00.000000+00:00"),
        (4_107_542_400_000_000, "2100-03-01 00:00:00.000000+00:00"),
    ] {
        assert_eq!(timestamptz(Micros(micros_since)), text);
        assert_eq!(micros(text), Some(Micros(micros_since)));
    }
    assert_eq!(micros("2026-02-19T12:00:00Z"), Some(Micros(1_771_502_400_000_000)));
    for bad in ["", "2026-02-19", "2026-02-19 12:00:00", "2026-13-01 00:00:00Z", "now", "é"] {
        assert_eq!(micros(bad), None, "{bad}");
    }
}

const HEAD: Head<'static> = Head {
    origin: "dc1",
    seq: Seq(7),
    node: "dc1",
    channel: "c",
    received_at: "2026-02-19 12:00:00.000000+00:00",
};

/// Checks the field of a row in COPY's text format.
fn check_copied(name: &str, raw: &str, field: &str) {
    let payload = payload(raw);
    let mut out = Vec::new();
    postgres::copy_text(&HEAD, &[mapped(name, &payload)], &mut out);
    let want = format!("dc1\t7\tdc1\tc\t2026-02-19 12:00:00.000000+00:00\t{field}\n");
    assert_eq!(String::from_utf8(out).unwrap(), want, "{name}: {raw}");
}

#[test]
fn a_copied_field_is_escaped_once_and_an_arrays_element_twice() {
    check_copied("text", "null", r"\N");
    check_copied("text", r#""\\N""#, r"\\N");
    check_copied("text", r#""a\tb\nc\rd\\e.""#, r"a\tb\nc\rd\\e.");
    check_copied("text", r#""""#, "");
    check_copied("bytea", r#""\\x00ff""#, r"\\x00ff");
    check_copied("jsonb", "{\"a\":\n\"\\n\"}", r#"{"a":\n"\\n"}"#);
    check_copied("boolean", "true", "true");
    check_copied("double precision", "1e-300", "1e-300");
    check_copied("text[]", "[]", "{}");
    check_copied(
        "text[]",
        r#"["a\"b", null, "c\\d", "NULL", "{,}", "\n"]"#,
        r#"{"a\\"b",NULL,"c\\\\d","NULL","{,}","\n"}"#,
    );
    check_copied("integer[]", "[1,null]", r#"{"1",NULL}"#);
    check_copied("bytea[]", r#"["\\x00"]"#, r#"{"\\\\x00"}"#);
    check_copied("jsonb[]", r#"[{"a":"b"}]"#, r#"{"{\\"a\\":\\"b\\"}"}"#);
}

#[test]
fn parameters_of_postgres_are_all_texts() {
    let values = [
        Some(Value::Int(-1)),
        None,
        Some(Value::Bytes(vec![0, 255])),
        Some(Value::Array(vec![Some(Value::Text("a\"".into())), None])),
        Some(Value::Json(Cow::Borrowed(b"{\"a\": 1}"))),
    ];
    let binds = postgres::binds(&HEAD, &values);
    let binds: Vec<Option<&str>> = binds.iter().map(Option::as_deref).collect();
    assert_eq!(binds[..3], [Some("dc1"), Some("7"), Some("dc1")]);
    assert_eq!(
        binds[5..],
        [Some("-1"), None, Some("\\x00ff"), Some("{\"a\\\"\",NULL}"), Some("{\"a\": 1}")]
    );
}

#[test]
fn parameters_of_sqlite_are_of_their_columns_affinity() {
    let values = [
        Some(Value::Int(-1)),
        Some(Value::Bool(true)),
        Some(Value::Real(0.1)),
        Some(Value::Double(1e300)),
        Some(Value::Decimal("1.10".to_owned())),
        Some(Value::Bytes(vec![0, 255])),
        Some(Value::Array(vec![Some(Value::Int(1)), None])),
        None,
    ];
    let text = |text| Bind::Text(Cow::Borrowed(text));
    let binds = sqlite::binds(&HEAD, &values);
    assert_eq!(
        binds,
        [
            text("dc1"),
            Bind::Int(7),
            text("dc1"),
            text("c"),
            text(HEAD.received_at),
            Bind::Int(-1),
            Bind::Int(1),
            Bind::Real(f64::from(0.1_f32)),
            Bind::Real(1e300),
            text("1.10"),
            Bind::Blob(Cow::Borrowed(&[0, 255])),
            text("[1,null]"),
            Bind::Null,
        ]
    );
}

fn check_content(left: &str, right: &str, same: bool) {
    assert_eq!(same_content(left.as_bytes(), right.as_bytes()), same, "{left} and {right}");
    assert_eq!(same_content(right.as_bytes(), left.as_bytes()), same, "{right} and {left}");
}

#[test]
fn documents_are_the_same_as_trees() {
    for (left, right) in [
        ("{}", " { } "),
        (r#"{"a":1,"b":[true,null]}"#, r#"{ "b" : [ true , null ] , "a" : 1 }"#),
        (r#"{"\u0061":"\u00fc\/"}"#, r#"{"a":"ü/"}"#),
        (r#"{"a":1,"a":2}"#, r#"{"a":2}"#),
        ("[1.10]", "[1.1]"),
        ("[100]", "[1e2]"),
        ("[1]", "[1.0]"),
        ("[-0]", "[0]"),
        ("[-0.0]", "[0]"),
        ("[12345678901234567890123]", "[1.2345678901234568e22]"),
        ("[1e-300]", "[0.1e-299]"),
    ] {
        check_content(left, right, true);
    }
}

#[test]
fn documents_differ_in_a_member_an_element_or_a_number() {
    for (left, right) in [
        ("{}", "[]"),
        ("{}", r#"{"a":null}"#),
        (r#"{"a":1}"#, r#"{"b":1}"#),
        (r#"{"a":1}"#, r#"{"A":1}"#),
        ("[1,2]", "[2,1]"),
        ("[1]", "[1,1]"),
        ("[1]", r#"["1"]"#),
        ("[0]", "[false]"),
        ("[null]", "[false]"),
        ("[9007199254740993]", "[9007199254740992]"),
        ("[0.1]", "[0.10000000000000002]"),
        (r#"["a"]"#, r#"["a "]"#),
    ] {
        check_content(left, right, false);
    }
}

#[test]
fn a_document_of_brackets_does_not_overflow_the_stack() {
    let deep = |core: &str| format!("{}{core}{}", "[".repeat(3_000), "]".repeat(3_000));
    check_content(&deep("1"), &deep("2"), false);
    check_content(&deep("1"), &deep("1"), true);
}
