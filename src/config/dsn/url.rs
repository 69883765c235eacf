//! Takes a database's URL apart: `USER:PASSWORD@HOST:PORT/DATABASE?NAME=VALUE`. Pure.
//!
//! Knows no scheme and no parameter. What is wrong is named and never repeated.

use std::net::Ipv6Addr;

use super::SEVERAL_HOSTS;

/// The parts of a URL, percent-decoded; what is not there is empty. No `Debug`: it would show the
/// password.
pub struct Url {
    /// Before the first ':'.
    pub user: String,
    /// From there to the last '@' of the authority, since a password may hold one unescaped.
    pub password: String,
    /// Without the brackets of an IPv6 address.
    pub host: String,
    /// As written: any text.
    pub port: String,
    /// Without its first '/'.
    pub path: String,
    /// Names and values, in order.
    pub query: Vec<(String, String)>,
}

/// Splits what stands behind `://`.
///
/// # Errors
/// Which part is wrong.
pub fn split(text: &str) -> Result<Url, String> {
    let end = text.find(['/', '?']).unwrap_or(text.len());
    let (authority, behind) = text.split_at(end);
    let (path, query) = behind.split_once('?').unwrap_or((behind, ""));
    if path.contains('@') {
        // Most likely a '/' in the password has ended the authority too early: what looks like the
        // host would be a piece of it, and names are asked for in the open.
        return Err("an '@' stands behind the first '/'; in the user, the password and the name \
                    of the database write '/' as %2F and '@' as %40"
            .to_owned());
    }
    let (login, address) = authority.rsplit_once('@').unwrap_or(("", authority));
    let (user, password) = login.split_once(':').unwrap_or((login, ""));
    let (host, port) = host_and_port(address)?;
    Ok(Url {
        user: part("the user", user)?,
        password: part("the password", password)?,
        host: part("the host", host)?,
        port: part("the port", port)?,
        path: part("the name of the database", path.strip_prefix('/').unwrap_or(path))?,
        query: parameters(query)?,
    })
}

pub(super) fn host_and_port(address: &str) -> Result<(&str, &str), String> {
    if address.contains(',') {
        return Err(SEVERAL_HOSTS.to_owned());
    }
    if let Some(inner) = address.strip_prefix('[') {
        let (host, behind) = inner.split_once(']').ok_or("the host: a '[' is never closed")?;
        let number = host.split_once('%').map_or(host, |(number, _zone)| number);
        if number.parse::<Ipv6Addr>().is_err() {
            return Err("the host: what stands in brackets is no IPv6 address".to_owned());
        }
        return match behind.strip_prefix(':') {
            Some(port) => Ok((host, port)),
            None if behind.is_empty() => Ok((host, "")),
            None => Err("the host: write ':' and the port behind the brackets".to_owned()),
        };
    }
    match address.split_once(':') {
        Some((_, port)) if port.contains(':') => {
            Err("the host: it holds several ':'; an IPv6 address stands in brackets, such as \
                 [::1], and a ':' in a user's name is written %3A"
                .to_owned())
        }
        Some(pair) => Ok(pair),
        None => Ok((address, "")),
    }
}

fn parameters(query: &str) -> Result<Vec<(String, String)>, String> {
    query.split('&').filter(|pair| !pair.is_empty()).map(parameter).collect()
}

fn parameter(pair: &str) -> Result<(String, String), String> {
    let (name, value) = pair.split_once('=').ok_or(
        "a parameter behind the '?' has no '='; in the user and the password write '?' as %3F, in \
         a value '&' as %26",
    )?;
    let name = part("the name of a parameter", name)?;
    Ok((name, part("the value of a parameter", value)?))
}

fn part(what: &str, text: &str) -> Result<String, String> {
    decoded(text).ok_or_else(|| {
        format!("{what}: a '%' begins two hex digits, such as %40 for '@'; write '%' itself as %25")
    })
}

/// Takes percent signs apart; a '+' stays one. `None` where that makes no text, or a byte 0 in it.
#[must_use]
pub fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => hex(rest.next()?)? * 16 + hex(rest.next()?)?,
            byte => byte,
        });
    }
    if bytes.contains(&0) {
        return None;
    }
    String::from_utf8(bytes).ok()
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_signs_are_taken_apart() {
        for (text, expect) in [
            ("", Some("")),
            ("a+b", Some("a+b")),
            ("%40%2f%2F%25", Some("@//%")),
            ("%C3%BC", Some("ü")),
            ("ü", Some("ü")),
            ("%", None),
            ("%4", None),
            ("%4g", None),
            ("%+1", None),
            ("%ü", None),
            ("%C3", None),
            ("a%00", None),
        ] {
            assert_eq!(decoded(text).as_deref(), expect, "{text:?}");
        }
    }

    #[test]
    fn an_authority_ends_at_the_first_slash_or_question_mark() {
        for (text, expect) in [
            ("", ["", "", "", "", ""]),
            ("u@h", ["u", "", "h", "", ""]),
            ("u:p@h:1/d", ["u", "p", "h", "1", "d"]),
            ("u:p@ss@h/d", ["u", "p@ss", "h", "", "d"]),
            ("u:p:q@h", ["u", "p:q", "h", "", ""]),
            ("u:p#q@h", ["u", "p#q", "h", "", ""]),
            ("h?a=b@c", ["", "", "h", "", ""]),
            ("/d", ["", "", "", "", "d"]),
            (":1/d/e", ["", "", "", "1", "d/e"]),
            ("[::1]:1", ["", "", "::1", "1", ""]),
            ("[fe80::1%25eth0]", ["", "", "fe80::1%eth0", "", ""]),
        ] {
            let url = split(text).unwrap_or_else(|wrong| panic!("{text}: {wrong}"));
            assert_eq!([url.user, url.password, url.host, url.port, url.path], expect, "{text}");
        }
    }

    #[test]
    fn a_query_is_names_and_values_in_order() {
        let url = split("h/d?a=b%26&&%61=c=d&e=").unwrap_or_else(|wrong| panic!("{wrong}"));
        let expect = [("a", "b&"), ("a", "c=d"), ("e", "")];
        assert_eq!(url.query, expect.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }
}
