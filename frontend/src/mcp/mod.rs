//! What language models are offered at `/api/mcp`: tools that ask the query API, and documentation. Query-api 10.1.
//!
//! | module | owns |
//! |---|---|
//! | `tools` | the tools: names, arguments, the request that each becomes |
//! | `documents` | the documentation, as resources and behind two of the tools |
//!
//! A tool becomes a request to our own HTTP API with `Accept: application/vnd.grafana.llm` and the caller's tenants, so checks, limits, queue, time limit
//! and answers are those of HTTP. What goes wrong is a result with `isError`, whose text the model reads.
//!
//! There are no sessions: every POST is answered by itself, in one JSON body, so nothing is kept for clients and no stream is open when the
//! process ends. A client that leaves stops its query.

mod documents;
mod tools;

use std::{
    future::Future,
    sync::{Arc, LazyLock},
};

use axum::{
    Router,
    body::{Body, to_bytes},
    http::{Request, header, request::Parts},
};
use documents::DOCUMENTS;
use rmcp::{
    ErrorData, RoleServer, ServerHandler,
    model::{
        CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, Implementation, ListResourcesResult, ListToolsResult, MetaObject,
        PaginatedRequestParams, ReadResourceRequestParams, ReadResourceResponse, ReadResourceResult, Resource, ResourceContents, ServerCapabilities,
        ServerConfig, Tool,
    },
    service::RequestContext,
    transport::streamable_http_server::{StreamableHttpServerConfig, StreamableHttpService, session::never::NeverSessionManager},
};
use tools::{Call, ToolSpec};
use tower::ServiceExt;

use crate::{Frontend, http::LLM_ASKED, tenancy::TENANT_HEADER};

/// Longest request: a TraceQL text and some arguments.
const REQUEST_BYTES_MAX: usize = 1 << 20;

/// Name and version that clients of Tempo's server know.
const SERVER_NAME: &str = "tempo";
const SERVER_VERSION: &str = "0.1.0";

const INSTRUCTIONS: &str = "Traces of distributed systems, asked with TraceQL. Look up attribute names and values before writing a query, count with the \
                            metrics tools before listing with the search tool, and read the TraceQL documentation when a query is refused.";

/// The endpoint's service: MCP over HTTP without sessions.
pub(crate) type McpService = StreamableHttpService<McpServer, NeverSessionManager>;

/// The endpoint over the router of the query endpoints.
pub(crate) fn service(frontend: Arc<Frontend>, queries: Router) -> McpService {
    let config = StreamableHttpServerConfig::default()
        .with_legacy_session_mode(false)
        .with_json_response(true)
        .with_max_request_body_bytes(REQUEST_BYTES_MAX)
        // The port is reached under any name, as the rest of the API is.
        .disable_allowed_hosts();
    let server = McpServer { frontend, queries };
    StreamableHttpService::new(move || Ok(server.clone()), Arc::new(NeverSessionManager::default()), config)
}

/// Tools and documents over the query endpoints of one frontend.
#[derive(Clone)]
pub(crate) struct McpServer {
    frontend: Arc<Frontend>,
    queries: Router,
}

static TOOLS: LazyLock<Vec<Tool>> = LazyLock::new(|| tools::TOOLS.iter().map(ToolSpec::described).collect());

impl ServerHandler for McpServer {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().enable_resources().build())
            .with_server_info(Implementation::new(SERVER_NAME, SERVER_VERSION))
            .with_instructions(INSTRUCTIONS)
    }

    fn get_tool(&self, name: &str) -> Option<Tool> {
        TOOLS.iter().find(|tool| tool.name == name).cloned()
    }

    fn list_tools(
        &self,
        _request: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> impl Future<Output = Result<ListToolsResult, ErrorData>> + Send + '_ {
        std::future::ready(Ok(ListToolsResult::with_all_items(TOOLS.clone())))
    }

    async fn call_tool(&self, request: CallToolRequestParams, context: RequestContext<RoleServer>) -> Result<CallToolResponse, ErrorData> {
        let Some(tool) = tools::TOOLS.iter().find(|tool| tool.name == request.name) else {
            let known: Vec<&str> = tools::TOOLS.iter().map(|tool| tool.name).collect();
            return Err(ErrorData::invalid_params(format!("unknown tool '{}': the tools are {}", request.name, known.join(", ")), None));
        };
        self.frontend.metrics.mcp_calls.with_label_values(&[tool.name]).inc();
        let asked = tool.call(&request.arguments.unwrap_or_default(), self.frontend.clock.now_unix_nano());
        let answered = match asked {
            Err(problem) => Err(problem),
            Ok(Call::Document(text)) => Ok(text.to_owned()),
            Ok(Call::Request(request)) => tokio::select! {
                answered = self.ask(*request, context.extensions.get::<Parts>()) => answered,
                () = context.ct.cancelled() => Err("the client has left".to_owned()),
            },
        };
        Ok(match answered {
            Ok(text) => CallToolResult::success(vec![ContentBlock::text(text)]).with_meta(Some(MetaObject(tool.meta()))),
            Err(problem) => CallToolResult::error(vec![ContentBlock::text(problem)]),
        }
        .into())
    }

    fn list_resources(
        &self,
        _request: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> impl Future<Output = Result<ListResourcesResult, ErrorData>> + Send + '_ {
        let resource = |document: &documents::Document| {
            Resource::new(document.uri, document.title).with_description(document.description).with_mime_type(documents::MARKDOWN)
        };
        std::future::ready(Ok(ListResourcesResult::with_all_items(DOCUMENTS.iter().map(resource).collect())))
    }

    fn read_resource(
        &self,
        request: ReadResourceRequestParams,
        _context: RequestContext<RoleServer>,
    ) -> impl Future<Output = Result<ReadResourceResponse, ErrorData>> + Send + '_ {
        let found = DOCUMENTS.iter().find(|document| document.uri == request.uri);
        std::future::ready(match found {
            Some(document) => {
                let contents = ResourceContents::text(document.text, document.uri).with_mime_type(documents::MARKDOWN);
                Ok(ReadResourceResult::new(vec![contents]).into())
            }
            None => {
                let known: Vec<&str> = DOCUMENTS.iter().map(|document| document.uri).collect();
                let text = format!("unknown resource '{}': the resources are {}", request.uri, known.join(", "));
                Err(ErrorData::resource_not_found(text, None))
            }
        })
    }
}

impl McpServer {
    /// Asks the query API as the caller would. Errors: the text of the tool's failure.
    async fn ask(&self, mut request: Request<Body>, caller: Option<&Parts>) -> Result<String, String> {
        let prefix = self.frontend.http_api_prefix.as_str();
        if !prefix.is_empty() {
            *request.uri_mut() = format!("{prefix}{}", request.uri()).parse().map_err(|error| format!("the arguments are too long: {error}"))?;
        }
        let headers = request.headers_mut();
        headers.insert(header::ACCEPT, header::HeaderValue::from_static(LLM_ASKED));
        if let Some(tenant) = caller.and_then(|parts| parts.headers.get(TENANT_HEADER)) {
            headers.insert(TENANT_HEADER, tenant.clone());
        }
        let is_trace = request.uri().path().contains("/api/v2/traces/");
        let response = match self.queries.clone().oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        };
        let status = response.status();
        // Answers are whole in memory already.
        let body = to_bytes(response.into_body(), usize::MAX).await.map_err(|_| "the answer could not be read".to_owned())?;
        let text = String::from_utf8_lossy(&body).into_owned();
        if !status.is_success() {
            return Err(format!("tool failed with http status code {} and reason {text}", status.as_u16()));
        }
        if is_trace && text == "{}" {
            return Err("no such trace: check the trace_id, which a search shows as traceID, and the tenant".to_owned());
        }
        Ok(text)
    }
}
