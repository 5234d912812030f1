//! Answers other processes' questions about the live spans of this one. The actions are those of [`ticket`](crate::ticket).

use std::sync::Arc;

use arrow_flight::{
    Action, ActionType, Criteria, Empty, FlightData, FlightDescriptor, FlightInfo, HandshakeRequest, HandshakeResponse, PollInfo, PutResult,
    SchemaResult, Ticket,
    flight_service_server::{FlightService, FlightServiceServer},
};
use bytes::Bytes;
use futures::{StreamExt, stream, stream::BoxStream};
use prost::Message;
use skein_engine::{
    block::writer::BlockObjects,
    error::Result,
    exec::{engine::Engine, source::SpanSource},
    spans::BlockId,
    tenant::TenantId,
};
use tonic::{Request, Response, Status, Streaming};

use crate::{
    metrics::WorkerMetrics,
    status::to_status,
    ticket::{
        BlockHeader, BlockPiece, IDS_PER_MESSAGE, LIVE, LivePiece, LiveRequest, LookedAt, MESSAGE_BYTES_MAX, NamesPiece, NamesRequest, PIECE_BYTES,
        TAG_NAMES, TAG_VALUES, TRACE, TRACES, TraceRequest, TracesRequest, ValuesPiece, ValuesRequest, block_id_from_bytes, block_ids_to_bytes,
        decode, pieces, scope_number, trace_id_from_bytes, trace_ids_from_bytes, trace_ids_to_bytes,
    },
};

/// Messages of an answer, made when they are sent.
type Pieces = Box<dyn Iterator<Item = Bytes> + Send>;
type StatusResult<T> = std::result::Result<T, Status>;
type Answer<T> = BoxStream<'static, StatusResult<T>>;

/// The service over one engine.
pub struct LiveService {
    engine: Arc<Engine>,
    metrics: WorkerMetrics,
}

impl LiveService {
    /// The service as tonic serves it.
    pub fn server(engine: Arc<Engine>, metrics: WorkerMetrics) -> FlightServiceServer<Self> {
        FlightServiceServer::new(Self { engine, metrics }).max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    async fn answer(&self, action: Action) -> StatusResult<Pieces> {
        let (name, answer) = match action.r#type.as_str() {
            LIVE => (LIVE, async { self.live(decode(action.body)?) }.await),
            TRACES => (TRACES, async { self.traces(decode(action.body)?).await }.await),
            TRACE => (TRACE, async { self.trace(decode(action.body)?).await }.await),
            TAG_NAMES => (TAG_NAMES, async { self.tag_names(decode(action.body)?).await }.await),
            TAG_VALUES => (TAG_VALUES, async { self.tag_values(decode(action.body)?).await }.await),
            other => return Err(Status::unimplemented(format!("there is no action '{other}'"))),
        };
        self.metrics.answered(name, answer.is_err());
        answer.map_err(|error| to_status(&error))
    }

    fn live(&self, request: LiveRequest) -> Result<Pieces> {
        let listing = self.engine.list_live(&TenantId::parse(&request.tenant)?);
        let last = LivePiece { recent_blocks: block_ids_to_bytes(&listing.recent_blocks), ..LivePiece::default() };
        let generations = listing.generations.into_iter().flat_map(|(block, version, source)| {
            let spans = source.spans().order.rows.len() as u64;
            let count = source.traces().ids().len();
            (0..count).step_by(IDS_PER_MESSAGE).map(move |from| {
                let ids = &source.traces().ids()[from..count.min(from + IDS_PER_MESSAGE)];
                let block = block_ids_to_bytes(&[block]);
                LivePiece { block, version, spans, trace_ids: trace_ids_to_bytes(ids), recent_blocks: Bytes::new() }
            })
        });
        Ok(encoded(generations.chain([last])))
    }

    async fn traces(&self, request: TracesRequest) -> Result<Pieces> {
        let ids = if request.all { None } else { Some(trace_ids_from_bytes(&request.trace_ids)?) };
        let (tenant, block) = (TenantId::parse(&request.tenant)?, block_id_from_bytes(&request.block)?);
        let objects = self.engine.live_traces(&tenant, block, request.version, ids.as_deref()).await?;
        Ok(encoded(block_pieces(objects, &[])))
    }

    async fn trace(&self, request: TraceRequest) -> Result<Pieces> {
        let (tenant, id) = (TenantId::parse(&request.tenant)?, trace_id_from_bytes(&request.trace_id)?);
        let (objects, recent_blocks) = self.engine.live_trace(&tenant, id).await?;
        Ok(encoded(block_pieces(objects, &recent_blocks)))
    }

    async fn tag_names(&self, request: NamesRequest) -> Result<Pieces> {
        let (names, recent_blocks) = self.engine.live_tag_names(&TenantId::parse(&request.tenant)?, &request.request()?).await?;
        let last =
            NamesPiece { recent_blocks: block_ids_to_bytes(&recent_blocks), looked_at: Some(LookedAt::from(names.stats)), ..NamesPiece::default() };
        let scopes = names.scopes.into_iter().flat_map(|(scope, names)| {
            pieces(names, String::len).into_iter().map(move |names| NamesPiece { scope: scope_number(scope), names, ..NamesPiece::default() })
        });
        Ok(encoded(scopes.chain([last])))
    }

    async fn tag_values(&self, request: ValuesRequest) -> Result<Pieces> {
        let (values, recent_blocks) = self.engine.live_tag_values(&TenantId::parse(&request.tenant)?, &request.request()).await?;
        let last = ValuesPiece {
            recent_blocks: block_ids_to_bytes(&recent_blocks),
            looked_at: Some(LookedAt::from(values.stats)),
            ..ValuesPiece::default()
        };
        let groups = pieces(values.values, |value| value.value.len() + value.r#type.len());
        Ok(encoded(groups.into_iter().map(|values| ValuesPiece { values, ..ValuesPiece::default() }).chain([last])))
    }
}

fn encoded<M: Message>(messages: impl Iterator<Item = M> + Send + 'static) -> Pieces {
    Box::new(messages.map(|message| message.encode_to_vec().into()))
}

/// A block in pieces; the first one names the recent blocks.
fn block_pieces(objects: Option<BlockObjects>, recent_blocks: &[BlockId]) -> impl Iterator<Item = BlockPiece> + Send + use<> {
    let header = objects.as_ref().map(|objects| BlockHeader {
        data_bytes: objects.data.len() as u64,
        index_bytes: objects.index.len() as u64,
        footer_bytes: objects.footer_bytes as u64,
        spans: objects.spans as u64,
        traces: objects.traces as u64,
        row_groups: objects.row_groups as u64,
        start_unix_nano: objects.start_unix_nano,
        end_unix_nano: objects.end_unix_nano,
    });
    let first = BlockPiece { header, recent_blocks: block_ids_to_bytes(recent_blocks), ..BlockPiece::default() };
    let (data, index) = objects.map(|objects| (objects.data, objects.index)).unwrap_or_default();
    let data = slices(data).map(|data| BlockPiece { data, ..BlockPiece::default() });
    let index = slices(index).map(|index| BlockPiece { index, ..BlockPiece::default() });
    std::iter::once(first).chain(data).chain(index)
}

fn slices(bytes: Bytes) -> impl Iterator<Item = Bytes> + Send {
    (0..bytes.len()).step_by(PIECE_BYTES).map(move |from| bytes.slice(from..bytes.len().min(from + PIECE_BYTES)))
}

fn not_offered<T>(what: &str) -> StatusResult<T> {
    Err(Status::unimplemented(format!("{what} is not offered; live spans are asked for by actions")))
}

#[tonic::async_trait]
impl FlightService for LiveService {
    type HandshakeStream = Answer<HandshakeResponse>;
    type ListFlightsStream = Answer<FlightInfo>;
    type DoGetStream = Answer<FlightData>;
    type DoPutStream = Answer<PutResult>;
    type DoExchangeStream = Answer<FlightData>;
    type DoActionStream = Answer<arrow_flight::Result>;
    type ListActionsStream = Answer<ActionType>;

    async fn do_action(&self, request: Request<Action>) -> StatusResult<Response<Self::DoActionStream>> {
        let pieces = self.answer(request.into_inner()).await?;
        let metrics = self.metrics.clone();
        let pieces = pieces.map(move |body| {
            metrics.sent(body.len());
            Ok(arrow_flight::Result { body })
        });
        Ok(Response::new(stream::iter(pieces).boxed()))
    }

    async fn list_actions(&self, _: Request<Empty>) -> StatusResult<Response<Self::ListActionsStream>> {
        let action = |name: &str| Ok(ActionType { r#type: name.into(), description: "live spans of this process".into() });
        Ok(Response::new(stream::iter([LIVE, TRACES, TRACE, TAG_NAMES, TAG_VALUES].map(action)).boxed()))
    }

    async fn handshake(&self, _: Request<Streaming<HandshakeRequest>>) -> StatusResult<Response<Self::HandshakeStream>> {
        not_offered("a handshake")
    }

    async fn list_flights(&self, _: Request<Criteria>) -> StatusResult<Response<Self::ListFlightsStream>> {
        not_offered("a list of flights")
    }

    async fn get_flight_info(&self, _: Request<FlightDescriptor>) -> StatusResult<Response<FlightInfo>> {
        not_offered("a flight")
    }

    async fn poll_flight_info(&self, _: Request<FlightDescriptor>) -> StatusResult<Response<PollInfo>> {
        not_offered("a flight")
    }

    async fn get_schema(&self, _: Request<FlightDescriptor>) -> StatusResult<Response<SchemaResult>> {
        not_offered("a schema")
    }

    async fn do_get(&self, _: Request<Ticket>) -> StatusResult<Response<Self::DoGetStream>> {
        not_offered("getting")
    }

    async fn do_put(&self, _: Request<Streaming<FlightData>>) -> StatusResult<Response<Self::DoPutStream>> {
        not_offered("putting")
    }

    async fn do_exchange(&self, _: Request<Streaming<FlightData>>) -> StatusResult<Response<Self::DoExchangeStream>> {
        not_offered("an exchange")
    }
}
