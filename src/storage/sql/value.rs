//! A payload under its schema as values, and values as a payload again: one canonical form a type, so
//! that all dialects hold the same meaning.
//!
//! Pure: must not know a connection or a statement. What a value is as text:
//!
//! | type | text |
//! |---|---|
//! | `timestamptz` | `2024-05-01 12:00:00.000000+00:00`, always UTC and microseconds |
//! | `timestamp`, `date`, `time`, `timetz` | the parts of that; `timetz` keeps its offset |
//! | `inet`, `cidr`, `macaddr`, `macaddr8`, `uuid` | as PostgreSQL prints them |
//! | `numeric` | digits without exponent, with the zeros behind the point that were sent |
//! | whole and floating numbers | the shortest digits that give the number again |
//! | `bytea` | `\x` and lower-case hexadecimal digits |
//! | `jsonb` | the client's bytes |
//! | arrays | a JSON array of these |
//!
//! Each is a text that the door takes too, so a payload made of them can be pulled by a peer.

mod content;
mod moment;
pub mod mysql;
pub mod postgres;
mod scalar;
pub mod sqlite;

#[cfg(test)]
mod tests;

use std::borrow::Cow;

use crate::channel::field_type::{Base, FieldType};
use crate::channel::schema::{CANONICAL_COLUMNS, Column, Ident, OnUnknown, Schema};
use crate::event::{Micros, Seq};
use crate::json;

pub use content::same_content;

/// The value of a column that is not null.
#[derive(Clone, Debug, PartialEq)]
pub enum Value<'a> {
    /// A text, or a type that is held as its canonical text.
    Text(Cow<'a, str>),
    /// An exact decimal number.
    Decimal(String),
    /// A whole number.
    Int(i64),
    /// A number of double precision, finite.
    Double(f64),
    /// A number of single precision, finite.
    Real(f32),
    /// A truth value.
    Bool(bool),
    /// Bytes.
    Bytes(Vec<u8>),
    /// The text of a JSON value.
    Json(Cow<'a, [u8]>),
    /// An array of one dimension.
    Array(Vec<Option<Value<'a>>>),
}

/// The canonical columns of a row, which stand before its values.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    /// `origin_dc`.
    pub origin: &'a str,
    /// `origin_seq`.
    pub seq: Seq,
    /// `node_name`.
    pub node: &'a str,
    /// `channel`.
    pub channel: &'a str,
    /// `received_at`, as [`timestamptz`] writes it: once for all events of one moment.
    pub received_at: &'a str,
}

/// Why a payload that was accepted is no row of today's table. Shows no value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unmapped {
    /// A field has no column any more.
    #[error("its field {column} has no column in today's channel")]
    ColumnGone {
        /// The field.
        column: Ident,
    },
    /// A value is not of its column's type.
    #[error("its field {column} {reason}")]
    WrongType {
        /// The column.
        column: Ident,
        /// What would be right, in the door's words.
        reason: String,
    },
}

impl Unmapped {
    /// The code of its dead letter.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::ColumnGone { .. } => "column gone",
            Self::WrongType { .. } => "column type",
        }
    }
}

/// The values of a payload, one for each column of the schema; absent is null. Nothing is required
/// here: that is judged at the door only.
///
/// Under [`OnUnknown::Reject`] a field without a column is one whose column is gone, unless no
/// column could ever have had its name; under [`OnUnknown::Drop`] it is left out. What comes from a
/// peer whose schema fits is read with `Drop`.
///
/// # Errors
/// The first field that has no place in the row.
pub fn row<'a>(
    schema: &Schema,
    payload: &'a [u8],
    on_unknown: OnUnknown,
) -> Result<Vec<Option<Value<'a>>>, Unmapped> {
    let mut values = vec![None; schema.columns.len()];
    let mut next = 0;
    for (key, raw) in json::members(payload) {
        let Some(at) = schema.position(&key, next) else {
            if on_unknown == OnUnknown::Reject
                && raw != b"null"
                && let Some(column) = former_column(&key)
            {
                return Err(Unmapped::ColumnGone { column });
            }
            continue;
        };
        next = at + 1;
        values[at] = match raw {
            b"null" => None,
            _ => Some(value(&schema.columns[at], raw)?),
        };
    }
    Ok(values)
}

/// The payload of a row that was read back, from the texts of the schema's columns; null is absent.
/// What its column's type cannot be, since somebody else wrote it, goes as a string: a peer keeps
/// that in quarantine.
#[must_use]
pub fn payload_of(schema: &Schema, texts: &[Option<&str>]) -> Vec<u8> {
    let mut out = vec![b'{'];
    for (column, text) in schema.columns.iter().zip(texts) {
        let Some(text) = text else { continue };
        if out.len() > 1 {
            out.push(b',');
        }
        push_string(column.name.as_str(), &mut out);
        out.push(b':');
        held(column.ty, text).push_json(&mut out);
    }
    out.push(b'}');
    out
}

/// A value that was read back as text, in the canonical form or in that of a backend. What is not of
/// the type comes as [`Value::Text`], so it equals nothing that we would write.
#[must_use]
pub fn held(ty: FieldType, text: &str) -> Value<'_> {
    let value = if ty.array {
        text.starts_with('[').then(|| array(ty.base, text.as_bytes())).flatten()
    } else {
        read(ty.base, Cow::Borrowed(text))
    };
    value.unwrap_or(Value::Text(Cow::Borrowed(text)))
}

/// Whether two rows have the same content: what would be written, and what stands there.
#[must_use]
pub fn same_values(ours: &[Option<Value<'_>>], theirs: &[Option<Value<'_>>]) -> bool {
    ours.len() == theirs.len()
        && ours.iter().zip(theirs).all(|pair| match pair {
            (None, None) => true,
            (Some(ours), Some(theirs)) => ours.is_same(theirs),
            _ => false,
        })
}

/// A moment as canonical text.
#[must_use]
pub fn timestamptz(at: Micros) -> String {
    // A clock beyond the year 9999 is none that a storage could hold.
    moment::zoned_text(at.0).unwrap_or_else(|| crate::clock::rfc3339(at))
}

/// Reads a moment, in the canonical form or in that of a backend.
#[must_use]
pub fn micros(text: &str) -> Option<Micros> {
    moment::instant(text).map(Micros)
}

/// Bytes as canonical text.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    scalar::hex(bytes)
}

/// Reads the text of bytes.
#[must_use]
pub fn bytes(text: &str) -> Option<Vec<u8>> {
    scalar::bytes(text)
}

/// A field's name, if a column could have had it.
fn former_column(key: &str) -> Option<Ident> {
    let canonical = CANONICAL_COLUMNS.iter().any(|name| name.eq_ignore_ascii_case(key));
    if canonical { None } else { Ident::new(key).ok() }
}

/// The value of a field. The door's check comes first: nothing that it would refuse is stored.
fn value<'a>(column: &Column, raw: &'a [u8]) -> Result<Value<'a>, Unmapped> {
    let ty = column.ty;
    let wrong = |reason| Unmapped::WrongType { column: column.name.clone(), reason };
    ty.check(raw).map_err(wrong)?;
    let value = if ty.array { array(ty.base, raw) } else { scalar_of(ty.base, raw) };
    value.ok_or_else(|| wrong(format!("cannot be read as {ty}")))
}

fn array(base: Base, raw: &[u8]) -> Option<Value<'_>> {
    json::elements(raw)
        .map(|element| match element {
            b"null" => Some(None),
            _ => scalar_of(base, element).map(Some),
        })
        .collect::<Option<Vec<_>>>()
        .map(Value::Array)
}

/// A scalar out of its JSON text.
fn scalar_of(base: Base, raw: &[u8]) -> Option<Value<'_>> {
    if base == Base::Jsonb {
        return Some(Value::Json(Cow::Borrowed(raw)));
    }
    let text = match raw.first() {
        Some(b'"') => json::decode_string(raw),
        _ => Cow::Borrowed(std::str::from_utf8(raw).ok()?),
    };
    read(base, text)
}

/// A scalar out of its own text: what a JSON string or number says, or what a backend shows.
fn read(base: Base, text: Cow<'_, str>) -> Option<Value<'_>> {
    let canonical = match base {
        Base::Text => return Some(Value::Text(text)),
        Base::Smallint | Base::Integer | Base::Bigint => return text.parse().ok().map(Value::Int),
        Base::Real => {
            return text.parse().ok().filter(|number: &f32| number.is_finite()).map(Value::Real);
        }
        Base::DoublePrecision => {
            return text.parse().ok().filter(|number: &f64| number.is_finite()).map(Value::Double);
        }
        Base::Boolean => return text.parse().ok().map(Value::Bool),
        Base::Numeric => return scalar::decimal(&text).map(Value::Decimal),
        Base::Bytea => return scalar::bytes(&text).map(Value::Bytes),
        Base::Jsonb => {
            return Some(Value::Json(match text {
                Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
                Cow::Owned(text) => Cow::Owned(text.into_bytes()),
            }));
        }
        Base::Timestamptz => moment::timestamptz(&text),
        Base::Timestamp => moment::timestamp(&text),
        Base::Date => moment::date(&text),
        Base::Time => moment::time(&text),
        Base::Timetz => moment::timetz(&text),
        Base::Inet => scalar::inet(&text),
        Base::Cidr => scalar::cidr(&text),
        Base::Macaddr | Base::Macaddr8 => scalar::hardware(&text),
        Base::Uuid => Some(text.to_ascii_lowercase()),
    };
    canonical.map(|text| Value::Text(Cow::Owned(text)))
}

impl Value<'_> {
    /// The canonical text.
    #[must_use]
    pub fn text(&self) -> Cow<'_, str> {
        match self {
            Self::Text(text) => Cow::Borrowed(text),
            Self::Decimal(digits) => Cow::Borrowed(digits),
            Self::Int(number) => Cow::Owned(number.to_string()),
            // Debug gives the shortest digits too, and an exponent where they would be many.
            Self::Double(number) => Cow::Owned(format!("{number:?}")),
            // But the shortest for the largest number of single precision lie beyond it.
            Self::Real(number) if number.abs() == f32::MAX => {
                Cow::Owned(format!("{:?}", f64::from(*number)))
            }
            Self::Real(number) => Cow::Owned(format!("{number:?}")),
            Self::Bool(true) => Cow::Borrowed("true"),
            Self::Bool(false) => Cow::Borrowed("false"),
            Self::Bytes(bytes) => Cow::Owned(scalar::hex(bytes)),
            Self::Json(json) => String::from_utf8_lossy(json),
            Self::Array(_) => {
                let mut json = Vec::new();
                self.push_json(&mut json);
                Cow::Owned(String::from_utf8_lossy(&json).into_owned())
            }
        }
    }

    /// The value as a payload has it.
    fn push_json(&self, out: &mut Vec<u8>) {
        match self {
            Self::Text(text) => push_string(text, out),
            Self::Bytes(_) => push_string(&self.text(), out),
            Self::Json(json) => out.extend_from_slice(json),
            Self::Array(elements) => {
                out.push(b'[');
                for (at, element) in elements.iter().enumerate() {
                    if at > 0 {
                        out.push(b',');
                    }
                    match element {
                        Some(element) => element.push_json(out),
                        None => out.extend_from_slice(b"null"),
                    }
                }
                out.push(b']');
            }
            _ => out.extend_from_slice(self.text().as_bytes()),
        }
    }

    fn is_same(&self, other: &Value<'_>) -> bool {
        match (self, other) {
            (Self::Json(ours), Value::Json(theirs)) => same_content(ours, theirs),
            (Self::Decimal(ours), Value::Decimal(theirs)) => scalar::same_decimal(ours, theirs),
            (Self::Array(ours), Value::Array(theirs)) => same_values(ours, theirs),
            (Self::Text(ours), Value::Text(theirs)) => ours == theirs,
            (Self::Int(ours), Value::Int(theirs)) => ours == theirs,
            (Self::Double(ours), Value::Double(theirs)) => ours == theirs,
            (Self::Real(ours), Value::Real(theirs)) => ours == theirs,
            (Self::Bool(ours), Value::Bool(theirs)) => ours == theirs,
            (Self::Bytes(ours), Value::Bytes(theirs)) => ours == theirs,
            _ => false,
        }
    }
}

/// A text as a JSON string.
fn push_string(text: &str, out: &mut Vec<u8>) {
    // a Vec takes every byte
    let _ = serde_json::to_writer(out, text);
}
