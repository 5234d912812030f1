//! Compaction: many small blocks become few large ones, and old ones go.
//!
//! | module | |
//! |---|---|
//! | [`select`](mod@select) | which blocks to merge; a pure function |
//! | [`retention`] | which blocks to let go, and letting them go |
//! | [`scheduler`] | the loop that does both, and the order of steps that makes it safe |
//! | `metrics` | what it counts |
//!
//! Invariant CO-1: at any moment, and after a crash at any moment, a span of the inputs is in exactly one live block: `meta.json` of the
//! output names the inputs it replaces, and [`Blocklist`](crate::catalog::Blocklist) honours that whether or not they are marked yet.
//! Invariant CO-2: a block goes only when all the blocks it replaced are marked, so none of them can come back.

mod merger;
mod metrics;
pub mod retention;
pub mod scheduler;
pub mod select;

use std::time::Duration;

pub use merger::BlockMerger;
pub use metrics::CompactionMetrics;
pub use scheduler::{Merger, Scheduler};
pub use select::{Job, select};
use serde::{Deserialize, Serialize};

use crate::{
    clock::go_duration,
    error::{Error, Result},
    tenant::TenantId,
};

/// `compactor.compaction`: Tempo's keys, and its scheduler's for the number of inputs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CompactionSettings {
    /// Blocks are merged with others that end in the same window.
    #[serde(with = "go_duration")]
    pub compaction_window: Duration,
    /// Most traces of an output.
    pub max_compaction_objects: u64,
    /// Most spans of an output. A merge holds all of them in memory, some 150 to 400 bytes each; a block of more than half as many is large
    /// enough and stays as it is. Not a key of Tempo's.
    pub max_compaction_spans: u64,
    /// Most bytes of an output.
    pub max_block_bytes: u64,
    /// Age, from when its spans were first written to a block, at which a block is marked for deletion. 0 keeps blocks for ever.
    #[serde(with = "go_duration")]
    pub block_retention: Duration,
    /// How long the objects of a marked block stay, for the queries that still read them.
    #[serde(with = "go_duration")]
    pub compacted_block_retention: Duration,
    /// Blocks marked or deleted at the same time.
    pub retention_concurrency: usize,
    /// Longest time for one tenant before the next has its turn.
    #[serde(with = "go_duration")]
    pub max_time_per_tenant: Duration,
    /// Time between two passes over the tenants.
    #[serde(with = "go_duration")]
    pub compaction_cycle: Duration,
    /// Fewest inputs of a merge.
    pub min_input_blocks: usize,
    /// Most inputs of a merge.
    pub max_input_blocks: usize,
    /// Blocks of this level are not merged any more. 0 is no limit.
    pub max_compaction_level: u32,
}

impl Default for CompactionSettings {
    fn default() -> Self {
        Self {
            compaction_window: Duration::from_secs(3_600),
            max_compaction_objects: 6_000_000,
            max_compaction_spans: 1_000_000,
            max_block_bytes: 107_374_182_400,
            block_retention: Duration::from_secs(14 * 24 * 3_600),
            compacted_block_retention: Duration::from_secs(3_600),
            retention_concurrency: 10,
            max_time_per_tenant: Duration::from_secs(300),
            compaction_cycle: Duration::from_secs(30),
            min_input_blocks: 2,
            max_input_blocks: 4,
            max_compaction_level: 0,
        }
    }
}

/// What a tenant has of its own. Keys of Tempo's overrides.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TenantCompaction {
    /// Replaces [`CompactionSettings::block_retention`] when it is not 0.
    pub block_retention: Duration,
    /// Replaces [`CompactionSettings::compaction_window`] when it is not 0.
    pub compaction_window: Duration,
    /// The tenant's blocks are not merged; retention goes on.
    pub compaction_disabled: bool,
}

/// Knows what each tenant has of its own. Asked at the time of use, so an implementation may reload.
pub trait TenantCompactions: Send + Sync + 'static {
    /// What `tenant` has of its own now.
    fn compaction(&self, tenant: &TenantId) -> TenantCompaction;
}

/// The same for everyone.
impl TenantCompactions for TenantCompaction {
    fn compaction(&self, _tenant: &TenantId) -> TenantCompaction {
        *self
    }
}

impl CompactionSettings {
    /// The settings for a tenant with `own`.
    pub fn of_tenant(&self, own: &TenantCompaction) -> Self {
        let or = |own: Duration, common: Duration| if own.is_zero() { common } else { own };
        Self {
            block_retention: or(own.block_retention, self.block_retention),
            compaction_window: or(own.compaction_window, self.compaction_window),
            ..self.clone()
        }
    }

    /// Checks that compaction can work with these. Errors: `Invalid`, naming the key.
    pub fn validate(&self) -> Result<()> {
        let wrong = if self.compaction_window < Duration::from_secs(1) {
            "compaction_window must be at least 1s"
        } else if self.compaction_cycle.is_zero() {
            "compaction_cycle must be more than 0"
        } else if self.retention_concurrency == 0 {
            "retention_concurrency must be at least 1"
        } else if self.min_input_blocks < 2 {
            "min_input_blocks must be at least 2"
        } else if self.max_input_blocks < self.min_input_blocks {
            "max_input_blocks must not be less than min_input_blocks"
        } else {
            return Ok(());
        };
        Err(Error::invalid(format!("compactor.compaction.{wrong}")))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn settings_have_tempos_names_and_are_checked() {
        let read = |json: &str| serde_json::from_str::<CompactionSettings>(json);
        let settings = read(r#"{"block_retention": "48h", "compaction_window": "30m", "max_block_bytes": 1000}"#).unwrap();
        assert_eq!((settings.block_retention, settings.compaction_window), (Duration::from_secs(48 * 3_600), Duration::from_secs(1_800)));
        settings.validate().unwrap();
        assert!(read(r#"{"block_retentoin": "48h"}"#).is_err());
        let error = read(r#"{"min_input_blocks": 1}"#).unwrap().validate().unwrap_err();
        assert!(error.message().contains("compactor.compaction.min_input_blocks"), "{error}");
        assert_eq!(serde_json::to_value(CompactionSettings::default()).unwrap()["block_retention"], "336h0m0s");
    }
}
