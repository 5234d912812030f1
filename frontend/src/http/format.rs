//! How an answer is written: by `Accept`, query-api 1.3.

use axum::{
    http::{HeaderMap, header},
    response::{IntoResponse, Response},
};
use prost::Message;

use crate::jsonpb::{ToJson, to_json};

pub(crate) const JSON: &str = "application/json";
pub(crate) const TEXT: &str = "text/plain; charset=utf-8";
pub(crate) const PROTOBUF: &str = "application/protobuf";
pub(crate) const LLM: &str = "application/vnd.grafana.llm+json";
/// What asks for [`LLM`].
pub(crate) const LLM_ASKED: &str = "application/vnd.grafana.llm";

/// The forms of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Json,
    Protobuf,
    Llm,
}

impl Format {
    /// The form that `Accept` asks for; the first known one in Tempo's order, and JSON when there is none.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let accepts = |form: &str| headers.get_all(header::ACCEPT).iter().any(|value| value.to_str().is_ok_and(|value| value.contains(form)));
        match () {
            () if accepts(PROTOBUF) => Self::Protobuf,
            () if accepts(JSON) => Self::Json,
            () if accepts(LLM_ASKED) => Self::Llm,
            () => Self::Json,
        }
    }

    /// Writes a message as protobuf, or as JSON.
    pub(crate) fn write(self, message: &(impl Message + ToJson)) -> Response {
        match self {
            Self::Protobuf => body(PROTOBUF, message.encode_to_vec()),
            Self::Json | Self::Llm => body(JSON, to_json(message)),
        }
    }
}

/// An answer 200 with a content type.
pub(crate) fn body(content_type: &'static str, body: impl IntoResponse) -> Response {
    ([(header::CONTENT_TYPE, content_type)], body).into_response()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn accept_is_matched_by_substring_in_tempos_order() {
        let check = |accept: &str, expected| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, accept.parse().unwrap());
            assert_eq!(Format::of(&headers), expected, "{accept}");
        };
        check("application/json, application/protobuf;q=0.1", Format::Protobuf);
        check("application/vnd.grafana.llm, application/json", Format::Json);
        check("application/vnd.grafana.llm", Format::Llm);
        check("application/vnd.grafana.llm+json", Format::Llm);
        check("text/html, */*", Format::Json);
        assert_eq!(Format::of(&HeaderMap::new()), Format::Json);
    }
}
