//! Splits libpq's `name=value name='a value'` into its words. Pure.
//!
//! Knows no name: any word passes. Tells where each value stands, so that a text can be shown
//! without it. What is wrong is named and never repeated.

use std::ops::Range;

/// One `name=value`. No `Debug`: the value may be a password.
pub struct Word<'a> {
    /// The name.
    pub name: &'a str,
    /// The value without quotes and backslashes.
    pub value: String,
    /// Where the word begins.
    pub start: usize,
    /// Where the value stands, its quotes included.
    pub written: Range<usize>,
}

/// What is wrong with a word.
pub struct Fault {
    /// Where the word begins. Nothing behind it can be told apart.
    pub at: usize,
    /// What is wrong and what would be right.
    pub text: &'static str,
}

const NO_EQUALS: &str =
    "a word has no '='; write name=value, and a value that holds a space in single quotes";
const NO_NAME: &str = "an '=' has no name before it; write name=value";
const OPEN: &str =
    "a single quote is never closed; one that belongs to a value is written \\' there";
const BEHIND_QUOTE: &str = "a closing quote is followed by more than a space; a single quote that \
                            belongs to a value is written \\' there";

/// The words of a text; nothing comes behind a fault.
pub struct Words<'a> {
    text: &'a str,
    at: usize,
}

/// The words of `text`.
#[must_use]
pub fn words(text: &str) -> Words<'_> {
    Words { text, at: 0 }
}

/// Whether `text` begins like a word, whatever follows.
#[must_use]
pub fn begin(text: &str) -> bool {
    text.split_once('=').is_some_and(|(name, _)| is_name(name.trim_matches(is_blank)))
}

/// Whether a parameter could have this name, and it can be shown in a line of text.
#[must_use]
pub fn is_name(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

impl<'a> Iterator for Words<'a> {
    type Item = Result<Word<'a>, Fault>;

    fn next(&mut self) -> Option<Self::Item> {
        self.at = behind_blanks(self.text, self.at);
        if self.at == self.text.len() {
            return None;
        }
        let word = word(self.text, self.at);
        self.at = word.as_ref().map_or(self.text.len(), |word| word.written.end);
        Some(word)
    }
}

fn word(text: &str, start: usize) -> Result<Word<'_>, Fault> {
    let fault = |text: &'static str| Fault { at: start, text };
    let name_end =
        text[start..].find(|c: char| c == '=' || is_blank(c)).map_or(text.len(), |at| start + at);
    let equals = behind_blanks(text, name_end);
    if !text[equals..].starts_with('=') {
        return Err(fault(NO_EQUALS));
    }
    if name_end == start {
        return Err(fault(NO_NAME));
    }
    let from = behind_blanks(text, equals + 1);
    let (value, end) = if text[from..].starts_with('\'') {
        quoted(text, from).map_err(fault)?
    } else {
        plain(text, from)
    };
    Ok(Word { name: &text[start..name_end], value, start, written: from..end })
}

/// The value that begins at `from`, and where it ends.
fn plain(text: &str, from: usize) -> (String, usize) {
    let mut value = String::new();
    let mut chars = text[from..].char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => value.extend(chars.next().map(|(_, c)| c)),
            c if is_blank(c) => return (value, from + at),
            c => value.push(c),
        }
    }
    (value, text.len())
}

/// The value whose opening quote stands at `from`, and where its closing quote ends.
fn quoted(text: &str, from: usize) -> Result<(String, usize), &'static str> {
    let mut value = String::new();
    let mut chars = text[from..].char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => value.extend(chars.next().map(|(_, c)| c)),
            '\'' => {
                let end = from + at + 1;
                // libpq would begin the next word here: a quote within a password, most likely
                let closed = text[end..].chars().next().is_none_or(is_blank);
                return if closed { Ok((value, end)) } else { Err(BEHIND_QUOTE) };
            }
            c => value.push(c),
        }
    }
    Err(OPEN)
}

fn behind_blanks(text: &str, at: usize) -> usize {
    text.len() - text[at..].trim_start_matches(is_blank).len()
}

/// C's `isspace`, as libpq has it.
fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\x0b' | '\x0c' | '\r')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(text: &str) -> Result<Vec<(&str, String)>, &'static str> {
        words(text)
            .map(|word| match word {
                Ok(word) => Ok((word.name, word.value)),
                Err(fault) => Err(fault.text),
            })
            .collect()
    }

    #[test]
    fn words_are_read_as_libpq_reads_them() {
        let table: &[(&str, &[(&str, &str)])] = &[
            ("", &[]),
            ("  \n", &[]),
            ("host=h", &[("host", "h")]),
            (" host = h\tport=5432 ", &[("host", "h"), ("port", "5432")]),
            ("password='a b'", &[("password", "a b")]),
            (r"password='a\'b\\c'", &[("password", r"a'b\c")]),
            (r"password=a\ b\\c user=u", &[("password", r"a b\c"), ("user", "u")]),
            ("password=a'b=c", &[("password", "a'b=c")]),
            ("password='' user=u", &[("password", ""), ("user", "u")]),
            ("password=", &[("password", "")]),
            // the blanks behind an '=' never are the value
            ("password= user=u", &[("password", "user=u")]),
            ("a=ü b='ü'", &[("a", "ü"), ("b", "ü")]),
            ("a=b\\", &[("a", "b")]),
        ];
        for (text, expect) in table {
            let expect: Vec<_> =
                expect.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
            assert_eq!(split(text), Ok(expect), "{text:?}");
        }
    }

    #[test]
    fn a_word_that_cannot_be_told_apart_is_named_by_its_fault() {
        for (text, fault) in [
            ("host", NO_EQUALS),
            ("password=a b", NO_EQUALS),
            ("=x", NO_NAME),
            ("a=b =x", NO_NAME),
            ("password='a b", OPEN),
            (r"password='a\'", OPEN),
            ("password='a'b user=u", BEHIND_QUOTE),
        ] {
            assert_eq!(split(text), Err(fault), "{text:?}");
        }
    }

    #[test]
    fn a_value_is_found_where_it_stands() {
        let text = r"a = 'b c' d=e\ f";
        let found: Vec<_> = words(text)
            .map_while(Result::ok)
            .map(|word| (word.start, &text[word.written]))
            .collect();
        assert_eq!(found, [(0, "'b c'"), (10, r"e\ f")]);
    }
}
