//! Span metrics: the contract with dashboards, which is names of series and labels, and how an attribute becomes a label.

/// Counter: spans by label set.
pub const CALLS_TOTAL: &str = "traces_spanmetrics_calls_total";
/// Histogram base name: span durations in seconds.
pub const LATENCY: &str = "traces_spanmetrics_latency";
/// Counter: protobuf bytes of the spans.
pub const SIZE_TOTAL: &str = "traces_spanmetrics_size_total";
/// Gauge that is always 1: the attributes of a resource.
pub const TARGET_INFO: &str = "traces_target_info";

/// Labels that a configured dimension must not overwrite.
const INTRINSIC_LABELS: [&str; 5] = ["service", "span_name", "span_kind", "status_code", "status_message"];

/// The label of an attribute: every character that Prometheus does not allow becomes `_`; a name that a built-in label has gets `__`
/// in front.
pub fn label_of_dimension(attribute: &str) -> String {
    let mut label: String = attribute.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' }).collect();
    if label.starts_with(|c: char| c.is_ascii_digit()) {
        label.insert(0, '_');
    }
    if INTRINSIC_LABELS.contains(&label.as_str()) {
        label.insert_str(0, "__");
    }
    label
}

/// The value of `span_kind`; a number that OTLP does not know counts as unspecified.
pub fn kind_label(kind: i32) -> &'static str {
    match kind {
        1 => "SPAN_KIND_INTERNAL",
        2 => "SPAN_KIND_SERVER",
        3 => "SPAN_KIND_CLIENT",
        4 => "SPAN_KIND_PRODUCER",
        5 => "SPAN_KIND_CONSUMER",
        _ => "SPAN_KIND_UNSPECIFIED",
    }
}

/// The value of `status_code`; a number that OTLP does not know counts as unset.
pub fn status_label(code: i32) -> &'static str {
    match code {
        1 => "STATUS_CODE_OK",
        2 => "STATUS_CODE_ERROR",
        _ => "STATUS_CODE_UNSET",
    }
}

/// How many spans one span stands for, given the value of its multiplier attribute; 1 when it says nothing usable.
pub fn multiplier(sampling_ratio: Option<f64>) -> f64 {
    match sampling_ratio {
        Some(ratio) if ratio > 0.0 && ratio.is_finite() => 1.0 / ratio,
        _ => 1.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dimensions_become_valid_labels() {
        for (attribute, label) in [
            ("http.method", "http_method"),
            ("k8s.pod-name", "k8s_pod_name"),
            ("span.kind", "__span_kind"),
            ("status_code", "__status_code"),
            ("4xx", "_4xx"),
            ("größe", "gr__e"),
        ] {
            assert_eq!(label_of_dimension(attribute), label);
        }
    }

    #[test]
    fn unknown_enum_numbers_have_a_label() {
        assert_eq!(kind_label(2), "SPAN_KIND_SERVER");
        assert_eq!(kind_label(99), "SPAN_KIND_UNSPECIFIED");
        assert_eq!(status_label(2), "STATUS_CODE_ERROR");
        assert_eq!(status_label(-3), "STATUS_CODE_UNSET");
    }

    #[test]
    fn a_multiplier_is_one_over_the_ratio() {
        assert_eq!(multiplier(Some(0.25)), 4.0);
        assert_eq!(multiplier(Some(0.0)), 1.0);
        assert_eq!(multiplier(Some(-1.0)), 1.0);
        assert_eq!(multiplier(Some(f64::NAN)), 1.0);
        assert_eq!(multiplier(None), 1.0);
    }
}
