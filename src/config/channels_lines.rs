//! Which line a path of a YAML text begins in.
//!
//! Walks over the indentation and need not understand YAML: inside brackets, or where it is
//! misled, the line of the nearest ancestor stands. Does not know what a channel is.

use std::collections::BTreeMap;

use super::channels_yaml::join;

/// Which line a path begins in, found by indentation alone.
#[derive(Debug, Default)]
pub struct Outline {
    lines: BTreeMap<String, Vec<usize>>,
}

impl Outline {
    /// Walks over `text` once.
    #[must_use]
    pub fn of(text: &str) -> Self {
        let mut walk = Walk::default();
        for (at, line) in text.lines().enumerate() {
            walk.line(at + 1, line);
        }
        Self { lines: walk.lines }
    }

    /// The line of `path`, or of its nearest ancestor that has one.
    #[must_use]
    pub fn line(&self, path: &str) -> usize {
        let mut path = path;
        loop {
            if let Some(line) = self.lines.get(path).and_then(|lines| lines.first()) {
                return *line;
            }
            match path.rfind(['.', '[']) {
                Some(end) => path = &path[..end],
                None => return 1,
            }
        }
    }

    /// The last line that begins `path`: of two that do, the one to take out.
    #[must_use]
    pub fn last_line(&self, path: &str) -> usize {
        match self.lines.get(path).and_then(|lines| lines.last()) {
            Some(line) => *line,
            None => self.line(path),
        }
    }
}

/// A key or a list item that lines below may belong to.
struct Open {
    column: usize,
    path: String,
    item: Option<usize>,
}

#[derive(Default)]
struct Walk {
    lines: BTreeMap<String, Vec<usize>>,
    open: Vec<Open>,
    /// Brackets open at the end of the last line.
    flow: usize,
    /// The column of the key whose block of text goes on.
    block: Option<usize>,
}

impl Walk {
    fn line(&mut self, number: usize, line: &str) {
        let column = line.len() - line.trim_start_matches(' ').len();
        let rest = line.trim();
        if self.flow > 0 {
            self.flow = brackets(rest, self.flow);
            return;
        }
        if rest.is_empty() || self.block.is_some_and(|outer| column > outer) {
            return;
        }
        self.block = None;
        if !rest.starts_with('#') {
            self.entry(number, column, rest);
        }
    }

    fn entry(&mut self, number: usize, mut column: usize, mut rest: &str) {
        while let Some(after) = after_dash(rest) {
            self.item(number, column);
            let inner = after.trim_start();
            column += rest.len() - inner.len();
            rest = inner;
        }
        match split_key(rest) {
            Some((key, value)) => {
                self.key(number, column, key);
                self.value(value);
            }
            None => self.value(rest),
        }
    }

    fn item(&mut self, number: usize, column: usize) {
        let mut index = 0;
        while let Some(top) = self.open.last() {
            // A list may stand in the very column of the key that holds it.
            let sibling = top.item.filter(|_| top.column == column);
            if let Some(earlier) = sibling {
                index = earlier + 1;
            }
            if top.column <= column && sibling.is_none() {
                break;
            }
            self.open.pop();
        }
        let parent = self.open.last().map_or("", |top| top.path.as_str());
        let path = format!("{parent}[{index}]");
        self.begin(number, column, path, Some(index));
    }

    fn key(&mut self, number: usize, column: usize, key: &str) {
        while self.open.last().is_some_and(|top| top.column >= column) {
            self.open.pop();
        }
        let path = join(self.open.last().map_or("", |top| top.path.as_str()), key);
        self.begin(number, column, path, None);
    }

    fn begin(&mut self, number: usize, column: usize, path: String, item: Option<usize>) {
        self.lines.entry(path.clone()).or_default().push(number);
        self.open.push(Open { column, path, item });
    }

    /// Notes what makes the lines below no entries: open brackets, a block of text.
    fn value(&mut self, value: &str) {
        let mut value = value;
        while value.starts_with(['&', '!']) {
            value = value.split_once(char::is_whitespace).map_or("", |(_, rest)| rest.trim_start());
        }
        if value.starts_with(['|', '>']) {
            self.block = Some(self.open.last().map_or(0, |top| top.column));
        } else if value.starts_with(['[', '{']) {
            self.flow = brackets(value, 0);
        }
    }
}

fn after_dash(text: &str) -> Option<&str> {
    if text == "-" { Some("") } else { text.strip_prefix("- ") }
}

fn split_key(text: &str) -> Option<(&str, &str)> {
    if let Some(quote) = text.chars().next().filter(|c| matches!(c, '"' | '\'')) {
        let (key, rest) = text[1..].split_once(quote)?;
        return Some((key, rest.trim_start().strip_prefix(':')?.trim_start()));
    }
    if text.starts_with(['[', '{', '|', '>']) {
        return None;
    }
    match text.split_once(": ") {
        Some((key, value)) => Some((key.trim_end(), value.trim_start())),
        None => text.strip_suffix(':').map(|key| (key, "")),
    }
}

/// How many brackets are open behind `text`, given how many were before it.
fn brackets(text: &str, before: usize) -> usize {
    let mut depth = before;
    let mut quote = None;
    let mut previous = ' ';
    // A quote opens only where a value may begin; elsewhere it is an apostrophe.
    let mut begins = true;
    for c in text.chars() {
        if quote.is_some() {
            if quote == Some(c) {
                quote = None;
            }
        } else {
            match c {
                '#' if previous.is_whitespace() => break,
                '"' | '\'' if begins => quote = Some(c),
                '[' | '{' => depth += 1,
                ']' | '}' => depth = depth.saturating_sub(1),
                _ => {}
            }
        }
        if !c.is_whitespace() {
            begins = matches!(c, '[' | '{' | ',' | ':');
        }
        previous = c;
    }
    depth
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_found_by_indentation() {
        let text = "\
general: # defaults
  api_keys: [a,
    b: c]
channels:

  'one': {mode: raw_only}
  two:
    columns:
    - a   # in the column of its key
    - b: 1
      c: 2
    note: |
      fake: 1
    indexes:
      - name: x
        columns: [a]
      - - deep
        - deeper
    table: t
";
        let outline = Outline::of(text);
        for (path, line) in [
            ("general", 1),
            ("general.api_keys[1]", 2),
            ("channels", 4),
            ("channels.one.mode", 6),
            ("channels.two.columns[0]", 9),
            ("channels.two.columns[1].b", 10),
            ("channels.two.columns[1].c", 11),
            ("channels.two.note", 12),
            ("channels.two.fake", 7),
            ("channels.two.indexes[0].columns[0]", 16),
            ("channels.two.indexes[1][1]", 18),
            ("channels.two.table", 19),
            ("nowhere", 1),
        ] {
            assert_eq!(outline.line(path), line, "{path}");
        }
    }

    #[test]
    fn of_two_lines_with_one_path_the_last_is_the_one_to_take_out() {
        let outline = Outline::of("a: 1\nb:\n  c: 1\n  c: 2\n");
        assert_eq!(
            (outline.line("b.c"), outline.last_line("b.c"), outline.last_line("b.d")),
            (3, 4, 2)
        );
    }

    #[test]
    fn brackets_in_quotes_and_comments_do_not_count() {
        for (text, open) in [("[a, ']', don't]", 0), ("[a, # ]", 1), ("{a: [1, \"}\"", 2), ("]", 0)]
        {
            assert_eq!(brackets(text, 0), open, "{text}");
        }
    }
}
