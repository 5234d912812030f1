//! The times of a metrics query: what is asked for, and the intervals that come of it.

use std::fmt;

use rand::{Rng, rngs::StdRng};
use skein_engine::metrics::intervals::Intervals;

use crate::naive::traces::{World, once_in, one};

const MILLI: u64 = 1_000_000;
const SECOND: u64 = 1_000 * MILLI;
const STEPS: [u64; 16] = [
    1,
    7,
    1_000,
    MILLI,
    3 * MILLI,
    10 * MILLI,
    MILLI + 1,
    250 * MILLI,
    SECOND,
    2 * SECOND,
    15 * SECOND,
    60 * SECOND,
    3600 * SECOND,
    86_400 * SECOND,
    31_536_000 * SECOND,
    2_000_000_000 * SECOND,
];
/// When the last interval begins at the latest.
const START_MAX: u64 = 8_000_000_000 * SECOND;
/// Most intervals that random times have.
const INTERVALS_MAX: u64 = 40;

/// Times in Unix nanoseconds.
#[derive(Clone, Copy, Debug)]
pub enum Times {
    Range { start: u64, end: u64, step: u64 },
    Instant { start: u64, end: u64 },
}

impl Times {
    /// Times near the spans of a world, at their starts now and then.
    pub fn random(random: &mut StdRng, world: &World) -> Self {
        let (span, _) = &world.spans[random.random_range(0..world.spans.len())];
        let step = one(random, &STEPS);
        let mut before = step.saturating_mul(random.random_range(0..=INTERVALS_MAX / 2));
        if random.random() {
            before = before.saturating_add(random.random_range(0..step));
        }
        let anchor = if once_in(random, 20) { 0 } else { span.start - span.start % if random.random() { 1 } else { step } };
        let start = anchor.saturating_sub(before);
        let mut end = match anchor {
            0 => step.saturating_mul(INTERVALS_MAX).min(START_MAX),
            _ => anchor.saturating_add(step.saturating_mul(random.random_range(0..=INTERVALS_MAX / 2))).min(START_MAX),
        };
        if random.random() {
            end = end.saturating_add(random.random_range(0..step)).min(START_MAX + step);
        }
        let end = end.max(start + 1);
        if once_in(random, 4) { Self::Instant { start, end } } else { Self::Range { start, end, step } }
    }

    /// The intervals as an engine takes them.
    pub fn intervals(&self) -> Intervals {
        match *self {
            Self::Range { start, end, step } => Intervals::of_range(start, end, step).expect("random times are in order"),
            Self::Instant { start, end } => Intervals::of_instant(start, end).expect("random times are in order"),
        }
    }

    pub fn grid(&self) -> Grid {
        match *self {
            Self::Instant { start, end } => Grid { edges: vec![start, end] },
            Self::Range { start, end, step } => {
                let floor = start / step * step;
                let mut edges = vec![floor];
                // The first sample stands at the floored start; there is no time before the epoch.
                if let Some(before) = floor.checked_sub(step) {
                    edges.insert(0, before);
                }
                while edges[edges.len() - 1] < end {
                    edges.push(edges[edges.len() - 1] + step);
                }
                Grid { edges }
            }
        }
    }

    /// Times with less to them.
    pub fn smaller(&self) -> Vec<Self> {
        match *self {
            Self::Instant { .. } => Vec::new(),
            Self::Range { start, end, step } => {
                let mut smaller = vec![Self::Instant { start, end }];
                if end - start > step {
                    let middle = start + (end - start) / 2;
                    smaller.extend([Self::Range { start, end: middle, step }, Self::Range { start: middle, end, step }]);
                    smaller.push(Self::Range { start, end, step: end - start });
                }
                smaller
            }
        }
    }
}

/// Intervals one after another, each open at its left edge and closed at its right one.
pub struct Grid {
    edges: Vec<u64>,
}

impl Grid {
    pub fn count(&self) -> usize {
        self.edges.len() - 1
    }

    /// The interval that holds `time`.
    pub fn interval(&self, time: u64) -> Option<usize> {
        (0..self.count()).find(|at| self.edges[*at] < time && time <= self.edges[at + 1])
    }

    /// Length of an interval in seconds.
    pub fn seconds(&self) -> f64 {
        (self.edges[1] - self.edges[0]) as f64 / 1e9
    }

    /// When the sample of an interval is: at its right edge, in milliseconds.
    pub fn sample_ms(&self, at: usize) -> i64 {
        (self.edges[at + 1] / MILLI) as i64
    }
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let since = |time: u64| i128::from(time) - i128::from(crate::naive::traces::BASE_SECONDS * SECOND);
        match *self {
            Self::Range { start, end, step } => write!(f, "range from base+{}ns to base+{}ns, step {step}ns ({self:?})", since(start), since(end)),
            Self::Instant { start, end } => write!(f, "instant from base+{}ns to base+{}ns ({self:?})", since(start), since(end)),
        }
    }
}
