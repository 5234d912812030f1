//! Blocks on object stores: the truth of all datasets over servers of the S3 and the Azure protocol.

use serde_json::{Value, json};

use crate::harness::{Findings, Server, Transport, merge, nothing_is_cut};
use crate::tools;
use crate::{
    otlp::DATASETS,
    truth::{self, Depth},
};

/// Asked everything, trace by trace, once they are in blocks.
const SMALL: [&str; 3] = ["shellci", "genai", "nodedb"];

#[test]
fn s3_holds_the_truth() {
    let Some(store) = tools::or_skip("s3_holds_the_truth", tools::start_s3("traces")) else { return };
    let s3 = json!({
        "bucket": "traces", "endpoint": store.address.to_string(), "access_key": "test", "secret_key": "test",
        "insecure": true, "forcepathstyle": true, "region": "us-east-1",
    });
    check("S3", json!({ "storage": { "trace": { "backend": "s3", "s3": s3, "local": null } } }));
}

#[test]
fn azure_holds_the_truth() {
    let Some(store) = tools::or_skip("azure_holds_the_truth", tools::start_azure("traces")) else { return };
    let azure = json!({
        "container_name": "traces", "storage_account_name": tools::AZURE_ACCOUNT, "storage_account_key": tools::AZURE_KEY,
        "endpoint_suffix": store.address.to_string(),
    });
    check("Azure", json!({ "storage": { "trace": { "backend": "azure", "azure": azure, "local": null } } }));
}

fn check(store: &str, storage: Value) {
    let mut settings = nothing_is_cut();
    merge(&mut settings, storage);
    let mut server = Server::start(settings.clone());
    for dataset in DATASETS {
        server.client().load(Transport::HttpProtobuf, dataset);
    }
    let mut findings = Findings::new();
    let mut check_all = |server: &Server, phase: &str, depth: Depth| {
        for dataset in DATASETS {
            let depth = if SMALL.contains(&dataset) { depth } else { Depth::Figures };
            truth::check(&mut findings, server.client(), dataset, &format!("{store}, {phase}"), depth);
        }
    };
    check_all(&server, "live", Depth::Figures);
    server.client().flush();
    check_all(&server, "flushed", Depth::Everything);
    server.stop();
    server.restart();
    check_all(&server, "restarted", Depth::Figures);
    server.stop();
    // Nothing but the store is needed.
    let elsewhere = Server::start(settings);
    check_all(&elsewhere, "from another folder", Depth::Figures);
    findings.finish();
}
