//! Events out of a seed: JSON objects of the accepted profile, and values of every type of a field, in
//! all the ways to write them.
//!
//! Knows no storage. What it makes is good but for rare accidents (a time that rounds to midnight).

use std::fmt::Write;
use std::net::{Ipv4Addr, Ipv6Addr};

use crate::support::ledger::Dice;

/// Texts that something on the way could take for its own.
const ODD_TEXTS: [&str; 16] = [
    "", " ", "a ", " a", "NULL", "null", "\\N", "\\.", "{}", "{a,b}", "'", "''; --", "%s_%", "?",
    "a\tb", "1e5",
];
/// Keys that come again and again: then a payload names one twice, and the door cuts.
const KEYS: [&str; 10] =
    ["", "a", "b", "id", "key with spaces", "origin_dc", "$.a", "a.b", "ключ", "\u{1F511}"];
/// Characters by which a storage can be told from another.
const ODD_CHARACTERS: [char; 14] = [
    '\u{1}',
    '\u{8}',
    '\u{1f}',
    '"',
    '\\',
    '/',
    '\u{7f}',
    '\u{85}',
    '\u{301}',
    '\u{2028}',
    '\u{feff}',
    '\u{fffd}',
    '\u{ffff}',
    '\u{10ffff}',
];

/// Makes events; equal seeds make equal ones.
pub struct Generator {
    dice: Dice,
}

impl Generator {
    pub fn new(seed: u64) -> Self {
        Self { dice: Dice::new(seed) }
    }

    /// A number below another one.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.dice.throw(0, bound - 1)
    }

    /// Whether something happens that does so once in so many times.
    pub fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[usize::try_from(self.below(from.len() as u64)).unwrap()]
    }

    fn digits(&mut self, count: u64) -> String {
        (0..count).map(|_| self.pick(b"0123456789") as char).collect()
    }

    /// Digits that do not begin with 0, or 0 itself.
    fn whole(&mut self, most: u64) -> String {
        let count = 1 + self.below(most);
        let digits = self.digits(count);
        match digits.trim_start_matches('0') {
            "" => "0".to_owned(),
            digits => digits.to_owned(),
        }
    }

    fn sign(&mut self) -> &'static str {
        if self.once_in(3) { "-" } else { "" }
    }

    fn space(&mut self) -> &'static str {
        if self.once_in(12) { self.pick(&[" ", "\n", "\t", "\r\n  "]) } else { "" }
    }

    /// Any event of a raw channel.
    pub fn object(&mut self) -> String {
        let depth = if self.once_in(40) { 30 } else { 1 + self.below(4) };
        self.map(depth)
    }

    fn map(&mut self, depth: u64) -> String {
        let mut out = "{".to_owned();
        for nth in 0..self.below(7) {
            if nth > 0 {
                out.push(',');
            }
            let (before, key) = (self.space(), self.key());
            let (between, behind) = (self.space(), self.space());
            write!(out, "{before}{key}{between}:{behind}").unwrap();
            out += &self.value(depth - 1);
        }
        out + self.space() + "}"
    }

    fn list(&mut self, depth: u64) -> String {
        let count = self.below(6);
        let elements: Vec<String> = (0..count)
            .map(|_| {
                let (space, value) = (self.space(), self.value(depth - 1));
                format!("{space}{value}")
            })
            .collect();
        format!("[{}]", elements.join(","))
    }

    /// Any JSON value, with at most so many containers inside each other.
    fn value(&mut self, depth: u64) -> String {
        if depth > 6 {
            // straight down
            return if self.once_in(2) {
                format!("[{}]", self.value(depth - 1))
            } else {
                format!("{{{}:{}}}", self.key(), self.value(depth - 1))
            };
        }
        let most = if depth == 0 { 7 } else { 10 };
        match self.below(most) {
            0..3 => self.string(),
            3..6 => self.number(),
            6 => self.pick(&["true", "false", "null"]).to_owned(),
            7 => self.list(depth),
            _ => self.map(depth),
        }
    }

    fn key(&mut self) -> String {
        if self.once_in(3) {
            let key = self.pick(&KEYS);
            return self.quoted(key);
        }
        self.string()
    }

    fn string(&mut self) -> String {
        if self.once_in(6) {
            let text = self.pick(&ODD_TEXTS);
            return self.quoted(text);
        }
        let most = if self.once_in(50) { 300 } else { 12 };
        let count = self.below(most);
        let text: String = (0..count).map(|_| self.character()).collect();
        self.quoted(&text)
    }

    fn character(&mut self) -> char {
        let code = match self.below(12) {
            0 => return self.pick(&ODD_CHARACTERS),
            1 => 0xa1 + self.below(0x200),
            2 => 0x4e00 + self.below(0x1000),
            3 => 0x1_f300 + self.below(0x200),
            _ => 0x20 + self.below(0x5f),
        };
        char::from_u32(u32::try_from(code).unwrap()).unwrap()
    }

    /// A text as a JSON string; what may be escaped is so now and then.
    fn quoted(&mut self, text: &str) -> String {
        let mut out = "\"".to_owned();
        for character in text.chars() {
            match character {
                '"' | '\\' => write!(out, "\\{character}").unwrap(),
                '\n' => out += "\\n",
                '\t' => out += "\\t",
                '\u{8}' => out += "\\b",
                '/' if self.once_in(2) => out += "\\/",
                character if character < ' ' || self.once_in(20) => {
                    for unit in character.encode_utf16(&mut [0; 2]) {
                        write!(out, "\\u{unit:04x}").unwrap();
                    }
                }
                character => out.push(character),
            }
        }
        out + "\""
    }

    /// Any number that the door takes.
    fn number(&mut self) -> String {
        let sign = self.sign();
        match self.below(8) {
            0 => self.pick(&["0", "-0", "0.0", "-0.0", "1.10", "100", "1e2", "0e5"]).to_owned(),
            1 => format!("{sign}{}", self.whole(18)),
            2 => format!("{sign}{}", self.whole(30)),
            3 => {
                let count = 1 + self.below(60);
                format!("{sign}{}.{}", self.whole(20), self.digits(count))
            }
            4 => self.double(),
            _ => format!("{sign}{}", self.whole(6)),
        }
    }

    /// A number of up to twenty digits anywhere in the range of doubles.
    fn double(&mut self) -> String {
        let (sign, count) = (self.sign(), self.below(19));
        let first = self.pick(&["1", "2", "3", "5", "7", "9"]);
        let fraction = self.digits(count);
        let point = if fraction.is_empty() { "" } else { "." };
        let exponent = self.below(300);
        let e = self.pick(&["e", "E", "e+", "e-", "E-"]);
        format!("{sign}{first}{point}{fraction}{e}{exponent}")
    }

    /// A value of this type, `[]` included.
    pub fn field(&mut self, ty: &str) -> String {
        let Some(base) = ty.strip_suffix("[]") else { return self.scalar(ty) };
        let count = self.below(6);
        let elements: Vec<String> = (0..count)
            .map(|_| if self.once_in(6) { "null".to_owned() } else { self.scalar(base) })
            .collect();
        format!("[{}]", elements.join(if self.once_in(3) { " , " } else { "," }))
    }

    fn scalar(&mut self, ty: &str) -> String {
        match ty {
            "text" => self.string(),
            "smallint" => self.integer(1 << 15),
            "integer" => self.integer(1 << 31),
            "bigint" => self.integer(1 << 62),
            "boolean" => self.pick(&["true", "false"]).to_owned(),
            "real" => self.single(),
            "double precision" => self.number(),
            "numeric" => self.numeric(),
            "jsonb" => match self.value(4).as_str() {
                "null" => "[null]".to_owned(),
                value => value.to_owned(),
            },
            _ => format!("\"{}\"", self.text_of(ty)),
        }
    }

    /// A value that is written in a string, without its quotes.
    fn text_of(&mut self, ty: &str) -> String {
        match ty {
            "date" => self.date(),
            "time" => self.time(),
            "timetz" => self.time() + &self.offset(),
            "timestamp" => self.date() + self.pick(&["T", " "]) + &self.time(),
            "timestamptz" => self.date() + self.pick(&["T", " "]) + &self.time() + &self.offset(),
            "inet" => self.address(false),
            "cidr" => self.address(true),
            "macaddr" => self.hardware(6),
            "macaddr8" => self.hardware(8),
            "uuid" => {
                let digits = self.hex(16);
                let groups = [0..8, 8..12, 12..16, 16..20, 20..32].map(|group| &digits[group]);
                groups.join("-")
            }
            "bytea" => {
                let most = if self.once_in(50) { 2_000 } else { 20 };
                let count = self.below(most);
                // in JSON
                format!("\\\\x{}", self.hex(count))
            }
            other => panic!("no values of {other} are made here"),
        }
    }

    fn hex(&mut self, bytes: u64) -> String {
        let digits: String =
            (0..bytes * 2).map(|_| self.pick(b"0123456789abcdef") as char).collect();
        if self.once_in(4) { digits.to_ascii_uppercase() } else { digits }
    }

    fn integer(&mut self, bound: u64) -> String {
        let number = if self.once_in(2) { self.below(bound) } else { self.below(100) };
        format!("{}{number}", self.sign())
    }

    fn single(&mut self) -> String {
        let (sign, count) = (self.sign(), 1 + self.below(12));
        let exponent = self.below(36);
        let e = self.pick(&["e", "e-"]);
        match self.below(3) {
            0 => format!("{sign}{}", self.whole(6)),
            1 => format!("{sign}{}.{}", self.whole(6), self.digits(count)),
            _ => format!("{sign}{}.{}{e}{exponent}", 1 + self.below(9), self.digits(count)),
        }
    }

    fn numeric(&mut self) -> String {
        let (sign, count) = (self.sign(), 1 + self.below(25));
        let number = match self.below(4) {
            0 => format!("{sign}{}", self.whole(35)),
            1 => format!("{sign}{}.{}", self.whole(35), self.digits(count)),
            2 => format!("{sign}{}.{}", self.whole(4), self.digits(count % 3 + 1)),
            _ => {
                let e = self.pick(&["e", "E", "e-"]);
                let exponent = self.below(10);
                format!("{sign}{}.{}{e}{exponent}", self.whole(8), self.digits(count % 9 + 1))
            }
        };
        match self.below(3) {
            0 => format!("\"{number}\""),
            1 if sign.is_empty() => format!("\"+00{number}\""),
            _ => number,
        }
    }

    fn date(&mut self) -> String {
        let year = if self.once_in(3) { 2 + self.below(9_997) } else { 1_970 + self.below(80) };
        let month = 1 + self.below(12);
        let days = match month {
            2 => 28,
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        };
        format!("{year:04}-{month:02}-{:02}", 1 + self.below(days))
    }

    fn time(&mut self) -> String {
        let (hours, minutes, seconds) = (self.below(24), self.below(60), self.below(60));
        let clock = format!("{hours:02}:{minutes:02}:{seconds:02}");
        match self.below(10) {
            count @ 1..10 => format!("{clock}.{}", self.digits(count)),
            _ => clock,
        }
    }

    fn offset(&mut self) -> String {
        if self.once_in(3) {
            return "Z".to_owned();
        }
        let (sign, hours) = (self.pick(&["+", "-"]), self.below(16));
        format!("{sign}{hours:02}:{:02}", self.pick(&[0, 0, 30, 45, 59]))
    }

    fn address(&mut self, network: bool) -> String {
        if self.once_in(2) {
            let length = u32::try_from(self.below(33)).unwrap();
            let kept = if network { u32::MAX.checked_shl(32 - length).unwrap_or(0) } else { !0 };
            let bits = u32::try_from(self.below(1 << 32)).unwrap() & kept;
            return self.with_length(Ipv4Addr::from(bits).to_string(), length, 32, network);
        }
        let length = u32::try_from(self.below(129)).unwrap();
        let kept = if network { u128::MAX.checked_shl(128 - length).unwrap_or(0) } else { !0 };
        let mut bits = 0;
        for _ in 0..4 {
            // stretches of zeros, which have a short form
            let word = if self.once_in(2) { 0 } else { self.below(1 << 32) };
            bits = (bits << 32) | u128::from(word);
        }
        let address = Ipv6Addr::from(bits & kept);
        let text = match self.below(3) {
            0 => address.segments().map(|segment| format!("{segment:04X}")).join(":"),
            1 => address.segments().map(|segment| format!("{segment:x}")).join(":"),
            _ => address.to_string(),
        };
        self.with_length(text, length, 128, network)
    }

    fn with_length(&mut self, address: String, length: u32, longest: u32, network: bool) -> String {
        // without one it is a network of one address
        let whole = length == longest;
        if (network && !whole) || self.once_in(2) { format!("{address}/{length}") } else { address }
    }

    fn hardware(&mut self, bytes: u64) -> String {
        let digits = self.hex(bytes);
        let (separator, size) = self.pick(&[(":", 2), ("-", 2), (".", 4), ("", 2)]);
        let groups: Vec<&str> =
            (0..digits.len()).step_by(size).map(|at| &digits[at..at + size]).collect();
        groups.join(separator)
    }
}
