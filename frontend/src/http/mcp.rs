//! `/api/mcp`: the tools and documents of [`crate::mcp`] over MCP's streamable HTTP, query-api 10.1.

use axum::{
    body::Body,
    extract::{Request, State},
    http::{HeaderValue, header},
    response::Response,
};

use crate::mcp::McpService;

pub(super) async fn mcp(State(service): State<McpService>, mut request: Request) -> Response {
    // Every answer is one JSON body, so clients that would not take a stream are served as well.
    request.headers_mut().insert(header::ACCEPT, HeaderValue::from_static("application/json, text/event-stream"));
    service.handle(request).await.map(Body::new)
}
