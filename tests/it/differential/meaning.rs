//! What a JSON value means, by rules of the test's own: two texts are the same where they say the same
//! number, moment, address, bytes or tree.
//!
//! Nothing of what is tested is asked: not its JSON, nor its dates and decimals. Knows no storage.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

/// The largest whole number up to which a double holds every other.
const EXACT: u64 = 1 << 53;

/// A JSON value as a tree. A number is its text.
#[derive(Clone, Debug)]
pub enum Tree {
    Null,
    Bool(bool),
    Number(String),
    Text(String),
    List(Vec<Tree>),
    Map(BTreeMap<String, Tree>),
}

/// What a field means.
#[derive(Clone, Debug)]
pub enum Meaning {
    Text(String),
    /// Microseconds since 1970, of UTC or of no zone.
    Moment(i64),
    /// Days since 1970.
    Day(i64),
    /// Microseconds of a day, and minutes ahead of UTC.
    Clock(i64, i64),
    Address(IpAddr, u8),
    Bytes(Vec<u8>),
    Int(i64),
    Single(f32),
    Double(f64),
    /// Negative; the digits from the first to the last that is not 0; where the point stands, from the
    /// first digit on.
    Decimal(bool, String, i64),
    Bool(bool),
    Json(Tree),
    List(Vec<Option<Meaning>>),
}

/// The members of an object, each as its text.
pub fn members(object: &str) -> BTreeMap<String, String> {
    let members: BTreeMap<String, Box<RawValue>> = parsed(object);
    members.into_iter().map(|(key, value)| (key, value.get().to_owned())).collect()
}

fn elements(array: &str) -> Vec<String> {
    let elements: Vec<Box<RawValue>> = parsed(array);
    elements.into_iter().map(|value| value.get().to_owned()).collect()
}

fn parsed<T: DeserializeOwned>(json: &str) -> T {
    serde_json::from_str(json).unwrap_or_else(|e| panic!("{e}: {json}"))
}

/// A value as a tree.
pub fn tree(json: &str) -> Tree {
    let json = json.trim_ascii();
    match json.as_bytes()[0] {
        b'{' => Tree::Map(members(json).into_iter().map(|(k, v)| (k, tree(&v))).collect()),
        b'[' => Tree::List(elements(json).iter().map(|v| tree(v)).collect()),
        b'"' => Tree::Text(parsed(json)),
        b't' => Tree::Bool(true),
        b'f' => Tree::Bool(false),
        b'n' => Tree::Null,
        _ => Tree::Number(json.to_owned()),
    }
}

/// Whether what came back is the same tree. The order of members means nothing.
pub fn same_tree(sent: &Tree, got: &Tree) -> bool {
    match (sent, got) {
        (Tree::Null, Tree::Null) => true,
        (Tree::Bool(sent), Tree::Bool(got)) => sent == got,
        (Tree::Number(sent), Tree::Number(got)) => same_number(sent, got),
        (Tree::Text(sent), Tree::Text(got)) => sent == got,
        (Tree::List(sent), Tree::List(got)) => {
            sent.len() == got.len() && sent.iter().zip(got).all(|(s, g)| same_tree(s, g))
        }
        (Tree::Map(sent), Tree::Map(got)) => {
            sent.len() == got.len()
                && sent.iter().zip(got).all(|((sent_key, sent), (got_key, got))| {
                    sent_key == got_key && same_tree(sent, got)
                })
        }
        _ => false,
    }
}

/// The same whole number of 64 bits where that was sent, else the same double.
fn same_number(sent: &str, got: &str) -> bool {
    let double = |text: &str| text.parse::<f64>().unwrap_or_else(|e| panic!("{e}: {text}"));
    match (sent.parse::<i64>(), got.parse::<i64>()) {
        (Ok(sent), Ok(got)) => sent == got,
        // one that a double holds may come back as one
        (Ok(whole), Err(_)) => whole.unsigned_abs() <= EXACT && double(sent) == double(got),
        (Err(_), _) => double(sent) == double(got),
    }
}

/// Whether what came back means the same.
pub fn same(sent: &Meaning, got: &Meaning) -> bool {
    match (sent, got) {
        (Meaning::Text(sent), Meaning::Text(got)) => sent == got,
        (Meaning::Moment(sent), Meaning::Moment(got)) => sent == got,
        (Meaning::Day(sent), Meaning::Day(got)) => sent == got,
        (Meaning::Clock(sent, offset), Meaning::Clock(got, got_offset)) => {
            (sent, offset) == (got, got_offset)
        }
        (Meaning::Address(sent, length), Meaning::Address(got, got_length)) => {
            (sent, length) == (got, got_length)
        }
        (Meaning::Bytes(sent), Meaning::Bytes(got)) => sent == got,
        (Meaning::Int(sent), Meaning::Int(got)) => sent == got,
        (Meaning::Single(sent), Meaning::Single(got)) => sent == got,
        (Meaning::Double(sent), Meaning::Double(got)) => sent == got,
        (Meaning::Decimal(n, digits, point), Meaning::Decimal(got_n, got_digits, got_point)) => {
            (n, digits, point) == (got_n, got_digits, got_point)
        }
        (Meaning::Bool(sent), Meaning::Bool(got)) => sent == got,
        (Meaning::Json(sent), Meaning::Json(got)) => same_tree(sent, got),
        (Meaning::List(sent), Meaning::List(got)) => {
            sent.len() == got.len()
                && sent.iter().zip(got).all(|pair| match pair {
                    (None, None) => true,
                    (Some(sent), Some(got)) => same(sent, got),
                    _ => false,
                })
        }
        _ => false,
    }
}

/// What a field of this type means; `raw` is not `null`.
///
/// # Errors
/// Where it is no value of that type.
pub fn meaning(ty: &str, raw: &str) -> Result<Meaning, String> {
    let raw = raw.trim_ascii();
    let read = match ty.strip_suffix("[]") {
        Some(base) => list(base, raw),
        None => scalar(ty, raw),
    };
    read.ok_or_else(|| format!("this is no {ty}: {raw}"))
}

fn list(base: &str, raw: &str) -> Option<Meaning> {
    if !raw.starts_with('[') {
        return None;
    }
    let element = |raw: &String| match raw.as_str() {
        "null" => Some(None),
        raw => scalar(base, raw).map(Some),
    };
    elements(raw).iter().map(element).collect::<Option<Vec<_>>>().map(Meaning::List)
}

fn scalar(ty: &str, raw: &str) -> Option<Meaning> {
    match ty {
        "jsonb" => return Some(Meaning::Json(tree(raw))),
        "boolean" => return raw.parse().ok().map(Meaning::Bool),
        "smallint" | "integer" | "bigint" => return raw.parse().ok().map(Meaning::Int),
        "real" => return raw.parse().ok().map(Meaning::Single),
        "double precision" => return raw.parse().ok().map(Meaning::Double),
        "numeric" if !raw.starts_with('"') => return decimal(raw),
        _ => {}
    }
    let text: String = serde_json::from_str(raw).ok()?;
    match ty {
        "text" => Some(Meaning::Text(text)),
        "numeric" => decimal(&text),
        "date" => Some(Meaning::Day(day(&text)?)),
        "time" => Some(Meaning::Clock(clock(&text)?, 0)),
        "timetz" => {
            let (text, offset) = offset(&text)?;
            Some(Meaning::Clock(clock(text)?, offset))
        }
        "timestamp" => Some(Meaning::Moment(moment(&text)?)),
        "timestamptz" => {
            let (text, offset) = offset(&text)?;
            Some(Meaning::Moment(moment(text)? - offset * 60_000_000))
        }
        "inet" | "cidr" => address(&text),
        "macaddr" | "macaddr8" => {
            let digits = text.replace([':', '-', '.'], "");
            Some(Meaning::Bytes(hex(&digits)?))
        }
        "uuid" => Some(Meaning::Bytes(hex(&text.replace('-', ""))?)),
        "bytea" => Some(Meaning::Bytes(hex(text.strip_prefix("\\x")?)?)),
        _ => None,
    }
}

/// The text before an offset, and the offset in minutes.
fn offset(text: &str) -> Option<(&str, i64)> {
    if let Some(text) = text.strip_suffix('Z') {
        return Some((text, 0));
    }
    let (text, offset) = text.split_at_checked(text.len().checked_sub(6)?)?;
    let (sign, digits) = offset.split_at_checked(1)?;
    let (hours, minutes) = digits.split_once(':')?;
    let minutes = hours.parse::<i64>().ok()? * 60 + minutes.parse::<i64>().ok()?;
    Some((text, if sign == "-" { -minutes } else { minutes }))
}

fn moment(text: &str) -> Option<i64> {
    let (date, time) = text.split_once(['T', ' '])?;
    Some(day(date)? * 86_400_000_000 + clock(time)?)
}

/// Days since 1970 in the calendar that every database keeps for all years.
fn day(text: &str) -> Option<i64> {
    let mut parts = text.split('-').map(|part| part.parse::<i64>().ok());
    let (year, month, day) = (parts.next()??, parts.next()??, parts.next()??);
    // a year begins with March, so that the day that leaps is its last
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = year * 365 + year / 4 - year / 100 + year / 400;
    Some(days + (month * 153 + 2) / 5 + day - 719_469)
}

/// Microseconds of a day. What is finer is rounded as PostgreSQL does it: the fraction as a double,
/// halves to the even one.
fn clock(text: &str) -> Option<i64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let mut parts = whole.split(':').map(|part| part.parse::<i64>().ok());
    let (hours, minutes, seconds) = (parts.next()??, parts.next()??, parts.next()??);
    let fraction: f64 = format!("0.{fraction}").parse().ok()?;
    let micros = (fraction * 1e6).round_ties_even() as i64;
    Some(((hours * 60 + minutes) * 60 + seconds) * 1_000_000 + micros)
}

fn address(text: &str) -> Option<Meaning> {
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address.parse().ok()?, Some(length.parse().ok()?)),
        None => (text.parse::<IpAddr>().ok()?, None),
    };
    let longest = if address.is_ipv4() { 32 } else { 128 };
    Some(Meaning::Address(address, length.unwrap_or(longest)))
}

fn hex(digits: &str) -> Option<Vec<u8>> {
    let pair = |at: usize| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok();
    (0..digits.len()).step_by(2).map(pair).collect()
}

fn decimal(text: &str) -> Option<Meaning> {
    let negative = text.starts_with('-');
    let unsigned = text.trim_start_matches(['+', '-']);
    let (mantissa, exponent) = unsigned.split_once(['e', 'E']).unwrap_or((unsigned, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{whole}{fraction}");
    if digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let exponent: i64 = exponent.parse().ok()?;
    let significant = digits.trim_start_matches('0');
    if significant.is_empty() {
        return Some(Meaning::Decimal(false, String::new(), 0));
    }
    let zeros = digits.len() - significant.len();
    let point = i64::try_from(whole.len()).ok()? - i64::try_from(zeros).ok()? + exponent;
    Some(Meaning::Decimal(negative, significant.trim_end_matches('0').to_owned(), point))
}

#[test]
fn the_rules_of_the_comparison_see_what_differs_and_nothing_else() {
    let same_field = |ty: &str, sent: &str, got: &str| {
        same(&meaning(ty, sent).unwrap(), &meaning(ty, got).unwrap())
    };
    for (ty, sent, got) in [
        ("timestamptz", r#""1970-01-01T00:00:00Z""#, r#""1970-01-01 02:00:00.000000+02:00""#),
        ("timestamptz", r#""2024-02-28T23:59:59.9999999Z""#, r#""2024-02-29 00:00:00+00:00""#),
        ("timestamptz", r#""0001-01-01T02:00:00+02:00""#, r#""0001-01-01 00:00:00.000000+00:00""#),
        ("time", r#""12:00:00.0000015""#, r#""12:00:00.000002""#),
        ("time", r#""12:00:00.0000005""#, r#""12:00:00""#),
        ("inet", r#""::c000:201""#, r#""::192.0.2.1/128""#),
        ("macaddr", r#""0800.2b01.0203""#, r#""08:00:2B:01:02:03""#),
        ("numeric", r#""+007.50e1""#, "75.0000"),
        ("numeric", "-0.00", "0"),
        ("double precision", "0.1000000000000000055", "1e-1"),
        ("real", "3.4028234e38", "3.4028234663852886e38"),
        ("jsonb", r#"{"a":1.0,"b":[1e2]}"#, r#"{"b": [100.0], "a": 1}"#),
        ("text[]", r#"["\u0041",null]"#, r#"[ "A" , null ]"#),
    ] {
        assert!(same_field(ty, sent, got), "{ty}: {sent} {got}");
    }
    for (ty, sent, got) in [
        ("timestamptz", r#""1970-01-01T00:00:00Z""#, r#""1970-01-01 00:00:00.000001+00:00""#),
        ("timestamp", r#""1900-02-28 00:00:00""#, r#""1900-03-01 00:00:01""#),
        ("timetz", r#""12:00:00+02:00""#, r#""10:00:00+00:00""#),
        ("cidr", r#""10.0.0.0/8""#, r#""10.0.0.0/9""#),
        ("numeric", "1e-30", "0"),
        ("bigint", "9223372036854775807", "9223372036854775806"),
        ("jsonb", "9007199254740993", "9007199254740992"),
        ("jsonb", "9007199254740993", "9007199254740992.0"),
        ("jsonb", "0.12345678901234568", "0.12345678901234566"),
        ("jsonb", "[1,null]", "[1]"),
        ("text[]", r#"["NULL"]"#, "[null]"),
        ("bytea", r#""\\x00""#, r#""\\x""#),
    ] {
        assert!(!same_field(ty, sent, got), "{ty}: {sent} {got}");
    }
    assert!(meaning("date", "5").is_err() && meaning("integer[]", "1").is_err());
    assert_eq!(day("1970-01-01"), Some(0));
    assert_eq!((day("0001-01-01"), day("9999-12-31")), (Some(-719_162), Some(2_932_896)));
}
