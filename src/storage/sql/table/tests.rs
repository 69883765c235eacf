//! Which tables there are, and what their parts are called.

use std::sync::Arc;

use super::*;
use crate::channel::schema::{IndexSource, SchemaSource};
use crate::channel::{Channel, Mode};
use crate::event::ChannelName;

fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

fn schema(table: &str, columns: &[&str], indexes: &[(bool, &[&str])]) -> Schema {
    Schema::new(&SchemaSource {
        table: table.to_owned(),
        columns: strings(columns),
        required: strings(&columns[..1]),
        indexes: indexes
            .iter()
            .map(|(unique, columns)| IndexSource {
                name: None,
                unique: *unique,
                columns: strings(columns),
            })
            .collect(),
        ..SchemaSource::default()
    })
    .unwrap()
}

fn channel(name: &str, enabled: bool, store_raw: bool, structured: bool) -> Channel {
    let mode = if structured {
        Mode::Structured(Arc::new(schema(&format!("t_{name}"), &["a"], &[])))
    } else {
        Mode::Raw
    };
    Channel { name: ChannelName::new(name).unwrap(), enabled, mode, store_raw, keys: Vec::new() }
}

/// Checks which tables of channels a registry needs; ours are always behind them.
fn check_plan(channels: Vec<Channel>, expect: &[&str]) {
    let ours = [
        "replication_progress",
        "replicon_node",
        "replicon_released",
        "replicon_origin",
        "replicon_conflicts",
        "replicon_quarantine",
    ];
    let tables = plan(&Registry::new(channels).unwrap());
    let names: Vec<&str> = tables.iter().map(|table| table.name.as_str()).collect();
    assert_eq!(names, [expect, ours.as_slice()].concat());
}

#[test]
fn a_start_makes_what_its_enabled_channels_need() {
    check_plan(vec![channel("r", true, true, false)], &["events_raw"]);
    check_plan(vec![channel("r", true, false, false)], &["events_raw"]);
    check_plan(vec![channel("s", true, false, true)], &["t_s"]);
    check_plan(vec![channel("s", true, true, true)], &["events_raw", "t_s"]);
    check_plan(
        vec![
            channel("s", true, false, true),
            channel("off", false, true, true),
            channel("raw", false, true, false),
        ],
        &["t_s"],
    );
}

#[test]
fn a_structured_table_begins_with_the_canonical_columns() {
    let table = structured(&schema("t", &["a", "b"], &[]));
    let columns: Vec<(&str, bool)> =
        table.columns.iter().map(|column| (column.name.as_str(), column.nullable)).collect();
    assert_eq!(
        columns,
        [
            ("origin_dc", false),
            ("origin_seq", false),
            ("node_name", false),
            ("channel", false),
            ("received_at", false),
            ("a", false),
            ("b", true),
        ]
    );
    assert_eq!(table.primary_key, ["origin_dc", "origin_seq"]);
    assert!(table.columns.iter().all(|column| column.default.is_none()));
}

#[test]
fn every_key_names_columns_of_its_table_that_are_never_null() {
    let structured = structured(&schema("t", &["a"], &[]));
    let ours = [
        events_raw(),
        structured,
        replication_progress(),
        replicon_node(),
        replicon_released(),
        replicon_conflicts(),
        replicon_quarantine(),
    ];
    for table in ours {
        for key in &table.primary_key {
            let column = table.columns.iter().find(|column| column.name == *key);
            assert!(column.is_some_and(|column| !column.nullable), "{}.{key}", table.name);
        }
    }
}

#[test]
fn a_generated_name_is_stable_and_short_and_tells_indexes_apart() {
    let long = "c".repeat(60);
    let long = long.as_str();
    let columns = ["a", "b", "a_b", long];
    let table = structured(&schema(
        "reports",
        &columns,
        &[
            (false, &["a", "b"]),
            (false, &["a_b"]),
            (false, &["a", "b DESC"]),
            (true, &["a", "b"]),
            (false, &[long, "a"]),
            (false, &[long, "b"]),
        ],
    ));
    let mut names: Vec<&str> = table.indexes.iter().map(|index| index.name.as_str()).collect();
    for name in &names {
        assert!(name.starts_with("reports_") && name.len() <= MAX_IDENT_LEN, "{name}");
    }
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), 6, "{names:?}");
    let again = structured(&schema("reports", &columns, &[(false, &["a", "b"])]));
    assert_eq!(again.indexes[0], table.indexes[0]);
}

#[test]
fn only_events_raw_needs_an_index_to_be_read_by() {
    let index = reading_index(&events_raw()).unwrap();
    assert_eq!(index.name, "events_raw_origin_channel_seq");
    assert!(reading_index(&structured(&schema("t", &["a"], &[]))).is_none());
    assert!(reading_index(&replicon_quarantine()).is_none());
}
