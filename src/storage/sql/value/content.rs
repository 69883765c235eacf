//! Whether two JSON documents mean the same: as trees, whatever the order of an object's members and
//! the spelling of strings and numbers.
//!
//! Both keep the portable profile, or come from a backend that took what keeps it. Must not know
//! schemas or rows.

use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::json;

/// Below this many containers documents are compared as bytes: a peer's must not overflow the stack.
/// Four times what the door can be configured to take.
const DEEPEST: usize = 512;

/// Whether two documents are equal as trees. Numbers are where they are the same whole number of 64
/// bits, or, where one of them is none, the same double.
#[must_use]
pub fn same_content(left: &[u8], right: &[u8]) -> bool {
    same(left.trim_ascii(), right.trim_ascii(), DEEPEST)
}

fn same(left: &[u8], right: &[u8], deepest: usize) -> bool {
    if left == right {
        return true;
    }
    match (left.first(), right.first()) {
        (Some(b'{'), Some(b'{')) => deepest > 0 && same_members(left, right, deepest - 1),
        (Some(b'['), Some(b'[')) => deepest > 0 && same_elements(left, right, deepest - 1),
        (Some(b'"'), Some(b'"')) => json::decode_string(left) == json::decode_string(right),
        _ => same_numbers(left, right),
    }
}

fn same_members(left: &[u8], right: &[u8], deepest: usize) -> bool {
    // Of members with one name the last stands, as everywhere.
    let left: BTreeMap<Cow<'_, str>, &[u8]> = json::members(left).collect();
    let right: BTreeMap<Cow<'_, str>, &[u8]> = json::members(right).collect();
    left.len() == right.len()
        && left.iter().zip(&right).all(|((left_key, left), (right_key, right))| {
            left_key == right_key && same(left, right, deepest)
        })
}

fn same_elements(left: &[u8], right: &[u8], deepest: usize) -> bool {
    let (mut left, mut right) = (json::elements(left), json::elements(right));
    loop {
        match (left.next(), right.next()) {
            (None, None) => return true,
            (Some(left), Some(right)) if same(left, right, deepest) => {}
            _ => return false,
        }
    }
}

fn same_numbers(left: &[u8], right: &[u8]) -> bool {
    let (Some(left), Some(right)) = (number(left), number(right)) else {
        return false;
    };
    match (left.parse::<i64>(), right.parse::<i64>()) {
        (Ok(left), Ok(right)) => left == right,
        _ => left.parse::<f64>().is_ok_and(|left| right.parse::<f64>() == Ok(left)),
    }
}

fn number(text: &[u8]) -> Option<&str> {
    let begins = matches!(text.first(), Some(b'-' | b'0'..=b'9'));
    if begins { std::str::from_utf8(text).ok() } else { None }
}
