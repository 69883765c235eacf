//! Values on their way to MySQL and MariaDB, and decimals on the way back.
//!
//! Parameters are typed as SQLite's are: whole and floating numbers and bytes travel as they are,
//! everything else as its canonical text, which the column's type reads. Must not know a connection.

use std::borrow::Cow;

use super::sqlite::{self, Bind};
use super::{Head, Value};

/// The canonical columns, before a row's own.
const CANONICAL: usize = 5;

/// The parameters of one row: the canonical columns, then `values`.
///
/// A decimal goes without the zeros at its end: what a column of 30 digits behind the point would
/// drop is nothing then.
#[must_use]
pub fn binds<'v>(head: &Head<'v>, values: &'v [Option<Value<'_>>]) -> Vec<Bind<'v>> {
    let mut binds = sqlite::binds(head, values);
    for (bind, value) in binds.iter_mut().skip(CANONICAL).zip(values) {
        if let Some(Value::Decimal(digits)) = value {
            *bind = Bind::Text(Cow::Borrowed(decimal(digits)));
        }
    }
    binds
}

/// A decimal without the zeros at its end: a column shows all digits that it could have.
#[must_use]
pub fn decimal(text: &str) -> &str {
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Seq;

    #[test]
    fn a_decimal_has_no_zeros_at_its_end_on_either_way() {
        for (text, expect) in [
            ("1.10", "1.1"),
            ("100", "100"),
            ("100.000000000000000000000000000000", "100"),
            ("0.000000000000000000000000000000", "0"),
            ("-0.000000000000000000000000000001", "-0.000000000000000000000000000001"),
        ] {
            assert_eq!(decimal(text), expect);
        }
        let values = [Some(Value::Decimal("7.50".to_owned())), None, Some(Value::Bool(true))];
        let head =
            Head { origin: "dc1", seq: Seq(7), node: "dc1", channel: "c", received_at: "now" };
        let binds = binds(&head, &values);
        let expect = [Bind::Text("7.5".into()), Bind::Null, Bind::Int(1)];
        assert_eq!(binds[5..], expect);
        assert_eq!(binds[..2], [Bind::Text("dc1".into()), Bind::Int(7)]);
    }
}
