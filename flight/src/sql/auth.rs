//! Which tenant asks.
//!
//! As over HTTP it is `X-Scope-OrgID` that says so, and whoever stands in front of the server that checks it. Many Flight clients can send no
//! header of their own choice but know user and password: there the user is the tenant, in `authorization: Basic …` or in a handshake, which
//! answers with a bearer token that stands for it. The password is not looked at. Other tokens are left to whoever stands in front.

use skein_engine::{error::Result, tenant::TenantId};
use tonic::metadata::{MetadataMap, MetadataValue};

use super::FlightBackend;

/// The gRPC metadata key that names the tenant.
const TENANT_KEY: &str = "x-scope-orgid";
/// How a bearer token of ours begins; the hexadecimal digits of the tenant follow.
const TOKEN_PREFIX: &str = "skein-";

/// The tenant of a call. Errors: `Denied` when none is named and one is needed; `Invalid`.
pub(crate) fn tenant_of(backend: &dyn FlightBackend, metadata: &MetadataMap) -> Result<TenantId> {
    let mut named = metadata.get_all(TENANT_KEY).iter().map(|value| String::from_utf8_lossy(value.as_encoded_bytes()).into_owned());
    // As over gRPC elsewhere, the key counts only when it occurs once.
    let header = named.next().filter(|_| named.next().is_none()).or_else(|| authorized(metadata));
    backend.tenant(header.as_deref())
}

/// The tenant of an `authorization` header of ours.
fn authorized(metadata: &MetadataMap) -> Option<String> {
    let value = metadata.get("authorization")?.to_str().ok()?;
    let (scheme, rest) = value.split_once(' ')?;
    match scheme.to_ascii_lowercase().as_str() {
        "basic" => user_of(&from_base64(rest.trim())?),
        "bearer" => String::from_utf8(from_hex(rest.trim().strip_prefix(TOKEN_PREFIX)?)?).ok(),
        _ => None,
    }
}

/// The user in `user:password`.
fn user_of(credentials: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(credentials).ok()?;
    Some(text.split_once(':').map_or(text, |(user, _)| user).to_owned()).filter(|user| !user.is_empty())
}

/// The token that stands for `tenant`.
pub(crate) fn token_of(tenant: &TenantId) -> String {
    tenant.as_str().bytes().fold(TOKEN_PREFIX.to_owned(), |token, byte| token + &format!("{byte:02x}"))
}

/// The header with which a handshake answers.
pub(crate) fn bearer(token: &str) -> Option<MetadataValue<tonic::metadata::Ascii>> {
    format!("Bearer {token}").parse().ok()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let bytes = text.as_bytes();
    let digit = |byte: u8| char::from(byte).to_digit(16);
    (bytes.len().is_multiple_of(2)).then_some(())?;
    bytes.chunks_exact(2).map(|pair| Some((digit(pair[0])? << 4 | digit(pair[1])?) as u8)).collect()
}

fn from_base64(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() * 3 / 4);
    let (mut bits, mut count) = (0_u32, 0);
    for byte in text.trim_end_matches('=').bytes() {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    Some(bytes)
}
