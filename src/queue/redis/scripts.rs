//! The scripts: what changes the stream does so as a whole or not at all.
//!
//! Does not know when which is run. Each begins with what it takes and what it answers; all of them
//! are given the same keys, in the same order.

use redis::{Cmd, RedisWrite};

use super::address::Keys;
use super::connection::{Broken, Wire};

/// One script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Script {
    Ack,
    AckEach,
    Append,
    Beat,
    Claim,
    Count,
    Dead,
    Foreign,
    Park,
    Purge,
    Raise,
    Read,
    Recount,
    Redrive,
    Settle,
    Take,
    There,
    Unpark,
}

const ALL: [(Script, &str); 18] = [
    (Script::Ack, include_str!("lua/ack.lua")),
    (Script::AckEach, include_str!("lua/ack_each.lua")),
    (Script::Append, include_str!("lua/append.lua")),
    (Script::Beat, include_str!("lua/beat.lua")),
    (Script::Claim, include_str!("lua/claim.lua")),
    (Script::Count, include_str!("lua/count.lua")),
    (Script::Dead, include_str!("lua/dead.lua")),
    (Script::Foreign, include_str!("lua/foreign.lua")),
    (Script::Park, include_str!("lua/park.lua")),
    (Script::Purge, include_str!("lua/purge.lua")),
    (Script::Raise, include_str!("lua/raise.lua")),
    (Script::Read, include_str!("lua/read.lua")),
    (Script::Recount, include_str!("lua/recount.lua")),
    (Script::Redrive, include_str!("lua/redrive.lua")),
    (Script::Settle, include_str!("lua/settle.lua")),
    (Script::Take, include_str!("lua/take.lua")),
    (Script::There, include_str!("lua/there.lua")),
    (Script::Unpark, include_str!("lua/unpark.lua")),
];

/// All of them, as the server knows them.
#[derive(Clone, Debug)]
pub(super) struct Scripts {
    keys: [String; 6],
    digests: Vec<(Script, String)>,
}

impl Scripts {
    /// Hands them to the server; a restart of it forgets them.
    pub async fn load(wire: &Wire, keys: &Keys) -> Result<Self, Broken> {
        let mut digests = Vec::with_capacity(ALL.len());
        for (script, text) in ALL {
            let mut load = redis::cmd("SCRIPT");
            load.arg("LOAD").arg(text);
            digests.push((script, wire.ask(&load).await?.text()?));
        }
        let Keys { stream, owner, counts, tries, dlq, states, .. } = keys.clone();
        Ok(Self { keys: [stream, owner, counts, tries, dlq, states], digests })
    }

    /// A call of one of them; its arguments follow. `args` and `bytes` say how many and how long they
    /// will be, so that no buffer grows.
    pub fn call(&self, script: Script, args: usize, bytes: usize) -> Cmd {
        let mut call = Cmd::with_capacity(args + self.keys.len() + 3, bytes + 512);
        let digest = self.digests.iter().find(|(s, _)| *s == script).map(|(_, d)| d.as_str());
        call.arg("EVALSHA").arg(digest.unwrap_or_default()).arg(self.keys.len());
        for key in &self.keys {
            call.write_arg(key.as_bytes());
        }
        call
    }
}
