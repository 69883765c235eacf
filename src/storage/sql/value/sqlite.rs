//! Values on their way to SQLite: parameters whose kind is the column's affinity, so that nothing is
//! converted.
//!
//! Must not know a connection.

use std::borrow::Cow;

use super::{Head, Value};

/// A parameter.
#[derive(Clone, Debug, PartialEq)]
pub enum Bind<'v> {
    /// Nothing.
    Null,
    /// A whole number; a truth value as 0 or 1.
    Int(i64),
    /// A floating number.
    Real(f64),
    /// A text: everything that has a canonical text only.
    Text(Cow<'v, str>),
    /// Bytes.
    Blob(Cow<'v, [u8]>),
}

/// The parameters of one row: the canonical columns, then `values`.
#[must_use]
pub fn binds<'v>(head: &Head<'v>, values: &'v [Option<Value<'_>>]) -> Vec<Bind<'v>> {
    let text = |text| Bind::Text(Cow::Borrowed(text));
    let mut binds = Vec::with_capacity(5 + values.len());
    binds.extend([
        text(head.origin),
        // no seq reaches 2^53
        Bind::Int(i64::try_from(head.seq.0).unwrap_or(i64::MAX)),
        text(head.node),
        text(head.channel),
        text(head.received_at),
    ]);
    binds.extend(values.iter().map(|value| value.as_ref().map_or(Bind::Null, bind)));
    binds
}

fn bind<'v>(value: &'v Value<'_>) -> Bind<'v> {
    match value {
        Value::Int(number) => Bind::Int(*number),
        Value::Bool(truth) => Bind::Int(i64::from(*truth)),
        Value::Double(number) => Bind::Real(*number),
        Value::Real(number) => Bind::Real(f64::from(*number)),
        Value::Bytes(bytes) => Bind::Blob(Cow::Borrowed(bytes)),
        Value::Text(_) | Value::Decimal(_) | Value::Json(_) | Value::Array(_) => {
            Bind::Text(value.text())
        }
    }
}
