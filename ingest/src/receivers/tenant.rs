//! Whose request it is: the value of `X-Scope-OrgID`, or the single tenant.

use skein_engine::tenant::TenantId;

use crate::error::{Error, Result};

/// HTTP header and gRPC metadata key of the tenant.
pub const ORG_ID: &str = "x-scope-orgid";

/// The tenant of a request with these values of [`ORG_ID`], of which there must be one.
/// Errors: `Unavailable` for none or several (Tempo's answer on the write path: not 401), `Invalid` for one that is no tenant id.
pub fn select<'a>(multitenancy_enabled: bool, mut org_ids: impl Iterator<Item = &'a [u8]>) -> Result<TenantId> {
    if !multitenancy_enabled {
        return Ok(TenantId::single());
    }
    match (org_ids.next(), org_ids.next()) {
        (Some(id), None) if !id.is_empty() => TenantId::parse(&String::from_utf8_lossy(id)),
        _ => Err(Error::unavailable("no org id")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::error::ErrorKind;

    fn check(enabled: bool, org_ids: &[&str], expected: Result<&str, ErrorKind>) {
        let selected = select(enabled, org_ids.iter().map(|id| id.as_bytes()));
        assert_eq!(selected.as_ref().map(TenantId::as_str).map_err(Error::kind), expected);
    }

    #[test]
    fn header_is_ignored_while_multitenancy_is_off() {
        check(false, &[], Ok("single-tenant"));
        check(false, &["a"], Ok("single-tenant"));
        check(false, &["not/valid", "b"], Ok("single-tenant"));
    }

    #[test]
    fn exactly_one_valid_value_is_asked_for() {
        check(true, &["a-1"], Ok("a-1"));
        check(true, &[], Err(ErrorKind::Unavailable));
        check(true, &[""], Err(ErrorKind::Unavailable));
        check(true, &["a", "b"], Err(ErrorKind::Unavailable));
        check(true, &["a|b"], Err(ErrorKind::Invalid));
    }
}
