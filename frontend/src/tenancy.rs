//! Who asks: the tenants of a request, from `X-Scope-OrgID`.

use skein_engine::{
    error::{Error, Result},
    tenant::TenantId,
};

/// The header, and the gRPC metadata key, that names the tenants.
pub const TENANT_HEADER: &str = "x-scope-orgid";

/// The tenants of one request: sorted, each once, never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tenants(Vec<TenantId>);

impl Tenants {
    /// The tenant of all requests while multi-tenancy is off.
    pub(crate) fn single() -> Self {
        Self(vec![TenantId::single()])
    }

    /// Reads `a` or `a|b`. Text after a colon is left out of each part. Errors: `Invalid`, with Tempo's words.
    pub(crate) fn parse(header: &str, many_allowed: bool) -> Result<Self> {
        let mut tenants: Vec<TenantId> =
            header.split('|').map(|part| TenantId::parse(part.split_once(':').map_or(part, |(id, _)| id))).collect::<Result<_>>()?;
        tenants.sort_unstable();
        tenants.dedup();
        if tenants.len() > 1 && !many_allowed {
            return Err(Error::invalid("multiple org IDs present: multi-tenant queries are not enabled"));
        }
        Ok(Self(tenants))
    }

    pub(crate) fn ids(&self) -> &[TenantId] {
        &self.0
    }

    /// The tenants as one name, for labels and queues.
    pub(crate) fn name(&self) -> String {
        self.0.iter().map(TenantId::as_str).collect::<Vec<_>>().join("|")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn parts_are_checked_sorted_and_taken_once() {
        let check = |header: &str, expected: &str| assert_eq!(Tenants::parse(header, true).unwrap().name(), expected);
        check("a", "a");
        check("b|a|b", "a|b");
        check("a:region=eu|b", "a|b");
        check("*", "*");

        let refused = |header: &str, expected: &str| {
            let error = Tenants::parse(header, true).unwrap_err();
            assert!(error.message().contains(expected), "{header}: {error}");
        };
        refused("a||b", "no org id");
        refused("|a", "no org id");
        refused("a|", "no org id");
        refused("a b", "unsupported character");
        refused("a|..", "tenant ID is '.' or '..'");
        refused(&"x".repeat(151), "tenant ID is too long");
    }

    #[test]
    fn several_tenants_can_be_forbidden() {
        assert!(Tenants::parse("a|b", false).is_err());
        assert!(Tenants::parse("a|a", false).is_ok());
    }
}
