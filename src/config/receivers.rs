//! `distributor.receivers`: the shape of the OpenTelemetry Collector's `receivers` section.

use serde_yaml_ng::Value;
use skein_ingest::receivers::server::OtlpSettings;

use super::{
    schema::{
        Kind::{Integer, Text},
        NO_TLS,
        Node::{self, Ignored, Key, Refused, Section},
    },
    walk::{self, Findings},
};

const NO_AUTH: &str = "authenticators are not part of this version; authenticate in a proxy in front";

const OTLP: Node = Section(&[(
    "protocols",
    Section(&[
        (
            "grpc",
            Section(&[
                ("endpoint", Key(Text)),
                ("max_recv_msg_size_mib", Key(Integer)),
                ("tls", Refused(NO_TLS)),
                ("auth", Refused(NO_AUTH)),
                ("transport", Ignored),
                ("max_concurrent_streams", Ignored),
                ("read_buffer_size", Ignored),
                ("write_buffer_size", Ignored),
                ("keepalive", Ignored),
                ("include_metadata", Ignored),
                ("middlewares", Ignored),
            ]),
        ),
        (
            "http",
            Section(&[
                ("endpoint", Key(Text)),
                ("max_request_body_size", Key(Integer)),
                ("tls", Refused(NO_TLS)),
                ("auth", Refused(NO_AUTH)),
                ("cors", Ignored),
                ("include_metadata", Ignored),
                ("response_headers", Ignored),
                ("compression_algorithms", Ignored),
                ("read_timeout", Ignored),
                ("read_header_timeout", Ignored),
                ("write_timeout", Ignored),
                ("idle_timeout", Ignored),
                ("keep_alives_enabled", Ignored),
                ("traces_url_path", Ignored),
                ("metrics_url_path", Ignored),
                ("logs_url_path", Ignored),
                ("middlewares", Ignored),
            ]),
        ),
    ]),
)]);

/// Receivers that Tempo has and this version has not.
const NOT_SERVED: [&str; 4] = ["jaeger", "zipkin", "opencensus", "kafka"];

/// Reads the section. Without it, OTLP is received over gRPC and HTTP on the collector's ports of localhost.
pub(super) fn read(receivers: &Value, text: &str, findings: &mut Findings) -> OtlpSettings {
    let mut otlp = OtlpSettings::default();
    let map = match receivers {
        Value::Null => return otlp,
        Value::Mapping(map) if map.is_empty() => return otlp,
        Value::Mapping(map) => map,
        _ => {
            findings.errors.push("distributor.receivers: expected a section with keys".to_owned());
            return otlp;
        }
    };
    let defaults = otlp.clone();
    (otlp.grpc_endpoint, otlp.http_endpoint) = (None, None);
    for (id, config) in map {
        let id = id.as_str().unwrap_or_default();
        let kind = id.split('/').next().unwrap_or_default();
        let mut path = vec!["distributor".to_owned(), "receivers".to_owned(), id.to_owned()];
        let name = path.join(".");
        if NOT_SERVED.contains(&kind) {
            findings.warnings.push(format!("{name}: this version receives OTLP only; the receiver is not started"));
            continue;
        }
        if kind != "otlp" {
            let near = walk::closest(kind, NOT_SERVED.into_iter().chain(["otlp"]));
            let hint = near.map(|near| format!(", did you mean {near}?")).unwrap_or_default();
            findings.errors.push(format!("{name}: unknown receiver{hint}"));
            continue;
        }
        let protocols = config.get("protocols").and_then(Value::as_mapping);
        let has = |protocol: &str| protocols.is_none_or(|protocols| protocols.contains_key(protocol));
        let mut checked = config.clone();
        walk::check_below(&OTLP, &mut checked, &mut path, text, findings);
        let at = |protocol: &str, key: &str| checked.get("protocols").and_then(|p| p.get(protocol)).and_then(|p| p.get(key)).cloned();
        let endpoint = |protocol: &str, default: &Option<String>| match at(protocol, "endpoint") {
            Some(Value::String(endpoint)) => Some(endpoint),
            _ => default.clone(),
        };
        let mut listen = |protocol: &str, place: &mut Option<String>, default: &Option<String>| {
            if has(protocol) {
                if place.is_some() {
                    findings.errors.push(format!("{name}.protocols.{protocol}: there can be one listener for OTLP over {protocol}"));
                }
                *place = endpoint(protocol, default);
            }
        };
        listen("grpc", &mut otlp.grpc_endpoint, &defaults.grpc_endpoint);
        listen("http", &mut otlp.http_endpoint, &defaults.http_endpoint);
        if let Some(mib) = at("grpc", "max_recv_msg_size_mib").and_then(|value| value.as_u64()).filter(|mib| *mib > 0) {
            otlp.grpc_message_bytes_max = usize::try_from(mib.saturating_mul(1 << 20)).unwrap_or(usize::MAX);
        }
        if let Some(bytes) = at("http", "max_request_body_size").and_then(|value| value.as_u64()).filter(|bytes| *bytes > 0) {
            otlp.http_body_bytes_max = usize::try_from(bytes).unwrap_or(usize::MAX);
        }
    }
    if otlp.grpc_endpoint.is_none() && otlp.http_endpoint.is_none() {
        findings.warnings.push("distributor.receivers: nothing is received".to_owned());
    }
    otlp
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn check(text: &str) -> (OtlpSettings, Findings) {
        let mut findings = Findings::default();
        let otlp = read(&serde_yaml_ng::from_str(text).unwrap(), text, &mut findings);
        (otlp, findings)
    }

    #[test]
    fn without_receivers_both_protocols_listen_on_localhost() {
        let (otlp, _) = check("{}");
        assert_eq!(otlp.grpc_endpoint.as_deref(), Some("localhost:4317"));
        assert_eq!(otlp.http_endpoint.as_deref(), Some("localhost:4318"));
    }

    #[test]
    fn the_collectors_shape_is_read() {
        let (otlp, findings) = check("otlp:\n  protocols:\n    grpc:\n      endpoint: 0.0.0.0:4317\n      max_recv_msg_size_mib: 16\n    http:\n");
        assert_eq!(findings.errors, [""; 0]);
        assert_eq!(otlp.grpc_endpoint.as_deref(), Some("0.0.0.0:4317"));
        assert_eq!(otlp.grpc_message_bytes_max, 16 << 20);
        assert_eq!(otlp.http_endpoint.as_deref(), Some("localhost:4318"));
        assert_eq!(check("otlp: {protocols: {grpc: }}").0.http_endpoint, None);
    }

    #[test]
    fn other_receivers_are_a_warning_and_unknown_ones_an_error() {
        let (otlp, findings) = check("jaeger: {protocols: {grpc: }}\notlp/a: {protocols: {http: }}");
        assert!(findings.warnings[0].starts_with("distributor.receivers.jaeger: "), "{findings:?}");
        assert_eq!((otlp.grpc_endpoint, findings.errors.len()), (None, 0));
        assert_eq!(check("oltp: {}").1.errors, ["distributor.receivers.oltp: unknown receiver, did you mean otlp?"]);
        assert_eq!(check("otlp: {protocols: {grpc: {endpont: a}}}").1.errors.len(), 1);
        assert_eq!(check("otlp: {protocols: {http: {tls: {cert_file: a}}}}").1.errors.len(), 1);
        assert_eq!(check("otlp: {protocols: {http: }}\notlp/b: {protocols: {http: }}").1.errors.len(), 1);
    }
}
