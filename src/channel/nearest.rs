//! The known name that a person most likely meant.
//!
//! Must not know what the names are names of.

/// How many letters may be wrong, missing or too many.
const MAX_EDITS: usize = 2;

/// The nearest of `known` to `word`, if it is within two edits (a letter replaced, inserted or left
/// out); the first one where several are equally near.
#[must_use]
pub fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let word: Vec<char> = word.chars().collect();
    let mut best: Option<(usize, &'a str)> = None;
    for candidate in known {
        if let Some(edits) = edits_within_limit(&word, candidate)
            && best.is_none_or(|(fewest, _)| edits < fewest)
        {
            best = Some((edits, candidate));
        }
    }
    best.map(|(_, candidate)| candidate)
}

fn edits_within_limit(word: &[char], candidate: &str) -> Option<usize> {
    // Counting first: a client may send any word, of any length.
    let length = candidate.chars().count();
    if word.len().abs_diff(length) > MAX_EDITS {
        return None;
    }
    let mut row: Vec<usize> = (0..=word.len()).collect();
    for (line, letter) in candidate.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = line + 1;
        for (column, own) in word.iter().enumerate() {
            let replaced = diagonal + usize::from(*own != letter);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row.last().copied().filter(|edits| *edits <= MAX_EDITS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_within_two_edits() {
        let known = ["service", "comment", "attacker_ip", "reporter_ip"];
        for (word, expect) in [
            ("service", Some("service")),
            ("servcie", Some("service")),
            ("servic", Some("service")),
            ("sservicee", Some("service")),
            ("atacker_ip", Some("attacker_ip")),
            ("srv", None),
            ("servicexyz", None),
            ("Comment", Some("comment")),
            ("COMMENT", None),
            ("", None),
            ("kömment", Some("comment")),
        ] {
            assert_eq!(nearest(word, known.into_iter()), expect, "{word}");
        }
        assert_eq!(nearest("ab", ["ac", "ab"].into_iter()), Some("ab"));
        assert_eq!(nearest("ab", ["ac", "ad"].into_iter()), Some("ac"));
        assert_eq!(nearest("ab", std::iter::empty()), None);
    }
}
