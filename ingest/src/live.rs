//! Live spans of one tenant: the generation that takes spans, and those that are being written to blocks.
//!
//! A generation goes live → sealed → block. Its spans lie in log segments of its own: when it is sealed the log begins a new segment, so
//! that a segment's records of a tenant all belong to one generation, and the block's meta can say which segments it covers.

use std::{collections::VecDeque, sync::Arc};

use parking_lot::Mutex;
use skein_engine::{
    error::Result,
    exec::live::{GenerationSize, LiveGeneration},
    spans::{BlockId, builder::SpanBuilder, set::SpanSet},
};

use crate::payload::Payload;

/// Log segments, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct SegmentRange {
    pub first: u64,
    pub last: u64,
}

impl SegmentRange {
    fn including(range: Option<Self>, segment: u64) -> Self {
        match range {
            Some(range) => Self { first: range.first.min(segment), last: range.last.max(segment) },
            None => Self { first: segment, last: segment },
        }
    }
}

/// A generation that takes no more spans.
#[derive(Debug)]
pub struct SealedGeneration {
    /// The block it becomes.
    pub block: BlockId,
    /// Its spans.
    pub set: SpanSet,
    /// Where they lie in the log.
    pub segments: SegmentRange,
}

/// The generation that takes spans.
#[derive(Debug)]
struct Head {
    block: BlockId,
    builder: SpanBuilder,
    segments: Option<SegmentRange>,
    since_unix_nano: u64,
}

impl Head {
    fn new() -> Self {
        Self { block: BlockId::random(), builder: SpanBuilder::default(), segments: None, since_unix_nano: 0 }
    }
}

/// How much a head holds, and since when.
#[derive(Debug, Clone, Copy, Default)]
#[allow(missing_docs)]
pub struct HeadSize {
    pub spans: usize,
    pub traces: usize,
    pub wire_bytes: u64,
    pub since_unix_nano: u64,
}

/// Live spans of one tenant.
#[derive(Debug)]
pub struct TenantLive {
    /// Held for reading from before a request is logged until its spans are in the head, for writing while the head is sealed.
    /// Taken before `state`.
    pub gate: tokio::sync::RwLock<()>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    head: Head,
    sealed: VecDeque<Arc<SealedGeneration>>,
}

impl Default for TenantLive {
    fn default() -> Self {
        Self { gate: tokio::sync::RwLock::new(()), state: Mutex::new(State { head: Head::new(), sealed: VecDeque::new() }) }
    }
}

impl TenantLive {
    /// Adds the spans of a checked payload that lies in log segment `segment`. The caller holds the gate for reading.
    /// Errors: `Internal` when a request does not pass the check it passed before.
    pub fn add(&self, payload: &Payload, segment: u64, now_unix_nano: u64) -> Result<HeadSize> {
        let mut state = self.state.lock();
        let head = &mut state.head;
        if head.builder.is_empty() {
            head.since_unix_nano = now_unix_nano;
        }
        head.segments = Some(SegmentRange::including(head.segments, segment));
        payload.append_to(&mut head.builder)?;
        Ok(state.head_size())
    }

    /// How much the head holds.
    pub fn head_size(&self) -> HeadSize {
        self.state.lock().head_size()
    }

    /// Ends the head, None if it is empty. The caller holds the gate for writing and has begun a new log segment.
    pub fn seal(&self) -> Option<Arc<SealedGeneration>> {
        let mut state = self.state.lock();
        let segments = state.head.segments?;
        let mut head = std::mem::replace(&mut state.head, Head::new());
        let sealed = Arc::new(SealedGeneration { block: head.block, set: head.builder.snapshot(), segments });
        state.sealed.push_back(sealed.clone());
        Some(sealed)
    }

    /// Forgets a generation whose block is in the catalog.
    pub fn forget(&self, block: BlockId) {
        self.state.lock().sealed.retain(|generation| generation.block != block);
    }

    /// The blocks to be of the generations that are sealed.
    pub fn sealed_blocks(&self) -> Vec<BlockId> {
        self.state.lock().sealed.iter().map(|generation| generation.block).collect()
    }

    /// How many generations are sealed.
    pub fn sealed_len(&self) -> usize {
        self.state.lock().sealed.len()
    }

    /// How large the generations are; a head without spans is none.
    pub fn sizes(&self) -> Vec<GenerationSize> {
        let state = self.state.lock();
        let sealed = |generation: &Arc<SealedGeneration>| GenerationSize { block: generation.block, spans: generation.set.len(), is_sealed: true };
        let mut sizes: Vec<GenerationSize> = state.sealed.iter().map(sealed).collect();
        if !state.head.builder.is_empty() {
            sizes.push(GenerationSize { block: state.head.block, spans: state.head.builder.len(), is_sealed: false });
        }
        sizes
    }

    /// Everything live.
    pub fn snapshot(&self) -> Vec<LiveGeneration> {
        let mut state = self.state.lock();
        let mut generations: Vec<LiveGeneration> =
            state.sealed.iter().map(|generation| LiveGeneration { block: generation.block, set: generation.set.clone() }).collect();
        if !state.head.builder.is_empty() {
            generations.push(LiveGeneration { block: state.head.block, set: state.head.builder.snapshot() });
        }
        generations
    }
}

impl State {
    fn head_size(&self) -> HeadSize {
        let Head { builder, since_unix_nano, .. } = &self.head;
        HeadSize { spans: builder.len(), traces: builder.traces_len(), wire_bytes: builder.wire_bytes(), since_unix_nano: *since_unix_nano }
    }
}
