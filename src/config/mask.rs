//! Takes secrets out of text that is about to be shown. Pure.
//!
//! Does not know which key a text belongs to, nor whether it is right. Where it is in doubt it
//! hides too much.

use std::ops::Range;

use super::dsn::{keywords, url};

/// What stands in the place of a secret.
pub const MASK: &str = "********";

const SECRET_PARAMETERS: [&str; 5] = ["password", "passwd", "pwd", "secret", "token"];

/// The words of a DSN that are shown. Any other may be a piece of a password with a space in it.
const SHOWN_WORDS: [&str; 12] = [
    "host",
    "hostaddr",
    "port",
    "dbname",
    "database",
    "user",
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "application_name",
    "connect_timeout",
];

/// A DSN without its password: `user:********@host`, `password=********`. What looks like no DSN at
/// all may be a password alone, and is hidden.
#[must_use]
pub fn dsn(text: &str) -> String {
    if text.is_empty() {
        String::new()
    } else if keywords::begin(text) {
        words(text)
    } else if text.contains("://")
        || text.contains('@')
        || text.contains(")/")
        || text.starts_with('/')
    {
        address(text)
    } else {
        MASK.to_owned()
    }
}

/// Any text: one that could be a DSN is shown as such, any other as it is.
#[must_use]
pub fn text(text: &str) -> String {
    if text.contains(['=', '@']) { dsn(text) } else { text.to_owned() }
}

/// A comma separated list of `name=url` without the part of each URL before its `@`.
#[must_use]
pub fn peers(text: &str) -> String {
    let shown: Vec<String> = text.split(',').map(|part| peer(part.trim())).collect();
    shown.join(", ")
}

fn peer(text: &str) -> String {
    let mut spans = secret_parameters(text);
    let start = authority(text);
    if let Some(at) = login_end(text, start, &spans) {
        spans.push(start..at);
    }
    hidden(text, spans)
}

/// A URL, or Go's `user:password@tcp(host)/database`.
fn address(text: &str) -> String {
    let mut spans = secret_parameters(text);
    let start = authority(text);
    if let Some(at) = login_end(text, start, &spans)
        && let Some(colon) = text[start..at].find(':')
    {
        spans.push(start + colon + 1..at);
    }
    hidden(text, spans)
}

fn authority(text: &str) -> usize {
    text.find("://").map_or(0, |at| at + 3)
}

/// The last '@', since a password may hold one unescaped; not one that is hidden anyway, unless
/// there is no other.
fn login_end(text: &str, start: usize, spans: &[Range<usize>]) -> Option<usize> {
    let ats: Vec<usize> =
        text.rmatch_indices('@').map(|(at, _)| at).take_while(|at| *at >= start).collect();
    let outside = ats.iter().find(|at| !spans.iter().any(|span| span.contains(*at)));
    outside.or(ats.first()).copied()
}

/// Where the values of parameters stand whose names end like a secret's. Only '&' ends a value: a
/// space may be part of it.
fn secret_parameters(text: &str) -> Vec<Range<usize>> {
    let mut spans = Vec::new();
    for (equals, _) in text.match_indices('=') {
        let name = text[..equals].rfind(['?', '&']).map_or(0, |at| at + 1);
        if is_secret(&text[name..equals]) {
            let value = equals + 1;
            spans.push(value..text[value..].find('&').map_or(text.len(), |at| value + at));
        }
    }
    spans
}

fn is_secret(name: &str) -> bool {
    url::decoded(name).is_none_or(|name| {
        let name = name.trim().to_ascii_lowercase();
        SECRET_PARAMETERS.iter().any(|word| name.ends_with(word))
    })
}

/// libpq's `name=value` words.
fn words(text: &str) -> String {
    let mut spans = Vec::new();
    for word in keywords::words(text) {
        match word {
            Ok(word) if is_secret(word.name) => spans.push(word.written),
            Ok(word) if !SHOWN_WORDS.contains(&word.name) || holds_login(&word.value) => {
                spans.push(word.start..word.written.end);
            }
            Ok(_) => {}
            Err(fault) => spans.push(fault.at..text.len()),
        }
    }
    hidden(text, spans)
}

/// Such as a URL where a name belongs.
fn holds_login(value: &str) -> bool {
    value.rfind('@').is_some_and(|at| value[..at].contains(':'))
}

/// `text` with every span masked; they may overlap.
fn hidden(text: &str, mut spans: Vec<Range<usize>>) -> String {
    spans.sort_by_key(|span| span.start);
    let mut shown = String::with_capacity(text.len());
    let mut done = 0;
    for span in spans {
        if span.start >= done {
            shown.push_str(&text[done..span.start]);
            shown.push_str(MASK);
        }
        done = done.max(span.end);
    }
    shown.push_str(&text[done..]);
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_password_of_a_url_is_shown() {
        for (text, expect) in [
            ("", ""),
            (
                "postgres://u:s3cret@h:5432/db?sslmode=disable",
                "postgres://u:********@h:5432/db?sslmode=disable",
            ),
            ("postgres://u:s3%63ret@h/db", "postgres://u:********@h/db"),
            ("postgres://u:p@ss:w/rd@h/db", "postgres://u:********@h/db"),
            ("postgres://u@h/db", "postgres://u@h/db"),
            ("postgres://u:pw@%2Frun%2Fpg/db", "postgres://u:********@%2Frun%2Fpg/db"),
            ("postgres:///db?host=/run&user=u", "postgres:///db?host=/run&user=u"),
            (
                "postgres://h/db?user=u&password=s3cret&x=1",
                "postgres://h/db?user=u&password=********&x=1",
            ),
            ("postgres://h/db?p%61ss%57ord=s3cret", "postgres://h/db?p%61ss%57ord=********"),
            ("postgres://h/db?%zz=s3cret&x=1", "postgres://h/db?%zz=********&x=1"),
            ("postgres://h/db?password=s3 'cret'&x=1", "postgres://h/db?password=********&x=1"),
            // an '@' in a parameter is not the end of a login
            (
                "postgres://u:s3cret@h/db?password=s3@cret",
                "postgres://u:********@h/db?password=********",
            ),
            // unless there is no other: too much is hidden
            ("postgres://h:1/db?password=s3@cret", "postgres://h:********"),
            ("postgres://u:s3&password=cret@h/db", "postgres://u:********"),
            (
                "u:s3cret@tcp(127.0.0.1:3306)/db?parseTime=true",
                "u:********@tcp(127.0.0.1:3306)/db?parseTime=true",
            ),
            ("u:s3=cret@unix(/run/my.sock)/db", "u:********@unix(/run/my.sock)/db"),
            ("u@tcp(127.0.0.1:3306)/db", "u@tcp(127.0.0.1:3306)/db"),
            ("tcp(h:3306)/db?password=s3cret", "tcp(h:3306)/db?password=********"),
        ] {
            assert_eq!(dsn(text), expect, "{text}");
        }
    }

    #[test]
    fn no_password_among_words_is_shown() {
        for (text, expect) in [
            ("host=h password=s3&cret dbname=db", "host=h password=******** dbname=db"),
            (r"host=h password = 's3 \' cret' dbname=db", "host=h password = ******** dbname=db"),
            (r"password=s3\ cret user=u", "password=******** user=u"),
            ("sslpassword=s3cret user=u", "sslpassword=******** user=u"),
            ("host=h:1 password='s3@cret ret'", "host=h:1 password=********"),
            ("password=a://b:s3cret@h user=u", "password=******** user=u"),
            // a password that lacks its quotes
            ("password=s3 cret=1 user=u", "password=******** ******** user=u"),
            ("password=s3 cret user=u", "password=******** ********"),
            ("password='s3'cret user=u", "********"),
            ("host=h PASSWORD='open", "host=h ********"),
            ("host=h dbname=postgres://u:s3cret@h/db", "host=h ********"),
            ("user=u options='-c a.b=s3cret'", "user=u ********"),
            ("c2VjcmV0=", "********"),
        ] {
            assert_eq!(dsn(text), expect, "{text}");
        }
    }

    #[test]
    fn what_is_no_dsn_may_be_a_password() {
        assert_eq!(dsn("s3cret"), MASK);
        for plain in ["", "127.0.0.1:6379", "/run/redis.sock", "replicon:ingest"] {
            assert_eq!(text(plain), plain);
        }
        assert_eq!(text("redis://u:s3cret@h:1"), "redis://u:********@h:1");
        assert_eq!(text("redis.h:6379?password=s3cret"), MASK);
    }

    #[test]
    fn no_userinfo_of_a_peer_is_shown() {
        assert_eq!(
            peers("dc2=http://u:s3cret@h:8080,dc3=https://token@h2"),
            "dc2=http://********@h:8080, dc3=https://********@h2"
        );
        assert_eq!(peers("dc2=http://h:8080"), "dc2=http://h:8080");
        assert_eq!(peers("dc2=http://h/?token=s3@cret&x=1"), "dc2=http://********&x=1");
    }
}
