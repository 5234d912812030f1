//! Settings of the processors: `metrics_generator.processor.*` and the per-tenant overrides of the same shape.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use skein_engine::clock::go_duration;

/// Bucket bounds of span durations in seconds: 2 ms to 16.384 s, doubling.
pub const SPAN_METRICS_BUCKETS: [f64; 14] = [0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 2.048, 4.096, 8.192, 16.384];

/// Bucket bounds of call durations in seconds: 0.1 to 12.8 s, doubling.
pub const SERVICE_GRAPHS_BUCKETS: [f64; 8] = [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8];

/// The processors that can be switched on for a tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Processor {
    /// Calls, latency and size by span labels.
    SpanMetrics,
    /// Only the latency part of it.
    SpanMetricsLatency,
    /// Only the count part of it.
    SpanMetricsCount,
    /// Only the size part of it.
    SpanMetricsSize,
    /// Calls between services.
    ServiceGraphs,
    /// One gauge per host.
    HostInfo,
}

impl Processor {
    /// The processor of a name in `metrics_generator.processors`; None for an unknown one, which is worth a warning, not an error.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "span-metrics" => Self::SpanMetrics,
            "span-metrics-latency" => Self::SpanMetricsLatency,
            "span-metrics-count" => Self::SpanMetricsCount,
            "span-metrics-size" => Self::SpanMetricsSize,
            "service-graphs" => Self::ServiceGraphs,
            "host-info" => Self::HostInfo,
            _ => return None,
        })
    }
}

/// Which built-in labels a span gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)]
pub struct IntrinsicDimensions {
    pub service: bool,
    pub span_name: bool,
    pub span_kind: bool,
    pub status_code: bool,
    pub status_message: bool,
}

impl Default for IntrinsicDimensions {
    fn default() -> Self {
        Self { service: true, span_name: true, span_kind: true, status_code: true, status_message: false }
    }
}

/// A label joined from several attributes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DimensionMapping {
    /// The label.
    pub name: String,
    /// The attributes, in order; empty values are left out.
    pub source_labels: Vec<String>,
    /// What stands between them.
    pub join: String,
}

/// `span_metrics`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SpanMetricsSettings {
    /// Upper bounds in seconds, ascending.
    pub histogram_buckets: Vec<f64>,
    /// Built-in labels.
    pub intrinsic_dimensions: IntrinsicDimensions,
    /// Attributes that become labels; the resource's value goes before the span's.
    pub dimensions: Vec<String>,
    /// Labels joined from several attributes.
    pub dimension_mappings: Vec<DimensionMapping>,
    /// Also write `traces_target_info`, and `job` and `instance` on every series.
    pub enable_target_info: bool,
    /// Resource attributes that `traces_target_info` leaves out.
    pub target_info_excluded_dimensions: Vec<String>,
    /// Whether `instance` is written with `enable_target_info`.
    pub enable_instance_label: bool,
    /// An attribute that says for how many spans one stands: its value is the sampling ratio.
    pub span_multiplier_key: String,
}

impl Default for SpanMetricsSettings {
    fn default() -> Self {
        Self {
            histogram_buckets: SPAN_METRICS_BUCKETS.to_vec(),
            intrinsic_dimensions: IntrinsicDimensions::default(),
            dimensions: Vec::new(),
            dimension_mappings: Vec::new(),
            enable_target_info: false,
            target_info_excluded_dimensions: Vec::new(),
            enable_instance_label: true,
            span_multiplier_key: String::new(),
        }
    }
}

/// `service_graphs`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServiceGraphsSettings {
    /// How long one half of a call waits for the other.
    #[serde(with = "go_duration")]
    pub wait: Duration,
    /// Most halves that wait at a time; further ones are dropped and counted.
    pub max_items: usize,
    /// Upper bounds in seconds, ascending.
    pub histogram_buckets: Vec<f64>,
    /// Attributes that become labels.
    pub dimensions: Vec<String>,
    /// Write a dimension twice, as `client_X` and `server_X`.
    pub enable_client_server_prefix: bool,
    /// Also write the time that a message spent on its way.
    pub enable_messaging_system_latency_histogram: bool,
    /// Label edges whose other side was not traced.
    pub enable_virtual_node_label: bool,
    /// Span attributes that name a peer that was not traced, most trusted first.
    pub peer_attributes: Vec<String>,
    /// Attributes that name a database, most trusted first.
    pub database_name_attributes: Vec<String>,
    /// See [`SpanMetricsSettings::span_multiplier_key`].
    pub span_multiplier_key: String,
}

impl Default for ServiceGraphsSettings {
    fn default() -> Self {
        let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Self {
            wait: Duration::from_secs(10),
            max_items: 10_000,
            histogram_buckets: SERVICE_GRAPHS_BUCKETS.to_vec(),
            dimensions: Vec::new(),
            enable_client_server_prefix: false,
            enable_messaging_system_latency_histogram: false,
            enable_virtual_node_label: false,
            peer_attributes: list(&["peer.service", "db.name", "db.system", "db.system.name"]),
            database_name_attributes: list(&["db.namespace", "db.name", "db.system", "db.system.name"]),
            span_multiplier_key: String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn tempo_keys_are_read_and_the_rest_keeps_its_default() {
        let settings: SpanMetricsSettings = serde_json::from_str(
            r#"{"dimensions": ["http.method"], "intrinsic_dimensions": {"status_message": true},
                "dimension_mappings": [{"name": "env", "source_labels": ["a", "b"], "join": "/"}], "enable_target_info": true}"#,
        )
        .unwrap();
        assert_eq!(settings.dimensions, ["http.method"]);
        assert!(settings.intrinsic_dimensions.status_message && settings.intrinsic_dimensions.service);
        assert_eq!(settings.dimension_mappings[0].source_labels, ["a", "b"]);
        assert_eq!(settings.histogram_buckets, SPAN_METRICS_BUCKETS);
        assert!(settings.enable_instance_label);
    }

    #[test]
    fn times_are_in_gos_notation() {
        let settings: ServiceGraphsSettings = serde_json::from_str(r#"{"wait": "1m30s"}"#).unwrap();
        assert_eq!(settings.wait, Duration::from_secs(90));
        assert_eq!(ServiceGraphsSettings::default().wait, Duration::from_secs(10));
    }

    #[test]
    fn an_unknown_key_is_refused_by_name() {
        let error = serde_json::from_str::<ServiceGraphsSettings>(r#"{"max_itms": 1}"#).unwrap_err().to_string();
        assert!(error.contains("max_itms") && error.contains("max_items"), "{error}");
    }

    #[test]
    fn processor_names_are_tempos() {
        assert_eq!(Processor::parse("span-metrics"), Some(Processor::SpanMetrics));
        assert_eq!(Processor::parse("service-graphs"), Some(Processor::ServiceGraphs));
        assert_eq!(Processor::parse("local-blocks"), None);
    }
}
