//! Addresses of the internet and of hardware, in the forms that all backends take.
//!
//! Must not know JSON.

use std::net::IpAddr;

use super::{Verdict, is_hex};

/// An address, with or without the length of its network.
pub(super) fn inet(text: &str) -> Verdict {
    network(text).map(|_| ())
}

/// A network: as [`inet`], with no bit set behind its length.
pub(super) fn cidr(text: &str) -> Verdict {
    let (address, length) = network(text)?;
    // Shifting the network's bits out leaves those of the host.
    let host_bits = match address {
        IpAddr::V4(address) => {
            u128::from(u32::from(address).checked_shl(length.into()).unwrap_or(0))
        }
        IpAddr::V6(address) => u128::from(address).checked_shl(length.into()).unwrap_or(0),
    };
    if host_bits == 0 { Ok(()) } else { Err("it has bits set behind the length of the network") }
}

fn network(text: &str) -> Result<(IpAddr, u8), &'static str> {
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address, Some(length)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().map_err(|_| "it is not an IPv4 or IPv6 address")?;
    let longest = if address.is_ipv4() { 32 } else { 128 };
    let length = match length {
        None => longest,
        Some(length) => prefix_length(length)
            .filter(|length| *length <= longest)
            .ok_or("the network's length is not a number from 0 to 32, for IPv6 to 128")?,
    };
    Ok((address, length))
}

/// A number without sign and leading zeros: PostgreSQL takes no other.
fn prefix_length(text: &str) -> Option<u8> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit());
    if !plain || (text.len() > 1 && text.starts_with('0')) {
        return None;
    }
    text.parse().ok()
}

/// `bytes` bytes in hexadecimal: pairs joined by `:` or `-`, fours joined by `.`, or all in one.
pub(super) fn hardware(text: &str, bytes: usize) -> Verdict {
    let joined_by = |separator: char, size: usize| {
        text.len() == bytes * 2 + bytes * 2 / size - 1
            && text.split(separator).all(|group| group.len() == size && is_hex(group))
    };
    let bare = text.len() == bytes * 2 && is_hex(text);
    if bare || joined_by(':', 2) || joined_by('-', 2) || joined_by('.', 4) {
        Ok(())
    } else if bytes == 6 {
        Err("it is not six bytes in hexadecimal")
    } else {
        Err("it is not eight bytes in hexadecimal")
    }
}
