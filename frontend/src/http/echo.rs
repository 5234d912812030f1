//! `/api/echo`: what Grafana asks to see whether the data source works.

pub(super) async fn echo() -> &'static str {
    "echo\n"
}
