use bytes::Bytes;

use super::*;
use crate::seq::belief_bound;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn ask(from: u64) -> Ask {
    Ask {
        origin: name("dc2"),
        channel: name("events_raw"),
        direct: true,
        from: Seq(from),
        limit: 3,
        pages: 1,
        count: false,
    }
}

fn head(from: u64, next: u64, safe: u64) -> Head<'static> {
    Head {
        channel: "events_raw",
        origin: "dc2",
        from_seq: from,
        node: "dc2",
        node_id: "0b6f-4c",
        since: None,
        protocol: PROTOCOL,
        schema: "abcd",
        safe_seq: safe,
        next_seq: next,
        seen: Some(7),
        now_micros: 5,
        behind: None,
    }
}

fn stored(seq: u64, payload: &str) -> StoredRow {
    StoredRow {
        seq: Seq(seq),
        node_name: "dc2".to_owned(),
        received_at: Micros(1_790_000_000_000_001),
        payload: Bytes::copy_from_slice(payload.as_bytes()),
    }
}

fn page(head: &Head<'_>, rows: &[StoredRow]) -> Bytes {
    Bytes::from(encode(head, rows))
}

#[test]
fn a_page_comes_back_as_it_was_sent_payloads_byte_for_byte() {
    let rows = [
        stored(5, "{ \"a\" :1.0,\n \"b\":\"\\u00e4\\ud83d\\ude00\" }"),
        stored(9, "{}"),
        stored(11, "{\"deep\":[[[1e2]]]}"),
    ];
    let body = page(&head(5, 12, 40), &rows);
    let answer = decode(&ask(5), &body).unwrap();
    assert_eq!(answer.rows, rows);
    assert_eq!((answer.next, answer.safe, answer.seen), (Seq(12), Some(Seq(40)), Some(Seq(7))));
    assert_eq!(answer.node_id.as_deref(), Some("0b6f-4c"));
    assert!(answer.echoed && answer.has_more(3) && answer.unfit.is_empty());
    let spec: serde_json::Value = serde_json::from_slice(&body).unwrap();
    let mut columns: Vec<&str> =
        spec["events"][0].as_object().unwrap().keys().map(String::as_str).collect();
    columns.sort_unstable();
    assert_eq!(
        columns,
        ["channel", "json_data", "node_name", "origin_dc", "origin_seq", "received_at"]
    );
}

#[test]
fn an_empty_page_reaches_the_horizon_or_waits_where_it_fell_back() {
    for (from, next, safe) in [(5, 41, 40), (41, 41, 40), (501, 501, 450)] {
        let answer = decode(&ask(from), &page(&head(from, next, safe), &[])).unwrap();
        assert_eq!(answer.next, Seq(next), "{from} {next} {safe}");
        assert!(!answer.has_more(3));
    }
}

#[test]
fn what_does_not_answer_the_question_is_not_used() {
    let bound = belief_bound().0;
    let row = || stored(5, "{}");
    let good = || head(5, 41, 40);
    let pages = [
        ("another question", page(&Head { from_seq: 4, ..good() }, &[row()])),
        ("another question", page(&Head { channel: "other", ..good() }, &[])),
        ("another question", page(&Head { origin: "dc3", ..good() }, &[])),
        ("do not rise", page(&good(), &[stored(6, "{}"), stored(5, "{}")])),
        ("do not rise", page(&good(), &[stored(6, "{}"), stored(6, "{}")])),
        ("do not rise", page(&good(), &[stored(4, "{}")])),
        ("more than the 3", page(&good(), &[5, 6, 7, 8].map(|seq| stored(seq, "{}")))),
        ("above what any clock", page(&head(5, bound + 1, bound), &[stored(bound, "{}")])),
        ("above what any clock", page(&head(5, (1 << 53) - 1, (1 << 53) - 2), &[])),
        ("does not go with", page(&head(5, (1 << 53) - 1, 40), &[row()])),
        ("does not go with", page(&head(5, 5, 40), &[row()])),
        // never moves, or stops short of what it says is safe
        ("does not go with", page(&head(5, 5, 40), &[])),
        ("does not go with", page(&head(5, 20, 40), &[])),
        ("does not go with", page(&head(5, 42, 40), &[row()])),
        ("another question", page(&head(50, 49, 40), &[])),
        ("cannot be one", page(&Head { node: "a b", ..good() }, &[])),
        ("cannot be read", Bytes::from_static(b"{\"events\":[{}]}")),
        ("cannot be read", page(&good(), &[row()]).slice(..60)),
    ];
    for (why, body) in pages {
        let fault = decode(&ask(5), &body).unwrap_err().to_string();
        assert!(fault.contains(why), "{fault}, where {why} is due");
    }
}

#[test]
fn events_of_others_are_not_taken() {
    for (from, to) in [
        ("\"origin_dc\":\"dc2\"", "\"origin_dc\":\"dc3\""),
        ("\"channel\":\"events_raw\",\"received_at\"", "\"channel\":\"other\",\"received_at\""),
    ] {
        let text = String::from_utf8(page(&head(5, 41, 40), &[stored(5, "{}")]).to_vec()).unwrap();
        assert!(text.contains(from), "{text}");
        let fault = decode(&ask(5), &Bytes::from(text.replace(from, to))).unwrap_err();
        assert!(matches!(fault, Fault::Foreign(_)), "{fault}");
    }
}

#[test]
fn an_old_peer_speaks_for_itself_only_and_its_last_row_says_where_it_is() {
    let old = |next: u64| {
        let event = "{\"origin_dc\":\"dc2\",\"origin_seq\":8,\"node_name\":\"dc2\",\
            \"channel\":\"events_raw\",\"received_at\":\"2026-02-19T14:00:00.5+02:00\",\
            \"json_data\":{\"a\":1}}";
        Bytes::from(format!("{{\"events\":[{event}],\"next_seq\":{next}}}"))
    };
    let answer = decode(&ask(5), &old((1 << 53) - 1)).unwrap();
    assert_eq!((answer.next, answer.echoed, answer.safe), (Seq(9), false, None));
    assert_eq!(answer.rows[0].received_at, Micros(1_771_502_400_500_000));
    let relay = Ask { direct: false, ..ask(5) };
    assert_eq!(decode(&relay, &old(9)), Err(Fault::NoEcho));
    let none = decode(&ask(5), &Bytes::from_static(b"{\"events\":null}")).unwrap();
    assert_eq!((none.next, none.rows.len()), (Seq(5), 0));
}

#[test]
fn a_payload_that_no_door_would_take_is_told_apart_and_kept_as_it_came() {
    for bad in ["[1]", "7", "{\"a\":\"\\ud800\"}", "{\"a\":\"\\u0000\"}", "{\"a\":1e999}"] {
        let rows = [stored(5, bad), stored(6, "{}")];
        let answer = decode(&ask(5), &page(&head(5, 41, 40), &rows)).unwrap();
        assert_eq!(answer.unfit.keys().collect::<Vec<_>>(), [&Seq(5)], "{bad}");
        assert_eq!(answer.rows, rows, "{bad}");
    }
}

#[test]
fn a_fault_says_nothing_of_a_payload() {
    let body = Bytes::from_static(b"{\"events\":[{\"origin_seq\":\"s3cret\"}]}");
    let fault = decode(&ask(5), &body).unwrap_err();
    assert!(!format!("{fault} {fault:?}").contains("s3cret"));
}

#[test]
fn a_request_is_read_as_it_was_written() {
    let caller =
        Caller { name: name("dc1"), known: Some(Known { id: "0b6f-4c".to_owned(), seq: Seq(77) }) };
    let asked = Ask { direct: false, pages: 4, count: true, ..ask(12) };
    let path = asked.path(&caller, true);
    let request = Request::parse(path.strip_prefix("/internal/events?").unwrap()).unwrap();
    let expect = Request {
        channel: "events_raw".to_owned(),
        origin: Some(name("dc2")),
        from: Seq(12),
        limit: 3,
        pages: Some(4),
        count: true,
        zstd: true,
        caller: Some(caller),
    };
    assert_eq!(request, expect);
    let spec = Request::parse("channel=a&from_seq=1&limit=10").unwrap();
    assert_eq!((spec.limit, spec.pages, spec.caller), (10, None, None));
    assert_eq!(Request::parse("channel=a&from_seq=1").unwrap().limit, USUAL_EVENTS);
}

#[test]
fn limits_are_capped_and_nonsense_is_refused() {
    for (query, limit) in [
        ("channel=a&limit=5000", 5_000),
        ("channel=a&limit=5001", 5_000),
        ("channel=a&limit=99999999999999999999999", 5_000),
    ] {
        assert_eq!(Request::parse(query).unwrap().limit, limit, "{query}");
    }
    for (query, why) in [
        ("", "channel is missing"),
        ("channel=", "channel is missing"),
        ("channel=a&limit=0", "limit must be a positive"),
        ("channel=a&limit=-1", "limit must be a positive"),
        ("channel=a&limit=", "limit must be a positive"),
        ("channel=a&limit=ten", "limit must be a positive"),
        ("channel=a&from_seq=x", "from_seq must be a whole"),
        ("channel=a&from_seq=-1", "from_seq must be a whole"),
        ("channel=a&origin=a%20b", "origin must be the name"),
        ("channel=a&pages=0", "pages must be a positive"),
        ("channel=a&caller=", "caller must be the name"),
    ] {
        let wrong = Request::parse(query).unwrap_err().to_string();
        assert!(wrong.contains(why), "{query}: {wrong}");
    }
}

#[test]
fn the_line_before_a_page_says_its_lengths() {
    let text = line(120, 900);
    let read = Line { bytes: text.len(), wire: 120, whole: 900 };
    assert_eq!(read_line(&text), Ok(Some(read)));
    assert_eq!(read_line(&[&text[..], b"{\"events\""].concat()), Ok(Some(read)));
    for cut in 0..text.len() {
        assert_eq!(read_line(&text[..cut]), Ok(None), "{cut}");
    }
    assert_eq!(read_line(b"0 0\n").unwrap().map(|line| line.wire), Some(0));
    for bad in ["1\n", "a b\n", "5 4\n", "0 9\n", "-1 2\n", "\n", &"1".repeat(60)] {
        assert!(read_line(bad.as_bytes()).is_err(), "{bad:?}");
    }
}

#[test]
fn what_would_go_into_logs_is_checked_first() {
    let changed = |node: &str, id: &str| Changed {
        node: node.to_owned(),
        node_id: id.to_owned(),
        number: 1,
        channels: None,
        seen: None,
    };
    assert!(changed("dc2", "0b6f-4c").checked().is_ok());
    let long = "a".repeat(100);
    for (node, id, field) in
        [("dc2\nlevel=error", "a", "node"), (&*long, "a", "node"), ("dc2", "a\n", "node_id")]
    {
        assert_eq!(changed(node, id).checked(), Err(Fault::Field(field)), "{node:?} {id:?}");
    }
    let described = |column: &str, ty: &str| Described {
        channel: "reports".to_owned(),
        fingerprint: "0123abcd".to_owned(),
        mode: "structured".to_owned(),
        columns: vec![DescribedColumn { name: column.to_owned(), ty: ty.to_owned() }],
    };
    for ty in ["bigint", "decimal(38,10)", "double precision"] {
        assert!(described("_n1", ty).checked().is_ok(), "{ty}");
    }
    let bad = [("n\n", "text"), (&*long, "text"), ("n", ""), ("n", "te\u{1b}xt"), ("n", &*long)];
    for (column, ty) in bad {
        let fault = described(column, ty).checked();
        assert_eq!(fault, Err(Fault::Field("columns")), "{column:?} {ty:?}");
    }
    let many = vec![described("n", "text").columns.remove(0); 5_000];
    let many = Described { columns: many, ..described("n", "text") };
    assert_eq!(many.checked(), Err(Fault::Field("columns")));
}
