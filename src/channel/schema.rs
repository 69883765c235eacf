//! What a structured channel's table looks like, checked once when the configuration is read.
//!
//! Pure: must not know YAML, files or any SQL dialect. Whoever reads the configuration puts the place
//! in front of the paths that errors carry.

use std::borrow::Borrow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use super::field_type::FieldType;
use super::nearest::nearest;

/// The columns that every structured table has before those of its channel.
pub const CANONICAL_COLUMNS: [&str; 5] =
    ["origin_dc", "origin_seq", "node_name", "channel", "received_at"];

/// The longest identifier, in bytes: PostgreSQL's limit, the lowest of all backends.
pub const MAX_IDENT_LEN: usize = 63;

/// An SQL identifier: `[A-Za-z_][A-Za-z0-9_]{0,62}`. The only constructor validates, so what has this
/// type may stand in a statement.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ident(Arc<str>);

/// Why a text is not an [`Ident`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not an SQL identifier: use 1 to 63 letters, digits or '_', not beginning with a digit"
)]
pub struct BadIdent {
    /// The text that was refused.
    pub text: String,
}

impl Ident {
    /// Validates `text`.
    ///
    /// # Errors
    /// [`BadIdent`] where `text` does not match `[A-Za-z_][A-Za-z0-9_]{0,62}`.
    pub fn new(text: &str) -> Result<Self, BadIdent> {
        let bytes = text.as_bytes();
        let good = !bytes.is_empty()
            && bytes.len() <= MAX_IDENT_LEN
            && !bytes[0].is_ascii_digit()
            && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'_');
        if good { Ok(Self(text.into())) } else { Err(BadIdent { text: text.to_owned() }) }
    }

    /// The identifier as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Ident {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Ident {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl Borrow<str> for Ident {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// What happens to a field that no column stands for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnUnknown {
    /// The request is refused.
    #[default]
    Reject,
    /// It does not reach the table; the raw copy keeps it.
    Drop,
}

/// A column of the channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// Its name, which is the field's key.
    pub name: Ident,
    /// What its values must be.
    pub ty: FieldType,
    /// Whether the field must be present and not null.
    pub required: bool,
}

/// An index of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexSpec {
    /// Its name, where one is configured.
    pub name: Option<Ident>,
    /// Whether it is unique.
    pub unique: bool,
    /// Its columns, of the channel or canonical; `true` for descending ones.
    pub columns: Vec<(Ident, bool)>,
}

/// With these columns no two events share an entry of an index.
const IDENTITY: [&str; 2] = ["origin_dc", "origin_seq"];

impl IndexSpec {
    /// Whether two nodes may accept events that only one of their tables can hold.
    #[must_use]
    pub fn diverges(&self) -> bool {
        let holds = |wanted: &str| self.columns.iter().any(|(name, _)| name.as_str() == wanted);
        self.unique && !IDENTITY.iter().all(|name| holds(name))
    }
}

/// The table of a structured channel.
#[derive(Clone, Debug)]
pub struct Schema {
    /// The table's name.
    pub table: Ident,
    /// The channel's columns, in the order of the configuration.
    pub columns: Vec<Column>,
    /// What happens to unknown fields.
    pub on_unknown: OnUnknown,
    /// The indexes besides the canonical ones.
    pub indexes: Vec<IndexSpec>,
    positions: HashMap<Ident, usize>,
}

/// An index as it is configured.
#[derive(Clone, Debug, Default)]
pub struct IndexSource {
    /// `indexes[].name`.
    pub name: Option<String>,
    /// `indexes[].unique`.
    pub unique: bool,
    /// `indexes[].columns`: `column`, `column ASC` or `column DESC`.
    pub columns: Vec<String>,
}

/// A table as it is configured, nothing checked.
#[derive(Clone, Debug, Default)]
pub struct SchemaSource {
    /// `table`.
    pub table: String,
    /// `columns`.
    pub columns: Vec<String>,
    /// `required`.
    pub required: Vec<String>,
    /// `field_types`; `text` where a column is not named.
    pub field_types: BTreeMap<String, String>,
    /// `on_unknown_field`.
    pub on_unknown: OnUnknown,
    /// `indexes`.
    pub indexes: Vec<IndexSource>,
}

/// One thing that is wrong with a [`SchemaSource`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {message}")]
pub struct SchemaError {
    /// Where, relative to the channel: `columns[2]`, `field_types.service`, `indexes[1].columns[0]`.
    pub path: String,
    /// What is wrong, and what would be right.
    pub message: String,
}

/// One entry of `indexes[].columns`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexColumn {
    /// The column's name, not checked yet.
    pub name: String,
    /// Whether it is descending.
    pub desc: bool,
}

impl IndexColumn {
    /// Reads `column`, `column ASC` or `column DESC`, the order in any case.
    ///
    /// # Errors
    /// What would be right, where `text` is none of them.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut words = text.split_whitespace();
        let found = match (words.next(), words.next(), words.next()) {
            (Some(name), None, None) => Some((name, false)),
            (Some(name), Some(order), None) if order.eq_ignore_ascii_case("asc") => {
                Some((name, false))
            }
            (Some(name), Some(order), None) if order.eq_ignore_ascii_case("desc") => {
                Some((name, true))
            }
            _ => None,
        };
        match found {
            Some((name, desc)) => Ok(Self { name: name.to_owned(), desc }),
            None => Err(format!(
                "{text:?} is not a column of an index: write \"column\" or \"column DESC\""
            )),
        }
    }
}

impl Schema {
    /// Checks `source`.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub fn new(source: &SchemaSource) -> Result<Self, Vec<SchemaError>> {
        let mut errors = Errors(Vec::new());
        let table =
            Ident::new(&source.table).map_err(|bad| errors.add("table", bad.to_string())).ok();
        let columns = columns(source, &mut errors);
        let indexes = indexes(source, &mut errors);
        match table {
            Some(table) if errors.0.is_empty() => {
                let positions = columns
                    .iter()
                    .enumerate()
                    .map(|(at, column)| (column.name.clone(), at))
                    .collect();
                Ok(Self { table, columns, on_unknown: source.on_unknown, indexes, positions })
            }
            _ => Err(errors.0),
        }
    }

    /// Where in `columns` the column of this name stands. `hint` is looked at first: clients mostly
    /// send their fields in one order.
    #[must_use]
    pub fn position(&self, name: &str, hint: usize) -> Option<usize> {
        match self.columns.get(hint) {
            Some(column) if column.name.as_str() == name => Some(hint),
            _ => self.positions.get(name).copied(),
        }
    }
}

struct Errors(Vec<SchemaError>);

impl Errors {
    fn add(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.0.push(SchemaError { path: path.into(), message: message.into() });
    }
}

/// Names as a case-insensitive server sees them.
fn folded(name: &str) -> String {
    name.to_ascii_lowercase()
}

fn columns(source: &SchemaSource, errors: &mut Errors) -> Vec<Column> {
    if source.columns.is_empty() {
        errors.add("columns", "a structured channel needs at least one column");
    }
    let mut types = field_types(source, errors);
    let mut required: HashSet<&str> = HashSet::new();
    for (at, name) in source.required.iter().enumerate() {
        if source.columns.contains(name) {
            required.insert(name);
        } else {
            errors.add(format!("required[{at}]"), not_a_column(source, name, &[]));
        }
    }
    let mut seen = HashSet::new();
    let mut columns = Vec::with_capacity(source.columns.len());
    for (at, name) in source.columns.iter().enumerate() {
        let path = format!("columns[{at}]");
        let canonical =
            CANONICAL_COLUMNS.iter().any(|canonical| canonical.eq_ignore_ascii_case(name));
        if canonical {
            errors
                .add(path, format!("{name:?} is a column that every table has: take another name"));
        } else if !seen.insert(folded(name)) {
            errors.add(
                path,
                format!("{name:?} is there twice (upper and lower case are the same to SQL)"),
            );
        } else {
            match Ident::new(name) {
                Ok(ident) => columns.push(Column {
                    name: ident,
                    ty: types.remove(name.as_str()).unwrap_or(FieldType::TEXT),
                    required: required.contains(name.as_str()),
                }),
                Err(bad) => errors.add(path, bad.to_string()),
            }
        }
    }
    columns
}

fn field_types<'a>(source: &'a SchemaSource, errors: &mut Errors) -> HashMap<&'a str, FieldType> {
    let mut types = HashMap::new();
    for (name, text) in &source.field_types {
        let path = format!("field_types.{name}");
        if !source.columns.contains(name) {
            errors.add(path.as_str(), not_a_column(source, name, &[]));
        }
        match FieldType::parse(text) {
            Ok(ty) => {
                types.insert(name.as_str(), ty);
            }
            Err(message) => errors.add(path, message),
        }
    }
    types
}

fn indexes(source: &SchemaSource, errors: &mut Errors) -> Vec<IndexSpec> {
    let mut names = HashSet::new();
    let mut indexes = Vec::with_capacity(source.indexes.len());
    for (at, index) in source.indexes.iter().enumerate() {
        let path = format!("indexes[{at}]");
        let mut name = None;
        if let Some(text) = &index.name {
            match Ident::new(text) {
                Ok(ident) if names.insert(folded(text)) => name = Some(ident),
                Ok(_) => errors.add(
                    format!("{path}.name"),
                    format!("{text:?} names another index of this channel"),
                ),
                Err(bad) => errors.add(format!("{path}.name"), bad.to_string()),
            }
        }
        indexes.push(IndexSpec {
            name,
            unique: index.unique,
            columns: index_columns(source, index, &path, errors),
        });
    }
    indexes
}

/// What every backend takes.
const MAX_INDEX_COLUMNS: usize = 16;

fn index_columns(
    source: &SchemaSource,
    index: &IndexSource,
    path: &str,
    errors: &mut Errors,
) -> Vec<(Ident, bool)> {
    if index.columns.is_empty() {
        errors.add(format!("{path}.columns"), "an index needs at least one column");
    }
    if index.columns.len() > MAX_INDEX_COLUMNS {
        let text = format!("an index has at most {MAX_INDEX_COLUMNS} columns: MySQL takes no more");
        errors.add(format!("{path}.columns"), text);
    }
    let mut seen = HashSet::new();
    let mut columns = Vec::with_capacity(index.columns.len());
    for (at, text) in index.columns.iter().enumerate() {
        let path = format!("{path}.columns[{at}]");
        let column = match IndexColumn::parse(text) {
            Ok(column) => column,
            Err(message) => {
                errors.add(path, message);
                continue;
            }
        };
        let known = source.columns.contains(&column.name)
            || CANONICAL_COLUMNS.contains(&column.name.as_str());
        if !known {
            errors.add(path, not_a_column(source, &column.name, &CANONICAL_COLUMNS));
        } else if !seen.insert(folded(&column.name)) {
            errors.add(path, format!("{:?} is in this index twice", column.name));
        } else if let Ok(ident) = Ident::new(&column.name) {
            // A column that is no identifier is reported where it is declared.
            columns.push((ident, column.desc));
        }
    }
    columns
}

fn not_a_column(source: &SchemaSource, name: &str, more: &[&str]) -> String {
    let known = source.columns.iter().map(String::as_str).chain(more.iter().copied());
    match nearest(name, known) {
        Some(column) => {
            format!("{name:?} is not a column of this channel; did you mean {column:?}?")
        }
        None => format!("{name:?} is not a column of this channel"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::field_type::Base;

    fn strings(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    fn index(name: Option<&str>, columns: &[&str]) -> IndexSource {
        IndexSource { name: name.map(str::to_owned), unique: false, columns: strings(columns) }
    }

    fn source() -> SchemaSource {
        SchemaSource {
            table: "abuse_reports".to_owned(),
            columns: strings(&["report_time", "attacker_ip", "service", "json_data"]),
            required: strings(&["report_time", "service"]),
            field_types: BTreeMap::from([
                ("report_time".to_owned(), "TIMESTAMP(3) with time zone".to_owned()),
                ("attacker_ip".to_owned(), "inet".to_owned()),
            ]),
            on_unknown: OnUnknown::Drop,
            indexes: vec![index(Some("by_ip"), &["attacker_ip", "received_at desc"])],
        }
    }

    /// Checks the errors after `change`: (path, a part of the message) each.
    fn check(change: impl FnOnce(&mut SchemaSource), expect: &[(&str, &str)]) {
        let mut source = source();
        change(&mut source);
        let errors = Schema::new(&source).unwrap_err();
        assert_eq!(errors.len(), expect.len(), "{errors:?}");
        for (error, (path, message)) in errors.iter().zip(expect) {
            assert_eq!(error.path, *path, "{error:?}");
            assert!(error.message.contains(message), "{error:?}");
        }
    }

    #[test]
    fn an_identifier_is_what_every_dialect_takes() {
        for good in ["a", "_", "A1_b", &"x".repeat(63)] {
            assert_eq!(Ident::new(good).unwrap().as_str(), good);
        }
        for bad in ["", "1a", "a-b", "a b", "a.b", "a\"", "ä", &"x".repeat(64)] {
            let error = Ident::new(bad).unwrap_err().to_string();
            assert!(error.contains("1 to 63"), "{error}");
        }
    }

    #[test]
    fn a_good_schema_is_taken() {
        let schema = Schema::new(&source()).unwrap();
        assert_eq!(schema.table.as_str(), "abuse_reports");
        assert_eq!(schema.on_unknown, OnUnknown::Drop);
        let columns: Vec<(&str, String, bool)> = schema
            .columns
            .iter()
            .map(|column| (column.name.as_str(), column.ty.to_string(), column.required))
            .collect();
        assert_eq!(
            columns,
            [
                ("report_time", "timestamptz".to_owned(), true),
                ("attacker_ip", "inet".to_owned(), false),
                ("service", "text".to_owned(), true),
                ("json_data", "text".to_owned(), false),
            ]
        );
        assert_eq!(schema.columns[1].ty.base, Base::Inet);
        let keys: Vec<(&str, bool)> =
            schema.indexes[0].columns.iter().map(|(name, desc)| (name.as_str(), *desc)).collect();
        assert_eq!(keys, [("attacker_ip", false), ("received_at", true)]);
    }

    #[test]
    fn a_column_is_found_with_a_right_or_a_wrong_hint() {
        let schema = Schema::new(&source()).unwrap();
        for hint in 0..6 {
            assert_eq!(schema.position("service", hint), Some(2));
            assert_eq!(schema.position("Service", hint), None);
        }
    }

    #[test]
    fn each_mistake_is_named_where_it_stands() {
        check(|s| s.table = "a b".into(), &[("table", "SQL identifier")]);
        check(|s| s.columns[3] = "1st".into(), &[("columns[3]", "SQL identifier")]);
        check(|s| s.columns[3] = "SERVICE".into(), &[("columns[3]", "there twice")]);
        check(|s| s.columns[3] = "Origin_Seq".into(), &[("columns[3]", "every table has")]);
        check(
            |s| s.required.push("servic".into()),
            &[("required[2]", "did you mean \"service\"?")],
        );
        check(
            |s| {
                s.field_types.insert("foo".into(), "int".into());
            },
            &[("field_types.foo", "not a column")],
        );
        check(
            |s| {
                s.field_types.insert("service".into(), "txt".into());
            },
            &[("field_types.service", "did you mean \"text\"?")],
        );
        check(|s| s.indexes.push(index(None, &[])), &[("indexes[1].columns", "at least one")]);
        check(
            |s| s.indexes.push(index(None, &["servce DESC", "service up", "channel"])),
            &[
                ("indexes[1].columns[0]", "did you mean \"service\"?"),
                ("indexes[1].columns[1]", "write \"column\""),
            ],
        );
        check(
            |s| s.indexes.push(index(None, &["service", "service desc"])),
            &[("indexes[1].columns[1]", "twice")],
        );
        check(
            |s| s.indexes.push(index(Some("BY_IP"), &["service"])),
            &[("indexes[1].name", "another index")],
        );
        check(
            |s| s.indexes.push(index(Some("by-ip"), &["service"])),
            &[("indexes[1].name", "SQL identifier")],
        );
    }

    #[test]
    fn all_mistakes_are_reported_at_once() {
        check(
            |s| *s = SchemaSource::default(),
            &[("table", "SQL identifier"), ("columns", "at least one")],
        );
    }

    #[test]
    fn the_order_of_an_index_column_is_read_in_any_case() {
        for (text, name, desc) in [
            ("a", "a", false),
            (" a  ASC ", "a", false),
            ("a DESC", "a", true),
            ("a\tdesc", "a", true),
        ] {
            let column = IndexColumn::parse(text).unwrap();
            assert_eq!((column.name.as_str(), column.desc), (name, desc), "{text:?}");
        }
        for bad in ["", " ", "a b", "a DESC x", "a, b", "DESC a b"] {
            assert!(IndexColumn::parse(bad).is_err(), "{bad:?}");
        }
    }
}
