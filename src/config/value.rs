//! Reads one value: sizes, durations, switches, addresses. Pure.
//!
//! Does not know which key a value belongs to, nor where it was written.

use std::net::{IpAddr, Ipv6Addr};

use crate::event::Name;

/// `64MiB`, `10MB` or a bare number of bytes.
#[must_use]
pub fn bytes(text: &str) -> Option<u64> {
    let (number, unit) = split_unit(text)?;
    let factor: u64 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "tib" => 1 << 40,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return None,
    };
    number.checked_mul(factor)
}

/// `20ms`, `2s`, `5m`, `1h`, or a bare number of `bare` milliseconds each.
#[must_use]
pub fn milliseconds(text: &str, bare: u64) -> Option<u64> {
    let (number, unit) = split_unit(text)?;
    let factor = match unit {
        "" => bare,
        "ms" => 1,
        "s" => 1_000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    number.checked_mul(factor)
}

/// Digits only: `str::parse` alone would also take a sign.
#[must_use]
pub fn count(text: &str) -> Option<u64> {
    match split_unit(text) {
        Some((number, "")) => Some(number),
        _ => None,
    }
}

/// Every spelling that Go's configuration readers take for a switch.
#[must_use]
pub fn boolean(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "1" | "t" | "y" => Some(true),
        "false" | "no" | "off" | "0" | "f" | "n" => Some(false),
        _ => None,
    }
}

/// A share above 0, at most 1.
#[must_use]
pub fn ratio(text: &str) -> Option<f64> {
    let share: f64 = text.parse().ok()?;
    (share > 0.0 && share <= 1.0).then_some(share)
}

/// `auto`, `*` and `-1` are `Some(None)`; a number of threads is `Some(Some(n))`.
#[must_use]
pub fn cpu(text: &str) -> Option<Option<usize>> {
    if matches!(text, "auto" | "*" | "-1") {
        return Some(None);
    }
    let threads = usize::try_from(count(text)?).ok()?;
    (1..=1024).contains(&threads).then_some(Some(threads))
}

/// `auto` is `Some(None)`; a maximum is `Some(Some(n))`.
#[must_use]
pub fn automatic(text: &str) -> Option<Option<usize>> {
    if text == "auto" {
        return Some(None);
    }
    let most = usize::try_from(count(text)?).ok()?;
    (1..=100_000).contains(&most).then_some(Some(most))
}

/// Splits `host:port`, `[v6]:port` or `:port`; the brackets are taken off the host.
#[must_use]
pub fn listen(text: &str) -> Option<(&str, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let port = u16::try_from(count(port)?).ok()?;
    let host = match host.strip_prefix('[') {
        Some(inner) => {
            let inner = inner.strip_suffix(']')?;
            inner.parse::<Ipv6Addr>().ok()?;
            inner
        }
        None => host,
    };
    let plain = host.parse::<IpAddr>().is_ok()
        || host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-'));
    // An IPv6 address without brackets cannot be told from its port.
    let ambiguous = host.contains(':') && !text.starts_with('[');
    (plain && !ambiguous).then_some((host, port))
}

/// Whether an address of [`listen`] can be reached from this machine only.
#[must_use]
pub fn is_loopback(host: &str) -> bool {
    match host.parse::<IpAddr>() {
        Ok(address) => address.is_loopback(),
        Err(_) => host.eq_ignore_ascii_case("localhost"),
    }
}

/// Whether every part of a comma separated list reads `name=http://host[:port]`.
#[must_use]
pub fn peers(text: &str) -> bool {
    text.split(',').map(str::trim).all(peer)
}

fn peer(text: &str) -> bool {
    let Some((name, url)) = text.split_once('=') else {
        return false;
    };
    let rest = url.trim_start();
    let rest = rest.strip_prefix("http://").or_else(|| rest.strip_prefix("https://"));
    Name::new(name.trim_end()).is_ok()
        && rest.is_some_and(|rest| {
            !rest.is_empty() && !rest.starts_with('/') && !rest.contains(char::is_whitespace)
        })
}

/// A size as people write it: the largest unit that divides it.
#[must_use]
pub fn show_bytes(size: u64) -> String {
    for (unit, shift) in [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)] {
        if size >= 1_u64 << shift && size.is_multiple_of(1_u64 << shift) {
            return format!("{}{unit}", size >> shift);
        }
    }
    format!("{size} bytes")
}

/// A duration as people write it: the largest unit that divides it.
#[must_use]
pub fn show_milliseconds(ms: u64) -> String {
    for (unit, size) in [("h", 3_600_000), ("m", 60_000), ("s", 1_000)] {
        if ms >= size && ms.is_multiple_of(size) {
            return format!("{}{unit}", ms / size);
        }
    }
    format!("{ms}ms")
}

fn split_unit(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    Some((number.parse().ok()?, unit.trim_start()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_take_units_or_bare_numbers() {
        for (text, expect) in [
            ("64MiB", Some(64 << 20)),
            ("4 KiB", Some(4096)),
            ("1GiB", Some(1 << 30)),
            ("10MB", Some(10_000_000)),
            ("10mb", Some(10_000_000)),
            ("1048576", Some(1_048_576)),
            ("", None),
            ("MiB", None),
            ("-1", None),
            ("1.5GiB", None),
            ("64M", None),
            ("99999999999TiB", None),
        ] {
            assert_eq!(bytes(text), expect, "{text:?}");
        }
    }

    #[test]
    fn durations_take_units_or_bare_numbers_in_the_unit_of_the_key() {
        for (text, bare, expect) in [
            ("20", 1, Some(20)),
            ("20ms", 1, Some(20)),
            ("2s", 1, Some(2_000)),
            ("5m", 1, Some(300_000)),
            ("30", 60_000, Some(1_800_000)),
            ("90s", 60_000, Some(90_000)),
            ("1 h", 1, Some(3_600_000)),
            ("20 parsecs", 1, None),
            ("-5", 1, None),
        ] {
            assert_eq!(milliseconds(text, bare), expect, "{text:?}");
        }
    }

    #[test]
    fn an_address_to_listen_on_has_a_host_and_a_port() {
        for (text, expect) in [
            ("127.0.0.1:8080", Some(("127.0.0.1", 8080))),
            (":8080", Some(("", 8080))),
            ("localhost:0", Some(("localhost", 0))),
            ("[::1]:8080", Some(("::1", 8080))),
            ("::1:8080", None),
            ("8080", None),
            ("http://0.0.0.0:8080", None),
            ("127.0.0.1:99999", None),
            ("127.0.0.1:+80", None),
        ] {
            assert_eq!(listen(text), expect, "{text:?}");
        }
        assert!(is_loopback("127.0.0.9") && is_loopback("::1") && is_loopback("LocalHost"));
        assert!(!is_loopback("") && !is_loopback("0.0.0.0") && !is_loopback("db.example.com"));
    }

    #[test]
    fn threads_and_batch_sizes_are_automatic_or_a_number() {
        for text in ["auto", "*", "-1"] {
            assert_eq!(cpu(text), Some(None), "{text}");
        }
        assert_eq!(cpu("2"), Some(Some(2)));
        assert_eq!(cpu("0"), None);
        assert_eq!(automatic("auto"), Some(None));
        assert_eq!(automatic("200"), Some(Some(200)));
        assert_eq!(automatic("-1"), None);
    }

    #[test]
    fn peers_are_names_with_urls() {
        assert!(peers("dc2=http://10.0.1.2:8080"));
        assert!(peers("dc2=http://10.0.1.2:8080, dc3=https://dc3.example.com"));
        for bad in [
            "http://10.0.1.2",
            "dc2=10.0.1.2:8080",
            "dc2=http://",
            "dc2=http://a,,",
            "d c=http://a",
        ] {
            assert!(!peers(bad), "{bad}");
        }
    }

    #[test]
    fn sizes_and_durations_are_shown_in_their_largest_whole_unit() {
        assert_eq!(show_bytes(64 << 20), "64MiB");
        assert_eq!(show_bytes(1000), "1000 bytes");
        assert_eq!(show_milliseconds(300_000), "5m");
        assert_eq!(show_milliseconds(1_500), "1500ms");
    }
}
