//! Deals the sources of a query out to the workers that read them.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

use super::{live::ListedGeneration, sources::SourceName};
use crate::{
    error::{Error, Result},
    spans::BlockId,
};

/// What a live span counts when shares are balanced: about its bytes in a block.
const LIVE_SPAN_BYTES: u64 = 50;

/// What one worker reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// The worker.
    pub worker: Arc<str>,
    /// Its sources.
    pub names: Vec<SourceName>,
}

/// Deals sources out: live spans to the worker that has them, blocks (id and bytes) as wholes, so that the workers' bytes are about equal.
/// A block goes to the same worker again as long as balance allows it, where its footer and index are in memory already. Workers without
/// sources are left out. Errors: `Unavailable` when there are sources and no workers.
pub fn deal(workers: &[Arc<str>], live: &[ListedGeneration], blocks: &[(BlockId, u64)]) -> Result<Vec<Share>> {
    let mut loads: Vec<Load> = Vec::with_capacity(workers.len());
    for worker in workers {
        if loads.iter().all(|load| load.share.worker != *worker) {
            loads.push(Load { share: Share { worker: worker.clone(), names: Vec::new() }, bytes: 0 });
        }
    }
    for generation in live {
        let bytes = generation.spans * LIVE_SPAN_BYTES;
        let name = SourceName::Live { id: generation.block, at: Some(generation.at.clone()) };
        match loads.iter_mut().find(|load| load.share.worker == generation.at.worker) {
            Some(load) => load.add(name, bytes),
            // It left the list of workers just now; if it still answers, its spans are read there.
            None => loads.push(Load { share: Share { worker: generation.at.worker.clone(), names: vec![name] }, bytes }),
        }
    }
    if loads.is_empty() && !blocks.is_empty() {
        return Err(Error::unavailable("there are no workers"));
    }
    deal_blocks(&mut loads, blocks);
    Ok(loads.into_iter().map(|load| load.share).filter(|share| !share.names.is_empty()).collect())
}

struct Load {
    share: Share,
    bytes: u64,
}

impl Load {
    fn add(&mut self, name: SourceName, bytes: u64) {
        self.share.names.push(name);
        self.bytes += bytes;
    }
}

/// Rendezvous hashing with a bound: of the workers that stay below a quarter more than the average, the one that the block prefers.
fn deal_blocks(loads: &mut [Load], blocks: &[(BlockId, u64)]) {
    let total: u64 = loads.iter().map(|load| load.bytes).chain(blocks.iter().map(|(_, bytes)| *bytes)).sum();
    let bound = total / loads.len().max(1) as u64 * 5 / 4;
    let mut largest_first = blocks.to_vec();
    largest_first.sort_unstable_by_key(|&(id, bytes)| (std::cmp::Reverse(bytes), id));
    for (id, bytes) in largest_first {
        let preference = |load: &Load| {
            let mut hasher = DefaultHasher::new();
            (id, &load.share.worker).hash(&mut hasher);
            hasher.finish()
        };
        let fitting = (0..loads.len()).filter(|&at| loads[at].bytes + bytes <= bound).max_by_key(|&at| preference(&loads[at]));
        let chosen = fitting.or_else(|| (0..loads.len()).min_by_key(|&at| (loads[at].bytes, at)));
        if let Some(at) = chosen {
            loads[at].add(SourceName::Block { id }, bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::exec::sources::LiveAt;

    fn block(number: u128) -> BlockId {
        BlockId::from_u128(number)
    }

    fn live(worker: &str, number: u128) -> ListedGeneration {
        let at = LiveAt { worker: worker.into(), version: 7 };
        ListedGeneration { block: block(number), at, trace_ids: Arc::default(), spans: 10 }
    }

    fn workers() -> Vec<Arc<str>> {
        ["a", "b", "c"].map(Into::into).to_vec()
    }

    fn sorted(shares: &[Share]) -> Vec<SourceName> {
        let mut names: Vec<SourceName> = shares.iter().flat_map(|share| share.names.clone()).collect();
        names.sort_by_key(|name| format!("{name:?}"));
        names
    }

    #[test]
    fn every_source_is_dealt_once_and_live_spans_to_their_worker() {
        let blocks: Vec<(BlockId, u64)> = (0..40).map(|number| (block(number), 1000 + number as u64)).collect();
        let shares = deal(&workers(), &[live("b", 100), live("gone", 101), live("b", 102)], &blocks).unwrap();
        let names = sorted(&shares);
        assert_eq!(names.len(), 43);
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]));
        for share in &shares {
            for name in &share.names {
                if let SourceName::Live { at: Some(at), .. } = name {
                    assert_eq!(at.worker, share.worker);
                }
            }
        }
        let counts: Vec<usize> = shares.iter().map(|share| share.names.len()).collect();
        assert!(counts.iter().all(|count| (5..=17).contains(count)), "{counts:?}");
    }

    #[test]
    fn a_block_keeps_its_worker_when_another_block_comes() {
        let some: Vec<(BlockId, u64)> = (0..30).map(|number| (block(number), 1000)).collect();
        let more: Vec<(BlockId, u64)> = (0..31).map(|number| (block(number), 1000)).collect();
        let owner = |shares: &[Share], name: &SourceName| shares.iter().find(|share| share.names.contains(name)).map(|share| share.worker.clone());
        let (before, after) = (deal(&workers(), &[], &some).unwrap(), deal(&workers(), &[], &more).unwrap());
        let moved = some.iter().map(|&(id, _)| SourceName::Block { id }).filter(|name| owner(&before, name) != owner(&after, name)).count();
        assert!(moved <= 3, "{moved} moved");
    }

    #[test]
    fn a_huge_block_does_not_hide_the_small_ones() {
        let mut blocks: Vec<(BlockId, u64)> = (1..10).map(|number| (block(number), 10)).collect();
        blocks.push((block(0), 1_000_000));
        let shares = deal(&workers(), &[], &blocks).unwrap();
        assert_eq!(sorted(&shares).len(), 10);
        assert!(shares.iter().any(|share| share.names == [SourceName::Block { id: block(0) }]), "{shares:?}");
    }

    #[test]
    fn without_workers_there_must_be_nothing_to_read() {
        assert_eq!(deal(&[], &[], &[]).unwrap(), []);
        assert!(deal(&[], &[], &[(block(1), 1)]).is_err());
    }
}
