//! What `channels.yml` may say, and what is said of one that is wrong.

use super::*;

fn good(text: &str) -> Converted {
    match convert("channels.yml", text) {
        Ok(converted) => converted,
        Err(problems) => panic!("refused: {problems:?}"),
    }
}

fn wrong(text: &str) -> Vec<String> {
    match convert("channels.yml", text) {
        Ok(_) => panic!("accepted: {text}"),
        Err(problems) => problems.iter().map(ToString::to_string).collect(),
    }
}

fn channel<'c>(converted: &'c Converted, name: &str) -> &'c Channel {
    converted.channels.iter().find(|channel| channel.name.as_str() == name).unwrap()
}

#[test]
fn the_shipped_channels_are_the_example_of_the_spec() {
    let shipped = good(shipped_channels());
    assert!(shipped.warnings.is_empty(), "{:?}", shipped.warnings);
    assert_eq!(shipped.channels.len(), 2);
    let raw = channel(&shipped, "events_raw");
    assert!(raw.enabled && raw.store_raw && matches!(raw.mode, Mode::Raw) && raw.keys.len() == 1);
    let structured = channel(&shipped, "abuse_reports");
    assert!(
        !structured.enabled
            && !structured.store_raw
            && matches!(structured.mode, Mode::Structured(_))
    );
    assert_eq!(shipped.example_key_channels, ["events_raw"]);
    assert!(load(&ChannelsSource::Embedded, "").is_ok());
}

#[test]
fn a_channel_inherits_what_it_does_not_say() {
    let read = good(
        "\
general: {enabled: no, api_keys: [a, b], mode: structured, store_raw: off}
channels:
  one: {table: t1, columns: [x]}
  two: {enabled: yes, api_keys: [c], mode: raw_only}
  three: {api_keys: [], table: t3, columns: [x], store_raw: true}
",
    );
    let one = channel(&read, "one");
    assert!(
        !one.enabled
            && !one.store_raw
            && one.keys.len() == 2
            && matches!(one.mode, Mode::Structured(_))
    );
    let two = channel(&read, "two");
    assert!(two.enabled && two.keys.len() == 1 && matches!(two.mode, Mode::Raw));
    let three = channel(&read, "three");
    assert!(three.store_raw && three.keys.len() == 2);
}

#[test]
fn switches_are_read_as_go_reads_them() {
    for (word, expect) in [
        ("y", true),
        ("Y", true),
        ("yes", true),
        ("Yes", true),
        ("YES", true),
        ("on", true),
        ("On", true),
        ("ON", true),
        ("true", true),
        ("True", true),
        ("TRUE", true),
        ("n", false),
        ("N", false),
        ("no", false),
        ("No", false),
        ("NO", false),
        ("off", false),
        ("Off", false),
        ("OFF", false),
        ("false", false),
        ("False", false),
        ("FALSE", false),
    ] {
        let read = good(&format!("channels:\n  a:\n    enables: {word}\n    api_keys: [k]\n"));
        assert_eq!(channel(&read, "a").enabled, expect, "{word}");
    }
    for word in ["1", "yEs", "maybe", "[true]"] {
        let text = format!("channels:\n  a:\n    enabled: {word}\n    api_keys: [k]\n");
        assert_eq!(
            wrong(&text),
            ["channels.yml:3: channels.a.enabled: wants true or false"],
            "{word}"
        );
    }
}

#[test]
fn bare_numbers_are_names_and_keys() {
    let read = good(
        "general:\n  api_keys: [123, 1.10, true]\nchannels:\n  123:\n  2026.10: {mode: raw_only}\n",
    );
    assert_eq!(channel(&read, "123").keys.len(), 3);
    assert!(channel(&read, "2026.10").enabled);
}

#[test]
fn anchors_and_merges_are_followed() {
    let read = good(
        "\
x-keys: &keys [a, b]
channels:
  base: &base
    enabled: false
    api_keys: *keys
    mode: structured
    table: t1
    columns: [x]
  heir:
    <<: *base
    enabled: true
    table: t2
",
    );
    let heir = channel(&read, "heir");
    assert!(heir.enabled && heir.keys.len() == 2 && matches!(heir.mode, Mode::Structured(_)));
}

#[test]
fn the_mistakes_of_all_channels_are_reported_at_once_with_line_and_path() {
    let text = "\
general:
  api_keys: [k]
  store_rav: true
channels:
  one:
    mode: raw
    enabled: true
    enables: false
  two:
    mode: structured
    table: t
    colums: [a]
  three words:
    api_keys: just-one-secret
  four:
    mode: structured
    table: t4
    columns:
      - a
      - [b]
    indexes:
      - unique: perhaps
";
    assert_eq!(
        wrong(text),
        [
            "channels.yml:3: general.store_rav: there is no such field; did you mean store_raw?",
            "channels.yml:8: channels.one.enables: says the opposite of enabled, of which it is another name; keep one",
            "channels.yml:6: channels.one.mode: wants raw_only or structured",
            "channels.yml:12: channels.two.colums: there is no such field; did you mean columns?",
            "channels.yml:9: channels.two: a structured channel needs columns",
            "channels.yml:13: channels.three words: \"three words\" is not a name: use 1 to 63 letters, digits, '.', '_' \
             or '-', beginning with a letter or digit",
            "channels.yml:14: channels.three words.api_keys: wants a list of keys, such as [KEY], found a plain value",
            "channels.yml:20: channels.four.columns[1]: wants a plain value, found a list",
            "channels.yml:22: channels.four.indexes[0]: an index needs columns",
            "channels.yml:22: channels.four.indexes[0].unique: wants true or false",
        ]
    );
}

#[test]
fn what_a_schema_refuses_is_found_in_the_file() {
    let text = "\
channels:
  a:
    api_keys: [k]
    mode: structured
    table: t
    columns: [x]
    required:
      - x
      - y
";
    let wrong = wrong(text);
    assert_eq!(wrong.len(), 1, "{wrong:?}");
    assert!(wrong[0].starts_with("channels.yml:") && wrong[0].contains("channels.a"), "{wrong:?}");
}

#[test]
fn values_of_the_wrong_kind_are_named() {
    for (text, expect) in [
        ("", "channels.yml:1: wants `channels:` with channels below it, found nothing"),
        ("- a\n", "channels.yml:1: wants `channels:` with channels below it, found a list"),
        (
            "general: {}\n",
            "channels.yml:1: channels: is missing or empty; name at least one channel below it",
        ),
        ("\nchannels: [a]\n", "channels.yml:2: channels: wants a map of channels, found a list"),
        (
            "channels:\n  a: 5\n",
            "channels.yml:2: channels.a: wants a map of fields, found a plain value",
        ),
        (
            "channels:\n  a:\n",
            "channels.yml:2: channels.a: an enabled channel needs api_keys, here or under general",
        ),
        (
            "channels:\n  a: {api_keys: ['']}\n",
            "channels.yml:2: channels.a.api_keys[0]: the key is empty",
        ),
        (
            "channels:\n  a: {api_keys: [~]}\n",
            "channels.yml:2: channels.a.api_keys[0]: wants a key, found nothing",
        ),
        (
            "channels:\n  a: {api_keys: [k]}\n  a:\n",
            "channels.yml:3: channels.a: stands twice; keep one",
        ),
    ] {
        assert_eq!(wrong(text), [expect], "{text:?}");
    }
}

#[test]
fn a_key_is_never_echoed() {
    for text in [
        "channels:\n  a: {api_keys: ['s3cret ']}\n",
        "channels:\n  a: {api_keys: s3cret}\n",
        "channels:\n  a: {api_keys: [[s3cret]]}\n",
        "channels:\n  a: {api_keys: [k, {s3cret: 1}]}\n",
    ] {
        let wrong = wrong(text);
        assert!(!wrong.concat().contains("s3cret"), "{wrong:?}");
    }
}

#[test]
fn fields_of_structured_channels_are_a_warning_in_a_raw_one() {
    let read = good("channels:\n  a:\n    api_keys: [k]\n    table: t\n    store_raw: true\n");
    assert_eq!(
        read.warnings,
        [
            "channels.yml:5: channels.a.store_raw: has no effect where mode is raw_only",
            "channels.yml:4: channels.a.table: has no effect where mode is raw_only",
        ]
    );
}

#[test]
fn without_a_file_the_client_api_key_opens_one_raw_channel() {
    let source = ChannelsSource::Missing { path: "conf/channels.yml".to_owned() };
    let Ok(loaded) = load(&source, "my-key") else {
        panic!("refused");
    };
    assert!(loaded.fallback && loaded.example_key_channels.is_empty());
    assert_eq!(
        loaded.warnings,
        [
            "conf/channels.yml: there is no such file; serving only the raw channel events_raw with client_api_key"
        ]
    );
    let Err(problems) = load(&source, "") else {
        panic!("accepted");
    };
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].place, "conf/channels.yml");
    assert!(problems[0].text.contains("client_api_key"), "{problems:?}");
}
