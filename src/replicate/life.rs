//! Node ids of one origin: which history is followed, which is read again, and when two nodes of one
//! name take turns. Pure.
//!
//! An id stands for one unbroken history. The first one is accepted as it is; another one is read
//! again from where the histories part, and accepted when that is done; one that comes back after
//! another was met belongs to a second living node. Does not know pages, cursors or storage.

use crate::event::Seq;

/// What an id asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Meeting {
    /// The one that is followed, or is being read again.
    Known,
    /// The first one of all: to be accepted.
    First,
    /// Another one: everything above this seq is to be read again, then it is to be accepted.
    Again(Seq),
    /// Two nodes of one name: the origin stops.
    Returned,
}

/// The ids of an origin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lives {
    /// Every id that was accepted; the last one is followed.
    accepted: Vec<String>,
    /// The one that is being read again, and from where.
    pending: Option<(String, Seq)>,
}

impl Lives {
    /// As it was kept: every accepted id, the one that is followed last.
    #[must_use]
    pub fn new(accepted: Vec<String>) -> Self {
        Self { accepted, pending: None }
    }

    /// An answer of that id has come; `since` is the last seq that it shares with the ids before it.
    pub fn meet(&mut self, id: &str, since: Option<Seq>) -> Meeting {
        let followed = self.accepted.last().map(String::as_str);
        match (&self.pending, followed) {
            (None, None) => Meeting::First,
            (None, Some(followed)) if followed == id => Meeting::Known,
            (Some((pending, _)), _) if pending == id => Meeting::Known,
            _ if self.accepted.iter().any(|known| known == id) => Meeting::Returned,
            _ => {
                // a node that went back twice shares less with us than its last id says
                let before = self.pending.take().map(|(_, since)| since);
                let since = since.unwrap_or_default();
                let since = before.map_or(since, |before| before.min(since));
                self.pending = Some((id.to_owned(), since));
                Meeting::Again(since)
            }
        }
    }

    /// The id is accepted, durably.
    pub fn accepted(&mut self, id: &str) {
        self.accepted.retain(|known| known != id);
        self.accepted.push(id.to_owned());
        self.pending = None;
    }

    /// The id that is followed or being read again.
    #[must_use]
    pub fn current(&self) -> Option<&str> {
        self.pending.as_ref().map(|(id, _)| id).or(self.accepted.last()).map(String::as_str)
    }

    /// The id that is followed: the last one that was accepted.
    #[must_use]
    pub fn followed(&self) -> Option<&str> {
        self.accepted.last().map(String::as_str)
    }

    /// The id that is being read again, and from where.
    #[must_use]
    pub fn pending(&self) -> Option<(&str, Seq)> {
        self.pending.as_ref().map(|(id, since)| (id.as_str(), *since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_id_is_read_again_once_and_then_followed() {
        let mut lives = Lives::default();
        assert_eq!(lives.meet("a", None), Meeting::First);
        lives.accepted("a");
        assert_eq!(lives.meet("a", None), Meeting::Known);
        assert_eq!(lives.meet("b", Some(Seq(40))), Meeting::Again(Seq(40)));
        assert_eq!(lives.meet("b", Some(Seq(40))), Meeting::Known);
        assert_eq!(lives.pending(), Some(("b", Seq(40))));
        lives.accepted("b");
        assert_eq!((lives.meet("b", Some(Seq(40))), lives.pending()), (Meeting::Known, None));
        // a wiped disk shares nothing
        assert_eq!(lives.meet("c", None), Meeting::Again(Seq(0)));
    }

    #[test]
    fn an_id_that_returns_means_two_living_nodes() {
        let mut lives = Lives::new(vec!["a".to_owned(), "b".to_owned()]);
        assert_eq!(lives.meet("a", None), Meeting::Returned);
        // also while the other one is still being read
        let mut lives = Lives::new(vec!["a".to_owned()]);
        assert_eq!(lives.meet("b", Some(Seq(1))), Meeting::Again(Seq(1)));
        assert_eq!(lives.meet("a", None), Meeting::Returned);
    }

    #[test]
    fn a_node_that_goes_back_twice_is_read_from_the_lower_seq() {
        let mut lives = Lives::new(vec!["a".to_owned()]);
        assert_eq!(lives.meet("b", Some(Seq(40))), Meeting::Again(Seq(40)));
        assert_eq!(lives.meet("c", Some(Seq(90))), Meeting::Again(Seq(40)));
        assert_eq!(lives.current(), Some("c"));
    }

    #[test]
    fn after_a_start_reading_again_begins_anew_where_it_was_not_done() {
        let mut lives = Lives::new(vec!["a".to_owned()]);
        assert_eq!(lives.meet("b", Some(Seq(40))), Meeting::Again(Seq(40)));
    }
}
