//! The types that a structured channel's columns can have, and what a JSON value must look like to be
//! one.
//!
//! The checks are stricter than any single backend, so that PostgreSQL, MariaDB, MySQL and SQLite all
//! take what passes, with one meaning. Must not know a dialect's names or how values are sent to it.

mod address;
mod moment;
mod numeric;

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::fmt;

use super::nearest::nearest;
use crate::json;

/// A scalar type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Base {
    /// Any string.
    Text,
    /// A point in time, with its offset from UTC.
    Timestamptz,
    /// A date and a time of day, of no zone.
    Timestamp,
    /// A day.
    Date,
    /// A time of day.
    Time,
    /// A time of day with its offset from UTC.
    Timetz,
    /// A host address, which may carry the length of its network.
    Inet,
    /// A network.
    Cidr,
    /// A hardware address of six bytes.
    Macaddr,
    /// A hardware address of eight bytes.
    Macaddr8,
    /// A whole number of 16 bits.
    Smallint,
    /// A whole number of 32 bits.
    Integer,
    /// A whole number of 64 bits.
    Bigint,
    /// `true` or `false`.
    Boolean,
    /// A number of single precision.
    Real,
    /// A number of double precision.
    DoublePrecision,
    /// A decimal number, exact.
    Numeric,
    /// A UUID.
    Uuid,
    /// Bytes.
    Bytea,
    /// Any JSON value.
    Jsonb,
}

/// A scalar type, or the one-dimensional array of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FieldType {
    /// The type, of the elements where it is an array.
    pub base: Base,
    /// Whether it is an array.
    pub array: bool,
}

/// Every name of every type; the canonical one of each stands first.
const NAMES: &[(&str, Base)] = &[
    ("text", Base::Text),
    ("varchar", Base::Text),
    ("character varying", Base::Text),
    ("char", Base::Text),
    ("character", Base::Text),
    ("timestamptz", Base::Timestamptz),
    ("timestamp with time zone", Base::Timestamptz),
    ("timestamp", Base::Timestamp),
    ("timestamp without time zone", Base::Timestamp),
    ("date", Base::Date),
    ("time", Base::Time),
    ("time without time zone", Base::Time),
    ("timetz", Base::Timetz),
    ("time with time zone", Base::Timetz),
    ("inet", Base::Inet),
    ("cidr", Base::Cidr),
    ("macaddr", Base::Macaddr),
    ("macaddr8", Base::Macaddr8),
    ("smallint", Base::Smallint),
    ("int2", Base::Smallint),
    ("integer", Base::Integer),
    ("int", Base::Integer),
    ("int4", Base::Integer),
    ("bigint", Base::Bigint),
    ("int8", Base::Bigint),
    ("boolean", Base::Boolean),
    ("bool", Base::Boolean),
    ("real", Base::Real),
    ("float4", Base::Real),
    ("double precision", Base::DoublePrecision),
    ("float8", Base::DoublePrecision),
    ("float", Base::DoublePrecision),
    ("numeric", Base::Numeric),
    ("decimal", Base::Numeric),
    ("uuid", Base::Uuid),
    ("bytea", Base::Bytea),
    ("jsonb", Base::Jsonb),
    ("json", Base::Jsonb),
];

/// What a check of a string's content says: nothing, or what is wrong with it.
type Verdict = Result<(), &'static str>;

impl FieldType {
    /// The type of a column for which none is configured.
    pub const TEXT: Self = Self { base: Base::Text, array: false };

    /// Reads a type as `channels.yml` names it: any name, alias or synonym, in any case and spacing,
    /// with `[]` for an array. Modifiers such as `(10)` or `(12,2)` are accepted and dropped.
    ///
    /// # Errors
    /// What is wrong with `text`, with the nearest known type where there is one.
    pub fn parse(text: &str) -> Result<Self, String> {
        let lower = text.trim().to_ascii_lowercase();
        let (scalar, array) = match without_brackets(&lower) {
            Some(rest) => (rest, true),
            None => (lower.as_str(), false),
        };
        if without_brackets(scalar).is_some() {
            return Err(format!("{text:?}: arrays have one dimension only"));
        }
        let (name, modifiers) = split_modifiers(scalar)
            .ok_or_else(|| format!("{text:?}: a modifier is a number, as in varchar(10)"))?;
        let Some((_, base)) = NAMES.iter().find(|(known, _)| *known == name) else {
            let known = NAMES.iter().map(|(known, _)| *known);
            return Err(match nearest(&name, known) {
                Some(known) => {
                    format!("{text:?} is not a field type; did you mean {known:?}?")
                }
                None => format!("{text:?} is not a field type; without one, a column is text"),
            });
        };
        let most = base.most_modifiers();
        if modifiers > most {
            return Err(if most == 0 {
                format!("{text:?}: {base} takes no numbers in parentheses")
            } else {
                format!("{text:?}: {base} takes no more than {most} in parentheses")
            });
        }
        Ok(Self { base: *base, array })
    }

    /// Whether a value is of this type. `raw` is its JSON text, checked against the portable profile
    /// before, and not `null`.
    ///
    /// Fractions of a second may have up to nine digits, since clients send nanoseconds; backends
    /// hold microseconds.
    ///
    /// # Errors
    /// What would be right, in words for the client; never the value.
    pub fn check(&self, raw: &[u8]) -> Result<(), String> {
        if !self.array {
            return self.base.check(raw);
        }
        if raw.first() != Some(&b'[') {
            return Err(format!("must be an array of {}, but is {}", self.base, kind_of(raw)));
        }
        for (at, element) in json::elements(raw).enumerate() {
            if element != b"null" {
                self.base.check(element).map_err(|reason| format!("element {at} {reason}"))?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for FieldType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.base, f)?;
        f.write_str(if self.array { "[]" } else { "" })
    }
}

impl fmt::Display for Base {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = NAMES.iter().find(|(_, base)| base == self).map_or("text", |(name, _)| *name);
        f.write_str(name)
    }
}

impl Base {
    /// How many numbers may stand in parentheses behind the name.
    fn most_modifiers(self) -> usize {
        match self {
            Self::Numeric => 2,
            Self::Text | Self::Timestamptz | Self::Timestamp | Self::Time | Self::Timetz => 1,
            _ => 0,
        }
    }

    fn check(self, raw: &[u8]) -> Result<(), String> {
        let good = match self {
            Self::Jsonb => true,
            Self::Boolean => matches!(raw, b"true" | b"false"),
            Self::Smallint => is_whole(raw, i16::MIN.into(), i16::MAX.into()),
            Self::Integer => is_whole(raw, i32::MIN.into(), i32::MAX.into()),
            Self::Bigint => is_whole(raw, i64::MIN, i64::MAX),
            Self::Real => is_single(raw),
            Self::DoublePrecision => is_number(raw),
            _ => {
                return match self.content(raw) {
                    Some(content) => self
                        .check_content(&content)
                        .map_err(|wrong| format!("must be {}: {wrong}", self.wanted())),
                    None => Err(self.wrong_kind(raw)),
                };
            }
        };
        if good { Ok(()) } else { Err(self.wrong_kind(raw)) }
    }

    fn wrong_kind(self, raw: &[u8]) -> String {
        let wanted = self.wanted();
        if is_number(raw) && self.wants_number() {
            return format!("must be {wanted}");
        }
        format!("must be {wanted}, but is {}", kind_of(raw))
    }

    fn wants_number(self) -> bool {
        matches!(
            self,
            Self::Smallint | Self::Integer | Self::Bigint | Self::Real | Self::DoublePrecision
        )
    }

    /// The text to check, where the value is of a kind that this type is written in.
    fn content(self, raw: &[u8]) -> Option<Cow<'_, str>> {
        if raw.first() == Some(&b'"') {
            Some(json::decode_string(raw))
        } else if self == Self::Numeric && is_number(raw) {
            Some(String::from_utf8_lossy(raw))
        } else {
            None
        }
    }

    fn check_content(self, text: &str) -> Verdict {
        match self {
            Self::Timestamptz => moment::timestamptz(text),
            Self::Timestamp => moment::timestamp(text),
            Self::Date => moment::date(text),
            Self::Time => moment::time(text),
            Self::Timetz => moment::timetz(text),
            Self::Inet => address::inet(text),
            Self::Cidr => address::cidr(text),
            Self::Macaddr => address::hardware(text, 6),
            Self::Macaddr8 => address::hardware(text, 8),
            Self::Numeric => numeric::check(text),
            Self::Uuid => uuid(text),
            Self::Bytea => bytea(text),
            _ => Ok(()),
        }
    }

    /// What a value of this type is, for a person.
    fn wanted(self) -> &'static str {
        match self {
            Self::Text => "a string",
            Self::Timestamptz => "a time with offset such as \"2024-05-01T12:00:00Z\"",
            Self::Timestamp => "a time without offset such as \"2024-05-01T12:00:00\"",
            Self::Date => "a day such as \"2024-05-01\"",
            Self::Time => "a time of day such as \"12:00:00\"",
            Self::Timetz => "a time of day with offset such as \"12:00:00+02:00\"",
            Self::Inet => "an IP address such as \"192.0.2.1\" or \"192.0.2.1/24\"",
            Self::Cidr => "an IP network such as \"192.0.2.0/24\"",
            Self::Macaddr => "a hardware address such as \"08:00:2b:01:02:03\"",
            Self::Macaddr8 => "a hardware address such as \"08:00:2b:01:02:03:04:05\"",
            Self::Smallint => "a JSON number from -32768 to 32767 without fraction or exponent",
            Self::Integer => {
                "a JSON number from -2147483648 to 2147483647 without fraction or exponent"
            }
            Self::Bigint => {
                "a JSON number from -9223372036854775808 to 9223372036854775807 without fraction \
                 or exponent"
            }
            Self::Boolean => "true or false",
            Self::Real => {
                "a JSON number in the range of single precision (1.2e-38 to 3.4e38, or 0)"
            }
            Self::DoublePrecision => "a JSON number",
            Self::Numeric => "a decimal number, as JSON number or string",
            Self::Uuid => "a UUID such as \"123e4567-e89b-12d3-a456-426614174000\"",
            Self::Bytea => "bytes such as \"\\\\x00ff\"",
            Self::Jsonb => "a JSON value",
        }
    }
}

fn kind_of(raw: &[u8]) -> &'static str {
    match raw.first() {
        Some(b'{') => "an object",
        Some(b'[') => "an array",
        Some(b'"') => "a string",
        Some(b't' | b'f') => "a boolean",
        Some(b'n') => "null",
        _ => "a number",
    }
}

/// `text` without `[]` at its end, if that is there.
fn without_brackets(text: &str) -> Option<&str> {
    let open = text.strip_suffix(']')?.trim_end();
    Some(open.strip_suffix('[')?.trim_end())
}

/// The name with single spaces, and how many numbers stood in parentheses in or behind it.
fn split_modifiers(text: &str) -> Option<(String, usize)> {
    let single_spaced = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let Some((before, rest)) = text.split_once('(') else {
        return Some((single_spaced(text), 0));
    };
    let (inside, behind) = rest.split_once(')')?;
    let mut count = 0;
    for number in inside.split(',').map(str::trim) {
        if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        count += 1;
    }
    Some((single_spaced(&format!("{before} {behind}")), count))
}

fn is_number(raw: &[u8]) -> bool {
    matches!(raw.first(), Some(b'-' | b'0'..=b'9'))
}

fn is_whole(raw: &[u8], least: i64, most: i64) -> bool {
    // `from_str` would take a plus sign, which JSON has not; a fraction or exponent it refuses.
    is_number(raw)
        && std::str::from_utf8(raw)
            .ok()
            .and_then(|text| text.parse::<i64>().ok())
            .is_some_and(|value| (least..=most).contains(&value))
}

/// Compared as a double: MySQL does so, and refuses what is above the largest single precision number
/// by less than rounding would forgive. Subnormal numbers are out for the reason that holds for
/// doubles.
fn is_single(raw: &[u8]) -> bool {
    is_number(raw)
        && std::str::from_utf8(raw)
            .ok()
            .and_then(|text| text.parse::<f64>().ok())
            .map(f64::abs)
            .is_some_and(|value| {
                value == 0.0
                    || (f64::from(f32::MIN_POSITIVE)..=f64::from(f32::MAX)).contains(&value)
            })
}

fn uuid(text: &str) -> Verdict {
    let lengths = [8, 4, 4, 4, 12];
    let mut groups = text.split('-');
    let good = lengths
        .iter()
        .all(|length| groups.next().is_some_and(|group| group.len() == *length && is_hex(group)));
    if good && groups.next().is_none() {
        Ok(())
    } else {
        Err("it is not 8-4-4-4-12 hexadecimal digits")
    }
}

fn bytea(text: &str) -> Verdict {
    match text.strip_prefix("\\x") {
        Some(digits) if digits.len().is_multiple_of(2) && is_hex(digits) => Ok(()),
        Some(_) => Err("what follows \\x is not an even number of hexadecimal digits"),
        None => Err("it does not begin with \\x"),
    }
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_hexdigit())
}
