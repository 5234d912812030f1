//! The service graph: calls between services, paired from the two spans that a call leaves.

use skein_engine::spans::{SpanId, TraceId};

/// Counter: completed edges.
pub const REQUEST_TOTAL: &str = "traces_service_graph_request_total";
/// Counter: edges where either side failed.
pub const REQUEST_FAILED_TOTAL: &str = "traces_service_graph_request_failed_total";
/// Histogram: duration as the server saw it, seconds.
pub const REQUEST_SERVER_SECONDS: &str = "traces_service_graph_request_server_seconds";
/// Histogram: duration as the client saw it, seconds.
pub const REQUEST_CLIENT_SECONDS: &str = "traces_service_graph_request_client_seconds";
/// Histogram: time between the end of sending and the start of receiving, seconds.
pub const REQUEST_MESSAGING_SYSTEM_SECONDS: &str = "traces_service_graph_request_messaging_system_seconds";

/// Which half of a call a span is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// Kind client or producer.
    Client,
    /// Kind server or consumer.
    Server,
}

/// Under what the two halves of a call meet: the trace, and the span id of the calling span.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EdgeKey {
    /// The trace.
    pub trace_id: TraceId,
    /// The calling span.
    pub caller: SpanId,
}

/// The half that a span is and where it waits; None for kinds that call nobody.
pub fn edge_of_span(trace_id: TraceId, span_id: SpanId, parent_span_id: SpanId, kind: i32) -> Option<(Side, EdgeKey)> {
    match kind {
        3 | 4 => Some((Side::Client, EdgeKey { trace_id, caller: span_id })),
        2 | 5 => Some((Side::Server, EdgeKey { trace_id, caller: parent_span_id })),
        _ => None,
    }
}

/// The value of `connection_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ConnectionType {
    /// A plain call.
    Direct,
    /// Through a queue.
    MessagingSystem,
    /// To a database, which leaves no span.
    Database,
    /// One side was not traced.
    VirtualNode,
}

impl ConnectionType {
    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Direct => "",
            Self::MessagingSystem => "messaging_system",
            Self::Database => "database",
            Self::VirtualNode => "virtual_node",
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn both_halves_of_a_call_meet() {
        let trace = TraceId([1; 16]);
        let (client, server, root) = (SpanId([2; 8]), SpanId([3; 8]), SpanId([9; 8]));
        let sent = edge_of_span(trace, client, root, 3).unwrap();
        let received = edge_of_span(trace, server, client, 2).unwrap();
        assert_eq!(sent.1, received.1);
        assert_eq!((sent.0, received.0), (Side::Client, Side::Server));
        assert_ne!(sent.1, edge_of_span(TraceId([4; 16]), client, root, 4).unwrap().1);
    }

    #[test]
    fn other_kinds_are_no_calls() {
        for kind in [0, 1, 6, -1] {
            assert_eq!(edge_of_span(TraceId([1; 16]), SpanId([2; 8]), SpanId([3; 8]), kind), None);
        }
    }
}
