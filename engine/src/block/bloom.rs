//! Bloom filters over the trace ids of a block, in shards, so that a look-up fetches one small object. Split-block filters as Parquet
//! defines them. See engine/FORMAT.md, "bloom-N".

use bytes::Bytes;
use parquet::bloom_filter::Sbbf;

use crate::{
    error::{Error, Result},
    spans::TraceId,
};

/// One look-up in a hundred for an absent trace goes on to the index.
const FALSE_POSITIVES: f64 = 0.01;

/// Traces of a shard: some 120 KiB of filter.
const TRACES_PER_SHARD: usize = 100_000;

/// How many shards the filter of a block with `traces` traces has.
pub fn shards_for(traces: usize) -> usize {
    traces.div_ceil(TRACES_PER_SHARD).max(1)
}

/// The shard that knows of `id`.
pub fn shard_of(id: TraceId, shards: usize) -> usize {
    let (high, low) = id.halves();
    let mixed = (high as u64 ^ (low as u64).rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((u128::from(mixed) * shards as u128) >> 64) as usize
}

/// Writes the shards for `ids`. Errors: `Internal`.
pub fn write(ids: &[TraceId]) -> Result<Vec<Bytes>> {
    let shards = shards_for(ids.len());
    let mut members: Vec<Vec<TraceId>> = vec![Vec::new(); shards];
    for &id in ids {
        members[shard_of(id, shards)].push(id);
    }
    members
        .into_iter()
        .map(|members| {
            let mut filter = Sbbf::new_with_ndv_fpp(members.len().max(1) as u64, FALSE_POSITIVES)?;
            for id in members {
                filter.insert(&id.0[..]);
            }
            let mut out = Vec::new();
            filter.write(&mut out)?;
            Ok(out.into())
        })
        .collect()
}

/// One shard of a block's filter.
#[derive(Debug)]
pub struct BloomShard(Sbbf);

impl BloomShard {
    /// Reads a shard. Errors: `Data`.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        Sbbf::from_bytes(bytes).map(Self).map_err(|e| Error::data("bloom filter").with_source(e))
    }

    /// Whether the block may hold `id`; false is certain.
    pub fn may_contain(&self, id: TraceId) -> bool {
        self.0.check(&id.0[..])
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn members_are_found_and_others_mostly_not() {
        let id = |n: u128| TraceId(n.wrapping_mul(0x1234_5678_9abc_def1_2345).to_be_bytes());
        let ids: Vec<_> = (0..250_000).map(id).collect();
        let shards: Vec<_> = write(&ids).unwrap().iter().map(|bytes| BloomShard::parse(bytes).unwrap()).collect();
        assert_eq!(shards.len(), 3);
        let found = |id| shards[shard_of(id, shards.len())].may_contain(id);
        assert!(ids.iter().all(|&id| found(id)));
        let false_positives = (1_000_000..1_010_000).filter(|&n| found(id(n))).count();
        assert!(false_positives < 250, "{false_positives} of 10,000");
    }
}
