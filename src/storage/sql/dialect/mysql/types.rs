//! The types of MySQL's columns: what is declared, how much of it an index takes, and what of a table
//! that stands is as good.
//!
//! Pure: must not know statements.

use crate::channel::field_type::{Base, FieldType};
use crate::storage::sql::table::ColumnType;

/// A text of any length, whatever the table's own character set.
pub(super) const TEXT: &str = "LONGTEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin";

/// The bytes that a key may have in all its parts.
const KEY_BYTES: usize = 3_072;
/// What a part needs beside its content: whether it is null, and its length.
const PART_BYTES: usize = 3;
/// The most bytes of a character.
const CHARACTER: usize = 4;

/// The type of a column.
pub(super) fn declared(ty: ColumnType) -> &'static str {
    match ty {
        ColumnType::OriginDc | ColumnType::NodeName | ColumnType::ChannelName => "VARCHAR(191)",
        ColumnType::Seq | ColumnType::BigInt => "BIGINT",
        ColumnType::ReceivedAt | ColumnType::Timestamp => "DATETIME(6)",
        ColumnType::Text => TEXT,
        // a number of MySQL's JSON is a whole one or a double, which holds no decimal
        ColumnType::Field(FieldType { array: true, base: Base::Numeric }) => TEXT,
        // MariaDB makes a text of it, with a CHECK that it is JSON
        ColumnType::JsonDoc | ColumnType::Field(FieldType { array: true, .. }) => "JSON",
        ColumnType::Blob => "LONGBLOB",
        ColumnType::Field(FieldType { base, array: false }) => match base {
            Base::Text => TEXT,
            Base::Jsonb => "JSON",
            Base::Timestamptz | Base::Timestamp => "DATETIME(6)",
            Base::Date => "DATE",
            Base::Time => "TIME(6)",
            // texts of a known length, in a character set of one byte: so they count little in a
            // row and under an index
            Base::Timetz => "VARCHAR(21) CHARACTER SET ascii COLLATE ascii_bin",
            Base::Inet | Base::Cidr => "VARCHAR(43) CHARACTER SET ascii COLLATE ascii_bin",
            Base::Macaddr => "VARCHAR(17) CHARACTER SET ascii COLLATE ascii_bin",
            Base::Macaddr8 => "VARCHAR(23) CHARACTER SET ascii COLLATE ascii_bin",
            Base::Uuid => "CHAR(36) CHARACTER SET ascii COLLATE ascii_bin",
            Base::Smallint => "SMALLINT",
            Base::Integer => "INT",
            Base::Bigint => "BIGINT",
            Base::Boolean => "TINYINT(1)",
            Base::Real => "FLOAT",
            Base::DoublePrecision => "DOUBLE",
            Base::Numeric => "DECIMAL(65,30)",
            Base::Bytea => "LONGBLOB",
        },
    }
}

/// Whether a column holds a JSON document.
pub(super) fn is_json(ty: ColumnType) -> bool {
    match ty {
        ColumnType::JsonDoc => true,
        ColumnType::Field(field) => field.array || field.base == Base::Jsonb,
        _ => false,
    }
}

/// Whether a column holds a moment of UTC.
pub(super) fn is_moment(ty: ColumnType) -> bool {
    matches!(
        ty,
        ColumnType::ReceivedAt
            | ColumnType::Timestamp
            | ColumnType::Field(FieldType { base: Base::Timestamptz, array: false })
    )
}

/// How a column counts under an index.
enum Weight {
    /// So many bytes, always.
    Fixed(usize),
    /// As many characters as are given to it.
    Characters,
    /// As many bytes as are given to it.
    Bytes,
}

fn weight(ty: ColumnType) -> Weight {
    let base = match ty {
        ColumnType::OriginDc | ColumnType::NodeName | ColumnType::ChannelName => {
            return Weight::Fixed(191 * CHARACTER);
        }
        ColumnType::Text | ColumnType::JsonDoc => return Weight::Characters,
        ColumnType::Field(FieldType { array: true, .. }) => return Weight::Characters,
        ColumnType::Blob => return Weight::Bytes,
        ColumnType::Seq | ColumnType::BigInt | ColumnType::ReceivedAt | ColumnType::Timestamp => {
            return Weight::Fixed(8);
        }
        ColumnType::Field(FieldType { base, array: false }) => base,
    };
    match base {
        Base::Text | Base::Jsonb => Weight::Characters,
        Base::Bytea => Weight::Bytes,
        Base::Inet | Base::Cidr => Weight::Fixed(43),
        Base::Uuid => Weight::Fixed(36),
        Base::Numeric => Weight::Fixed(30),
        Base::Macaddr8 => Weight::Fixed(23),
        Base::Timetz => Weight::Fixed(21),
        Base::Macaddr => Weight::Fixed(17),
        Base::Timestamptz
        | Base::Timestamp
        | Base::Date
        | Base::Time
        | Base::Smallint
        | Base::Integer
        | Base::Bigint
        | Base::Boolean
        | Base::Real
        | Base::DoublePrecision => Weight::Fixed(8),
    }
}

/// How much of each column without a bound an index takes.
pub(super) struct Prefix {
    bytes: usize,
}

/// For an index over these columns: what those with a bound leave, shared evenly.
pub(super) fn prefix(parts: impl Iterator<Item = ColumnType>) -> Prefix {
    let (mut fixed, mut open) = (0, 0);
    for ty in parts {
        fixed += PART_BYTES;
        match weight(ty) {
            Weight::Fixed(bytes) => fixed += bytes,
            Weight::Characters | Weight::Bytes => open += 1,
        }
    }
    Prefix { bytes: KEY_BYTES.saturating_sub(fixed).checked_div(open).unwrap_or(0) }
}

impl Prefix {
    /// The length to be written, in characters or bytes; nothing for a column with a bound.
    pub(super) fn of(&self, ty: ColumnType) -> Option<usize> {
        match weight(ty) {
            Weight::Fixed(_) => None,
            Weight::Characters => Some((self.bytes / CHARACTER).max(1)),
            Weight::Bytes => Some(self.bytes.max(1)),
        }
    }
}

/// A type as the catalog shows it: `decimal(65,30)`, `bigint(20) unsigned`, `varchar(43) ascii`.
struct Shown<'a> {
    name: &'a str,
    size: Option<u32>,
    scale: Option<u32>,
    unsigned: bool,
    /// Where it is another than utf8mb4.
    charset: Option<&'a str>,
}

impl<'a> Shown<'a> {
    fn read(text: &'a str) -> Self {
        let (name, size, rest) = match text.split_once('(') {
            Some((name, behind)) => {
                let (size, rest) = behind.split_once(')').unwrap_or((behind, ""));
                (name, size, rest)
            }
            None => {
                let (name, rest) = text.split_once(' ').unwrap_or((text, ""));
                (name, "", rest)
            }
        };
        let (size, scale) = size.split_once(',').unwrap_or((size, ""));
        let mut shown = Self {
            name,
            size: size.parse().ok(),
            scale: scale.parse().ok(),
            unsigned: false,
            charset: None,
        };
        for word in rest.split_whitespace() {
            match word {
                "unsigned" | "zerofill" => shown.unsigned = true,
                word => shown.charset = Some(word),
            }
        }
        shown
    }

    fn is(&self, names: &[&str]) -> bool {
        names.contains(&self.name) && !self.unsigned
    }

    /// Holds any text, up to 64 KiB at least.
    fn any_text(&self) -> bool {
        self.is(&["text", "mediumtext", "longtext"]) && self.charset.is_none()
    }

    /// Holds `length` characters of ASCII.
    fn ascii(&self, length: u32) -> bool {
        let ascii = matches!(
            self.charset,
            None | Some("ascii" | "latin1" | "utf8" | "utf8mb3" | "utf8mb4")
        );
        let wide = match self.name {
            "char" | "varchar" => self.size.is_some_and(|size| size >= length),
            name => matches!(name, "tinytext" | "text" | "mediumtext" | "longtext"),
        };
        ascii && wide
    }

    fn json(&self) -> bool {
        self.any_text() || self.is(&["json"])
    }

    /// A day and a time with microseconds.
    fn datetime(&self) -> bool {
        self.is(&["datetime"]) && self.size == Some(6)
    }
}

/// Whether a type of the catalog holds all that ours does.
pub(super) fn same(ty: ColumnType, text: &str) -> bool {
    let shown = Shown::read(text);
    match ty {
        ColumnType::OriginDc | ColumnType::NodeName | ColumnType::ChannelName => shown.ascii(63),
        ColumnType::Seq | ColumnType::BigInt => shown.is(&["bigint"]),
        ColumnType::ReceivedAt => {
            shown.datetime() || (shown.is(&["timestamp"]) && shown.size == Some(6))
        }
        ColumnType::Timestamp => shown.is(&["datetime", "timestamp"]),
        ColumnType::JsonDoc => shown.json(),
        ColumnType::Text => shown.any_text() || shown.ascii(255),
        ColumnType::Blob => shown.is(&["mediumblob", "longblob"]),
        ColumnType::Field(FieldType { array: true, .. }) => shown.json(),
        ColumnType::Field(FieldType { base, array: false }) => same_scalar(base, &shown),
    }
}

fn same_scalar(base: Base, shown: &Shown<'_>) -> bool {
    match base {
        Base::Text => shown.any_text(),
        Base::Jsonb => shown.json(),
        Base::Timestamptz | Base::Timestamp => shown.datetime(),
        Base::Date => shown.is(&["date"]),
        Base::Time => shown.is(&["time"]) && shown.size == Some(6),
        Base::Timetz => shown.ascii(21),
        Base::Inet | Base::Cidr => shown.ascii(43),
        Base::Macaddr => shown.ascii(17),
        Base::Macaddr8 => shown.ascii(23),
        Base::Uuid => shown.ascii(36),
        Base::Smallint => shown.is(&["smallint", "mediumint", "int", "bigint"]),
        Base::Integer => shown.is(&["int", "bigint"]),
        Base::Bigint => shown.is(&["bigint"]),
        Base::Boolean => shown.is(&["tinyint"]),
        Base::Real => shown.is(&["float", "double"]) && shown.size.is_none(),
        Base::DoublePrecision => shown.is(&["double"]) && shown.size.is_none(),
        Base::Numeric => {
            shown.is(&["decimal"]) && (shown.size, shown.scale) == (Some(65), Some(30))
        }
        Base::Bytea => shown.is(&["blob", "mediumblob", "longblob"]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(name: &str) -> ColumnType {
        ColumnType::Field(FieldType::parse(name).unwrap())
    }

    #[test]
    fn a_table_of_the_old_release_and_one_of_mariadb_fit() {
        for (ty, text) in [
            (ColumnType::OriginDc, "varchar(191)"),
            (ColumnType::ChannelName, "varchar(191) latin1"),
            (ColumnType::Seq, "bigint"),
            (ColumnType::Seq, "bigint(20)"),
            (ColumnType::ReceivedAt, "datetime(6)"),
            (ColumnType::Timestamp, "datetime"),
            (ColumnType::JsonDoc, "json"),
            (ColumnType::JsonDoc, "longtext"),
            (field("text"), "text"),
            (field("inet"), "varchar(64)"),
            (field("uuid"), "char(36) ascii"),
            (field("boolean"), "tinyint(1)"),
            (field("smallint"), "int(11)"),
            (field("numeric"), "decimal(65,30)"),
            (field("real"), "float"),
            (field("bytea"), "longblob"),
            (field("bytea[]"), "json"),
        ] {
            assert!(same(ty, text), "{ty:?} {text}");
        }
    }

    #[test]
    fn what_would_cut_or_round_does_not_fit() {
        for (ty, text) in [
            (ColumnType::OriginDc, "varchar(62)"),
            (ColumnType::OriginDc, "varchar(191) utf16"),
            (ColumnType::Seq, "int(11)"),
            (ColumnType::ReceivedAt, "datetime"),
            (ColumnType::ReceivedAt, "datetime(3)"),
            (ColumnType::JsonDoc, "longtext latin1"),
            (ColumnType::JsonDoc, "tinytext"),
            (field("text"), "varchar(300)"),
            (field("text"), "longtext latin1"),
            (field("bigint"), "bigint unsigned"),
            (field("bigint"), "bigint(20) unsigned"),
            (field("inet"), "varchar(39)"),
            (field("timestamptz"), "timestamp(6)"),
            (field("time"), "time(3)"),
            (field("real"), "float(7,4)"),
            (field("double precision"), "float"),
            (field("numeric"), "decimal(12,2)"),
            (field("numeric"), "decimal(65,0)"),
            (field("bytea"), "varbinary(100)"),
            (field("date"), "enum('a','b')"),
        ] {
            assert!(!same(ty, text), "{ty:?} {text}");
        }
    }

    /// Checks how much of each column an index takes; 0 where it takes the whole.
    fn check_prefix(types: &[ColumnType], expect: &[usize]) {
        let prefix = prefix(types.iter().copied());
        let found: Vec<usize> = types.iter().map(|ty| prefix.of(*ty).unwrap_or(0)).collect();
        assert_eq!(found, expect, "{types:?}");
        let bytes = |(ty, length): (&ColumnType, &usize)| match weight(*ty) {
            Weight::Fixed(bytes) => bytes,
            Weight::Characters => length * CHARACTER,
            Weight::Bytes => *length,
        };
        let all: usize = types.iter().zip(&found).map(bytes).sum();
        assert!(all <= KEY_BYTES, "{types:?}: {all} bytes");
    }

    #[test]
    fn a_key_has_no_more_bytes_than_it_may() {
        let (text, json, bytea) = (field("text"), field("integer[]"), field("bytea"));
        check_prefix(&[text], &[767]);
        check_prefix(&[text, text], &[383, 383]);
        check_prefix(&[bytea, field("numeric")], &[3_036, 0]);
        check_prefix(&[text, json, bytea, ColumnType::ReceivedAt], &[254, 254, 1_017, 0]);
        let names = [ColumnType::OriginDc, ColumnType::NodeName, ColumnType::ChannelName];
        check_prefix(&[&names[..], &[ColumnType::Seq, text][..]].concat(), &[0, 0, 0, 0, 189]);
        check_prefix(&[text; 16], &[47; 16]);
        check_prefix(&[field("inet")], &[0]);
    }
}
