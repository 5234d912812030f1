//! The pages of rings and of the scheduler. All parts share one process here, so each ring has one member, which is in memory.

use axum::{
    http::HeaderMap,
    response::{Html, IntoResponse, Response},
};

use super::format::{self, Format};

/// A page about a ring.
pub(super) struct RingPage {
    pub(super) path: &'static str,
    title: &'static str,
}

pub(super) const PAGES: [RingPage; 9] = [
    RingPage { path: "/distributor/ring", title: "Distributor ring" },
    RingPage { path: "/ingester/ring", title: "Ingester ring" },
    RingPage { path: "/metrics-generator/ring", title: "Metrics generator ring" },
    RingPage { path: "/compactor/ring", title: "Compactor ring" },
    RingPage { path: "/live-store/ring", title: "Live store ring" },
    RingPage { path: "/backend-worker/ring", title: "Backend worker ring" },
    RingPage { path: "/partition-ring", title: "Partition ring" },
    RingPage { path: "/partition/ring", title: "Partition ring" },
    RingPage { path: "/memberlist", title: "Memberlist" },
];

pub(super) async fn page(page: &'static RingPage, headers: HeaderMap) -> Response {
    let wants_json = headers.get("accept").and_then(|accept| accept.to_str().ok()).is_some_and(|accept| accept.contains(format::JSON));
    if wants_json && Format::of(&headers) == Format::Json {
        return format::body(format::JSON, r#"{"shards":[{"id":"local","state":"ACTIVE","address":"in-memory"}]}"#);
    }
    let title = page.title;
    Html(format!("<!DOCTYPE html><title>{title}</title><h1>{title}</h1><p>There is one in-memory instance: this process. State: ACTIVE.</p>\n"))
        .into_response()
}

pub(super) async fn scheduler() -> &'static str {
    "Compaction runs inside this process, for the one in-memory instance. There is no job table.\n"
}
