//! What the profile takes, what it refuses, and in which words. Knows the public face only.

mod differential;

use bytes::Bytes;
use serde_json::Value;

use super::*;

const REJECT: Profile =
    Profile { max_depth: 31, duplicate_keys: DuplicateKeys::Reject, max_items: 4 };

fn payloads(body: &[u8], form: Form) -> Vec<String> {
    let items = scan(body, form, &Profile::default()).unwrap();
    let body = Bytes::copy_from_slice(body);
    items.iter().map(|item| String::from_utf8(item.payload(&body).to_vec()).unwrap()).collect()
}

fn violations(body: impl AsRef<[u8]>, form: Form, profile: &Profile) -> Vec<Violation> {
    scan(body.as_ref(), form, profile).unwrap_err()
}

/// Checks the violations of a JSON body: (index, pointer, a part of the reason) each.
fn check(body: impl AsRef<[u8]>, expect: &[(usize, &str, &str)]) {
    check_form(body, Form::Json, &Profile::default(), expect);
}

fn check_form(
    body: impl AsRef<[u8]>,
    form: Form,
    profile: &Profile,
    expect: &[(usize, &str, &str)],
) {
    let body = body.as_ref();
    let shown = String::from_utf8_lossy(&body[..body.len().min(80)]).into_owned();
    let found = violations(body, form, profile);
    assert_eq!(found.len(), expect.len(), "{shown}: {found:?}");
    for (violation, (index, pointer, reason)) in found.iter().zip(expect) {
        assert_eq!(violation.index, *index, "{shown}: {violation:?}");
        assert_eq!(violation.pointer, *pointer, "{shown}: {violation:?}");
        assert!(violation.reason.contains(reason), "{shown}: expected {reason:?} in {violation:?}");
    }
}

fn nested(depth: usize) -> String {
    // The root object is one of them.
    let inner = depth - 1;
    format!("{{\"a\":{}{}}}", "[".repeat(inner), "]".repeat(inner))
}

#[test]
fn payloads_are_taken_byte_for_byte() {
    for body in [
        "{}",
        "{ }",
        r#"{"a":12345678901234567890123,"b":1.10}"#,
        r#"{"a":-0,"b":-0.0,"c":1E+5,"d":0e10,"e":0.000e-300}"#,
        "{\n\t\"a\" :\r\n [ ] , \"\" : { } }",
        r#"{"😀":"\ud83d\uDE00","\"\\\/\b\f\n\r\t\u00e9":"ünï"}"#,
        r#"{"a":true,"b":false,"c":null,"d":[1,"x",[],{"e":[{}]}]}"#,
        r#"{"a":{"b":1},"c":{"b":1},"d":[{"b":1},{"b":1}]}"#,
        "{\"a\":\"\u{7f}\u{80}\u{2028}\"}",
    ] {
        assert_eq!(payloads(body.as_bytes(), Form::Json), [body]);
    }
}

#[test]
fn space_around_an_event_is_not_part_of_it() {
    assert_eq!(payloads(b" \n{\"a\":1}\r\n ", Form::Json), ["{\"a\":1}"]);
    assert_eq!(payloads(b" [ {\"a\":1} , {} ] ", Form::Json), ["{\"a\":1}", "{}"]);
}

#[test]
fn a_payload_without_cuts_is_a_slice_of_the_body() {
    let body = Bytes::from_static(b"[{\"a\":1},{}]");
    let items = scan(&body, Form::Json, &Profile::default()).unwrap();
    let payload = items[0].payload(&body);
    assert_eq!(payload.as_ptr(), body[1..].as_ptr());
}

#[test]
fn lines_are_events_and_blank_lines_are_none() {
    assert_eq!(
        payloads(b"{\"a\":1}\n\n  \r\n{\"b\":2}\r\n{}", Form::Lines),
        ["{\"a\":1}", "{\"b\":2}", "{}"]
    );
}

#[test]
fn a_body_without_an_event_is_refused() {
    for body in ["", " \n ", "[]", " [ ] "] {
        check(body, &[(0, "", "at least one event")]);
    }
    for body in ["", "\n\r\n  \n"] {
        check_form(body, Form::Lines, &Profile::default(), &[(0, "", "at least one event")]);
    }
}

#[test]
fn the_number_of_events_is_limited() {
    let limit = [(4, "", "more than 4 events")];
    assert!(scan(b"[{},{},{},{}]", Form::Json, &REJECT).is_ok());
    check_form("[{},{},{},{},{}]", Form::Json, &REJECT, &limit);
    assert!(scan(b"{}\n{}\n{}\n{}\n\n", Form::Lines, &REJECT).is_ok());
    check_form("{}\n{}\n{}\n{}\n{}", Form::Lines, &REJECT, &limit);
}

#[test]
fn an_event_is_an_object() {
    for (body, kind) in [
        ("1", "but a number"),
        ("\"{}\"", "but a string"),
        ("true", "but a boolean"),
        ("null", "but null"),
    ] {
        check(body, &[(0, "", kind)]);
    }
    check(
        "[{},1,{},[{}],\"x\",null]",
        &[
            (1, "", "is not a JSON object but a number"),
            (3, "", "but an array"),
            (4, "", "but a string"),
            (5, "", "but null"),
        ],
    );
    check_form(
        "{}\n[{}]\n{}\nnull",
        Form::Lines,
        &Profile::default(),
        &[(1, "", "but an array"), (3, "", "but null")],
    );
}

#[test]
fn the_grammar_is_strict() {
    for (body, pointer, reason) in [
        ("{\"a\":1 \"b\":2}", "", "expected ',' or '}' at byte 7"),
        ("{\"a\":[1 2]}", "/a", "expected ',' or ']' at byte 8"),
        ("{\"a\":1,}", "", "a key in double quotes at byte 7"),
        ("{,}", "", "a key in double quotes at byte 1"),
        ("{a:1}", "", "a key in double quotes"),
        ("{'a':1}", "", "a key in double quotes"),
        ("{\"a\"}", "/a", "expected ':' at byte 4"),
        ("{\"a\" 1}", "/a", "expected ':'"),
        ("{\"a\":}", "/a", "a JSON value at byte 5"),
        ("{\"a\":[1,]}", "/a/1", "a JSON value at byte 8"),
        ("{\"a\":[,1]}", "/a/0", "a JSON value"),
        ("{\"a\":[1}", "/a", "',' or ']'"),
        ("{\"a\":{]}", "/a", "a key in double quotes"),
        ("{\"a\":1", "", "the body ends at byte 6"),
        ("{\"a\"", "/a", "the body ends"),
        ("{", "", "the body ends at byte 1"),
        ("{\"a\":tru}", "/a", "expected true at byte 5"),
        ("{\"a\":True}", "/a", "a JSON value"),
        ("{\"a\":NaN}", "/a", "a JSON value"),
        ("{\"a\":nan}", "/a", "expected null"),
        ("{\"a\":truex}", "", "',' or '}' at byte 9"),
        ("{\"a\":01}", "/a", "no digit after a leading 0 at byte 6"),
        ("{\"a\":-}", "/a", "a digit at byte 6"),
        ("{\"a\":+1}", "/a", "a JSON value"),
        ("{\"a\":.5}", "/a", "a JSON value"),
        ("{\"a\":1.}", "/a", "a digit at byte 7"),
        ("{\"a\":1e}", "/a", "a digit at byte 7"),
        ("{\"a\":1e+}", "/a", "a digit at byte 8"),
        ("{\"a\":1", "", "the body ends"),
        ("{\"a\":0x10}", "", "',' or '}'"),
        ("{\"a\":\"x", "/a", "the body ends within a string at byte 7"),
        ("{\"a\":\"x\\", "/a", "the body ends within a string"),
        ("{\"a\":\"\\x\"}", "/a", "unknown escape in a string at byte 7"),
        ("{\"a\":\"\\u12g4\"}", "/a", "four hexadecimal digits"),
        ("{\"a\":\"\\ud800\\u12\"}", "/a", "four hexadecimal digits"),
        ("{\"a\":\"x\ny\"}", "/a", "raw control character"),
        ("{\"a\tb\":1}", "", "raw control character in a string"),
        ("{} {}", "", "expected the end of the body at byte 3"),
        ("{}]", "", "expected the end of the body at byte 2"),
        ("[{}", "", "',' or ']', but the body ends at byte 3"),
        ("[{}}", "", "',' or ']' at byte 3"),
        ("[{}] x", "", "expected the end of the body at byte 5"),
        ("}", "", "expected a JSON object or an array"),
        ("// hi\n{}", "", "expected a JSON object or an array"),
    ] {
        check(body, &[(0, pointer, reason)]);
    }
    check("[{},]", &[(1, "", "a JSON value at byte 4")]);
    check("[{},{\"a\":1 1},{}]", &[(1, "", "',' or '}' at byte 11")]);
}

#[test]
fn a_control_character_anywhere_in_a_word_is_seen() {
    for len in 0..20 {
        for control in ['\0', '\u{1}', '\n', '\u{1f}'] {
            let mut text = "x".repeat(len);
            text.push(control);
            text.push_str(&"y".repeat(20 - len));
            check(format!("{{\"a\":\"{text}\"}}"), &[(0, "/a", "raw control character")]);
        }
    }
}

#[test]
fn a_broken_line_does_not_hide_the_next_ones() {
    check_form(
        "{\"a\":1\n{\"b\":\"x\n{}\n{\"c\":\\}\n{} {}\n{\"d\":\"\\u0000\"}",
        Form::Lines,
        &Profile::default(),
        &[
            (0, "", "the line ends at byte 6"),
            (1, "/b", "raw control character"),
            (3, "/c", "a JSON value"),
            (4, "", "expected the end of the line"),
            (5, "/d", "\\u0000"),
        ],
    );
}

#[test]
fn text_is_utf8_without_a_byte_order_mark() {
    check(b"\xEF\xBB\xBF{}", &[(0, "", "byte order mark")]);
    check(b"\xFF\xFE{\0}\0", &[(0, "", "not valid UTF-8 at byte 0")]);
    check(b"{\"a\":\"\xFF\"}", &[(0, "/a", "not valid UTF-8 at byte 6")]);
    check(b"[{},{\"a\":\"b\xC3\"}]", &[(1, "/a", "not valid UTF-8 at byte 11")]);
    check(b"{}\xC3\x28", &[(0, "", "not valid UTF-8 at byte 2")]);
    check_form(
        b"{}\n{\"a\":1\xED\xA0\x80}",
        Form::Lines,
        &Profile::default(),
        &[(1, "", "not valid UTF-8 at byte 9")],
    );
}

#[test]
fn depth_counts_every_container_but_the_batch() {
    assert!(scan(nested(31).as_bytes(), Form::Json, &Profile::default()).is_ok());
    let batch = format!("[{}]", nested(31));
    assert!(scan(batch.as_bytes(), Form::Json, &Profile::default()).is_ok());
    let deepest = format!("/a{}", "/0".repeat(30));
    check(nested(32), &[(0, deepest.as_str(), "deeper than 31")]);
}

#[test]
fn depth_costs_no_stack_and_is_said_once_a_place() {
    let deep = format!("{}{}", "[".repeat(200_000), "]".repeat(200_000));
    let pointer = format!("/a{}", "/0".repeat(30));
    check(format!("{{\"a\":{deep}}}"), &[(0, pointer.as_str(), "deeper than")]);
    let deep = format!("{}1{}", "{\"k\":".repeat(50_000), "}".repeat(50_000));
    let (left, right) = (format!("/l{}", "/k".repeat(30)), format!("/r{}", "/k".repeat(30)));
    check(
        format!("{{\"l\":{deep},\"r\":{deep}}}"),
        &[(0, left.as_str(), "deeper than"), (0, right.as_str(), "deeper than")],
    );
    // Unclosed brackets only: a syntax error, and nothing worse.
    let found =
        violations(format!("{{\"a\":{}", "[".repeat(200_000)), Form::Json, &Profile::default());
    assert_eq!(found.len(), 2, "{found:?}");
}

#[test]
fn strings_hold_no_nul_and_no_half_pair() {
    for (body, pointer, reason) in [
        (r#"{"a":"\u0000"}"#, "/a", "holds \\u0000"),
        (r#"{"a":["x\u0000y\u0000"]}"#, "/a/0", "holds \\u0000"),
        (r#"{"a":"\ud800"}"#, "/a", "lone surrogate"),
        (r#"{"a":"\uDC00"}"#, "/a", "lone surrogate"),
        (r#"{"a":"\ud800\ud800"}"#, "/a", "lone surrogate"),
        (r#"{"a":"\udc00\ud800"}"#, "/a", "lone surrogate"),
        (r#"{"a":"\ud83d\u0041"}"#, "/a", "lone surrogate"),
        (r#"{"a":"\ud83d\\ude00"}"#, "/a", "lone surrogate"),
        (r#"{"a":"\ud83dx"}"#, "/a", "lone surrogate"),
    ] {
        check(body, &[(0, pointer, reason)]);
    }
    check(r#"{"\u0000":1}"#, &[(0, "/\0", "the key holds \\u0000")]);
    check(r#"{"\ud800":1}"#, &[(0, "/\u{fffd}", "the key holds a lone surrogate")]);
    assert_eq!(payloads(br#"{"a":"\\u0000"}"#, Form::Json).len(), 1);
}

#[test]
fn keys_are_limited_after_decoding() {
    for good in ["k".repeat(1_024), "\\u0041".repeat(1_024)] {
        let body = format!("{{\"{good}\":1}}");
        assert_eq!(payloads(body.as_bytes(), Form::Json).len(), 1);
    }
    for bad in ["k".repeat(1_025), "\\u0041".repeat(1_025), "é".repeat(513)] {
        let found = violations(format!("{{\"{bad}\":1}}"), Form::Json, &Profile::default());
        assert_eq!(found.len(), 1);
        assert!(found[0].reason.contains("at most 1024"), "{found:?}");
        assert!(found[0].pointer.len() < 140, "{found:?}");
    }
    let found =
        violations(format!("{{\"{}\":1}}", "k".repeat(70_000)), Form::Json, &Profile::default());
    assert!(found[0].reason.contains("70000 bytes"), "{found:?}");
}

#[test]
fn numbers_mean_the_same_everywhere() {
    let nines = "9".repeat(100);
    for good in [
        "0",
        "-0",
        "1.10",
        "1e308",
        "-1.7e308",
        "2.2250738585072014e-308",
        "0e308",
        "0.0e-308",
        "1e0000000000000200",
        "12345678901234567890123",
        "0.00000000000000000000000000000000000000000000000001",
        nines.as_str(),
    ] {
        let body = format!("{{\"a\":{good}}}");
        assert_eq!(payloads(body.as_bytes(), Form::Json), [body.as_str()]);
    }
    let many_zeros = format!("1.{}", "0".repeat(17_000));
    let too_long = "9".repeat(101);
    for (bad, reason) in [
        ("1e309", "too large"),
        ("-1e309", "too large"),
        ("1e99999999999999999999", "too large"),
        ("5e-324", "too close to zero"),
        ("-5e-324", "too close to zero"),
        ("1e-309", "too close to zero"),
        ("2.2250738585072e-308", "too close to zero"),
        ("1e-400", "too close to zero"),
        ("1e-99999999999999999999", "too close to zero"),
        ("0e309", "zero with an exponent"),
        ("0.0e-20000", "zero with an exponent"),
        (many_zeros.as_str(), "number of 17002 bytes"),
        (too_long.as_str(), "at most 100"),
    ] {
        check(format!("{{\"a\":[1,{bad}]}}"), &[(0, "/a/1", reason)]);
    }
}

#[test]
fn of_a_repeated_key_the_last_member_stays() {
    for (body, kept) in [
        (r#"{"a":1,"a":2}"#, r#"{"a":2}"#),
        (r#"{"a":1,"\u0061":2}"#, r#"{"\u0061":2}"#),
        (r#"{"\u0061":1 , "a":2}"#, r#"{"a":2}"#),
        (r#"{ "a":1, "b":2, "a":3 }"#, r#"{ "b":2, "a":3 }"#),
        (r#"{"a":1,"a":2,"a":3}"#, r#"{"a":3}"#),
        (r#"{"a":1,"b":1,"a":2,"b":2}"#, r#"{"a":2,"b":2}"#),
        (r#"{"a":{"x":1,"x":2},"a":3}"#, r#"{"a":3}"#),
        (r#"{"a":3,"a":{"x":1,"x":2}}"#, r#"{"a":{"x":2}}"#),
        (r#"{"o":[{"x":1,"x":2},{"":0,"":1}]}"#, r#"{"o":[{"x":2},{"":1}]}"#),
        (r#"{"a":{"a":1},"b":{"a":1}}"#, r#"{"a":{"a":1},"b":{"a":1}}"#),
        (
            r#"{"same_prefix_and_end_1":1,"same_prefix_xnd_end_1":1}"#,
            r#"{"same_prefix_and_end_1":1,"same_prefix_xnd_end_1":1}"#,
        ),
    ] {
        assert_eq!(payloads(body.as_bytes(), Form::Json), [kept], "{body}");
    }
    assert_eq!(
        payloads(br#"[{"a":1,"a":2},{"a":1},{"b":1,"b":2}]"#, Form::Json),
        [r#"{"a":2}"#, r#"{"a":1}"#, r#"{"b":2}"#]
    );
}

#[test]
fn cuts_are_sorted_disjoint_and_of_the_body() {
    let body = br#"[{"a":{"x":1,"x":2},"b":1,"a":{"y":1,"y":2}}]"#;
    let items = scan(body, Form::Json, &Profile::default()).unwrap();
    let cuts: Vec<(usize, usize)> = items[0].cuts.iter().map(|cut| (cut.start, cut.end)).collect();
    assert_eq!(cuts, [(2, 20), (31, 37)]);
}

#[test]
fn repeated_keys_are_found_among_many() {
    let mut members: Vec<String> = (0..500).map(|n| format!("\"key{n}\":{n}")).collect();
    let whole = format!("{{{}}}", members.join(","));
    assert_eq!(payloads(whole.as_bytes(), Form::Json), [whole.as_str()]);
    members.push("\"k\\u0065y7\":-7".to_owned());
    members.push("\"key7\":-8".to_owned());
    let repeated = format!("{{{}}}", members.join(","));
    let kept = payloads(repeated.as_bytes(), Form::Json).remove(0);
    let value: Value = serde_json::from_str(&kept).unwrap();
    assert_eq!(value, serde_json::from_str::<Value>(&repeated).unwrap());
    assert_eq!(kept.matches("y7\"").count(), 1, "{kept}");
    check_form(repeated, Form::Json, &REJECT, &[(0, "/key7", "more than once")]);
}

#[test]
fn one_key_a_hundred_thousand_times_is_one_violation() {
    let body = format!("{{{}\"a\":1}}", "\"a\":0,".repeat(100_000));
    check_form(&body, Form::Json, &REJECT, &[(0, "/a", "more than once")]);
    assert_eq!(payloads(body.as_bytes(), Form::Json), ["{\"a\":1}"]);
}

#[test]
fn repeated_keys_are_refused_where_that_is_asked_for() {
    check_form(
        r#"{"o/~":[0,{"a":1,"b":1,"\u0061":2}],"x":1,"x":2,"x":3}"#,
        Form::Json,
        &REJECT,
        &[(0, "/o~1~0/1/a", "more than once"), (0, "/x", "more than once")],
    );
}

#[test]
fn all_violations_of_a_body_are_reported() {
    check(
        r#"[{"a":"\u0000","b":[1e999,"\ud800"]},{},{"c":5e-324},7]"#,
        &[
            (0, "/a", "\\u0000"),
            (0, "/b/0", "too large"),
            (0, "/b/1", "lone surrogate"),
            (2, "/c", "too close to zero"),
            (3, "", "but a number"),
        ],
    );
}

#[test]
fn violations_are_bounded() {
    let body = format!("[{}1]", "1,".repeat(500));
    let found = violations(body, Form::Json, &Profile::default());
    assert_eq!(found.len(), MAX_VIOLATIONS);
    let body = format!("{{\"a\":[{}1]}}", "1e999,".repeat(500));
    let found = violations(body, Form::Json, &Profile::default());
    assert_eq!(found.len(), MAX_VIOLATIONS);
    assert_eq!(found[99].pointer, "/a/99");
    let found = violations("{\n".repeat(500), Form::Lines, &Profile::default());
    assert_eq!(found.len(), MAX_VIOLATIONS);
}

#[test]
fn a_reason_never_shows_a_value() {
    for body in [
        "{\"a\":secret}",
        "{\"a\":\"secret\\u0000\"}",
        "{\"a\":\"secret",
        "{\"a\":{\"b\":\"secret\" \"secret\"}}",
        "\"secret\"",
    ] {
        for violation in violations(body, Form::Json, &Profile::default()) {
            assert!(!violation.reason.contains("secret"), "{violation:?}");
            assert!(!violation.pointer.contains("secret"), "{violation:?}");
        }
    }
}

#[test]
fn members_give_decoded_keys_and_raw_values() {
    let object = "{ \"a\" : 1.10 ,\"\\u0062\\n\":[1, {\"x\":\"]}\"}],\"\":\"s\\\"\" , \"o\":{ }\n}";
    let found: Vec<(String, String)> = members(object.as_bytes())
        .map(|(key, raw)| (key.into_owned(), String::from_utf8(raw.to_vec()).unwrap()))
        .collect();
    let expect = [("a", "1.10"), ("b\n", "[1, {\"x\":\"]}\"}]"), ("", "\"s\\\"\""), ("o", "{ }")];
    assert_eq!(found.len(), expect.len(), "{found:?}");
    for ((key, raw), (expect_key, expect_raw)) in found.iter().zip(expect) {
        assert_eq!((key.as_str(), raw.as_str()), (expect_key, expect_raw));
    }
    assert_eq!(members(b"{}").count(), 0);
    assert_eq!(members(b"{ }").count(), 0);
}

#[test]
fn elements_give_raw_values() {
    let found: Vec<&[u8]> = elements(b"[ 1,\"a,]\" ,[2,3], {\"x\":[]},null ]").collect();
    let expect: [&[u8]; 5] = [b"1", b"\"a,]\"", b"[2,3]", b"{\"x\":[]}", b"null"];
    assert_eq!(found, expect);
    assert_eq!(elements(b"[ ]").count(), 0);
}

#[test]
fn walking_over_what_was_not_checked_ends() {
    for text in ["", "{", "[", "{\"a\"", "{\"a\":", "[1", "[}", "[[", "x", "{\"a\":}", "[\"", "]"] {
        assert!(members(text.as_bytes()).count() < 3, "{text}");
        assert!(elements(text.as_bytes()).count() < 3, "{text}");
    }
}

#[test]
fn strings_are_decoded() {
    for (raw, expect) in [
        (r#""""#, ""),
        (r#""plain é""#, "plain é"),
        (r#""\"\\\/\b\f\n\r\t""#, "\"\\/\u{8}\u{c}\n\r\t"),
        (r#""x\u00e9\ud83d\ude00y""#, "xé😀y"),
        (r#""\\u0041""#, "\\u0041"),
    ] {
        assert_eq!(decode_string(raw.as_bytes()), expect);
    }
    assert!(matches!(decode_string(b"\"plain\""), std::borrow::Cow::Borrowed("plain")));
}
