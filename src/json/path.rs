//! Where in an item the scanner stands: the open containers and the keys of the open objects.
//!
//! Knows enough to build a JSON pointer and to find keys that occur twice; must not know the grammar
//! nor what happens to either.

use std::cmp::Ordering;
use std::hash::{BuildHasher, RandomState};

use super::{MAX_KEY_LEN, push_segment, text};

/// Up to this many keys of an object are compared one with another; above, their hashes are sorted.
const FEW_KEYS: usize = 16;

/// How much of a key that is too long stands in a pointer.
const SHOWN_KEY_LEN: usize = 64;

/// A container that is open and not too deep.
struct Frame {
    object: bool,
    /// An object's keys begin here in [`Path::keys`].
    keys_from: usize,
    /// And the text of its decoded keys here in [`Path::decoded`].
    decoded_from: usize,
    /// An array's current element.
    element: usize,
}

/// A key of an object that is still open.
struct Key {
    /// The opening quote's position: where the member begins.
    member: usize,
    /// The text: a range of the body, or of [`Path::decoded`] where it holds escapes.
    from: usize,
    to: usize,
    escaped: bool,
    /// Differs only where the texts differ; spares most comparisons.
    fingerprint: u64,
}

/// What a pointer is to name.
#[derive(Clone, Copy)]
pub(super) enum Spot {
    /// The current member or element of the innermost container.
    Value,
    /// The innermost container.
    Container,
    /// A member of the innermost container: [`Repeated::key`].
    Member(usize),
}

/// A member of the innermost object that a later one of the same name replaces.
pub(super) struct Repeated {
    /// Which member, for [`Spot::Member`].
    pub(super) key: usize,
    /// The positions where it and the member behind it begin.
    pub(super) member: usize,
    pub(super) next_member: usize,
    /// Only one more of the same name follows.
    pub(super) last_but_one: bool,
}

pub(super) struct Path<'a> {
    body: &'a [u8],
    frames: Vec<Frame>,
    /// Containers deeper than the profile allows, `true` for an object. One byte each and no keys: a
    /// body of brackets only must not cost a multiple of its size.
    too_deep: Vec<bool>,
    keys: Vec<Key>,
    decoded: Vec<u8>,
}

impl<'a> Path<'a> {
    pub(super) fn new(body: &'a [u8]) -> Self {
        Self {
            body,
            frames: Vec::with_capacity(8),
            too_deep: Vec::new(),
            keys: Vec::with_capacity(FEW_KEYS),
            decoded: Vec::new(),
        }
    }

    pub(super) fn clear(&mut self) {
        self.frames.clear();
        self.too_deep.clear();
        self.keys.clear();
        self.decoded.clear();
    }

    /// Whether the innermost container is an object; `None` outside of all.
    #[inline]
    pub(super) fn in_object(&self) -> Option<bool> {
        self.too_deep.last().copied().or_else(|| self.frames.last().map(|frame| frame.object))
    }

    /// Goes into a container; `false` where it is the first that is too deep.
    #[inline]
    pub(super) fn enter(&mut self, object: bool, max_depth: usize) -> bool {
        if self.frames.len() < max_depth {
            self.frames.push(Frame {
                object,
                keys_from: self.keys.len(),
                decoded_from: self.decoded.len(),
                element: 0,
            });
            return true;
        }
        self.too_deep.push(object);
        self.too_deep.len() > 1
    }

    /// Goes out of the innermost container.
    #[inline]
    pub(super) fn leave(&mut self) {
        if self.too_deep.pop().is_some() {
            return;
        }
        if let Some(frame) = self.frames.pop() {
            self.keys.truncate(frame.keys_from);
            self.decoded.truncate(frame.decoded_from);
        }
    }

    /// Goes to the next element of the innermost array.
    #[inline]
    pub(super) fn next_element(&mut self) {
        if self.too_deep.is_empty()
            && let Some(frame) = self.frames.last_mut()
        {
            frame.element += 1;
        }
    }

    /// Goes to the member whose key stands at `member` in the body; gives the key's decoded length.
    #[inline]
    pub(super) fn enter_member(&mut self, member: usize, string: &text::Scanned) -> usize {
        let (mut from, mut to) = (member + 1, string.end - 1);
        if string.escaped {
            let inner = from..to;
            from = self.decoded.len();
            text::decode_into(&self.body[inner], &mut self.decoded);
            to = self.decoded.len();
        }
        if self.too_deep.is_empty() {
            let mut key = Key { member, from, to, escaped: string.escaped, fingerprint: 0 };
            key.fingerprint = fingerprint(self.key_text(&key));
            self.keys.push(key);
        } else if string.escaped {
            self.decoded.truncate(from);
        }
        to - from
    }

    /// The members of the innermost object that are not the last of their name.
    #[inline]
    pub(super) fn repeated(&self) -> Vec<Repeated> {
        let keys_from = match self.frames.last() {
            Some(frame) if self.too_deep.is_empty() => frame.keys_from,
            _ => return Vec::new(),
        };
        match self.keys.len() - keys_from {
            0 | 1 => Vec::new(),
            2..=FEW_KEYS => self.repeated_of_few(keys_from),
            _ => self.repeated_of_many(keys_from),
        }
    }

    /// Compares each key with all later ones.
    #[inline]
    fn repeated_of_few(&self, keys_from: usize) -> Vec<Repeated> {
        let mut found = Vec::new();
        for earlier in keys_from..self.keys.len() - 1 {
            let key = &self.keys[earlier];
            let later = self.keys[earlier + 1..]
                .iter()
                .filter(|other| {
                    other.fingerprint == key.fingerprint
                        && self.key_text(other) == self.key_text(key)
                })
                .count();
            if later > 0 {
                found.push(self.repeated_key(earlier, later == 1));
            }
        }
        found
    }

    /// Sorts the keys by hash, which is seeded, so that no client can choose keys that are slow to
    /// sort.
    #[cold]
    fn repeated_of_many(&self, keys_from: usize) -> Vec<Repeated> {
        let seed = RandomState::new();
        let mut order: Vec<(u64, usize)> = (keys_from..self.keys.len())
            .map(|at| (seed.hash_one(self.key_text(&self.keys[at])), at))
            .collect();
        let by_text = |left: &(u64, usize), right: &(u64, usize)| -> Ordering {
            left.0.cmp(&right.0).then_with(|| {
                let left = self.key_text(&self.keys[left.1]);
                left.cmp(self.key_text(&self.keys[right.1]))
            })
        };
        order.sort_unstable_by(|left, right| {
            by_text(left, right).then_with(|| left.1.cmp(&right.1))
        });
        let mut found = Vec::new();
        for (place, pair) in order.windows(2).enumerate() {
            if by_text(&pair[0], &pair[1]) == Ordering::Equal {
                let last_but_one = order
                    .get(place + 2)
                    .is_none_or(|third| by_text(&pair[1], third) != Ordering::Equal);
                found.push(self.repeated_key(pair[0].1, last_but_one));
            }
        }
        found
    }

    /// A repeated key is never the last of its object, so there is a member behind it.
    fn repeated_key(&self, key: usize, last_but_one: bool) -> Repeated {
        Repeated {
            key,
            member: self.keys[key].member,
            next_member: self.keys[key + 1].member,
            last_but_one,
        }
    }

    #[inline]
    fn key_text(&self, key: &Key) -> &[u8] {
        if key.escaped { &self.decoded[key.from..key.to] } else { &self.body[key.from..key.to] }
    }

    /// The JSON pointer of `spot`.
    #[cold]
    pub(super) fn pointer(&self, spot: Spot) -> String {
        let mut pointer = String::new();
        for (depth, frame) in self.frames.iter().enumerate() {
            let next = self.frames.get(depth + 1);
            // Inside a container that is too deep only its own place is known.
            let innermost = next.is_none() && self.too_deep.is_empty();
            if innermost && matches!(spot, Spot::Container) {
                break;
            }
            if !frame.object {
                push_segment(&mut pointer, &frame.element.to_string());
                continue;
            }
            let keys_end = next.map_or(self.keys.len(), |next| next.keys_from);
            let key = match spot {
                Spot::Member(at) if innermost => self.keys.get(at),
                _ => self.keys[frame.keys_from..keys_end].last(),
            };
            let Some(key) = key else {
                break;
            };
            push_key(&mut pointer, self.key_text(key));
        }
        pointer
    }
}

fn push_key(pointer: &mut String, text: &[u8]) {
    let key = String::from_utf8_lossy(text);
    if key.len() <= MAX_KEY_LEN {
        push_segment(pointer, &key);
    } else {
        let shown: String = key.chars().take(SHOWN_KEY_LEN).collect();
        push_segment(pointer, &shown);
        pointer.push('…');
    }
}

/// The length, the first and the last eight bytes folded into one word.
#[inline]
fn fingerprint(text: &[u8]) -> u64 {
    let folded = match (text.first_chunk::<8>(), text.last_chunk::<8>()) {
        (Some(first), Some(last)) => {
            u64::from_le_bytes(*first) ^ u64::from_le_bytes(*last).rotate_left(29)
        }
        _ => text.iter().fold(0_u64, |word, byte| (word << 8) | u64::from(*byte)),
    };
    folded ^ (text.len() as u64).rotate_left(56)
}
