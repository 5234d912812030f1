//! Tenant ids. Parsed once at the edge; everything inside takes a [`TenantId`].

use std::{fmt, sync::Arc};

use crate::error::{Error, Result};

/// Longest tenant id in bytes (Tempo: query-api 1.2).
const TENANT_BYTES_MAX: usize = 150;

/// The tenant of all requests while multi-tenancy is off.
pub const SINGLE_TENANT: &str = "single-tenant";

/// A valid tenant id: 1 to 150 bytes of `a-z A-Z 0-9 ! - _ . * ' ( )`, neither `.` nor `..`; safe as a folder name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TenantId(Arc<str>);

impl TenantId {
    /// Checks and takes over `id`. Errors: `Invalid`, with Tempo's words.
    pub fn parse(id: &str) -> Result<Self> {
        if id.is_empty() {
            return Err(Error::invalid("no org id"));
        }
        if id.len() > TENANT_BYTES_MAX {
            return Err(Error::invalid(format!("tenant ID is too long: max {TENANT_BYTES_MAX} characters")));
        }
        if id == "." || id == ".." {
            return Err(Error::invalid("tenant ID is '.' or '..'"));
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() || "!-_.*'()".contains(c);
        match id.chars().find(|&c| !allowed(c)) {
            Some(bad) => Err(Error::invalid(format!("tenant ID '{id}' contains unsupported character '{bad}'"))),
            None => Ok(Self(id.into())),
        }
    }

    /// The tenant used while multi-tenancy is off.
    pub fn single() -> Self {
        Self(SINGLE_TENANT.into())
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
