//! `Content-Encoding`: the compressions the OpenTelemetry collector takes. Output is inflated piecewise up to a limit, so that a small body cannot fill the
//! memory.

use std::io::{self, Read};

use bytes::Bytes;

use crate::error::{Error, Result};

/// Text for a body above the limit, compressed or not (Go's, which Tempo answers with, as 400).
pub(super) const TOO_LARGE: &str = "http: request body too large";

/// What [`inflate`] takes.
const SUPPORTED: &str = "gzip, zstd, zlib, deflate, snappy, x-snappy-framed, lz4";

/// First bytes of framed snappy; a raw block never begins so.
const SNAPPY_STREAM_IDENTIFIER: &[u8] = b"\xFF\x06\x00\x00sNaPpY";

/// Largest zstd window, log2: 64 MiB, as Go's decoder.
const ZSTD_WINDOW_LOG_MAX: u32 = 26;

/// The bytes inside `body`. Without an encoding that is `body` itself.
/// Errors: `Invalid` for an unknown encoding, undecodable bytes, and more than `bytes_max` of output.
pub fn inflate(encoding: &str, body: Bytes, bytes_max: usize) -> Result<Bytes> {
    let input = &body[..];
    match encoding.trim().to_ascii_lowercase().as_str() {
        "" | "identity" => {
            if body.len() > bytes_max {
                return Err(Error::invalid(TOO_LARGE));
            }
            Ok(body)
        }
        "gzip" => read(flate2::bufread::MultiGzDecoder::new(input), encoding, body.len(), bytes_max),
        "zlib" | "deflate" => read(flate2::bufread::ZlibDecoder::new(input), encoding, body.len(), bytes_max),
        "zstd" => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(input).map_err(|error| undecodable(encoding, error))?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(|error| undecodable(encoding, error))?;
            read(decoder, encoding, body.len(), bytes_max)
        }
        "snappy" if !input.starts_with(SNAPPY_STREAM_IDENTIFIER) => {
            let bad = |error: snap::Error| undecodable(encoding, error.into());
            if snap::raw::decompress_len(input).map_err(bad)? > bytes_max {
                return Err(Error::invalid(TOO_LARGE));
            }
            Ok(snap::raw::Decoder::new().decompress_vec(input).map_err(bad)?.into())
        }
        "snappy" | "x-snappy-framed" => read(snap::read::FrameDecoder::new(input), encoding, body.len(), bytes_max),
        "lz4" => read(lz4_flex::frame::FrameDecoder::new(input), encoding, body.len(), bytes_max),
        unknown => Err(Error::invalid(format!("unsupported Content-Encoding: {unknown}, supported: {SUPPORTED}"))),
    }
}

fn read(decoder: impl Read, encoding: &str, input_bytes: usize, bytes_max: usize) -> Result<Bytes> {
    let mut output = Vec::with_capacity(input_bytes.saturating_mul(4).min(bytes_max));
    decoder.take(bytes_max as u64 + 1).read_to_end(&mut output).map_err(|error| undecodable(encoding, error))?;
    if output.len() > bytes_max {
        return Err(Error::invalid(TOO_LARGE));
    }
    Ok(output.into())
}

fn undecodable(encoding: &str, error: io::Error) -> Error {
    Error::invalid(format!("body is not {encoding}")).with_source(error)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Write;

    use super::*;

    fn deflate(encoding: &str, plain: &[u8]) -> Vec<u8> {
        match encoding {
            "gzip" => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), Default::default());
                encoder.write_all(plain).unwrap();
                encoder.finish().unwrap()
            }
            "zlib" | "deflate" => {
                let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), Default::default());
                encoder.write_all(plain).unwrap();
                encoder.finish().unwrap()
            }
            "zstd" => zstd::encode_all(plain, 3).unwrap(),
            "snappy" => snap::raw::Encoder::new().compress_vec(plain).unwrap(),
            "x-snappy-framed" => {
                let mut encoder = snap::write::FrameEncoder::new(Vec::new());
                encoder.write_all(plain).unwrap();
                encoder.into_inner().unwrap()
            }
            "lz4" => {
                let mut encoder = lz4_flex::frame::FrameEncoder::new(Vec::new());
                encoder.write_all(plain).unwrap();
                encoder.finish().unwrap()
            }
            _ => plain.to_vec(),
        }
    }

    const ENCODINGS: [&str; 8] = ["", "gzip", "zlib", "deflate", "zstd", "snappy", "x-snappy-framed", "lz4"];

    #[test]
    fn every_encoding_comes_back_up_to_the_limit_and_no_further() {
        let plain = vec![7; 100_000];
        for encoding in ENCODINGS {
            let body = Bytes::from(deflate(encoding, &plain));
            assert_eq!(inflate(encoding, body.clone(), plain.len()).unwrap(), plain, "{encoding}");
            let error = inflate(encoding, body, plain.len() - 1).unwrap_err();
            assert_eq!(error.message(), TOO_LARGE, "{encoding}");
        }
    }

    #[test]
    fn framed_snappy_is_recognised() {
        let body = deflate("x-snappy-framed", b"spans");
        assert_eq!(inflate("snappy", body.into(), 100).unwrap(), &b"spans"[..]);
    }

    #[test]
    fn damaged_bodies_are_invalid() {
        for encoding in &ENCODINGS[1..] {
            let mut body = deflate(encoding, &[1, 2, 3, 4, 5, 6, 7, 8].repeat(50));
            body.truncate(body.len() - 5);
            assert!(inflate(encoding, body.into(), 1000).is_err(), "{encoding} cut short");
            assert!(inflate(encoding, Bytes::from_static(b"\xFFnonsense nonsense"), 1000).is_err(), "{encoding}");
        }
    }

    #[test]
    fn unknown_encoding_is_named() {
        let error = inflate("br", Bytes::new(), 10).unwrap_err();
        assert_eq!(error.message(), "unsupported Content-Encoding: br, supported: gzip, zstd, zlib, deflate, snappy, x-snappy-framed, lz4");
    }
}
