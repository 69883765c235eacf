//! Walking over the members of an object, or the elements of an array, that was checked before.
//!
//! Checks nothing. On text that was not checked it may give anything, but it neither panics nor runs
//! for ever.

use std::borrow::Cow;

use super::text;

/// The top-level members of an object, see [`members`].
#[derive(Clone, Debug)]
pub struct Members<'a> {
    text: &'a [u8],
    at: usize,
}

/// The elements of an array, see [`elements`].
#[derive(Clone, Debug)]
pub struct Elements<'a> {
    text: &'a [u8],
    at: usize,
}

/// The top-level members of `object`: the decoded key, and the value's text without space around it.
#[must_use]
pub fn members(object: &[u8]) -> Members<'_> {
    Members { text: object, at: content_start(object) }
}

/// The elements of `array`: the text of each, without space around it.
#[must_use]
pub fn elements(array: &[u8]) -> Elements<'_> {
    Elements { text: array, at: content_start(array) }
}

impl<'a> Iterator for Members<'a> {
    type Item = (Cow<'a, str>, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let key_start = skip_to_token(self.text, self.at);
        if self.text.get(key_start) != Some(&b'"') {
            return None;
        }
        let key_end = string_end(self.text, key_start);
        let start = skip_to_token(self.text, key_end);
        let end = value_end(self.text, start);
        self.at = end;
        let key = text::decode_string(&self.text[key_start..key_end]);
        Some((key, &self.text[start..end]))
    }
}

impl<'a> Iterator for Elements<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<Self::Item> {
        let start = skip_to_token(self.text, self.at);
        let end = value_end(self.text, start);
        self.at = end;
        // A closing bracket is the one token that is no value: nothing is taken of it.
        if end > start { Some(&self.text[start..end]) } else { None }
    }
}

/// The position behind the opening bracket.
fn content_start(container: &[u8]) -> usize {
    container
        .iter()
        .position(|byte| matches!(byte, b'{' | b'['))
        .map_or(container.len(), |at| at + 1)
}

/// The next position that holds neither space nor a separator; at most the text's length.
fn skip_to_token(text: &[u8], mut at: usize) -> usize {
    while matches!(text.get(at), Some(b' ' | b'\t' | b'\n' | b'\r' | b',' | b':')) {
        at += 1;
    }
    at
}

fn string_end(text: &[u8], open: usize) -> usize {
    text::scan(text, open).map_or(text.len(), |string| string.end)
}

fn value_end(text: &[u8], start: usize) -> usize {
    match text.get(start) {
        Some(b'"') => string_end(text, start),
        Some(b'{' | b'[') => container_end(text, start),
        _ => text[start..]
            .iter()
            .position(|byte| matches!(byte, b',' | b'}' | b']' | b' ' | b'\t' | b'\n' | b'\r'))
            .map_or(text.len(), |len| start + len),
    }
}

fn container_end(text: &[u8], start: usize) -> usize {
    let mut depth = 0_usize;
    let mut at = start;
    while let Some(byte) = text.get(at) {
        match byte {
            b'"' => {
                at = string_end(text, at);
                continue;
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' => {
                depth -= 1;
                if depth == 0 {
                    return at + 1;
                }
            }
            _ => {}
        }
        at += 1;
    }
    text.len()
}
