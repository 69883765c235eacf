//! Takes secrets out of text that is about to be shown. Pure.
//!
//! Does not know which key a text belongs to. Where it is in doubt it hides too much.

/// What stands in the place of a secret.
pub const MASK: &str = "********";

const SECRET_PARAMETERS: [&str; 5] = ["password", "passwd", "pwd", "secret", "token"];

/// A DSN or URL without its password: `user:********@host`, `password=********`.
#[must_use]
pub fn dsn(text: &str) -> String {
    let start = text.find("://").map_or(0, |at| at + 3);
    // The last '@', since a password may hold one unescaped.
    let Some(at) = text.rfind('@').filter(|at| *at >= start) else {
        return parameters(text);
    };
    match text[start..at].find(':') {
        Some(colon) => {
            let head = &text[..=start + colon];
            parameters(&format!("{head}{MASK}{}", &text[at..]))
        }
        None => parameters(text),
    }
}

/// A comma separated list of `name=url` without the part of each URL before its `@`.
#[must_use]
pub fn peers(text: &str) -> String {
    let shown: Vec<String> = text.split(',').map(|part| peer(part.trim())).collect();
    shown.join(", ")
}

fn peer(text: &str) -> String {
    let start = text.find("://").map_or(0, |at| at + 3);
    match text.rfind('@').filter(|at| *at >= start) {
        Some(at) => parameters(&format!("{}{MASK}{}", &text[..start], &text[at..])),
        None => parameters(text),
    }
}

/// Hides the values of parameters whose names end like a secret's.
fn parameters(text: &str) -> String {
    let is_url = text.contains("://") || text.contains(")/");
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(equals) = rest.find('=') {
        let (before, after) = rest.split_at(equals + 1);
        shown.push_str(before);
        let name = before[..equals].trim_end().to_ascii_lowercase();
        if SECRET_PARAMETERS.iter().any(|word| name.ends_with(word)) {
            shown.push_str(MASK);
            let value = after.trim_start();
            rest = &value[value_end(value, is_url)..];
        } else {
            rest = after;
        }
    }
    shown.push_str(rest);
    shown
}

/// Where a parameter's value ends. Only a URL separates with `&`; elsewhere it may be part of a password.
fn value_end(value: &str, is_url: bool) -> usize {
    if !value.starts_with('\'') {
        return value
            .find(|c: char| c.is_whitespace() || (is_url && c == '&'))
            .unwrap_or(value.len());
    }
    let mut escaped = false;
    for (at, c) in value.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '\'' => return at + 1,
            _ => {}
        }
    }
    value.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_password_of_a_dsn_is_shown() {
        for (text, expect) in [
            ("", ""),
            (
                "postgres://u:s3cret@h:5432/db?sslmode=disable",
                "postgres://u:********@h:5432/db?sslmode=disable",
            ),
            ("postgres://u:p@ss:w/rd@h/db", "postgres://u:********@h/db"),
            ("postgres://u@h/db", "postgres://u@h/db"),
            (
                "postgres://h/db?user=u&password=s3cret&x=1",
                "postgres://h/db?user=u&password=********&x=1",
            ),
            (
                "u:s3cret@tcp(127.0.0.1:3306)/db?parseTime=true",
                "u:********@tcp(127.0.0.1:3306)/db?parseTime=true",
            ),
            ("u@tcp(127.0.0.1:3306)/db", "u@tcp(127.0.0.1:3306)/db"),
            ("host=h password=s3&cret dbname=db", "host=h password=******** dbname=db"),
            ("host=h password = 's3 \\' cret' dbname=db", "host=h password =******** dbname=db"),
            ("host=h PASSWORD='open", "host=h PASSWORD=********"),
        ] {
            assert_eq!(dsn(text), expect, "{text}");
        }
    }

    #[test]
    fn no_userinfo_of_a_peer_is_shown() {
        assert_eq!(
            peers("dc2=http://u:s3cret@h:8080,dc3=https://token@h2"),
            "dc2=http://********@h:8080, dc3=https://********@h2"
        );
        assert_eq!(peers("dc2=http://h:8080"), "dc2=http://h:8080");
    }
}
