//! Whether the events of an origin's channel have a place here: columns beside columns.
//!
//! Pure: does not know tables, dialects, nor how a schema is asked for.

use ring::digest::{SHA256, digest};

use super::wire::{Described, DescribedColumn};
use crate::channel::Channel;

/// Digits of a fingerprint.
const DIGITS: usize = 16;
/// So many columns that do not fit are named.
const NAMED: usize = 10;

/// A channel as peers are told of it. Whether raw copies are kept is not part of it: that changes
/// nothing of where an event fits.
#[must_use]
pub fn describe(channel: &Channel) -> Described {
    let columns: Vec<DescribedColumn> = channel.schema().map_or_else(Vec::new, |schema| {
        let column = |column: &crate::channel::schema::Column| DescribedColumn {
            name: column.name.to_string(),
            ty: column.ty.to_string(),
        };
        schema.columns.iter().map(column).collect()
    });
    let mode = if channel.schema().is_some() { "structured" } else { "raw_only" };
    let mut text = mode.to_owned();
    for DescribedColumn { name, ty } in &columns {
        text.push_str(&format!("\n{name} {ty}"));
    }
    let fingerprint: String = digest(&SHA256, text.as_bytes())
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    Described {
        channel: channel.name.to_string(),
        fingerprint: fingerprint.chars().take(DIGITS).collect(),
        mode: mode.to_owned(),
        columns,
    }
}

/// Why events of theirs have no place in ours; `None` where they fit: every column of theirs stands
/// here with the same type, or ours keeps payloads whole.
#[must_use]
pub fn misfit(theirs: &Described, ours: &Channel) -> Option<String> {
    let schema = ours.schema()?;
    let lacks = |column: &&DescribedColumn| {
        let here = schema.columns.iter().find(|here| here.name.as_str() == column.name);
        here.is_none_or(|here| here.ty.to_string() != column.ty)
    };
    let missing: Vec<&DescribedColumn> = theirs.columns.iter().filter(lacks).collect();
    let named: Vec<String> =
        missing.iter().take(NAMED).map(|c| format!("{} {}", c.name, c.ty)).collect();
    let more = match missing.len().saturating_sub(NAMED) {
        0 => String::new(),
        n => format!(" and {n} more"),
    };
    (!missing.is_empty()).then(|| {
        format!(
            "channel {} has columns there that do not stand here with the same type: {}{more}; give it the same columns in channels.yml on both nodes",
            ours.name,
            named.join(", ")
        )
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::channel::Mode;
    use crate::channel::schema::{IndexSource, Schema, SchemaSource};
    use crate::event::Name;

    fn raw() -> Channel {
        Channel {
            name: Name::new("reports").unwrap(),
            enabled: true,
            mode: Mode::Raw,
            store_raw: true,
            keys: Vec::new(),
        }
    }

    fn structured(columns: &[(&str, &str)], unique: &[&str]) -> Channel {
        let source = SchemaSource {
            table: "reports".to_owned(),
            columns: columns.iter().map(|(name, _)| (*name).to_owned()).collect(),
            field_types: columns.iter().map(|(n, t)| ((*n).to_owned(), (*t).to_owned())).collect(),
            indexes: (!unique.is_empty())
                .then(|| IndexSource {
                    name: None,
                    unique: true,
                    columns: unique.iter().map(|name| (*name).to_owned()).collect(),
                })
                .into_iter()
                .collect(),
            ..SchemaSource::default()
        };
        Channel { mode: Mode::Structured(Arc::new(Schema::new(&source).unwrap())), ..raw() }
    }

    #[test]
    fn a_schema_fits_where_every_column_of_theirs_stands_with_its_type() {
        let ours = structured(&[("n", "bigint"), ("place", "text")], &[]);
        let fits = [
            raw(),
            structured(&[("n", "bigint")], &[]),
            structured(&[("place", "varchar(20)"), ("n", "int8")], &[]),
        ];
        for theirs in fits {
            assert_eq!(misfit(&describe(&theirs), &ours), None);
        }
        let more = structured(&[("n", "integer"), ("place", "text"), ("who", "inet")], &[]);
        let why = misfit(&describe(&more), &ours).unwrap();
        assert!(why.contains("n integer, who inet"), "{why}");
        assert_eq!(misfit(&describe(&more), &raw()), None, "a raw channel keeps payloads whole");
    }

    #[test]
    fn equal_columns_have_one_fingerprint_and_others_another() {
        let one = structured(&[("n", "int8"), ("place", "text")], &[]);
        let same =
            Channel { store_raw: false, ..structured(&[("n", "bigint"), ("place", "text")], &[]) };
        let print = |channel: &Channel| describe(channel).fingerprint;
        assert_eq!(print(&one), print(&same));
        assert_eq!(print(&one).len(), DIGITS);
        for other in [raw(), structured(&[("n", "bigint")], &[])] {
            assert_ne!(print(&one), print(&other));
        }
    }

    #[test]
    fn a_unique_index_without_the_identity_cannot_converge() {
        let columns = [("n", "bigint")];
        assert_eq!(raw().diverges(), None);
        assert_eq!(structured(&columns, &[]).diverges(), None);
        let whole = structured(&columns, &["origin_seq", "n", "origin_dc"]);
        assert_eq!(whole.diverges(), None);
        for unique in [&["n"][..], &["n", "origin_seq"]] {
            let why = structured(&columns, unique).diverges().unwrap();
            assert!(why.contains("unique index on (n"), "{why}");
        }
    }
}
