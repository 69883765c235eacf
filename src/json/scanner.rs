//! The one pass: a scanner with a stack of its own, so that no nesting can overflow the thread's.
//!
//! Expects valid UTF-8. Knows the grammar and the profile; must not know what an event is used for.
//! Allocates per body, not per value: the stacks are reused by all items of a body, and pointers are
//! built only for violations.

use std::cmp::Reverse;
use std::mem;
use std::ops::Range;

use super::path::{Path, Spot};
use super::{
    DuplicateKeys, Form, Item, MAX_KEY_LEN, MAX_VIOLATIONS, Profile, Violation, number, text,
};

const NUL: &str = "holds \\u0000, which not every storage can keep";
const LONE_SURROGATE: &str = "holds a lone surrogate escape (\\ud800 to \\udfff come in pairs)";

/// The item cannot be read on; the violation that says why is recorded.
struct Stop;

pub(super) struct Scanner<'a> {
    body: &'a [u8],
    at: usize,
    form: Form,
    profile: &'a Profile,
    index: usize,
    path: Path<'a>,
    cuts: Vec<Range<usize>>,
    items: Vec<Item>,
    violations: Vec<Violation>,
    /// The position of the last violation, where it was one that ended an item.
    stopped_at: Option<usize>,
}

impl<'a> Scanner<'a> {
    pub(super) fn new(body: &'a [u8], form: Form, profile: &'a Profile) -> Self {
        Self {
            body,
            at: 0,
            form,
            profile,
            index: 0,
            path: Path::new(body),
            cuts: Vec::new(),
            items: Vec::new(),
            violations: Vec::new(),
            stopped_at: None,
        }
    }

    /// Reads the whole body.
    pub(super) fn run(&mut self) {
        match self.form {
            Form::Json => self.document(),
            Form::Lines => self.lines(),
        }
    }

    /// Says that the body goes on behind what was read, with bytes that are not UTF-8. Where the
    /// reading ended for want of more, that is the cause.
    pub(super) fn not_utf8(&mut self) {
        let end = self.body.len();
        let reason = format!("is not valid UTF-8 at byte {end}");
        if self.stopped_at == Some(end)
            && let Some(last) = self.violations.last_mut()
        {
            last.reason = reason;
        } else {
            self.report(Spot::Value, reason);
        }
    }

    pub(super) fn finish(self) -> Result<Vec<Item>, Vec<Violation>> {
        if self.violations.is_empty() { Ok(self.items) } else { Err(self.violations) }
    }

    fn document(&mut self) {
        self.skip_space();
        match self.peek() {
            None => self.no_event(),
            Some(b'{') => {
                if self.item().is_ok() {
                    self.end_of_document();
                }
            }
            Some(b'[') => self.batch(),
            Some(byte) => match kind_of(byte) {
                Some(kind) => {
                    let reason =
                        format!("is not a JSON object or an array of JSON objects but {kind}");
                    self.report(Spot::Value, reason);
                }
                None => {
                    self.unexpected("a JSON object or an array of JSON objects", Spot::Value);
                }
            },
        }
    }

    fn batch(&mut self) {
        self.at += 1;
        self.skip_space();
        if self.peek() == Some(b']') {
            self.at += 1;
            self.no_event();
            return;
        }
        loop {
            if self.index == self.profile.max_items {
                self.too_many_events();
                return;
            }
            if self.item().is_err() || self.is_full() {
                return;
            }
            self.skip_space();
            match self.peek() {
                Some(b',') => {
                    self.at += 1;
                    self.index += 1;
                    self.skip_space();
                }
                Some(b']') => {
                    self.at += 1;
                    self.end_of_document();
                    return;
                }
                _ => {
                    self.unexpected("',' or ']'", Spot::Value);
                    return;
                }
            }
        }
    }

    fn end_of_document(&mut self) {
        self.skip_space();
        if self.at < self.body.len() {
            let reason = format!(
                "expected the end of the body at byte {} (several events go into an array, or into \
                 lines with Content-Type application/x-ndjson)",
                self.at
            );
            self.stop(self.at, Spot::Value, reason);
        }
    }

    fn lines(&mut self) {
        loop {
            self.skip_space();
            match self.peek() {
                None => break,
                Some(b'\n') => {
                    self.at += 1;
                    continue;
                }
                Some(_) => {}
            }
            if self.index == self.profile.max_items {
                self.too_many_events();
                return;
            }
            if self.item().is_ok() {
                self.skip_space();
                if !matches!(self.peek(), None | Some(b'\n')) {
                    self.unexpected("the end of the line", Spot::Value);
                }
            }
            if self.is_full() {
                return;
            }
            self.skip_line();
            self.index += 1;
        }
        if self.index == 0 {
            self.no_event();
        }
    }

    fn skip_line(&mut self) {
        let rest = &self.body[self.at..];
        self.at += rest.iter().position(|byte| *byte == b'\n').map_or(rest.len(), |len| len + 1);
    }

    fn no_event(&mut self) {
        self.stop(
            self.at,
            Spot::Value,
            "the body holds no event: send at least one event".to_owned(),
        );
    }

    fn too_many_events(&mut self) {
        self.path.clear();
        let reason =
            format!("the body holds more than {} events (max_batch_items)", self.profile.max_items);
        self.report(Spot::Value, reason);
    }

    /// Reads one event, which begins here.
    fn item(&mut self) -> Result<(), Stop> {
        self.path.clear();
        self.cuts.clear();
        let start = self.at;
        if let Some(kind) = self.peek().and_then(kind_of) {
            self.report(Spot::Value, format!("is not a JSON object but {kind}"));
        }
        self.value()?;
        let cuts = self.take_cuts();
        self.items.push(Item { span: start..self.at, cuts });
        Ok(())
    }

    /// The cuts of the item, sorted; those inside another one go with it.
    fn take_cuts(&mut self) -> Vec<Range<usize>> {
        if self.cuts.is_empty() {
            return Vec::new();
        }
        let mut cuts = mem::take(&mut self.cuts);
        cuts.sort_unstable_by_key(|cut| (cut.start, Reverse(cut.end)));
        let mut covered = 0;
        cuts.retain(|cut| {
            let keep = cut.start >= covered;
            if keep {
                covered = cut.end;
            }
            keep
        });
        cuts
    }

    /// Reads one value with all that is in it.
    fn value(&mut self) -> Result<(), Stop> {
        loop {
            let opened = self.begin_value()?;
            if !opened && self.end_value()? {
                return Ok(());
            }
        }
    }

    /// Reads a scalar or an empty container, or opens a container up to its first value; says whether
    /// it did that.
    #[inline]
    fn begin_value(&mut self) -> Result<bool, Stop> {
        match self.peek() {
            Some(b'"') => self.string_value()?,
            Some(b'-' | b'0'..=b'9') => self.number_value()?,
            Some(b'{') => {
                self.open(true);
                if self.peek() != Some(b'}') {
                    self.key()?;
                    return Ok(true);
                }
                self.close();
            }
            Some(b'[') => {
                self.open(false);
                if self.peek() != Some(b']') {
                    return Ok(true);
                }
                self.close();
            }
            Some(b't') => self.literal("true")?,
            Some(b'f') => self.literal("false")?,
            Some(b'n') => self.literal("null")?,
            _ => return Err(self.unexpected("a JSON value", Spot::Value)),
        }
        Ok(false)
    }

    /// Behind a value: closes what ends here, and goes on to the next value; says whether there is
    /// none.
    #[inline]
    fn end_value(&mut self) -> Result<bool, Stop> {
        loop {
            let Some(in_object) = self.path.in_object() else {
                return Ok(true);
            };
            self.skip_space();
            match (self.peek(), in_object) {
                (Some(b','), true) => {
                    self.at += 1;
                    self.skip_space();
                    self.key()?;
                    return Ok(false);
                }
                (Some(b','), false) => {
                    self.at += 1;
                    self.skip_space();
                    self.path.next_element();
                    return Ok(false);
                }
                (Some(b'}'), true) | (Some(b']'), false) => self.close(),
                (_, true) => return Err(self.unexpected("',' or '}'", Spot::Container)),
                (_, false) => return Err(self.unexpected("',' or ']'", Spot::Container)),
            }
        }
    }

    /// Takes the opening bracket and the space behind it.
    #[inline]
    fn open(&mut self, object: bool) {
        let max_depth = self.profile.max_depth;
        if !self.path.enter(object, max_depth) {
            let reason =
                format!("is nested deeper than {max_depth} objects and arrays (json_max_depth)");
            self.report(Spot::Value, reason);
        }
        self.at += 1;
        self.skip_space();
    }

    /// Takes the closing bracket.
    #[inline]
    fn close(&mut self) {
        self.at += 1;
        for repeated in self.path.repeated() {
            match self.profile.duplicate_keys {
                // A member that has a later one is followed by a comma, so the cut up to the next
                // member leaves the object whole.
                DuplicateKeys::Last => self.cuts.push(repeated.member..repeated.next_member),
                // Once a key, however often it occurs.
                DuplicateKeys::Reject if repeated.last_but_one => {
                    let reason = "the key occurs more than once in its object".to_owned();
                    self.report(Spot::Member(repeated.key), reason);
                }
                DuplicateKeys::Reject => {}
            }
        }
        self.path.leave();
    }

    /// Reads a key and the colon behind it, up to the value.
    #[inline]
    fn key(&mut self) -> Result<(), Stop> {
        if self.peek() != Some(b'"') {
            return Err(self.unexpected("a key in double quotes", Spot::Container));
        }
        let member = self.at;
        let string = match text::scan(self.body, member) {
            Ok(string) => string,
            Err(broken) => return Err(self.broken_string(&broken, Spot::Container)),
        };
        self.at = string.end;
        let len = self.path.enter_member(member, &string);
        if len > MAX_KEY_LEN || string.nul || string.lone_surrogate {
            self.report_key(len, &string);
        }
        self.skip_space();
        if self.peek() != Some(b':') {
            return Err(self.unexpected("':'", Spot::Value));
        }
        self.at += 1;
        self.skip_space();
        Ok(())
    }

    #[cold]
    fn report_key(&mut self, len: usize, string: &text::Scanned) {
        if len > MAX_KEY_LEN {
            let reason = format!("the key has {len} bytes: at most {MAX_KEY_LEN} are allowed");
            self.report(Spot::Value, reason);
        }
        if string.nul {
            self.report(Spot::Value, format!("the key {NUL}"));
        }
        if string.lone_surrogate {
            self.report(Spot::Value, format!("the key {LONE_SURROGATE}"));
        }
    }

    #[inline]
    fn string_value(&mut self) -> Result<(), Stop> {
        let string = match text::scan(self.body, self.at) {
            Ok(string) => string,
            Err(broken) => return Err(self.broken_string(&broken, Spot::Value)),
        };
        self.at = string.end;
        if string.nul {
            self.report(Spot::Value, NUL.to_owned());
        }
        if string.lone_surrogate {
            self.report(Spot::Value, LONE_SURROGATE.to_owned());
        }
        Ok(())
    }

    #[inline]
    fn number_value(&mut self) -> Result<(), Stop> {
        match number::scan(self.body, self.at) {
            Ok(number) => {
                self.at = number.end;
                if let Some(fault) = number.fault {
                    self.report(Spot::Value, fault.to_string());
                }
                Ok(())
            }
            Err(broken) => {
                self.at = broken.at;
                Err(self.unexpected(broken.expected, Spot::Value))
            }
        }
    }

    #[inline]
    fn literal(&mut self, word: &'static str) -> Result<(), Stop> {
        if self.body[self.at..].starts_with(word.as_bytes()) {
            self.at += word.len();
            Ok(())
        } else {
            Err(self.unexpected(word, Spot::Value))
        }
    }

    #[inline]
    fn peek(&self) -> Option<u8> {
        self.body.get(self.at).copied()
    }

    /// In lines a line feed is the end of the item, never space inside it.
    #[inline]
    fn skip_space(&mut self) {
        while let Some(byte) = self.peek() {
            match byte {
                b' ' | b'\t' | b'\r' => self.at += 1,
                b'\n' if self.form == Form::Json => self.at += 1,
                _ => return,
            }
        }
    }

    fn is_full(&self) -> bool {
        self.violations.len() >= MAX_VIOLATIONS
    }

    /// Records a violation, unless there are enough; says whether it did.
    #[cold]
    fn report(&mut self, spot: Spot, reason: String) -> bool {
        if self.is_full() {
            return false;
        }
        self.violations.push(Violation {
            index: self.index,
            pointer: self.path.pointer(spot),
            reason,
        });
        self.stopped_at = None;
        true
    }

    #[cold]
    fn stop(&mut self, at: usize, spot: Spot, reason: String) -> Stop {
        self.at = at;
        if self.report(spot, reason) {
            self.stopped_at = Some(at);
        }
        Stop
    }

    #[cold]
    fn broken_string(&mut self, broken: &text::Broken, spot: Spot) -> Stop {
        let reason = format!("{} at byte {}", broken.reason, broken.at);
        self.stop(broken.at, spot, reason)
    }

    #[cold]
    fn unexpected(&mut self, expected: &str, spot: Spot) -> Stop {
        let at = self.at;
        let reason = match self.peek() {
            None => format!("expected {expected}, but the body ends at byte {at}"),
            Some(b'\n') if self.form == Form::Lines => {
                format!("expected {expected}, but the line ends at byte {at}")
            }
            Some(_) => format!("expected {expected} at byte {at}"),
        };
        self.stop(at, spot, reason)
    }
}

/// What a value is, by its first byte, where it is no object.
fn kind_of(first: u8) -> Option<&'static str> {
    match first {
        b'[' => Some("an array"),
        b'"' => Some("a string"),
        b'-' | b'0'..=b'9' => Some("a number"),
        b't' | b'f' => Some("a boolean"),
        b'n' => Some("null"),
        _ => None,
    }
}
