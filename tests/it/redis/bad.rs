//! Events that the storage refuses: each is tried as often as it is told, keeps its identity, and then
//! becomes a dead letter with its reason; and what the `dlq` commands make of it.
//!
//! Attacks I2, I6 and I8.

use serde_json::Value;

use super::{Numbered, Site, count, drained, each_kind, post};
use crate::support::redis::{Kind, Redis};
use crate::support::{full_scale, replicon};

const FORBID: &str = "CREATE TRIGGER positive BEFORE INSERT ON events_raw \
                      WHEN json_extract(NEW.json_data, '$.n') < 0 \
                      BEGIN SELECT RAISE(ABORT, 'positive'); END";
const ALLOW: &str = "DROP TRIGGER positive";

/// Those that must be stored, and those that must not.
fn sorted(told: Vec<Numbered>) -> (Vec<Numbered>, Vec<Numbered>) {
    told.into_iter().partition(|(_, n)| *n >= 0)
}

fn seqs(letters: &[Value]) -> Vec<u64> {
    let mut seqs: Vec<u64> = letters.iter().map(|l| l["seq"].as_u64().unwrap()).collect();
    seqs.sort_unstable();
    seqs
}

#[test]
fn bad_events_become_dead_letters_after_their_tries_and_dlq_commands_deal_with_them() {
    each_kind(|redis| {
        let site = Site::sqlite(redis);
        let node = site.serving(&["--set", "queue_redis_max_retries=3"]);
        let mut client = node.client();
        let mut stored = post(&mut client, [0]);
        drained(&node);
        site.sql(FORBID);
        let many = if full_scale() { 20_000 } else { 1_000 };
        let mut dead = Vec::new();
        for from in (1..many).step_by(500) {
            let numbers = (from..from + 500).map(|n| if n % 100 == 50 { -n } else { n });
            let (good, bad) = sorted(post(&mut client, numbers));
            stored.extend(good);
            dead.extend(bad);
        }
        drained(&node);
        assert_eq!(site.numbers(), stored);
        assert_eq!(count(&node, "dead_letter_total"), dead.len() as u64);
        let letters = site.dead_letters();
        assert_eq!(seqs(&letters), dead.iter().map(|(seq, _)| *seq).collect::<Vec<_>>());
        for letter in &letters {
            assert_eq!(letter["state"], "dead");
            let text = letter["reason"]["text"].as_str().unwrap();
            assert!(text.contains("a trigger refuses it (refused 3 times)"), "{text}");
        }
        let tried: u64 = site.redis.ask(&["EXISTS", "replicon:ingest:tries"]);
        assert_eq!(tried, 0, "what is dead is counted no more");

        let (shown, n) = dead[0];
        let said = site.command(&["dlq", "show", &shown.to_string()]);
        assert!(said.contains(&format!("payload   {{\"n\":{n}}}")), "{said}");
        site.sql(ALLOW);
        let (again, n) = dead[dead.len() / 2];
        let said = site.command(&["dlq", "retry", &again.to_string()]);
        let line = said.lines().find_map(|l| l.strip_prefix(&format!("{again} was put back as ")));
        stored.push((line.unwrap_or_else(|| panic!("{said}")).parse().unwrap(), n));
        drained(&node);
        assert_eq!(site.numbers(), stored);
        assert_eq!(node.stop().code(), Some(0));

        // with no node running, by this process itself
        let given_up = dead[dead.len() - 1].0.to_string();
        let said = site.command(&["dlq", "discard", &given_up]);
        assert!(said.contains("discarded: 1 dead letter"), "{said}");
        let said = site.command(&["dlq", "retry", "--all"]);
        assert!(said.contains(&format!("put back: {}", dead.len() - 2)), "{said}");
        let node = site.serving(&[]);
        drained(&node);
        assert_eq!(site.numbers().len(), stored.len() + dead.len() - 2, "each once");
        let again = site.command(&["dlq", "retry", "--all"]);
        assert!(again.contains("put back: 0"), "{again}");
    });
}

#[test]
fn the_tries_of_an_event_outlive_the_node() {
    let site = Site::sqlite(Redis::start(Kind::Redis));
    let node = site.serving(&[]);
    let mut client = node.client();
    post(&mut client, [0]);
    drained(&node);
    site.sql(FORBID);
    assert_eq!(node.stop().code(), Some(0));
    let node = site.serving(&["--set", "writer_enabled=false"]);
    let (_, bad) = sorted(post(&mut node.client(), [-1]));
    assert_eq!(node.stop().code(), Some(0));
    let field = bad[0].0.to_string();
    let _: u64 = site.redis.ask(&["HSET", "replicon:ingest:tries", &field, "8"]);
    let node = site.serving(&["--set", "queue_redis_max_retries=9"]);
    drained(&node);
    let letters = site.dead_letters();
    assert_eq!(letters.len(), 1);
    let text = letters[0]["reason"]["text"].as_str().unwrap();
    assert!(text.contains("refused 9 times"), "{text}");
}

#[test]
fn dlq_says_so_where_redis_does_not_answer() {
    let mut site = Site::sqlite(Redis::start(Kind::Redis));
    site.redis.kill();
    let settings = site.settings();
    let output = replicon(site.path()).args(settings).args(["dlq", "list"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("cannot be read"), "{said}");
}
