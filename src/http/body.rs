//! Reading a request's body: within its deadline, its size, and what all bodies together may take;
//! inflating it.
//!
//! Does not know JSON nor channels.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_compression::tokio::bufread::{GzipDecoder, ZstdDecoder};
use axum::http::HeaderMap;
use axum::http::header::CONTENT_ENCODING;
use bytes::{Bytes, BytesMut};
use http_body::Body;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::error::ApiError;

/// The largest window that a zstd frame may ask for: 8 MiB.
const ZSTD_WINDOW_LOG: u32 = 23;

/// What bodies may take.
#[derive(Clone, Copy, Debug)]
pub struct BodyLimits {
    /// `max_body_bytes`, after inflation.
    pub max_body: usize,
    /// `http_body_timeout_ms`.
    pub timeout: Duration,
    /// `http_max_inflight_bytes`.
    pub max_inflight: usize,
}

/// Bytes of bodies in memory, all requests together.
#[derive(Debug, Default)]
pub struct Inflight(AtomicUsize);

/// A part of them; given back when dropped.
pub struct Held {
    all: Arc<Inflight>,
    bytes: usize,
}

impl Held {
    /// Holds nothing yet.
    pub fn none(all: &Arc<Inflight>) -> Self {
        Self { all: all.clone(), bytes: 0 }
    }

    /// Holds `bytes` more; `false` where that is too much.
    fn grow(&mut self, bytes: usize, most: usize) -> bool {
        let before = self.all.0.fetch_add(bytes, Ordering::Relaxed);
        self.bytes += bytes;
        before + bytes <= most
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.all.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// How a body is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    /// It is not.
    Identity,
    /// gzip, one or more members.
    Gzip,
    /// zstd, one or more frames.
    Zstd,
}

impl Coding {
    /// From the headers.
    ///
    /// # Errors
    /// 415 where it is not known, or several are stacked.
    pub fn of(headers: &HeaderMap) -> Result<Self, ApiError> {
        let mut all = headers.get_all(CONTENT_ENCODING).iter();
        let coding = match all.next() {
            None => return Ok(Self::Identity),
            Some(value) => value.to_str().unwrap_or("?").trim().to_ascii_lowercase(),
        };
        match coding.as_str() {
            _ if all.next().is_some() => Err(ApiError::Encoding("several".to_owned())),
            "" | "identity" => Ok(Self::Identity),
            "gzip" | "x-gzip" => Ok(Self::Gzip),
            "zstd" => Ok(Self::Zstd),
            _ => Err(ApiError::Encoding(coding)),
        }
    }
}

/// Refuses a body whose announced length is too long, before any of it is read.
///
/// # Errors
/// 413.
pub fn announced(body: &Incoming, limits: &BodyLimits) -> Result<(), ApiError> {
    match usize::try_from(body.size_hint().lower()) {
        Ok(length) if length <= limits.max_body => Ok(()),
        _ => Err(ApiError::TooLarge(limits.max_body)),
    }
}

/// Reads a body whole.
///
/// # Errors
/// 408, 413, 400 where it ends early, 503 where too much is in memory.
pub async fn read(body: Incoming, limits: &BodyLimits, held: &mut Held) -> Result<Bytes, ApiError> {
    match tokio::time::timeout(limits.timeout, read_all(body, limits, held)).await {
        Ok(read) => read,
        Err(_) => Err(ApiError::BodyTimeout(limits.timeout)),
    }
}

async fn read_all(
    mut body: Incoming,
    limits: &BodyLimits,
    held: &mut Held,
) -> Result<Bytes, ApiError> {
    let mut first = Bytes::new();
    let mut rest = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| ApiError::BodyBroken)?.into_data() else {
            continue;
        };
        if first.len() + rest.len() + data.len() > limits.max_body {
            return Err(ApiError::TooLarge(limits.max_body));
        }
        if !held.grow(data.len(), limits.max_inflight) {
            return Err(ApiError::Busy(Duration::from_secs(1)));
        }
        // most bodies are one frame, and that is not copied
        if first.is_empty() && rest.is_empty() {
            first = data;
            continue;
        }
        if rest.is_empty() {
            let hint = usize::try_from(body.size_hint().lower()).unwrap_or(0);
            rest.reserve(first.len() + data.len() + hint.min(limits.max_body));
            rest.extend_from_slice(&first);
            first = Bytes::new();
        }
        rest.extend_from_slice(&data);
    }
    Ok(if rest.is_empty() { first } else { rest.freeze() })
}

/// Inflates a body, up to its limit.
///
/// # Errors
/// 400 where it is broken or cut off, 413 where it grows too large, 503 where too much is in memory.
pub async fn inflate(
    body: Bytes,
    coding: Coding,
    limits: &BodyLimits,
    held: &mut Held,
) -> Result<Bytes, ApiError> {
    match coding {
        Coding::Identity => Ok(body),
        Coding::Gzip => {
            let mut decoder = GzipDecoder::new(&body[..]);
            decoder.multiple_members(true);
            drain(decoder, "gzip", limits, held).await
        }
        Coding::Zstd => {
            let window = async_compression::zstd::DParameter::window_log_max(ZSTD_WINDOW_LOG);
            let mut decoder = ZstdDecoder::with_params(&body[..], &[window]);
            decoder.multiple_members(true);
            drain(decoder, "zstd", limits, held).await
        }
    }
}

async fn drain(
    mut decoder: impl AsyncRead + Unpin,
    name: &str,
    limits: &BodyLimits,
    held: &mut Held,
) -> Result<Bytes, ApiError> {
    let mut out = BytesMut::with_capacity(16 << 10);
    loop {
        if out.len() > limits.max_body {
            return Err(ApiError::TooLarge(limits.max_body));
        }
        out.reserve(16 << 10);
        // a bomb is met at the limit, and lets other connections have their turn on the way
        tokio::task::yield_now().await;
        match decoder.read_buf(&mut out).await {
            Ok(0) => return Ok(out.freeze()),
            Ok(n) if held.grow(n, limits.max_inflight) => {}
            Ok(_) => return Err(ApiError::Busy(Duration::from_secs(1))),
            Err(e) => {
                return Err(ApiError::Inflate(format!("the body is not whole {name}: {e}")));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const LIMITS: BodyLimits =
        BodyLimits { max_body: 1 << 16, timeout: Duration::from_secs(1), max_inflight: 1 << 20 };

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    async fn try_inflate(bytes: &[u8], coding: Coding) -> Result<Bytes, ApiError> {
        let mut held = Held::none(&Arc::default());
        inflate(Bytes::copy_from_slice(bytes), coding, &LIMITS, &mut held).await
    }

    #[tokio::test]
    async fn a_compressed_body_cut_at_any_byte_is_refused() {
        let lines = "{\"a\":1}\n".repeat(500);
        let both = [
            (Coding::Gzip, gzip(lines.as_bytes())),
            (Coding::Zstd, zstd::encode_all(lines.as_bytes(), 3).unwrap()),
        ];
        for (coding, whole) in both {
            assert_eq!(try_inflate(&whole, coding).await.unwrap(), lines.as_bytes());
            for cut in 1..whole.len() {
                let result = try_inflate(&whole[..cut], coding).await;
                assert!(matches!(result, Err(ApiError::Inflate(_))), "{coding:?} cut at {cut}");
            }
        }
    }

    #[tokio::test]
    async fn several_members_are_one_body() {
        let two = [gzip(b"{}\n"), gzip(b"{\"b\":2}\n")].concat();
        assert_eq!(try_inflate(&two, Coding::Gzip).await.unwrap(), "{}\n{\"b\":2}\n");
    }

    #[tokio::test]
    async fn a_bomb_is_met_at_the_limit() {
        let zeros = vec![b' '; 64 << 20];
        for (coding, bomb) in
            [(Coding::Gzip, gzip(&zeros)), (Coding::Zstd, zstd::encode_all(&zeros[..], 3).unwrap())]
        {
            let result = try_inflate(&bomb, coding).await;
            assert!(matches!(result, Err(ApiError::TooLarge(_))), "{coding:?}");
        }
    }

    #[tokio::test]
    async fn a_zstd_window_above_the_bound_is_refused() {
        let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
        encoder.window_log(25).unwrap();
        encoder.write_all(&vec![b' '; 40 << 20]).unwrap();
        let result = try_inflate(&encoder.finish().unwrap(), Coding::Zstd).await;
        assert!(matches!(result, Err(ApiError::Inflate(_))));
    }

    #[test]
    fn what_bodies_hold_is_given_back() {
        let all = Arc::new(Inflight::default());
        let mut one = Held::none(&all);
        assert!(one.grow(60, 100));
        let mut two = Held::none(&all);
        assert!(!two.grow(60, 100));
        drop((one, two));
        assert_eq!(all.0.load(Ordering::Relaxed), 0);
    }
}
