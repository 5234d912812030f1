//! What processes ask each other about live spans: Arrow Flight `DoAction`, a protobuf message as body, a stream of messages as answer.
//!
//! | action | body | answer |
//! |---|---|---|
//! | [`LIVE`] | [`LiveRequest`] | [`LivePiece`]s: the generations and their trace ids |
//! | [`TRACES`] | [`TracesRequest`] | [`BlockPiece`]s: traces of one listed generation |
//! | [`TRACE`] | [`TraceRequest`] | [`BlockPiece`]s: one trace from all generations |
//! | [`TAG_NAMES`] | [`NamesRequest`] | [`NamesPiece`]s |
//! | [`TAG_VALUES`] | [`ValuesRequest`] | [`ValuesPiece`]s |
//!
//! Spans travel as the objects of a block (engine/FORMAT.md) without bloom filters. Ids travel one after another as in OTLP: trace ids 16
//! bytes each, block ids as well. No piece holds more than about [`PIECE_BYTES`].

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use skein_engine::{
    error::{Error, Result},
    query::{ScanStats, TagNames, TagNamesRequest, TagScope, TagValuesRequest, Window},
    spans::{BlockId, TraceId},
};
use skein_proto::tempo;

/// Lists live generations.
pub const LIVE: &str = "skein.live";
/// Fetches traces of a listed generation.
pub const TRACES: &str = "skein.traces";
/// Fetches one trace.
pub const TRACE: &str = "skein.trace";
/// Lists attribute names.
pub const TAG_NAMES: &str = "skein.tag_names";
/// Lists values of an attribute.
pub const TAG_VALUES: &str = "skein.tag_values";

/// Bytes of a piece, about: large enough that framing costs nothing, small enough that a message of it is never refused.
pub const PIECE_BYTES: usize = 1 << 20;
/// Largest message either side takes.
pub const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// Ids in one message.
pub const IDS_PER_MESSAGE: usize = PIECE_BYTES / ID_BYTES;

const ID_BYTES: usize = 16;

/// Asks for live generations.
#[derive(Clone, PartialEq, Message)]
pub struct LiveRequest {
    /// Whose.
    #[prost(string, tag = "1")]
    pub tenant: String,
}

/// Some trace ids of a generation; those of one generation follow one another, ascending. Or, last, blocks.
#[derive(Clone, PartialEq, Message)]
pub struct LivePiece {
    /// The block to be; empty in a piece about blocks.
    #[prost(bytes = "bytes", tag = "1")]
    pub block: Bytes,
    /// The generation's version.
    #[prost(uint64, tag = "2")]
    pub version: u64,
    /// All its spans.
    #[prost(uint64, tag = "3")]
    pub spans: u64,
    /// Trace ids.
    #[prost(bytes = "bytes", tag = "4")]
    pub trace_ids: Bytes,
    /// Ids of the newest blocks that the process knows.
    #[prost(bytes = "bytes", tag = "5")]
    pub recent_blocks: Bytes,
}

/// Asks for traces of a listed generation.
#[derive(Clone, PartialEq, Message)]
pub struct TracesRequest {
    /// Whose.
    #[prost(string, tag = "1")]
    pub tenant: String,
    /// The block to be.
    #[prost(bytes = "bytes", tag = "2")]
    pub block: Bytes,
    /// The version that was listed.
    #[prost(uint64, tag = "3")]
    pub version: u64,
    /// All of it, whatever `trace_ids` says.
    #[prost(bool, tag = "4")]
    pub all: bool,
    /// The traces wanted.
    #[prost(bytes = "bytes", tag = "5")]
    pub trace_ids: Bytes,
}

/// Asks for one trace.
#[derive(Clone, PartialEq, Message)]
pub struct TraceRequest {
    /// Whose.
    #[prost(string, tag = "1")]
    pub tenant: String,
    /// The trace.
    #[prost(bytes = "bytes", tag = "2")]
    pub trace_id: Bytes,
}

/// A part of a block: the header first, then the data file's bytes and the index's bytes in order. No pieces with a header: no spans.
#[derive(Clone, PartialEq, Message)]
pub struct BlockPiece {
    /// What follows.
    #[prost(message, optional, tag = "1")]
    pub header: Option<BlockHeader>,
    /// Next bytes of the data file.
    #[prost(bytes = "bytes", tag = "2")]
    pub data: Bytes,
    /// Next bytes of the index.
    #[prost(bytes = "bytes", tag = "3")]
    pub index: Bytes,
    /// As in [`LivePiece`]; only in answers to [`TRACE`].
    #[prost(bytes = "bytes", tag = "4")]
    pub recent_blocks: Bytes,
}

/// What is known of a block without its bytes.
#[derive(Clone, Copy, PartialEq, Message)]
#[allow(missing_docs)]
pub struct BlockHeader {
    #[prost(uint64, tag = "1")]
    pub data_bytes: u64,
    #[prost(uint64, tag = "2")]
    pub index_bytes: u64,
    #[prost(uint64, tag = "3")]
    pub footer_bytes: u64,
    #[prost(uint64, tag = "4")]
    pub spans: u64,
    #[prost(uint64, tag = "5")]
    pub traces: u64,
    #[prost(uint64, tag = "6")]
    pub row_groups: u64,
    #[prost(uint64, tag = "7")]
    pub start_unix_nano: u64,
    #[prost(uint64, tag = "8")]
    pub end_unix_nano: u64,
}

/// Asks for attribute names of live spans.
#[derive(Clone, PartialEq, Message)]
pub struct NamesRequest {
    /// Whose.
    #[prost(string, tag = "1")]
    pub tenant: String,
    /// One scope, by its place in [`SCOPES`].
    #[prost(uint32, optional, tag = "2")]
    pub scope: Option<u32>,
    /// A lenient TraceQL filter.
    #[prost(string, optional, tag = "3")]
    pub filter: Option<String>,
    /// Unix seconds.
    #[prost(message, optional, tag = "4")]
    pub window: Option<Seconds>,
}

/// Asks for the values of an attribute of live spans.
#[derive(Clone, PartialEq, Message)]
pub struct ValuesRequest {
    /// Whose.
    #[prost(string, tag = "1")]
    pub tenant: String,
    /// A TraceQL identifier.
    #[prost(string, tag = "2")]
    pub tag: String,
    /// A lenient TraceQL filter.
    #[prost(string, optional, tag = "3")]
    pub filter: Option<String>,
    /// Unix seconds.
    #[prost(message, optional, tag = "4")]
    pub window: Option<Seconds>,
}

/// First and last second of a window.
#[derive(Clone, Copy, PartialEq, Message)]
#[allow(missing_docs)]
pub struct Seconds {
    #[prost(uint32, tag = "1")]
    pub start: u32,
    #[prost(uint32, tag = "2")]
    pub end: u32,
}

/// Names of one scope.
#[derive(Clone, PartialEq, Message)]
pub struct NamesPiece {
    /// Its place in [`SCOPES`].
    #[prost(uint32, tag = "1")]
    pub scope: u32,
    /// Some of its names.
    #[prost(string, repeated, tag = "2")]
    pub names: Vec<String>,
    /// In the last piece, as in [`LivePiece`].
    #[prost(bytes = "bytes", tag = "3")]
    pub recent_blocks: Bytes,
    /// In the last piece.
    #[prost(message, optional, tag = "4")]
    pub looked_at: Option<LookedAt>,
}

/// Some values of an attribute.
#[derive(Clone, PartialEq, Message)]
pub struct ValuesPiece {
    /// The values.
    #[prost(message, repeated, tag = "1")]
    pub values: Vec<tempo::TagValue>,
    /// In the last piece, as in [`LivePiece`].
    #[prost(bytes = "bytes", tag = "2")]
    pub recent_blocks: Bytes,
    /// In the last piece.
    #[prost(message, optional, tag = "3")]
    pub looked_at: Option<LookedAt>,
}

/// What an answer from live spans cost; nothing is read from the store for it.
#[derive(Clone, Copy, PartialEq, Message)]
#[allow(missing_docs)]
pub struct LookedAt {
    #[prost(uint64, tag = "1")]
    pub traces: u64,
    #[prost(uint64, tag = "2")]
    pub spans: u64,
    #[prost(uint64, tag = "3")]
    pub row_groups: u64,
    #[prost(uint64, tag = "4")]
    pub row_groups_skipped: u64,
}

impl From<ScanStats> for LookedAt {
    fn from(stats: ScanStats) -> Self {
        Self { traces: stats.traces, spans: stats.spans, row_groups: stats.row_groups, row_groups_skipped: stats.row_groups_skipped }
    }
}

impl From<LookedAt> for ScanStats {
    fn from(cost: LookedAt) -> Self {
        let LookedAt { traces, spans, row_groups, row_groups_skipped } = cost;
        Self { traces, spans, row_groups, row_groups_skipped, ..Self::default() }
    }
}

impl From<Window> for Seconds {
    fn from(window: Window) -> Self {
        Self { start: window.start_seconds, end: window.end_seconds }
    }
}

impl From<Seconds> for Window {
    fn from(seconds: Seconds) -> Self {
        Self { start_seconds: seconds.start, end_seconds: seconds.end }
    }
}

/// Attribute scopes in the order of their numbers in messages.
pub const SCOPES: [TagScope; 5] = [TagScope::Resource, TagScope::Span, TagScope::Event, TagScope::Link, TagScope::Instrumentation];

/// The number of a scope.
pub fn scope_number(scope: TagScope) -> u32 {
    SCOPES.iter().position(|&other| other == scope).map_or(0, |at| at as u32)
}

/// The scope of a number. Errors: `Invalid`.
pub fn scope_of(number: u32) -> Result<TagScope> {
    SCOPES.get(number as usize).copied().ok_or_else(|| Error::invalid(format!("there is no attribute scope {number}")))
}

impl NamesRequest {
    /// The request as a message.
    pub fn new(tenant: &str, request: &TagNamesRequest) -> Self {
        let scope = request.scope.map(scope_number);
        Self { tenant: tenant.into(), scope, filter: request.filter.clone(), window: request.window.map(Into::into) }
    }

    /// The message as a request. Errors: `Invalid`.
    pub fn request(&self) -> Result<TagNamesRequest> {
        Ok(TagNamesRequest { scope: self.scope.map(scope_of).transpose()?, filter: self.filter.clone(), window: self.window.map(Into::into) })
    }
}

impl ValuesRequest {
    /// The request as a message.
    pub fn new(tenant: &str, request: &TagValuesRequest) -> Self {
        Self { tenant: tenant.into(), tag: request.tag.clone(), filter: request.filter.clone(), window: request.window.map(Into::into) }
    }

    /// The message as a request.
    pub fn request(&self) -> TagValuesRequest {
        TagValuesRequest { tag: self.tag.clone(), filter: self.filter.clone(), window: self.window.map(Into::into) }
    }
}

impl NamesPiece {
    /// Adds the piece to what came before it. Errors: `Invalid`.
    pub fn add_to(self, names: &mut TagNames) -> Result<()> {
        if !self.names.is_empty() {
            let scope = scope_of(self.scope)?;
            match names.scopes.iter_mut().find(|(other, _)| *other == scope) {
                Some((_, all)) => all.extend(self.names),
                None => names.scopes.push((scope, self.names)),
            }
        }
        names.stats = names.stats.plus(&self.looked_at.map(ScanStats::from).unwrap_or_default());
        Ok(())
    }
}

/// Trace ids, one after another.
pub fn trace_ids_to_bytes(ids: &[u128]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(ids.len() * ID_BYTES);
    ids.iter().for_each(|&id| bytes.put_u128(id));
    bytes.freeze()
}

/// Reads trace ids. Errors: `Invalid` for another length.
pub fn trace_ids_from_bytes(bytes: &[u8]) -> Result<Vec<u128>> {
    let (ids, rest) = bytes.as_chunks::<ID_BYTES>();
    if !rest.is_empty() {
        return Err(Error::invalid(format!("{} bytes are no list of trace ids", bytes.len())));
    }
    Ok(ids.iter().map(|id| u128::from_be_bytes(*id)).collect())
}

/// Block ids, one after another.
pub fn block_ids_to_bytes(ids: &[BlockId]) -> Bytes {
    let ids: Vec<u128> = ids.iter().map(|id| id.0.as_u128()).collect();
    trace_ids_to_bytes(&ids)
}

/// Reads block ids. Errors: `Invalid` for another length.
pub fn block_ids_from_bytes(bytes: &[u8]) -> Result<Vec<BlockId>> {
    Ok(trace_ids_from_bytes(bytes)?.into_iter().map(BlockId::from_u128).collect())
}

/// Reads the one block id of a message. Errors: `Invalid`.
pub fn block_id_from_bytes(bytes: &[u8]) -> Result<BlockId> {
    match block_ids_from_bytes(bytes)?.as_slice() {
        [only] => Ok(*only),
        ids => Err(Error::invalid(format!("a message names {} blocks, not one", ids.len()))),
    }
}

/// Reads the one trace id of a message. Errors: `Invalid`.
pub fn trace_id_from_bytes(bytes: &[u8]) -> Result<TraceId> {
    bytes.try_into().map(TraceId).map_err(|_| Error::invalid(format!("{} bytes are no trace id", bytes.len())))
}

/// Reads a message. Errors: `Invalid`.
pub fn decode<M: Message + Default>(bytes: Bytes) -> Result<M> {
    M::decode(bytes).map_err(|e| Error::invalid("reading a message between processes").with_source(e))
}

/// Items in groups of about [`PIECE_BYTES`] by `size`; none for no items.
pub fn pieces<T>(items: Vec<T>, size: impl Fn(&T) -> usize) -> Vec<Vec<T>> {
    let mut groups: Vec<Vec<T>> = Vec::new();
    let mut bytes = PIECE_BYTES;
    for item in items {
        if bytes >= PIECE_BYTES {
            groups.push(Vec::new());
            bytes = 0;
        }
        bytes += size(&item);
        if let Some(group) = groups.last_mut() {
            group.push(item);
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn ids_survive_and_damaged_ones_are_errors() {
        let ids = [0, 1, u128::MAX, 1 << 127];
        assert_eq!(trace_ids_from_bytes(&trace_ids_to_bytes(&ids)).unwrap(), ids);
        let block = BlockId::random();
        assert_eq!(block_id_from_bytes(&block_ids_to_bytes(&[block])).unwrap(), block);
        assert!(block_id_from_bytes(&block_ids_to_bytes(&[block, block])).is_err());
        assert!(block_id_from_bytes(&[]).is_err());
        assert!(trace_ids_from_bytes(&[0; 17]).is_err());
        assert!(trace_id_from_bytes(&[0; 15]).is_err());
        assert!(decode::<LiveRequest>(Bytes::from_static(&[0xff])).is_err());
    }

    #[test]
    fn requests_survive_the_message() {
        let window = Some(Window { start_seconds: 1, end_seconds: u32::MAX });
        for scope in [None, Some(TagScope::Link)] {
            let request = TagNamesRequest { scope, filter: Some("{ }".into()), window };
            let back = decode::<NamesRequest>(NamesRequest::new("t", &request).encode_to_vec().into()).unwrap().request().unwrap();
            assert_eq!((back.scope, back.filter, back.window), (request.scope, request.filter, request.window));
        }
        assert!(NamesRequest { scope: Some(5), ..NamesRequest::default() }.request().is_err());
        let request = TagValuesRequest { tag: "name".into(), filter: None, window: None };
        let back = decode::<ValuesRequest>(ValuesRequest::new("t", &request).encode_to_vec().into()).unwrap().request();
        assert_eq!((back.tag, back.filter, back.window), (request.tag, None, None));
    }

    #[test]
    fn pieces_have_a_bound_and_lose_nothing() {
        let items: Vec<usize> = (0..10).map(|_| PIECE_BYTES / 3).collect();
        let groups = pieces(items, |bytes| *bytes);
        assert_eq!(groups.iter().map(Vec::len).collect::<Vec<_>>(), [4, 4, 2]);
        assert!(pieces(Vec::<usize>::new(), |bytes| *bytes).is_empty());
        assert_eq!(pieces(vec![PIECE_BYTES * 9, 1], |bytes| *bytes).len(), 2);
    }
}
