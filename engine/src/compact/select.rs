//! Selects the blocks to merge. Pure: the same blocks at the same time give the same jobs.
//!
//! Blocks are grouped by the window in which they end. In a window of the last day only blocks of one level are merged, so that a span
//! is rewritten once per level while new blocks keep coming. An older window is tidied up: its levels mix, and only blocks of similar
//! size are merged, so that a late small block does not cause a large one to be rewritten. The window on the border between the two is
//! left alone, because it may change sides while a job runs.

use std::{collections::BTreeMap, sync::Arc};

use super::CompactionSettings;
use crate::{catalog::BlockMeta, clock::nanos};

/// How long a window is new, as in Tempo.
const ACTIVE_NANOS: u64 = 24 * 3_600 * 1_000_000_000;

/// In an old window, the largest input has at most this many times the bytes of all the others together. So each rewriting of a span
/// at least multiplies its block by 9/8, and a window settles at a number of blocks that grows with the logarithm of its size.
const SIZE_RATIO_MAX: u64 = 8;

/// Blocks to merge into one: the same tenant and window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// At least `min_input_blocks`.
    pub inputs: Vec<Arc<BlockMeta>>,
}

/// Groups in the order of their jobs: new windows before old ones, newest first, lower levels first.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Group {
    is_old: bool,
    /// Windows from the present one backwards; below zero for blocks that end in the future.
    age: i64,
    level: u32,
    replication_factor: u32,
}

/// The merges worth doing now among the live blocks of one tenant, most urgent first. No block is in two of them.
pub fn select(blocks: &[Arc<BlockMeta>], now_unix_nano: u64, settings: &CompactionSettings) -> Vec<Job> {
    let window_nanos = nanos(settings.compaction_window).max(1);
    let window = |unix_nano: u64| (unix_nano / window_nanos) as i64;
    let (present, border) = (window(now_unix_nano), window(now_unix_nano.saturating_sub(ACTIVE_NANOS)));

    let mut groups: BTreeMap<Group, Vec<&Arc<BlockMeta>>> = BTreeMap::new();
    for block in blocks {
        let (block_window, level) = (window(block.max_end_unix_nano), block.compaction_level);
        let finished = settings.max_compaction_level > 0 && level >= settings.max_compaction_level;
        let is_large = block.total_spans.saturating_mul(2) > settings.max_compaction_spans;
        if finished || is_large || block_window == border {
            continue;
        }
        let is_old = block_window < border;
        // 0 and 1 both say that each span was written once.
        let replication_factor = block.replication_factor.max(1);
        let group = Group { is_old, age: present - block_window, level: if is_old { 0 } else { level }, replication_factor };
        groups.entry(group).or_default().push(block);
    }
    groups.into_iter().flat_map(|(group, blocks)| jobs_of_group(&group, blocks, settings)).collect()
}

fn jobs_of_group(group: &Group, mut blocks: Vec<&Arc<BlockMeta>>, settings: &CompactionSettings) -> Vec<Job> {
    if group.is_old {
        blocks.sort_by_key(|block| (block.data_bytes, block.id));
    } else {
        blocks.sort_by_key(|block| (block.total_traces, block.data_bytes, block.id));
    }
    let mut jobs = Vec::new();
    let mut rest = blocks.as_slice();
    while !rest.is_empty() {
        let count = run_length(group, rest, settings);
        if count >= settings.min_input_blocks {
            jobs.push(Job { inputs: rest[..count].iter().map(|&block| block.clone()).collect() });
            rest = &rest[count..];
        } else {
            rest = &rest[1..];
        }
    }
    jobs
}

/// How many of the first blocks go into one merge. `blocks` are in ascending order of size.
fn run_length(group: &Group, blocks: &[&Arc<BlockMeta>], settings: &CompactionSettings) -> usize {
    let (mut traces, mut spans, mut bytes) = (0u64, 0u64, 0u64);
    for (count, block) in blocks.iter().enumerate() {
        let too_large = group.is_old && count > 0 && block.data_bytes > bytes.saturating_mul(SIZE_RATIO_MAX);
        traces = traces.saturating_add(block.total_traces);
        spans = spans.saturating_add(block.total_spans);
        bytes = bytes.saturating_add(block.data_bytes);
        let over = count == settings.max_input_blocks
            || traces > settings.max_compaction_objects
            || spans > settings.max_compaction_spans
            || bytes > settings.max_block_bytes;
        if too_large || over {
            return count;
        }
    }
    blocks.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::meta::tests::{SECOND, block, id};

    const HOUR: u64 = 3_600;
    /// Half past ten on some day.
    const NOW: u64 = 19_000 * 24 * HOUR + 10 * HOUR + 1_800;

    #[derive(Clone, Copy)]
    struct Case {
        hours_ago: u64,
        level: u32,
        traces: u64,
        bytes: u64,
        replication: u32,
    }

    const FRESH: Case = Case { hours_ago: 1, level: 0, traces: 100, bytes: 1_000, replication: 1 };
    const OLD: Case = Case { hours_ago: 48, ..FRESH };

    /// Blocks are numbered from 1 in the order given; the expected jobs name them.
    fn check(what: &str, cases: &[Case], settings: &CompactionSettings, expected: &[&[u128]]) {
        let blocks = cases.iter().zip(1..).map(|(case, number)| {
            let end = NOW - case.hours_ago * HOUR;
            let mut meta = block(number, end - 60, end);
            (meta.compaction_level, meta.total_traces, meta.data_bytes) = (case.level, case.traces, case.bytes);
            meta.replication_factor = case.replication;
            Arc::new(meta)
        });
        let jobs = select(&blocks.collect::<Vec<_>>(), NOW * SECOND, settings);
        let chosen: Vec<Vec<_>> = jobs.iter().map(|job| job.inputs.iter().map(|block| block.id).collect()).collect();
        let expected: Vec<Vec<_>> = expected.iter().map(|job| job.iter().map(|&number| id(number)).collect()).collect();
        assert_eq!(chosen, expected, "{what}");
    }

    #[test]
    fn blocks_of_one_window_and_level_are_merged() {
        let settings = CompactionSettings::default();
        let at = |hours_ago, level| Case { hours_ago, level, ..FRESH };
        check("nothing", &[], &settings, &[]);
        check("one block", &[FRESH], &settings, &[]);
        check("two blocks", &[FRESH, FRESH], &settings, &[&[1, 2]]);
        check("at most four", &[FRESH; 7], &settings, &[&[1, 2, 3, 4], &[5, 6, 7]]);
        check("one is left over", &[FRESH; 5], &settings, &[&[1, 2, 3, 4]]);
        check("levels", &[at(1, 0), at(1, 1), at(1, 1), at(1, 0), at(1, 2)], &settings, &[&[1, 4], &[2, 3]]);
        check("windows, newest first", &[at(3, 0), at(2, 0), at(3, 0), at(2, 0)], &settings, &[&[2, 4], &[1, 3]]);
        check("lower levels first", &[at(2, 1), at(2, 1), at(2, 0), at(2, 0)], &settings, &[&[3, 4], &[1, 2]]);
    }

    #[test]
    fn replication_is_kept_apart() {
        let with = |replication| Case { replication, ..FRESH };
        check("3 and 1", &[with(3), with(1), with(3), with(1)], &CompactionSettings::default(), &[&[2, 4], &[1, 3]]);
        check("0 and 1 are the same", &[with(0), with(1)], &CompactionSettings::default(), &[&[1, 2]]);
    }

    #[test]
    fn limits_end_a_run() {
        let objects = CompactionSettings { max_compaction_objects: 250, ..Default::default() };
        check("traces", &[FRESH; 4], &objects, &[&[1, 2], &[3, 4]]);
        let bytes = CompactionSettings { max_block_bytes: 3_500, ..Default::default() };
        check("bytes", &[FRESH; 4], &bytes, &[&[1, 2, 3]]);
        check("smallest first", &[Case { traces: 900, bytes: 3_400, ..FRESH }, FRESH, FRESH], &bytes, &[&[2, 3]]);
        check("all too large", &[Case { bytes: 4_000, ..FRESH }; 3], &bytes, &[]);
        let inputs = CompactionSettings { min_input_blocks: 3, max_input_blocks: 3, ..Default::default() };
        check("number of inputs", &[FRESH; 5], &inputs, &[&[1, 2, 3]]);
        let level = CompactionSettings { max_compaction_level: 1, ..Default::default() };
        check("level", &[Case { level: 1, ..FRESH }, Case { level: 1, ..FRESH }, FRESH, FRESH], &level, &[&[3, 4]]);
    }

    #[test]
    fn old_windows_mix_levels_but_not_sizes() {
        let settings = CompactionSettings::default();
        let of = |level, bytes| Case { level, bytes, ..OLD };
        check("levels mix", &[of(2, 1_000), of(0, 1_000)], &settings, &[&[1, 2]]);
        check("a small one does not move a large one", &[of(3, 100_000), of(0, 1_000)], &settings, &[]);
        check("several small ones do", &[of(3, 100_000), of(0, 1_000), of(1, 8_000), of(1, 8_000)], &settings, &[&[2, 3, 4, 1]]);
        check("the border is left alone", &[Case { hours_ago: 24, ..FRESH }; 2], &settings, &[]);
        check("just new", &[Case { hours_ago: 23, ..FRESH }; 2], &settings, &[&[1, 2]]);
        check("just old", &[Case { hours_ago: 25, ..FRESH }; 2], &settings, &[&[1, 2]]);
        check(
            "years old, after new",
            &[Case { hours_ago: 30_000, ..FRESH }, Case { hours_ago: 30_000, ..FRESH }, FRESH, FRESH],
            &settings,
            &[&[3, 4], &[1, 2]],
        );
    }

    #[test]
    fn blocks_of_the_future_are_merged_too() {
        let ahead: Vec<_> = (1..3).map(|number| Arc::new(block(number, NOW, NOW + 900 * HOUR))).collect();
        assert_eq!(select(&ahead, NOW * SECOND, &CompactionSettings::default()).len(), 1);
        let mut end_of_time = block(3, NOW, NOW);
        end_of_time.max_end_unix_nano = u64::MAX;
        assert!(select(&[Arc::new(end_of_time)], NOW * SECOND, &CompactionSettings::default()).is_empty());
    }
}
