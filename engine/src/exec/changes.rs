//! What a reader of changes has looked at: how many spans of each live generation, and which blocks it knew.
//!
//! Live spans keep the order in which they came, so a number says which of them are new. A block has another order: of a generation that became
//! a block before all of it was looked at, every trace is looked at again that has more spans than it had in the beginning.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use super::{
    live::{GenerationSize, LiveGeneration},
    memory::{Pool, Reservation},
};
use crate::{
    block::index::TraceIndex,
    catalog::{BlockMeta, TenantBlocks},
    error::Result,
    query::Window,
    spans::BlockId,
};

/// New spans that one portion has at most; whole traces may have more.
const PORTION_SPANS: usize = 65_536;

/// Live generations and blocks of a tenant, in this order: what is in neither is not there.
#[derive(Debug)]
pub struct Seen {
    /// Those that took no more spans when they were looked at.
    pub sealed: HashSet<BlockId>,
    /// The live spans.
    pub live: Vec<LiveGeneration>,
    /// The blocks.
    pub blocks: Arc<TenantBlocks>,
}

/// How far a live generation was looked at.
#[derive(Debug, Default)]
struct Mark {
    /// Spans looked at, in the order in which they came.
    looked_at: usize,
    /// These are all that it will ever have.
    is_whole: bool,
    /// Its traces when the reader began.
    before: Option<Arc<TraceIndex>>,
}

/// What was looked at.
#[derive(Debug)]
pub struct Marks {
    generations: HashMap<BlockId, Mark>,
    blocks: Arc<TenantBlocks>,
    backlog: Vec<Backlog>,
    portion_spans: usize,
}

/// A block with spans that were not looked at while they were live.
#[derive(Debug)]
pub struct Unread {
    /// The block, or the id of one that is not known any more.
    pub meta: Result<Arc<BlockMeta>, BlockId>,
    /// Traces that the reader had been past already: of these only the ones that have more spans in the block are wanted.
    pub before: Option<Arc<TraceIndex>>,
}

/// Traces to be looked at, which are found in blocks as well.
#[derive(Debug)]
pub struct Backlog {
    /// Ids, each once, and how many spans of each are known of.
    traces: Vec<(u128, usize)>,
    /// Where their spans are, in Unix nanoseconds.
    times: (u64, u64),
    /// Only those that overlap it are wanted.
    window: Option<Window>,
    _memory: Reservation,
}

impl Backlog {
    /// The `traces`, which may name one several times, whose spans lie within `times`. Errors: `Exhausted`.
    pub fn new(mut traces: Vec<(u128, usize)>, times: (u64, u64), window: Option<Window>, pool: &Pool) -> Result<Self> {
        let memory = Reservation::new("traces that a tail has yet to look at", pool);
        memory.grow(traces.len() * size_of::<(u128, usize)>())?;
        traces.sort_unstable();
        traces.dedup_by(|later, earlier| {
            let same = later.0 == earlier.0;
            earlier.1 += if same { later.1 } else { 0 };
            same
        });
        Ok(Self { traces, times, window, _memory: memory })
    }

    fn take(&mut self, portion_spans: usize) -> Portion {
        let (mut spans, mut from) = (0, self.traces.len());
        while from > 0 && spans < portion_spans {
            from -= 1;
            spans += self.traces[from].1;
        }
        let ids = self.traces.split_off(from).into_iter().map(|(id, _)| id).collect();
        Portion { ids, times: Some(self.times), window: self.window }
    }
}

/// Traces that are looked at together.
#[derive(Debug, Default)]
pub struct Portion {
    /// The traces.
    pub ids: HashSet<u128>,
    /// Where spans of them are in blocks, as far as that is known beside their live spans.
    pub times: Option<(u64, u64)>,
    /// Only those that overlap it are wanted.
    pub window: Option<Window>,
}

impl Marks {
    /// All of `seen` is looked at. `before` gives the traces of a generation.
    pub fn at(seen: &Seen, before: impl Fn(&LiveGeneration) -> Arc<TraceIndex>) -> Self {
        let mark =
            |live: &LiveGeneration| Mark { looked_at: live.set.len(), is_whole: seen.sealed.contains(&live.block), before: Some(before(live)) };
        let generations = seen.live.iter().map(|live| (live.block, mark(live))).collect();
        Self { generations, blocks: seen.blocks.clone(), backlog: Vec::new(), portion_spans: PORTION_SPANS }
    }

    /// Gives portions of `spans` new spans from now on.
    #[cfg(test)]
    pub(crate) fn in_portions_of(&mut self, spans: usize) {
        self.portion_spans = spans;
    }

    /// Adds traces to be looked at.
    pub fn add(&mut self, backlog: Backlog) {
        self.backlog.push(backlog);
    }

    /// Whether there is something to look at, now that live generations have these `sizes` and blocks this `version`.
    pub fn is_behind(&mut self, sizes: &[GenerationSize], version: u64) -> bool {
        for size in sizes {
            if let Some(mark) = self.generations.get_mut(&size.block) {
                mark.is_whole |= size.is_sealed && size.spans == mark.looked_at;
            }
        }
        let is_there = |block: &BlockId| sizes.iter().any(|size| size.block == *block);
        !self.backlog.is_empty()
            || self.blocks.version != version
            || sizes.iter().any(|size| self.generations.get(&size.block).is_none_or(|mark| mark.looked_at < size.spans))
            || self.generations.iter().any(|(block, mark)| !mark.is_whole && !is_there(block))
    }

    /// Whether the last portion left something of what was there.
    pub fn has_more(&self, seen: &Seen) -> bool {
        let looked_at = |live: &LiveGeneration| self.generations.get(&live.block).map_or(0, |mark| mark.looked_at);
        !self.backlog.is_empty() || seen.live.iter().any(|live| looked_at(live) < live.set.len())
    }

    /// Takes up what `seen` has; gives the blocks that have become of it unread.
    pub fn take_up(&mut self, seen: &Seen) -> Vec<Unread> {
        let mut unread: Vec<Unread> = self.new_blocks(seen).into_iter().map(|meta| Unread { meta: Ok(meta), before: None }).collect();
        let is_live = |block: &BlockId| seen.live.iter().any(|live| live.block == *block);
        for (block, mark) in self.generations.extract_if(|block, _| !is_live(block)).filter(|(_, mark)| !mark.is_whole) {
            let meta = seen.blocks.blocklist.known().find(|meta| meta.id == block).cloned();
            unread.push(Unread { meta: meta.ok_or(block), before: mark.before });
        }
        for live in &seen.live {
            self.generations.entry(live.block).or_default();
        }
        self.blocks = seen.blocks.clone();
        unread
    }

    /// Blocks that were not there and are no generation that is known, nor made of other blocks.
    fn new_blocks(&self, seen: &Seen) -> Vec<Arc<BlockMeta>> {
        if seen.blocks.version == self.blocks.version {
            return Vec::new();
        }
        let old: HashSet<BlockId> = self.blocks.blocklist.known().map(|meta| meta.id).collect();
        let is_live = |id: BlockId| self.generations.contains_key(&id) || seen.live.iter().any(|live| live.block == id);
        let is_new = |meta: &&Arc<BlockMeta>| !old.contains(&meta.id) && meta.replaces.is_empty() && !is_live(meta.id);
        seen.blocks.blocklist.known().filter(is_new).cloned().collect()
    }

    /// The next traces to look at, none when all is looked at: those known of, else those of new live spans.
    pub fn portion(&mut self, seen: &Seen) -> Portion {
        if let Some(first) = self.backlog.first_mut() {
            let portion = first.take(self.portion_spans);
            self.backlog.retain(|backlog| !backlog.traces.is_empty());
            return portion;
        }
        let (mut ids, mut room) = (HashSet::new(), self.portion_spans);
        for live in &seen.live {
            let mark = self.generations.entry(live.block).or_default();
            let until = live.set.len().min(mark.looked_at + room);
            room -= until - mark.looked_at;
            ids.extend(live.set.traces_of(mark.looked_at..until));
            mark.looked_at = until;
            mark.is_whole = until == live.set.len() && seen.sealed.contains(&live.block);
        }
        Portion { ids, ..Portion::default() }
    }
}
