//! Node ids of one origin: which history is followed, which parts from it, and when two nodes of one
//! name take turns. Pure.
//!
//! An id stands for one unbroken history. The first one is accepted as it is; another one is accepted
//! when it is kept what of it is to be read again, from where the histories part; one that comes back
//! after another was met belongs to a second living node. Does not know pages, cursors or storage.

use crate::event::Seq;

/// What an id asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Meeting {
    /// The one that is followed.
    Known,
    /// The first one of all, of a history that never parted: to be accepted.
    First,
    /// Another one: everything above this seq is to be read again. It is to be accepted when that is
    /// kept.
    Again(Seq),
    /// Two nodes of one name: the origin stops.
    Returned,
}

/// The ids of an origin: every one that was accepted; the last one is followed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lives(Vec<String>);

impl Lives {
    /// As it was kept: every accepted id, the one that is followed last.
    #[must_use]
    pub fn new(accepted: Vec<String>) -> Self {
        Self(accepted)
    }

    /// An answer of that id has come; `since` is the last seq that it shares with the one that is
    /// followed.
    #[must_use]
    pub fn meet(&self, id: &str, since: Option<Seq>) -> Meeting {
        match self.followed() {
            // a relay may have given us what the origin lacked then
            None => since.map_or(Meeting::First, Meeting::Again),
            Some(followed) if followed == id => Meeting::Known,
            Some(_) if self.0.iter().any(|known| known == id) => Meeting::Returned,
            Some(_) => Meeting::Again(since.unwrap_or_default()),
        }
    }

    /// The id is accepted, durably.
    pub fn accepted(&mut self, id: &str) {
        self.0.retain(|known| known != id);
        self.0.push(id.to_owned());
    }

    /// The id that is followed: the last one that was accepted.
    #[must_use]
    pub fn followed(&self) -> Option<&str> {
        self.0.last().map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_id_asks_for_reading_again_until_it_is_accepted() {
        let mut lives = Lives::default();
        assert_eq!(lives.meet("a", None), Meeting::First);
        assert_eq!(lives.meet("a", Some(Seq(9))), Meeting::Again(Seq(9)), "others gave it to us");
        lives.accepted("a");
        assert_eq!(lives.meet("a", None), Meeting::Known);
        for _ in 0..2 {
            assert_eq!(lives.meet("b", Some(Seq(40))), Meeting::Again(Seq(40)));
        }
        lives.accepted("b");
        assert_eq!(lives.meet("b", Some(Seq(40))), Meeting::Known);
        // a wiped disk shares nothing
        assert_eq!(lives.meet("c", None), Meeting::Again(Seq(0)));
        assert_eq!(lives.followed(), Some("b"));
    }

    #[test]
    fn an_id_that_returns_means_two_living_nodes() {
        let mut lives = Lives::new(vec!["a".to_owned(), "b".to_owned()]);
        assert_eq!(lives.meet("a", None), Meeting::Returned);
        lives.accepted("c");
        assert_eq!(lives.meet("b", None), Meeting::Returned);
    }
}
