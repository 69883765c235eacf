//! Who may post to a channel: bearer keys, kept and compared as digests.
//!
//! Must not know requests or the configuration; no key leaves this file in any form that can be
//! printed.

use std::fmt;
use std::hint::black_box;

use ring::digest::{SHA256, SHA256_OUTPUT_LEN, digest};

/// The SHA-256 of a bearer key. All digests have one length, so that comparing them says nothing about
/// the length of a key.
#[derive(Clone)]
pub struct KeyDigest([u8; SHA256_OUTPUT_LEN]);

impl KeyDigest {
    /// The digest of `key`.
    #[must_use]
    pub fn of(key: &str) -> Self {
        Self::of_bytes(key.as_bytes())
    }

    /// Whether `key` has this digest.
    #[must_use]
    pub fn is(&self, key: &[u8]) -> bool {
        self.matches(&Self::of_bytes(key))
    }

    fn of_bytes(key: &[u8]) -> Self {
        let mut bytes = [0; SHA256_OUTPUT_LEN];
        bytes.copy_from_slice(digest(&SHA256, key).as_ref());
        Self(bytes)
    }

    /// Whether both are equal, in a time that does not depend on where they differ.
    fn matches(&self, other: &Self) -> bool {
        let difference = self
            .0
            .iter()
            .zip(&other.0)
            .fold(0_u8, |sum, (own, others)| black_box(sum | (own ^ others)));
        black_box(difference) == 0
    }
}

impl fmt::Debug for KeyDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyDigest(***)")
    }
}

/// Whether `header`, the value of `Authorization` (`Bearer <key>`, the scheme in any case), holds one
/// of `keys`. Looks at all of them, whichever matches.
#[must_use]
pub fn authorized(keys: &[KeyDigest], header: Option<&[u8]>) -> bool {
    let Some(key) = header.and_then(bearer_key) else {
        return false;
    };
    let presented = KeyDigest::of_bytes(key);
    keys.iter().fold(false, |found, known| black_box(found | known.matches(&presented)))
}

/// The key of a bearer credential; `None` where it is another scheme or the key is empty.
fn bearer_key(header: &[u8]) -> Option<&[u8]> {
    let header = header.trim_ascii();
    let at = header.iter().position(|byte| *byte == b' ')?;
    let (scheme, key) = header.split_at(at);
    let key = key.trim_ascii_start();
    (scheme.eq_ignore_ascii_case(b"bearer") && !key.is_empty()).then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_the_keys_opens_the_channel() {
        let keys = [KeyDigest::of("key-one"), KeyDigest::of("key-two")];
        for (header, expect) in [
            ("Bearer key-one", true),
            ("Bearer key-two", true),
            ("bearer key-two", true),
            ("BEARER  key-two ", true),
            ("Bearer key-three", false),
            ("Bearer key-on", false),
            ("Bearer key-one2", false),
            ("Bearer KEY-ONE", false),
            ("Bearer key-one key-two", false),
            ("Bearer", false),
            ("Bearer ", false),
            ("", false),
            ("key-one", false),
            ("Basic key-one", false),
            ("Bearerkey-one", false),
        ] {
            assert_eq!(authorized(&keys, Some(header.as_bytes())), expect, "{header:?}");
        }
        assert!(!authorized(&keys, None));
        assert!(!authorized(&keys, Some(b"Bearer \xFF")));
        assert!(!authorized(&[], Some(b"Bearer key-one")));
    }

    #[test]
    fn an_empty_key_opens_nothing() {
        assert!(!authorized(&[KeyDigest::of("")], Some(b"Bearer ")));
        assert!(!authorized(&[KeyDigest::of("")], Some(b"Bearer")));
    }

    #[test]
    fn digests_differ_wherever_a_bit_does() {
        let digest = KeyDigest::of("key");
        assert!(digest.matches(&KeyDigest::of("key")));
        for at in 0..SHA256_OUTPUT_LEN {
            let mut other = digest.clone();
            other.0[at] ^= 0x10;
            assert!(!digest.matches(&other), "byte {at}");
        }
    }

    #[test]
    fn a_digest_is_never_printed() {
        assert_eq!(format!("{:?}", KeyDigest::of("secret")), "KeyDigest(***)");
    }
}
