//! What a new node id of the peer asks for: its history has parted from the one that was followed.
//!
//! First it is kept, for every channel that was ever read, pulled at present or not, from where it is to
//! be read again; then the id is accepted and followed; then each channel is read again when it can be,
//! and its second cursor is dropped when it has come to the usual one. A stop between any two of these
//! steps loses nothing. Does not know pages.

use std::collections::BTreeMap;

use super::{EventStore, Foreign, Lane, Outcome, Peer, Seq, Source, State};
use crate::event::{ChannelName, Origin};
use crate::storage::StorageError;

impl<S: EventStore, P: Source> Peer<'_, S, P> {
    /// The peer goes by this id, and shares everything up to `since` with the one that was followed.
    ///
    /// # Errors
    /// Where it is not kept: it is met again with the next page.
    pub(super) async fn parted(&self, id: &str, since: Seq) -> Result<(), StorageError> {
        let (storage, origin) = (&self.shared.storage, self.name);
        let before = self.lock().lives.followed().map(str::to_owned);
        // what was never read is read from its beginning, and what stands lower goes on from there
        let cursors = storage.cursors(origin).await?;
        let mut again = before.is_some();
        for (channel, usual) in &cursors {
            let usual = *usual;
            let mut from = usual.min(since);
            if let Some(before) = &before {
                // that was not read again wholly
                let pending = storage.cursor_again(origin, channel, before).await?;
                from = from.min(pending.unwrap_or(usual));
            }
            if from < usual {
                // where one stands already nothing is done
                storage.apply(&second_cursor(origin, channel, id, from)).await?;
                again = true;
            }
        }
        storage.accept_id(origin, id, &[]).await?;
        self.shared.held.parted(origin, since);
        self.lock().lives.accepted(id);
        if again {
            tracing::warn!(peer = %origin, "peer {origin} goes by a new node id, {id}: its history parted at seq {since}, and everything above it is read again, once");
        }
        // nobody looks at its cursors any more
        let all: Vec<ChannelName> = cursors.into_iter().map(|(channel, _)| channel).collect();
        if let Some(before) = before
            && let Err(e) = storage.accept_id(origin, &before, &all).await
        {
            tracing::debug!("cursors of node id {before} of {origin} are left: {e}");
        }
        Ok(())
    }

    /// Notes how far every channel of the peer's own has come, so that it is told no less than that,
    /// whichever of them is asked for first.
    pub(super) async fn note_cursors(&self) -> Result<(), StorageError> {
        let (storage, held) = (&self.shared.storage, &self.shared.held);
        let followed = self.lock().lives.followed().map(str::to_owned);
        for (channel, usual) in storage.cursors(self.name).await? {
            let again = match &followed {
                Some(id) => storage.cursor_again(self.name, &channel, id).await?,
                None => None,
            };
            held.note_before(self.name, usual);
            held.note(self.name, again.unwrap_or(usual));
        }
        Ok(())
    }

    /// The stored cursors.
    pub(super) async fn load(&self, lane: &Lane) -> Outcome {
        let (storage, Lane { origin, channel, direct, .. }) = (&self.shared.storage, lane);
        let followed = self.lock().lives.followed().map(str::to_owned).filter(|_| *direct);
        let read = async {
            let usual = storage.cursor(origin, channel).await?;
            let again = match followed {
                Some(id) => storage.cursor_again(origin, channel, &id).await?.map(|seq| (id, seq)),
                None => None,
            };
            Ok::<_, StorageError>((usual, again))
        };
        let (usual, again) = match read.await {
            Ok(read) => read,
            Err(e) => return Outcome::NoCursor(e.to_string()),
        };
        let held = &self.shared.held;
        if let Some(usual) = usual {
            held.note_before(origin, usual);
            // of what a relay gave nobody knows to which history it belongs
            if let Some(seq) = again.as_ref().map(|(_, seq)| *seq).or(direct.then_some(usual)) {
                held.note(origin, seq);
            }
        }
        if *direct {
            let key = (origin.clone(), channel.clone());
            self.shared.board.again(self.name, &key, again.is_some());
        }
        Outcome::Cursor { usual, again }
    }

    /// Where a channel was read again up to the usual cursor, that one alone is followed from here on.
    pub(super) async fn finish(&self, state: &mut State) {
        let Some((id, at)) = state.read_again().map(|(id, at)| (id.to_owned(), at)) else { return };
        let (storage, Lane { origin, channel, .. }) = (&self.shared.storage, &state.lane);
        let done = async {
            // a relay may have moved it on meanwhile, and our own storage may have gone back
            let usual = storage.cursor(origin, channel).await?;
            let again = storage.cursor_again(origin, channel, &id).await?;
            let done = again == Some(at) && usual <= Some(at);
            if done {
                storage.accept_id(origin, &id, std::slice::from_ref(channel)).await?;
            }
            Ok::<_, StorageError>(done)
        };
        match done.await {
            Ok(done) => {
                if done {
                    tracing::info!(peer = %origin, %channel, "channel {channel} of {origin} was read again under node id {id}");
                }
                let key = (origin.clone(), channel.clone());
                self.lock().turns.want(&key);
                self.bell.notify_one();
                state.forget();
            }
            Err(e) => {
                tracing::debug!("channel {channel} of {origin} is not wholly read again yet: {e}");
            }
        }
    }
}

/// No rows, and a cursor of reading again.
fn second_cursor(origin: &Origin, channel: &ChannelName, id: &str, to: Seq) -> Foreign {
    Foreign {
        origin: origin.clone(),
        channel: channel.clone(),
        rows: Vec::new(),
        expect: None,
        to,
        again: Some(id.to_owned()),
        unfit: BTreeMap::new(),
        streak: 0,
    }
}
