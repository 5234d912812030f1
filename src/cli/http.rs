//! A client of the query API, for the subcommands that ask.

use std::time::Duration;

use bytes::Bytes;
use skein_engine::error::{Error, ErrorKind, Result};

/// Longest that an answer may take to begin.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// An HTTP client without proxies, for plain HTTP.
pub fn client() -> Result<reqwest::Client> {
    let builder = reqwest::Client::builder().no_proxy().connect_timeout(CONNECT_TIMEOUT);
    builder.build().map_err(|error| Error::internal("making the HTTP client").with_source(error))
}

/// One server's query API.
#[derive(Clone)]
pub struct Api {
    client: reqwest::Client,
    url: String,
    tenant: Option<String>,
}

impl Api {
    /// The API at `url`, such as `http://127.0.0.1:3200`, with its path prefix if it has one.
    pub fn new(url: &str, tenant: Option<String>) -> Result<Self> {
        let url = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
        if !url.starts_with("http://") {
            return Err(Error::invalid(format!("{url}: TLS is not spoken; use http://")));
        }
        Ok(Self { client: client()?, url: url.trim_end_matches('/').to_owned(), tenant })
    }

    /// Gets a path. Errors: the server's text for anything but a success, by kind.
    pub async fn get(&self, path: &str, parameters: &[(&str, String)], accept: &str) -> Result<Bytes> {
        self.request(reqwest::Method::GET, path, parameters, accept).await
    }

    /// Posts nothing to a path.
    pub async fn post(&self, path: &str) -> Result<Bytes> {
        self.request(reqwest::Method::POST, path, &[], "*/*").await
    }

    /// Posts JSON to a path. Errors: as [`get`](Self::get).
    pub async fn post_json(&self, path: &str, body: &serde_json::Value, accept: &str) -> Result<Answer> {
        let request = self.client.post(format!("{}{path}", self.url)).header("Accept", accept).header("Content-Type", "application/json");
        self.send(request.body(body.to_string())).await
    }

    async fn request(&self, method: reqwest::Method, path: &str, parameters: &[(&str, String)], accept: &str) -> Result<Bytes> {
        let request = self.client.request(method, format!("{}{path}", self.url)).header("Accept", accept).query(parameters);
        self.send(request).await?.whole().await
    }

    async fn send(&self, mut request: reqwest::RequestBuilder) -> Result<Answer> {
        if let Some(tenant) = &self.tenant {
            request = request.header("X-Scope-OrgID", tenant);
        }
        let away = |error: reqwest::Error| Error::unavailable(format!("asking {}", self.url)).with_source(error);
        let response = request.send().await.map_err(away)?;
        let status = response.status();
        if status.is_success() {
            return Ok(Answer { response, url: self.url.clone() });
        }
        let body = response.bytes().await.map_err(away)?;
        let kind = match status.as_u16() {
            404 => ErrorKind::NotFound,
            429 => ErrorKind::Exhausted,
            500.. => ErrorKind::Unavailable,
            _ => ErrorKind::Invalid,
        };
        Err(Error::new(kind, format!("{status}: {}", String::from_utf8_lossy(&body).trim())))
    }
}

/// An answer that comes piece by piece.
pub struct Answer {
    response: reqwest::Response,
    url: String,
}

impl Answer {
    /// The next piece; None at the end. Errors: `Unavailable` when the answer breaks off.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        self.response.chunk().await.map_err(|error| Error::unavailable(format!("the answer of {} broke off", self.url)).with_source(error))
    }

    /// All of it. Errors: as [`next`](Self::next).
    pub async fn whole(self) -> Result<Bytes> {
        self.response.bytes().await.map_err(|error| Error::unavailable(format!("asking {}", self.url)).with_source(error))
    }
}
