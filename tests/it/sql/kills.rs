//! Kills of the node and of its database under load, in turns: every 202 stands in the table once,
//! under the seq that it was told, and no outage makes a dead letter.
//!
//! Attacks I1 to I4, I6 to I8 and I18.

use std::time::Duration;

use super::{Kind, SMALL_SEGMENTS, Site, assert_nothing_dead, drained, on_each};
use crate::support::full_scale;
use crate::support::ledger::{Dice, Ledger, scrape_until_it_breaks};

const CLIENTS: u64 = 2;

/// `TEST_SEED`, to throw the dice of a failed run again.
fn seed() -> u64 {
    let seed = std::env::var("TEST_SEED").ok();
    seed.and_then(|seed| seed.parse().ok()).unwrap_or(20_260_219)
}

struct Kills {
    site: Site,
    ledger: Ledger,
    dice: Dice,
}

impl Kills {
    fn new(site: Site) -> Self {
        let seed = seed();
        eprintln!("TEST_SEED={seed}");
        Self { site, ledger: Ledger::default(), dice: Dice::new(seed) }
    }

    /// A node under load, killed when the trouble is over.
    fn cycle(&mut self, cycle: usize, trouble: impl FnOnce(&mut Site, &mut Dice)) {
        let node = self.site.serving(&SMALL_SEGMENTS);
        let seeds: Vec<u64> = (0..CLIENTS).map(|_| self.dice.throw(1, 1 << 40)).collect();
        let addr = node.addr.clone();
        let (addr, ledger) = (addr.as_str(), &self.ledger);
        let (site, dice) = (&mut self.site, &mut self.dice);
        std::thread::scope(|scope| {
            for seed in seeds {
                scope.spawn(move || ledger.post_until_it_breaks(addr, cycle, Dice::new(seed)));
            }
            scope.spawn(move || scrape_until_it_breaks(addr));
            trouble(site, dice);
            node.kill();
        });
    }

    /// Starts it once more, drains it, and compares.
    fn drain_and_judge(self) {
        let node = self.site.serving(&SMALL_SEGMENTS);
        drained(&node);
        assert_nothing_dead(&node, self.site.path());
        let health = node.health();
        let damage = health["damage"].as_array().unwrap();
        assert!(damage.is_empty(), "a kill damages nothing: {health}");
        let log = node.log();
        assert_eq!(node.stop().code(), Some(0), "{log}");
        assert!(self.ledger.accepted() > 100, "{}", self.ledger.accepted());
        self.ledger.judge(&self.site.ids());
    }
}

/// The moments of the kills.
fn some_time(dice: &mut Dice) {
    std::thread::sleep(Duration::from_millis(dice.throw(5, 250)));
}

fn what_was_accepted_survives_kills_of_node_and_server_under_load_once_under_its_seq(site: Site) {
    let cycles = match (full_scale(), site.kind()) {
        (false, _) => 4,
        (true, Kind::MySql) => 20,
        (true, _) => 50,
    };
    let mut run = Kills::new(site);
    for cycle in 0..cycles {
        run.cycle(cycle, |site, dice| {
            some_time(dice);
            if !site.server().runs() {
                site.server_mut().restart();
                some_time(dice);
            }
            site.server_mut().kill();
            some_time(dice);
            // every other start of the node finds it down
            if cycle % 2 == 0 {
                site.server_mut().restart();
                some_time(dice);
            }
        });
    }
    if !run.site.server().runs() {
        run.site.server_mut().restart();
    }
    run.drain_and_judge();
}

on_each!(
    what_was_accepted_survives_kills_of_node_and_server_under_load_once_under_its_seq:
    postgres, mariadb, mysql
);

#[test]
fn what_was_accepted_survives_kills_of_a_node_on_sqlite_under_load_once_under_its_seq() {
    let mut run = Kills::new(Site::sqlite());
    let cycles = if full_scale() { 20 } else { 3 };
    for cycle in 0..cycles {
        run.cycle(cycle, |_, dice| some_time(dice));
    }
    run.drain_and_judge();
}
