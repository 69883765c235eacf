//! What commands print: tables, JSON lines, and the quiet end of a pipe.
//!
//! Does not know what it prints.

use std::io::{self, BufWriter, Stdout, Write};

use serde::Serialize;

use super::directory::Refusal;

/// Standard output. A reader that has seen enough (`| head`) is no failure.
pub struct Out {
    stdout: BufWriter<Stdout>,
    failed: Option<io::Error>,
}

impl Out {
    /// The process's own.
    pub fn stdout() -> Self {
        Self { stdout: BufWriter::new(io::stdout()), failed: None }
    }

    /// Prints a line; whether anybody still reads.
    pub fn line(&mut self, line: impl AsRef<[u8]>) -> bool {
        if self.failed.is_none() {
            let stdout = &mut self.stdout;
            let written = stdout.write_all(line.as_ref()).and_then(|()| stdout.write_all(b"\n"));
            self.failed = written.err();
        }
        self.failed.is_none()
    }

    /// Prints what is left.
    ///
    /// # Errors
    /// Where it cannot be written, but for a closed pipe.
    pub fn end(mut self) -> Result<(), Refusal> {
        let flushed = self.stdout.flush();
        match self.failed.take().or(flushed.err()) {
            Some(e) if e.kind() != io::ErrorKind::BrokenPipe => {
                Err(Refusal::failed(format!("stdout cannot be written: {e}")))
            }
            _ => Ok(()),
        }
    }
}

/// Columns as wide as their widest cell, numbers to the right; the first row holds the titles.
pub fn table(rows: &[Vec<String>]) -> String {
    let cells = |column: usize| rows.iter().filter_map(move |row| row.get(column));
    let number = |cell: &String| cell.bytes().all(|b| b.is_ascii_digit());
    let columns = rows.first().map_or(0, Vec::len);
    let shapes: Vec<(usize, bool)> = (0..columns)
        .map(|c| {
            let width = cells(c).map(|cell| cell.chars().count()).max().unwrap_or(0);
            (width, cells(c).skip(1).all(number))
        })
        .collect();
    let line = |row: &Vec<String>| {
        let cell = |(cell, &(width, right)): (&String, &(usize, bool))| match right {
            true => format!("{cell:>width$}"),
            false => format!("{cell:<width$}"),
        };
        let line: Vec<String> = row.iter().zip(&shapes).map(cell).collect();
        line.join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// One JSON line: the members of `head`, then the payload as it was posted. Line breaks between its
/// tokens become spaces, since inside a string they are no JSON; no other byte changes.
pub fn with_payload(head: &impl Serialize, payload: &[u8]) -> Vec<u8> {
    // structs of texts and numbers have no way to fail
    let mut line = serde_json::to_vec(head).unwrap_or_default();
    line.pop();
    line.extend_from_slice(b",\"payload\":");
    line.extend(payload.iter().map(|b| if matches!(b, b'\n' | b'\r') { b' ' } else { *b }));
    line.push(b'}');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_numbers_stand_to_the_right() {
        let rows = [["SEQ", "CHANNEL", "BYTES"], ["7", "a", "12"], ["1234", "other", "3"]];
        let rows: Vec<Vec<String>> =
            rows.iter().map(|row| row.iter().map(ToString::to_string).collect()).collect();
        let lines = [" SEQ  CHANNEL  BYTES", "   7  a           12", "1234  other        3"];
        assert_eq!(table(&rows), lines.join("\n"));
    }

    #[test]
    fn a_payload_stays_as_it_is_but_for_line_breaks() {
        let head = std::collections::BTreeMap::from([("seq", 7)]);
        let line = with_payload(&head, b"{\"a\":\n1.10, \"b\": \"\\n\"}");
        let want = "{\"seq\":7,\"payload\":{\"a\": 1.10, \"b\": \"\\n\"}}";
        assert_eq!(String::from_utf8(line).unwrap(), want);
    }
}
