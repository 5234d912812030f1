//! Blocklist: the blocks of one tenant, as its folders and the blocks' metas together say.
//! Filled by `poll` and by those who write blocks; read by queries and compaction. Knows nothing of span data or retention.
//!
//! Invariant BL-1: `live` is sorted by end, newest first, ties by block id.
//! Invariant BL-2: no live block is named in the `replaces` of any block of the list, so every span is in exactly one live block.

use std::{collections::HashSet, sync::Arc};

use crate::{catalog::BlockMeta, query::Window, spans::BlockId};

const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// A block that is no longer live but whose objects are still there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompactedBlock {
    /// The block.
    pub meta: Arc<BlockMeta>,
    /// When it was marked.
    pub compacted_unix_nano: u64,
}

/// A folder without a meta: being written, or left by a writer that died.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnfinishedBlock {
    /// The name of the folder.
    pub id: BlockId,
    /// When its newest object was written.
    pub modified_unix_nano: u64,
}

/// A change to the blocks of a tenant.
#[derive(Debug, Clone)]
pub enum Change {
    /// A block was written. The blocks that it replaces leave the live ones with it.
    Added(Arc<BlockMeta>),
    /// A block was marked compacted in the store, at this time.
    Compacted(BlockId, u64),
    /// A block's objects were deleted.
    Removed(BlockId),
}

/// The blocks of one tenant.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Blocklist {
    live: Vec<Arc<BlockMeta>>,
    superseded: Vec<Arc<BlockMeta>>,
    compacted: Vec<CompactedBlock>,
    unfinished: Vec<UnfinishedBlock>,
}

impl Blocklist {
    /// Makes a list of what was found. `live` are blocks with `meta.json` only, `superseded` blocks that have `meta.compacted.json` as
    /// well, `compacted` blocks that have only that. Live blocks that another block replaces become superseded.
    pub fn new(live: Vec<Arc<BlockMeta>>, superseded: Vec<Arc<BlockMeta>>, compacted: Vec<CompactedBlock>, unfinished: Vec<UnfinishedBlock>) -> Self {
        let mut list = Self { live, superseded, compacted, unfinished };
        list.restore_invariants();
        list
    }

    /// Blocks to query, newest end first.
    pub fn live(&self) -> &[Arc<BlockMeta>] {
        &self.live
    }

    /// Blocks that are replaced or expired, but still have `meta.json`: a marking that has not happened yet or was cut short.
    pub fn superseded(&self) -> &[Arc<BlockMeta>] {
        &self.superseded
    }

    /// Blocks that wait for their deletion.
    pub fn compacted(&self) -> &[CompactedBlock] {
        &self.compacted
    }

    /// Folders without a meta.
    pub fn unfinished(&self) -> &[UnfinishedBlock] {
        &self.unfinished
    }

    /// The live blocks that may have spans in the window, newest end first; all for None. Allocates nothing.
    pub fn overlapping(&self, window: Option<Window>) -> impl Iterator<Item = &Arc<BlockMeta>> {
        let (start, end) = window.map_or((0, u64::MAX), |window| {
            let start = u64::from(window.start_seconds) * NANOS_PER_SECOND;
            (start, u64::from(window.end_seconds) * NANOS_PER_SECOND + NANOS_PER_SECOND - 1)
        });
        let old_from = self.live.partition_point(|block| block.max_end_unix_nano >= start);
        self.live[..old_from].iter().filter(move |block| block.min_start_unix_nano <= end)
    }

    /// Every block with a known meta, whatever its state.
    pub fn known(&self) -> impl Iterator<Item = &Arc<BlockMeta>> {
        self.live.iter().chain(&self.superseded).chain(self.compacted.iter().map(|block| &block.meta))
    }

    /// Whether there is nothing at all.
    pub fn is_empty(&self) -> bool {
        self.live.is_empty() && self.superseded.is_empty() && self.compacted.is_empty() && self.unfinished.is_empty()
    }

    /// The list after a change. A change that has happened already changes nothing.
    pub fn with(&self, change: &Change) -> Self {
        let mut list = self.clone();
        match change {
            Change::Added(meta) => {
                list.take(meta.id);
                list.live.push(meta.clone());
            }
            Change::Compacted(id, compacted_unix_nano) => {
                if let Some(meta) = list.take(*id) {
                    list.compacted.push(CompactedBlock { meta, compacted_unix_nano: *compacted_unix_nano });
                }
            }
            Change::Removed(id) => {
                list.take(*id);
            }
        }
        list.restore_invariants();
        list
    }

    /// Takes a block out of every part of the list.
    fn take(&mut self, id: BlockId) -> Option<Arc<BlockMeta>> {
        let found = self.known().find(|block| block.id == id).cloned();
        self.live.retain(|block| block.id != id);
        self.superseded.retain(|block| block.id != id);
        self.compacted.retain(|block| block.meta.id != id);
        self.unfinished.retain(|block| block.id != id);
        found
    }

    fn restore_invariants(&mut self) {
        // A replaced block counts too: what it replaced must not come back when only its successor was marked before a crash.
        let replaced: HashSet<BlockId> = self.known().flat_map(|block| block.replaces.iter().copied()).collect();
        let (superseded, live) = std::mem::take(&mut self.live).into_iter().partition(|block| replaced.contains(&block.id));
        self.live = live;
        self.superseded.extend::<Vec<_>>(superseded);
        self.live.sort_by(|a, b| b.max_end_unix_nano.cmp(&a.max_end_unix_nano).then(a.id.cmp(&b.id)));
        self.superseded.sort_by_key(|block| block.id);
        self.compacted.sort_by_key(|block| block.meta.id);
        self.unfinished.sort_by_key(|block| block.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::meta::tests::{block, id};

    fn ids<'a>(blocks: impl IntoIterator<Item = &'a Arc<BlockMeta>>) -> Vec<BlockId> {
        blocks.into_iter().map(|block| block.id).collect()
    }

    fn list(blocks: Vec<BlockMeta>) -> Blocklist {
        Blocklist::new(blocks.into_iter().map(Arc::new).collect(), vec![], vec![], vec![])
    }

    fn replacing(mut block: BlockMeta, replaced: &[u128]) -> BlockMeta {
        block.replaces = replaced.iter().map(|&number| id(number)).collect();
        block
    }

    #[test]
    fn overlapping_takes_both_ends_of_the_window() {
        let list = list(vec![block(1, 10, 20), block(2, 15, 40), block(3, 30, 40), block(4, 0, 100)]);
        let check = |window: Option<(u32, u32)>, expected: &[u128]| {
            let window = window.map(|(start_seconds, end_seconds)| Window { start_seconds, end_seconds });
            assert_eq!(ids(list.overlapping(window)), expected.iter().map(|&n| id(n)).collect::<Vec<_>>(), "{window:?}");
        };
        check(None, &[4, 2, 3, 1]);
        check(Some((20, 20)), &[4, 2, 1]);
        check(Some((21, 29)), &[4, 2]);
        check(Some((40, 50)), &[4, 2, 3]);
        check(Some((41, 50)), &[4]);
        check(Some((101, u32::MAX)), &[]);
    }

    #[test]
    fn the_last_second_of_a_window_is_whole() {
        let mut late = block(1, 10, 20);
        late.min_start_unix_nano = 10_999_999_999;
        let list = list(vec![late]);
        assert_eq!(list.overlapping(Some(Window { start_seconds: 1, end_seconds: 10 })).count(), 1);
    }

    #[test]
    fn a_replaced_block_is_not_live() {
        let before = list(vec![block(1, 0, 10), block(2, 0, 20), block(3, 0, 30)]);
        let after = before.with(&Change::Added(Arc::new(replacing(block(9, 0, 20), &[1, 2]))));
        assert_eq!((ids(after.live()), ids(after.superseded())), (vec![id(3), id(9)], vec![id(1), id(2)]));
        let marked = after.with(&Change::Compacted(id(1), 77));
        assert_eq!((ids(marked.superseded()), marked.compacted()[0].compacted_unix_nano), (vec![id(2)], 77));
        assert_eq!(marked.with(&Change::Added(Arc::new(block(1, 0, 10)))).live().len(), 2, "an old block does not come back");
        assert!(marked.with(&Change::Removed(id(1))).compacted().is_empty());
    }

    #[test]
    fn a_block_stays_replaced_when_its_successor_is_replaced() {
        let successor = CompactedBlock { meta: Arc::new(replacing(block(8, 0, 10), &[1])), compacted_unix_nano: 0 };
        let newest = Arc::new(replacing(block(9, 0, 10), &[8]));
        let list = Blocklist::new(vec![Arc::new(block(1, 0, 10)), newest], vec![], vec![successor], vec![]);
        assert_eq!((ids(list.live()), ids(list.superseded())), (vec![id(9)], vec![id(1)]));
    }

    #[test]
    fn a_change_twice_is_a_change_once() {
        let start = list(vec![block(1, 0, 10), block(2, 0, 10)]);
        for change in [
            Change::Added(Arc::new(replacing(block(9, 0, 20), &[1]))),
            Change::Compacted(id(1), 5),
            Change::Removed(id(2)),
            Change::Compacted(id(77), 5),
        ] {
            let once = start.with(&change);
            assert_eq!(once.with(&change), once);
        }
    }
}
