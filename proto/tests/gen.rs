//! The committed code in `src/gen` is what the generator makes of `proto/tempo.proto`. `UPDATE_GEN=1` rewrites it.
#![allow(clippy::unwrap_used)]

use std::{fs, path::Path};

#[test]
fn generated_code_is_current() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = protox::compile(["tempo.proto"], [here.join("proto")]).unwrap();
    let out = tempfile::tempdir().unwrap();
    tonic_prost_build::configure()
        .emit_rerun_if_changed(false)
        .btree_map(".")
        .extern_path(".opentelemetry.proto.common.v1", "crate::otlp::common::v1")
        .extern_path(".opentelemetry.proto.resource.v1", "crate::otlp::resource::v1")
        .extern_path(".opentelemetry.proto.trace.v1", "crate::otlp::trace::v1")
        .out_dir(out.path())
        .compile_fds(files)
        .unwrap();

    let made = fs::read_to_string(out.path().join("tempopb.rs")).unwrap();
    let committed = here.join("src/gen/tempopb.rs");
    if std::env::var_os("UPDATE_GEN").is_some() {
        fs::write(&committed, &made).unwrap();
    }
    let current = fs::read_to_string(&committed).unwrap_or_default();
    assert!(current == made, "src/gen/tempopb.rs is not what proto/tempo.proto generates: run this test with UPDATE_GEN=1");
}
