//! `system.blocks`: the blocks that a statement sees, newest first. What is live is in no block yet.

use std::cmp::Reverse;

use arrow::{array::ArrayRef, datatypes::Field};

use super::{count_field, counts, text_field, texts, time_field, times};
use crate::{catalog::meta::BlockMeta, exec::source::SourceRef};

pub(super) fn fields() -> Vec<Field> {
    let counts = ["traces", "spans", "bytes", "row_groups", "compaction_level"].map(|name| count_field(name, false));
    [text_field("block_id", false), time_field("start_time"), time_field("end_time"), time_field("created_time")].into_iter().chain(counts).collect()
}

pub(super) fn arrays(sources: &[SourceRef]) -> Vec<ArrayRef> {
    let mut blocks: Vec<&BlockMeta> = sources.iter().filter_map(|source| source.block()).map(|block| &**block.meta()).collect();
    blocks.sort_by_key(|meta| (Reverse(meta.max_end_unix_nano), meta.id));
    let count = |of: fn(&BlockMeta) -> u64| counts(blocks.iter().map(|meta| of(meta)));
    let time = |of: fn(&BlockMeta) -> u64| times(blocks.iter().map(|meta| of(meta)));
    vec![
        texts(blocks.iter().map(|meta| meta.id.to_string())),
        time(|meta| meta.min_start_unix_nano),
        time(|meta| meta.max_end_unix_nano),
        time(|meta| meta.created_unix_nano),
        count(|meta| meta.total_traces),
        count(|meta| meta.total_spans),
        count(|meta| meta.data_bytes),
        count(|meta| u64::from(meta.row_groups)),
        count(|meta| u64::from(meta.compaction_level)),
    ]
}
