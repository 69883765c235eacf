//! What stands in a database beside what a start needs: what is missing, and what does not fit.
//!
//! Pure. What a table has more than ours is its operator's; what it has less, narrower or of another
//! type is named. Does not know sessions.

use super::session::TextRow;
use super::table::{Column, ColumnType, Table};
use crate::channel::field_type::{Base, FieldType};

/// A column as the catalog shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Its name.
    pub name: String,
    /// Its type, without a modifier.
    pub ty: String,
    /// Whether it may be null.
    pub nullable: bool,
    /// `191`, `12,2`.
    pub modifier: Option<String>,
    /// Whether a row without it gets a value.
    pub default: bool,
}

impl Standing {
    /// From a row of the catalog's query; `None` where that is not what was asked for.
    #[must_use]
    pub fn read(row: &TextRow) -> Option<Self> {
        let [Some(name), Some(ty), Some(nullable), modifier, default] = row.as_slice() else {
            return None;
        };
        Some(Self {
            name: name.clone(),
            ty: ty.clone(),
            nullable: nullable == "true",
            modifier: modifier.clone(),
            default: default.as_deref() == Some("true"),
        })
    }
}

/// How a table that stands compares with ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Columns that it lacks and that can be added: their rows may have none.
    pub to_add: Vec<Column>,
    /// What does not fit, in words; empty where it does.
    pub misfits: Vec<String>,
    /// What it has more, in words: accepted.
    pub extras: Vec<String>,
}

/// Compares. `same_type` tells whether the dialect's catalog means our type by a name.
#[must_use]
pub fn compare(
    table: &Table,
    columns: &[Standing],
    key: &[String],
    same_type: &dyn Fn(ColumnType, &str) -> bool,
) -> Difference {
    let mut difference = Difference::default();
    for ours in &table.columns {
        match columns.iter().find(|c| c.name == ours.name) {
            None if ours.nullable => difference.to_add.push(ours.clone()),
            None => difference.misfits.push(format!("column {} is missing", ours.name)),
            Some(theirs) => misfit(ours, theirs, same_type, &mut difference),
        }
    }
    if !key.iter().eq(&table.primary_key) {
        let have = if key.is_empty() { "none".to_owned() } else { key.join(", ") };
        let want = table.primary_key.join(", ");
        difference.misfits.push(format!("its primary key is {have}, not ({want})"));
    }
    for theirs in columns {
        if table.columns.iter().any(|c| c.name == theirs.name) {
            continue;
        }
        let text = format!("column {}", theirs.name);
        if theirs.nullable || theirs.default {
            difference.extras.push(text);
        } else {
            difference.misfits.push(format!("{text} must not be null and has no default"));
        }
    }
    difference
}

fn misfit(
    ours: &Column,
    theirs: &Standing,
    same_type: &dyn Fn(ColumnType, &str) -> bool,
    difference: &mut Difference,
) {
    let full = match &theirs.modifier {
        Some(modifier) => format!("{}({modifier})", theirs.ty),
        None => theirs.ty.clone(),
    };
    if !same_type(ours.ty, &theirs.ty) {
        difference.misfits.push(format!("column {} is {full}", ours.name));
    } else if theirs.modifier.as_deref().is_some_and(|m| narrower(ours.ty, m)) {
        difference.misfits.push(format!("column {} is {full}, narrower than ours", ours.name));
    } else if ours.nullable && !theirs.nullable {
        let text = format!("column {} must not be null there, and may be here", ours.name);
        difference.misfits.push(text);
    }
}

/// Names have at most 63 bytes and moments six digits; everything else of ours has no bound.
fn narrower(ty: ColumnType, modifier: &str) -> bool {
    let first = modifier.split(',').next().and_then(|n| n.parse::<u32>().ok()).unwrap_or(0);
    match ty {
        ColumnType::OriginDc | ColumnType::NodeName | ColumnType::ChannelName => first < 63,
        ColumnType::ReceivedAt | ColumnType::Timestamp => first < 6,
        ColumnType::Field(FieldType {
            base: Base::Timestamptz | Base::Timestamp | Base::Time | Base::Timetz,
            array: false,
        }) => first < 6,
        _ => true,
    }
}

/// Whether PostgreSQL means our type by this name of its catalog.
#[must_use]
pub fn same_in_postgres(ty: ColumnType, name: &str) -> bool {
    let text = matches!(name, "text" | "character varying" | "character" | "name" | "citext");
    match ty {
        ColumnType::OriginDc
        | ColumnType::NodeName
        | ColumnType::ChannelName
        | ColumnType::Text => text,
        ColumnType::Seq | ColumnType::BigInt => matches!(name, "bigint" | "numeric"),
        ColumnType::ReceivedAt | ColumnType::Timestamp => name == "timestamp with time zone",
        ColumnType::JsonDoc => matches!(name, "jsonb" | "json"),
        ColumnType::Blob => name == "bytea",
        ColumnType::Field(field) => FieldType::parse(name).is_ok_and(|standing| standing == field),
    }
}

/// Whether SQLite's affinity of a declared type is that of ours (datatype3.html, section 3.1).
#[must_use]
pub fn same_in_sqlite(ours: &str, theirs: &str) -> bool {
    let affinity = |ty: &str| {
        let ty = ty.to_ascii_uppercase();
        let has = |word| ty.contains(word);
        match () {
            () if has("INT") => "INTEGER",
            () if has("CHAR") || has("CLOB") || has("TEXT") => "TEXT",
            () if ty.is_empty() || has("BLOB") => "BLOB",
            () if has("REAL") || has("FLOA") || has("DOUB") => "REAL",
            () => "NUMERIC",
        }
    };
    affinity(ours) == affinity(theirs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::sql::table::events_raw;

    fn standing(name: &str, ty: &str) -> Standing {
        let (name, ty) = (name.to_owned(), ty.to_owned());
        Standing { name, ty, nullable: false, modifier: None, default: false }
    }

    fn v1() -> Vec<Standing> {
        let zoned = "timestamp with time zone";
        [
            ("origin_dc", "text"),
            ("origin_seq", "bigint"),
            ("node_name", "text"),
            ("channel", "text"),
            ("received_at", zoned),
            ("json_data", "jsonb"),
        ]
        .map(|(name, ty)| standing(name, ty))
        .into()
    }

    fn key() -> Vec<String> {
        ["origin_dc", "origin_seq"].map(str::to_owned).into()
    }

    #[test]
    fn the_table_of_the_old_release_fits_and_more_is_accepted() {
        let mut columns = v1();
        columns.push(Standing { nullable: true, ..standing("note", "integer") });
        columns[0] = Standing {
            modifier: Some("191".to_owned()),
            ..standing("origin_dc", "character varying")
        };
        let found = compare(&events_raw(), &columns, &key(), &same_in_postgres);
        assert_eq!(found.misfits, Vec::<String>::new());
        assert_eq!(found.extras, ["column note"]);
    }

    #[test]
    fn less_narrower_and_other_is_named() {
        let mut columns = v1();
        columns.remove(2);
        columns[4].ty = "text".to_owned();
        columns[3].modifier = Some("3".to_owned());
        columns.push(standing("must", "text"));
        let found = compare(&events_raw(), &columns, &key()[..1], &same_in_postgres);
        assert_eq!(
            found.misfits,
            [
                "column node_name is missing",
                "column received_at is timestamp with time zone(3), narrower than ours",
                "column json_data is text",
                "its primary key is origin_dc, not (origin_dc, origin_seq)",
                "column must must not be null and has no default",
            ]
        );
    }

    #[test]
    fn affinities_follow_the_rules_of_sqlite() {
        let same = [("TEXT", "varchar(20)"), ("INTEGER", "bigint"), ("REAL", "double precision")];
        assert!(same.iter().all(|(ours, theirs)| same_in_sqlite(ours, theirs)));
        assert!(!same_in_sqlite("TEXT", "numeric"));
    }
}
