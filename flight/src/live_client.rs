//! Asks the workers about their live spans, all at the same time. An answer is complete or an error that names the worker.

use std::sync::Arc;

use arrow_flight::{Action, flight_service_client::FlightServiceClient};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::future::try_join_all;
use object_store::memory::InMemory;
use prost::Message;
use skein_engine::{
    block::{put::put_block, reader::BlockReader, writer::BlockObjects},
    error::{Error, ErrorKind, Result},
    exec::{
        live::{ListedGeneration, LiveListing, LiveTrace, RemoteLive},
        memory::{Pool, Reservation},
        source::SourceRef,
        sources::LiveAt,
    },
    query::{ScanStats, TagNames, TagNamesRequest, TagValues, TagValuesRequest},
    spans::{BlockId, TraceId},
    tenant::TenantId,
};
use tonic::{Status, Streaming};

use crate::{
    peers::{Peers, Workers, worker_names, worker_url},
    status::from_status,
    ticket::{
        BlockHeader, BlockPiece, IDS_PER_MESSAGE, LIVE, LivePiece, LiveRequest, MESSAGE_BYTES_MAX, NamesPiece, NamesRequest, TAG_NAMES, TAG_VALUES,
        TRACE, TRACES, TraceRequest, TracesRequest, ValuesPiece, ValuesRequest, block_id_from_bytes, block_ids_from_bytes, block_ids_to_bytes,
        decode, trace_ids_from_bytes, trace_ids_to_bytes,
    },
};

/// The largest block that one answer may be. More than a whole generation takes; a damaged length must not allocate more.
const BLOCK_BYTES_MAX: u64 = 4 << 30;

/// Live spans of the workers of a cluster.
#[derive(Debug, Clone)]
pub struct LiveClient {
    workers: Arc<dyn Workers>,
    peers: Peers,
    pool: Pool,
}

impl LiveClient {
    /// A client of `workers` over the connections of `peers`. Spans that it fetches take memory of `pool`.
    pub fn new(workers: Arc<dyn Workers>, peers: Peers, pool: Pool) -> Self {
        Self { workers, peers, pool }
    }

    async fn ask(&self, worker: &str, action: &str, body: impl Message) -> Result<Pieces> {
        let channel = self.peers.channel(&worker_url(worker)?)?;
        let mut client = FlightServiceClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX);
        let action = Action { r#type: action.into(), body: body.encode_to_vec().into() };
        let answer = client.do_action(action).await.map_err(|status| peer_error(worker, &status))?;
        Ok(Pieces { worker: worker.into(), stream: answer.into_inner() })
    }

    /// Runs `ask` for every worker.
    async fn all<T, F: Future<Output = Result<T>>>(&self, ask: impl Fn(Arc<str>) -> F) -> Result<Vec<T>> {
        try_join_all(worker_names(&*self.workers)?.into_iter().map(ask)).await
    }

    async fn list_one(&self, worker: Arc<str>, tenant: &TenantId) -> Result<LiveListing> {
        let mut pieces = self.ask(&worker, LIVE, LiveRequest { tenant: tenant.to_string() }).await?;
        let mut listing = LiveListing::default();
        while let Some(piece) = pieces.next::<LivePiece>().await? {
            add_piece(&mut listing, piece, &worker).map_err(|e| e.context(format_args!("worker {worker}")))?;
        }
        Ok(listing)
    }

    async fn fetch(&self, worker: &str, tenant: &TenantId, request: TracesRequest) -> Result<Option<SourceRef>> {
        let pieces = self.ask(worker, TRACES, request).await?;
        read_block(pieces, tenant, &self.pool).await.map(|(source, _)| source)
    }
}

/// An error of a worker: of its kind when the worker sent it, else the connection failed.
fn peer_error(worker: &str, status: &Status) -> Error {
    let error = from_status(status);
    let kind = if status.details().is_empty() { ErrorKind::Unavailable } else { error.kind() };
    Error::new(kind, error.message()).context(format_args!("worker {worker}"))
}

/// Messages of an answer.
struct Pieces {
    worker: Arc<str>,
    stream: Streaming<arrow_flight::Result>,
}

impl Pieces {
    async fn next<M: Message + Default>(&mut self) -> Result<Option<M>> {
        let piece = self.stream.message().await.map_err(|status| peer_error(&self.worker, &status))?;
        piece.map(|piece| decode(piece.body)).transpose().map_err(|e| e.context(format_args!("worker {}", self.worker)))
    }

    fn damaged(&self, what: &str) -> Error {
        Error::internal(format!("worker {}: {what}", self.worker))
    }
}

fn add_piece(listing: &mut LiveListing, piece: LivePiece, worker: &Arc<str>) -> Result<()> {
    listing.recent_blocks.extend(block_ids_from_bytes(&piece.recent_blocks)?);
    if piece.block.is_empty() {
        return Ok(());
    }
    let (block, ids) = (block_id_from_bytes(&piece.block)?, trace_ids_from_bytes(&piece.trace_ids)?);
    match listing.generations.last_mut().filter(|last| last.block == block && last.at.version == piece.version) {
        Some(last) => Arc::make_mut(&mut last.trace_ids).extend(ids),
        None => {
            let at = LiveAt { worker: worker.clone(), version: piece.version };
            listing.generations.push(ListedGeneration { block, at, trace_ids: Arc::new(ids), spans: piece.spans });
        }
    }
    match listing.generations.last() {
        Some(last) if !last.trace_ids.is_sorted_by(|a, b| a < b) => Err(Error::internal("listed trace ids do not ascend")),
        _ => Ok(()),
    }
}

/// Puts a block together and opens it. None when there are no spans. Errors: `Exhausted` before a piece is taken that there is
/// no memory for.
async fn read_block(mut pieces: Pieces, tenant: &TenantId, pool: &Pool) -> Result<(Option<SourceRef>, Vec<BlockId>)> {
    let Some(first) = pieces.next::<BlockPiece>().await? else { return Err(pieces.damaged("an answer without a beginning")) };
    let recent_blocks = block_ids_from_bytes(&first.recent_blocks)?;
    let Some(header) = first.header else { return Ok((None, recent_blocks)) };
    if header.data_bytes.saturating_add(header.index_bytes) > BLOCK_BYTES_MAX {
        return Err(pieces.damaged("a block is too large"));
    }
    let memory = Reservation::new("live spans of another process", pool);
    memory.grow(usize::try_from(header.data_bytes + header.index_bytes).unwrap_or(usize::MAX))?;
    let (mut data, mut index) = (BytesMut::new(), BytesMut::new());
    while let Some(piece) = pieces.next::<BlockPiece>().await? {
        data.extend_from_slice(&piece.data);
        index.extend_from_slice(&piece.index);
        if data.len() as u64 > header.data_bytes || index.len() as u64 > header.index_bytes {
            return Err(pieces.damaged("a block is larger than announced"));
        }
    }
    if data.len() as u64 != header.data_bytes || index.len() as u64 != header.index_bytes {
        return Err(pieces.damaged("a block is smaller than announced"));
    }
    let source = open(header, data.freeze(), index.freeze(), tenant, memory).await?;
    Ok((Some(source), recent_blocks))
}

/// Opens a block that lies in `memory`.
async fn open(header: BlockHeader, data: Bytes, index: Bytes, tenant: &TenantId, memory: Reservation) -> Result<SourceRef> {
    let objects = BlockObjects {
        data,
        index,
        blooms: Vec::new(),
        spans: header.spans as usize,
        traces: header.traces as usize,
        row_groups: header.row_groups as usize,
        footer_bytes: header.footer_bytes as usize,
        start_unix_nano: header.start_unix_nano,
        end_unix_nano: header.end_unix_nano,
    };
    let store = Arc::new(InMemory::new());
    let meta = put_block(&*store, tenant, BlockId::random(), objects).await?;
    Ok(Arc::new(BlockReader::open(store, Arc::new(meta)).await?.holding(memory)))
}

#[async_trait]
impl RemoteLive for LiveClient {
    async fn list(&self, tenant: &TenantId) -> Result<LiveListing> {
        let mut all = LiveListing::default();
        for listing in self.all(|worker| self.list_one(worker, tenant)).await? {
            all.generations.extend(listing.generations);
            all.recent_blocks.extend(listing.recent_blocks);
        }
        Ok(all)
    }

    async fn traces(&self, tenant: &TenantId, block: BlockId, at: &LiveAt, ids: Option<&[u128]>) -> Result<Vec<SourceRef>> {
        let request = |trace_ids| TracesRequest {
            tenant: tenant.to_string(),
            block: block_ids_to_bytes(&[block]),
            version: at.version,
            all: ids.is_none(),
            trace_ids,
        };
        let Some(ids) = ids else { return Ok(self.fetch(&at.worker, tenant, request(Bytes::new())).await?.into_iter().collect()) };
        let mut sources = Vec::new();
        for ids in ids.chunks(IDS_PER_MESSAGE) {
            sources.extend(self.fetch(&at.worker, tenant, request(trace_ids_to_bytes(ids))).await?);
        }
        Ok(sources)
    }

    async fn trace(&self, tenant: &TenantId, id: TraceId) -> Result<LiveTrace> {
        let request = TraceRequest { tenant: tenant.to_string(), trace_id: Bytes::copy_from_slice(&id.0) };
        let answers = self
            .all(|worker| {
                let request = request.clone();
                async move { read_block(self.ask(&worker, TRACE, request).await?, tenant, &self.pool).await }
            })
            .await?;
        let mut trace = LiveTrace::default();
        for (source, recent_blocks) in answers {
            trace.sources.extend(source);
            trace.recent_blocks.extend(recent_blocks);
        }
        Ok(trace)
    }

    async fn tag_names(&self, tenant: &TenantId, request: &TagNamesRequest) -> Result<(Vec<TagNames>, Vec<BlockId>)> {
        let request = NamesRequest::new(tenant.as_str(), request);
        let answers = self
            .all(|worker| {
                let request = request.clone();
                async move {
                    let mut pieces = self.ask(&worker, TAG_NAMES, request).await?;
                    let (mut names, mut recent_blocks) = (TagNames::default(), Vec::new());
                    while let Some(piece) = pieces.next::<NamesPiece>().await? {
                        recent_blocks.extend(block_ids_from_bytes(&piece.recent_blocks)?);
                        piece.add_to(&mut names)?;
                    }
                    Ok((names, recent_blocks))
                }
            })
            .await?;
        Ok(apart(answers))
    }

    async fn tag_values(&self, tenant: &TenantId, request: &TagValuesRequest) -> Result<(Vec<TagValues>, Vec<BlockId>)> {
        let request = ValuesRequest::new(tenant.as_str(), request);
        let answers = self
            .all(|worker| {
                let request = request.clone();
                async move {
                    let mut pieces = self.ask(&worker, TAG_VALUES, request).await?;
                    let (mut values, mut recent_blocks) = (TagValues::default(), Vec::new());
                    while let Some(piece) = pieces.next::<ValuesPiece>().await? {
                        recent_blocks.extend(block_ids_from_bytes(&piece.recent_blocks)?);
                        values.values.extend(piece.values);
                        values.stats = values.stats.plus(&piece.looked_at.map(ScanStats::from).unwrap_or_default());
                    }
                    Ok((values, recent_blocks))
                }
            })
            .await?;
        Ok(apart(answers))
    }
}

/// The answers, and the blocks that came with them.
fn apart<T>(answers: Vec<(T, Vec<BlockId>)>) -> (Vec<T>, Vec<BlockId>) {
    let (answers, blocks): (Vec<T>, Vec<Vec<BlockId>>) = answers.into_iter().unzip();
    (answers, blocks.concat())
}
