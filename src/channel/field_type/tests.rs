//! Which names are types, and which values they take. Knows the public face only.

use super::*;

/// A JSON string of `text`.
fn quoted(text: &str) -> String {
    serde_json::to_string(text).unwrap()
}

/// Checks values of a type, given as JSON texts.
fn check(name: &str, good: &[&str], bad: &[&str]) {
    let ty = FieldType::parse(name).unwrap();
    for raw in good {
        assert_eq!(ty.check(raw.as_bytes()), Ok(()), "{name}: {raw}");
    }
    for raw in bad {
        assert!(ty.check(raw.as_bytes()).is_err(), "{name}: {raw}");
    }
}

/// Checks values of a type that is written in strings.
fn check_strings(name: &str, good: &[&str], bad: &[&str]) {
    let ty = FieldType::parse(name).unwrap();
    for text in good {
        assert_eq!(ty.check(quoted(text).as_bytes()), Ok(()), "{name}: {text}");
        for spaced in [format!(" {text}"), format!("{text} ")] {
            assert!(ty.check(quoted(&spaced).as_bytes()).is_err(), "{name}: {spaced:?}");
        }
    }
    for text in bad.iter().chain(&["", " "]) {
        assert!(ty.check(quoted(text).as_bytes()).is_err(), "{name}: {text:?}");
    }
    check(name, &[], &["true", "{}", "[]", "20240501"]);
}

#[test]
fn every_name_of_the_specification_is_a_type() {
    for (text, canonical) in [
        ("text", "text"),
        ("varchar", "text"),
        ("varchar(10)", "text"),
        ("character varying (10)", "text"),
        ("CHAR(3)", "text"),
        ("character( 3 )", "text"),
        ("timestamptz", "timestamptz"),
        ("timestamp with time zone", "timestamptz"),
        ("Timestamp(3)  With Time Zone", "timestamptz"),
        ("timestamp", "timestamp"),
        ("timestamp(6)", "timestamp"),
        ("timestamp without time zone", "timestamp"),
        ("date", "date"),
        ("time", "time"),
        ("time(0)", "time"),
        ("time without time zone", "time"),
        ("timetz", "timetz"),
        ("time(3) with time zone", "timetz"),
        ("inet", "inet"),
        ("cidr", "cidr"),
        ("macaddr", "macaddr"),
        ("macaddr8", "macaddr8"),
        ("smallint", "smallint"),
        ("int2", "smallint"),
        ("integer", "integer"),
        ("int", "integer"),
        ("INT4", "integer"),
        ("bigint", "bigint"),
        ("int8", "bigint"),
        ("boolean", "boolean"),
        ("bool", "boolean"),
        ("real", "real"),
        ("float4", "real"),
        ("double precision", "double precision"),
        ("double\tprecision", "double precision"),
        ("float8", "double precision"),
        ("float", "double precision"),
        ("numeric", "numeric"),
        ("numeric(12,2)", "numeric"),
        ("decimal( 12 , 2 )", "numeric"),
        ("decimal(12)", "numeric"),
        ("uuid", "uuid"),
        ("bytea", "bytea"),
        ("jsonb", "jsonb"),
        ("json", "jsonb"),
    ] {
        let ty = FieldType::parse(text).unwrap();
        assert_eq!(ty.to_string(), canonical, "{text}");
        for brackets in ["[]", " [ ] "] {
            let array = FieldType::parse(&format!("{text}{brackets}")).unwrap();
            assert_eq!(array.to_string(), format!("{canonical}[]"), "{text}");
        }
    }
}

#[test]
fn what_is_no_type_is_refused_with_the_nearest_one() {
    for (text, reason) in [
        ("txt", "did you mean \"text\"?"),
        ("timestmptz", "did you mean \"timestamptz\"?"),
        ("doubleprecision", "did you mean \"double precision\"?"),
        ("", "not a field type"),
        ("[]", "not a field type"),
        ("geometry", "not a field type"),
        ("text[][]", "one dimension"),
        ("text[3]", "not a field type"),
        ("varchar(n)", "a modifier is a number"),
        ("varchar()", "a modifier is a number"),
        ("varchar(1", "a modifier is a number"),
        ("varchar(-1)", "a modifier is a number"),
        ("varchar(1,2)", "no more than 1"),
        ("numeric(1,2,3)", "no more than 2"),
        ("integer(4)", "integer takes no numbers"),
        ("varchar(1)(2)", "not a field type"),
    ] {
        let error = FieldType::parse(text).unwrap_err();
        assert!(error.contains(reason), "{text}: {error}");
    }
}

#[test]
fn whole_numbers_are_json_numbers_in_range() {
    let bad = ["\"1\"", "1.0", "1e2", "true", "[]", "99999999999999999999"];
    check("smallint", &["0", "-0", "32767", "-32768"], &["32768", "-32769"]);
    check("smallint", &[], &bad);
    check("integer", &["2147483647", "-2147483648"], &["2147483648", "-2147483649"]);
    check("integer", &[], &bad);
    check(
        "bigint",
        &["9223372036854775807", "-9223372036854775808"],
        &["9223372036854775808", "-9223372036854775809"],
    );
    check("bigint", &[], &bad);
}

#[test]
fn floating_numbers_are_json_numbers_in_range() {
    check(
        "real",
        &["0", "-0.0", "1.5", "3.4028234e38", "-3.4028234e38", "1.2e-38"],
        &["3.4028236e38", "1e39", "1e-39", "-1e-45", "\"1\"", "null"],
    );
    check("double precision", &["0", "1e308", "-1.5", "1e-300"], &["\"1\"", "true"]);
    check("boolean", &["true", "false"], &["1", "0", "\"true\"", "{}"]);
}

#[test]
fn numeric_fits_into_the_smallest_decimal() {
    let whole = "9".repeat(35);
    let fraction = format!("0.{}", "9".repeat(30));
    let both = format!("-{whole}.{}", "9".repeat(30));
    let padded = format!("{}1.5{}", "0".repeat(40), "0".repeat(40));
    let good = [
        "0",
        "-0",
        "+1",
        "1.10",
        "1e5",
        "1E-30",
        "1e34",
        "0e308",
        "123.45e-2",
        "007",
        whole.as_str(),
        fraction.as_str(),
        both.as_str(),
        padded.as_str(),
        "0.001e33",
        "100e-32",
    ];
    let long = "1".repeat(101);
    let whole_over = "9".repeat(36);
    let fraction_over = format!("0.{}", "9".repeat(31));
    let bad = [
        "",
        "-",
        ".",
        ".5",
        "5.",
        "1e",
        "1e+",
        "NaN",
        "Infinity",
        "1 ",
        "1_000",
        "1,5",
        "0x1",
        "--1",
        "1e35",
        "1e-31",
        "0e309",
        "0e99999999999",
        "١",
        long.as_str(),
        whole_over.as_str(),
        fraction_over.as_str(),
        "1e99999999999",
    ];
    let ty = FieldType::parse("numeric").unwrap();
    for text in good {
        assert_eq!(ty.check(quoted(text).as_bytes()), Ok(()), "{text}");
    }
    for text in bad {
        assert!(ty.check(quoted(text).as_bytes()).is_err(), "{text}");
    }
    check("numeric", &["0", "-1.10", "1e34"], &["1e35", "1e-31", "true", "{}"]);
}

#[test]
fn days_exist_between_the_years_1_and_9999() {
    check_strings(
        "date",
        &["0001-01-01", "9999-12-31", "2024-02-29", "2000-02-29"],
        &[
            "0000-01-01",
            "10000-01-01",
            "-0001-01-01",
            "2023-02-29",
            "1900-02-29",
            "2024-04-31",
            "2024-13-01",
            "2024-00-10",
            "2024-01-00",
            "2024-1-1",
            "2024/01/01",
            "20240101",
            "2024-01-01T00:00:00",
            "2024-01-0é",
            "infinity",
            "today",
        ],
    );
}

#[test]
fn times_have_no_sixtieth_second_and_no_twenty_fourth_hour() {
    check_strings(
        "time",
        &["00:00:00", "23:59:59", "12:00:00.1", "12:00:00.123456789", "23:59:59.999999"],
        &[
            "24:00:00",
            "23:59:60",
            "23:60:00",
            "12:00",
            "1:00:00",
            "12:00:00.",
            "12:00:00.1234567890",
            "12:00:00,5",
            "12:00:00Z",
            "12:00:00 PM",
            "23:59:59.9999995",
            "-01:00:00",
        ],
    );
    check_strings(
        "timetz",
        &["12:00:00Z", "12:00:00+00:00", "12:00:00.5-15:59", "23:59:59+15:59"],
        &[
            "12:00:00",
            "12:00:00+16:00",
            "12:00:00+05",
            "12:00:00+0530",
            "12:00:00+05:60",
            "12:00:00 +05:00",
            "24:00:00Z",
            "12:00:00Z0",
            "23:59:59.9999999Z",
        ],
    );
}

#[test]
fn points_in_time_stay_in_the_years_of_all_backends() {
    check_strings(
        "timestamptz",
        &[
            "2024-05-01T12:00:00Z",
            "2024-05-01 12:00:00.123456+02:00",
            "0001-01-01T00:00:00Z",
            "0001-01-01T02:00:00+02:00",
            "9999-12-31T23:59:59.999999Z",
            "9999-12-31T23:59:59.9999999+00:01",
            "9999-12-31T21:59:59-02:00",
        ],
        &[
            "2024-05-01T12:00:00",
            "2024-05-01",
            "2024-05-01t12:00:00z",
            "2024-05-01_12:00:00Z",
            "2024-05-01  12:00:00Z",
            "2024-05-01T12:00:00+2",
            "2024-05-01T12:00:00 Z",
            "2024-05-01T24:00:00Z",
            "2016-12-31T23:59:60Z",
            "2023-02-29T00:00:00Z",
            "0001-01-01T01:59:59+02:00",
            "9999-12-31T22:00:00-02:00",
            "9999-12-31T23:59:59.9999999Z",
            "9999-12-31T21:59:59.9999999-02:00",
            "0000-12-31T23:59:59-01:00",
            "1714564800",
        ],
    );
    check_strings(
        "timestamp",
        &["2024-05-01T12:00:00", "2024-05-01 12:00:00.5", "9999-12-31 23:59:59.999999"],
        &[
            "2024-05-01T12:00:00Z",
            "2024-05-01T12:00:00+00:00",
            "2024-05-01",
            "9999-12-31 23:59:59.9999996",
        ],
    );
    let ty = FieldType::parse("timestamptz").unwrap();
    let error = ty.check(b"\"2024-05-01T12:00:00\"").unwrap_err();
    assert!(error.contains("the offset is missing"), "{error}");
}

#[test]
fn addresses_are_those_that_all_backends_read_alike() {
    check_strings(
        "inet",
        &["192.0.2.1", "192.0.2.1/24", "0.0.0.0/0", "::1", "2001:db8::/32", "::ffff:192.0.2.1/128"],
        &[
            "192.0.2",
            "192.0.2.256",
            "192.0.2.01",
            "192.0.2.1/33",
            "192.0.2.1/",
            "192.0.2.1/+8",
            "192.0.2.1/08",
            "192.0.2.1/8/8",
            "::1/129",
            "fe80::1%eth0",
            "[::1]",
            "localhost",
            "192.0.2.1:80",
        ],
    );
    check_strings(
        "cidr",
        &["192.0.2.0/24", "192.0.2.1", "192.0.2.1/32", "0.0.0.0/0", "2001:db8::/32", "::/0", "::1"],
        &["192.0.2.1/24", "2001:db8::1/64", "10/8", "128.0.0.0/0", "::1/127"],
    );
}

#[test]
fn hardware_addresses_have_all_their_bytes() {
    check_strings(
        "macaddr",
        &["08:00:2b:01:02:03", "08-00-2B-01-02-03", "0800.2b01.0203", "08002b010203"],
        &[
            "08:00:2b:01:02",
            "08:00:2b:01:02:03:04",
            "08:00-2b:01:02:03",
            "8:0:2b:1:2:3",
            "08:00:2g:01:02:03",
            "080:02b:010:203",
            "0800:2b01:0203",
            "é8002b01020",
        ],
    );
    check_strings(
        "macaddr8",
        &["08:00:2b:01:02:03:04:05", "0800.2b01.0203.0405", "08002b0102030405"],
        &["08:00:2b:01:02:03", "08002b010203", "08:00:2b:01:02:03:04:0"],
    );
}

#[test]
fn identifiers_and_bytes_are_hexadecimal() {
    check_strings(
        "uuid",
        &["123e4567-e89b-12d3-a456-426614174000", "123E4567-E89B-12D3-A456-426614174000"],
        &[
            "123e4567e89b12d3a456426614174000",
            "{123e4567-e89b-12d3-a456-426614174000}",
            "123e4567-e89b-12d3-a456-42661417400",
            "123e4567-e89b-12d3-a456-42661417400g",
            "123e4567-e89b-12d3-a456-426614174000-",
            "123e456-7e89b-12d3-a456-426614174000",
        ],
    );
    check_strings(
        "bytea",
        &["\\x", "\\x00", "\\xDEADbeef"],
        &["\\x0", "00ff", "\\X00", "\\x0g", "\\\\x00"],
    );
}

#[test]
fn text_is_a_string_and_jsonb_is_anything() {
    check("text", &["\"\"", "\"ünï\\n\""], &["1", "true", "{}", "[]"]);
    check("jsonb", &["\"\"", "1", "true", "{}", "[[1],null]"], &[]);
}

#[test]
fn an_array_has_one_dimension_and_may_hold_nulls() {
    check(
        "integer[]",
        &["[]", "[ ]", "[1]", "[ 1 , null,-3 ]"],
        &["1", "\"{1,2}\"", "{}", "[1,\"2\"]", "[[1]]", "[1.5]", "[2147483648]"],
    );
    check("text[]", &["[\"a,]\",\"b\\\"\"]"], &["[1]", "[[\"a\"]]", "\"a\""]);
    check("jsonb[]", &["[[1,{\"a\":[2]}],null,{}]"], &["{}", "1"]);
    let ty = FieldType::parse("inet[]").unwrap();
    let error = ty.check(b"[\"::1\",\"x\"]").unwrap_err();
    assert!(error.starts_with("element 1 must be an IP address"), "{error}");
}

#[test]
fn a_reason_says_what_is_right_and_never_shows_the_value() {
    for (name, raw, reason) in [
        (
            "smallint",
            "\"7\"",
            "must be a JSON number from -32768 to 32767 without fraction or exponent, but is a string",
        ),
        (
            "smallint",
            "70000",
            "must be a JSON number from -32768 to 32767 without fraction or exponent",
        ),
        ("boolean", "1", "must be true or false, but is a number"),
        ("text", "{}", "must be a string, but is an object"),
        ("text[]", "true", "must be an array of text, but is a boolean"),
        (
            "timestamp",
            "\"2024-05-01T12:00:00Z\"",
            "must be a time without offset such as \"2024-05-01T12:00:00\": something follows the time (it has no offset here)",
        ),
    ] {
        let error = FieldType::parse(name).unwrap().check(raw.as_bytes());
        assert_eq!(error, Err(reason.to_owned()), "{name}");
    }
    let error = FieldType::parse("inet").unwrap().check(b"\"secret\"");
    assert!(!error.unwrap_err().contains("secret"));
}
