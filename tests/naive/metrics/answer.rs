//! The answer to a metrics query, from the evaluator and from an engine, in one form that can be compared and read.

use std::fmt;

use skein_engine::error::{Error, ErrorKind};
use skein_engine::query::MetricsResult;
use skein_engine::traceql::{MetricsExpr, MetricsFunction};
use skein_proto::tempo::TimeSeries;

use super::functions::Choice;
use super::series::Series;
use super::stages::{Open, answer};
use super::times::Grid;
use crate::naive::answer::{may_fail, of_key_value};
use crate::naive::fields::some_part_fails;
use crate::naive::structure::Trace;

/// Relative difference of two engines where the rules are silent.
const ENGINES_DIFFER: f64 = 1e-9;

/// A series as it is sent: labels sorted by name, samples with their times in milliseconds.
#[derive(Clone, Debug, PartialEq)]
pub struct Sent {
    pub labels: Vec<(String, String)>,
    pub samples: Vec<(i64, f64)>,
}

/// What came of asking an engine.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    Series(Vec<Sent>),
    /// The query is the user's mistake, perhaps on these spans only.
    Refused(String),
    /// Another error, or a panic.
    Broken(String),
}

/// What the specification has an engine answer.
pub enum Expected {
    /// The language does not have the query.
    Refusal,
    Series {
        series: Vec<Series>,
        choices: Vec<Choice>,
        times: Vec<i64>,
        /// Whether an engine may fail: some part of the query fails on some span, needed or not.
        may_fail: bool,
    },
    /// The query fails on the data.
    Failure,
    /// Nothing certain, but that all engines say the same.
    Open { reason: &'static str, may_fail: bool },
}

impl Expected {
    pub fn new(query: &MetricsExpr, traces: &[Trace<'_>], grid: &Grid) -> Self {
        let may_fail = can_fail(query, traces);
        match answer(query, traces, grid) {
            Ok((series, choices)) => Self::Series { series, choices, times: (0..grid.count()).map(|at| grid.sample_ms(at)).collect(), may_fail },
            Err(Open::Fails) => Self::Failure,
            Err(Open::Silent(reason)) => Self::Open { reason, may_fail },
        }
    }

    /// Whether `outcome` is right.
    pub fn allows(&self, outcome: &Outcome) -> bool {
        match (self, outcome) {
            (_, Outcome::Broken(_)) | (Self::Refusal | Self::Failure, Outcome::Series(_)) => false,
            (Self::Refusal | Self::Failure, Outcome::Refused(_)) => true,
            (Self::Series { may_fail, .. } | Self::Open { may_fail, .. }, Outcome::Refused(_)) => *may_fail,
            (Self::Open { .. }, Outcome::Series(_)) => true,
            (Self::Series { series, choices, times, .. }, Outcome::Series(sent)) => is_answer(series, choices, times, sent),
        }
    }

    /// Whether there are points that are not zero.
    pub fn is_selective(&self) -> bool {
        match self {
            Self::Series { series, .. } => series.iter().flat_map(|series| series.points.iter().flatten()).any(|point| point.value != 0.0),
            _ => false,
        }
    }
}

fn can_fail(query: &MetricsExpr, traces: &[Trace<'_>]) -> bool {
    match query {
        MetricsExpr::Scalar(_) => false,
        MetricsExpr::SecondStages { input, .. } => can_fail(input, traces),
        MetricsExpr::Binary { lhs, rhs, .. } => can_fail(lhs, traces) || can_fail(rhs, traces),
        MetricsExpr::Pipeline { pipeline, function } => {
            let selection_fails = match function {
                MetricsFunction::Compare { selection, .. } => {
                    traces.iter().any(|trace| (0..trace.nodes.len()).any(|at| some_part_fails(selection, trace, at)))
                }
                _ => false,
            };
            selection_fails || may_fail(pipeline, traces)
        }
    }
}

/// Whether `sent` is all of `series` and so many of each choice, and nothing else.
fn is_answer(series: &[Series], choices: &[Choice], times: &[i64], sent: &[Sent]) -> bool {
    let mut left: Vec<&Sent> = sent.iter().collect();
    let mut take = |series: &Series| {
        let found = left.iter().position(|sent| agrees(series, times, sent));
        found.map(|at| left.swap_remove(at)).is_some()
    };
    let all = series.iter().all(&mut take);
    let chosen = choices.iter().all(|choice| choice.among.iter().filter(|series| take(series)).count() == choice.count);
    all && chosen && left.is_empty()
}

fn agrees(series: &Series, times: &[i64], sent: &Sent) -> bool {
    let points: Vec<_> = series.points.iter().zip(times).filter_map(|(point, time)| Some((*time, (*point)?))).collect();
    labels_of(series) == sent.labels
        && points.len() == sent.samples.len()
        && points.iter().zip(&sent.samples).all(|((time, point), (sent_time, value))| time == sent_time && point.is_about(*value))
}

fn labels_of(series: &Series) -> Vec<(String, String)> {
    series.labels.iter().map(|(name, value)| (name.clone(), value.shown())).collect()
}

impl Outcome {
    pub fn new(result: Result<MetricsResult, Error>) -> Self {
        match result {
            Ok(result) if result.truncated => Self::Broken("truncated, without a limit".to_owned()),
            Ok(result) => Self::Series(result.series.into_iter().map(of_series).collect()),
            Err(error) if error.kind() == ErrorKind::Invalid => Self::Refused(error.to_string()),
            Err(error) => Self::Broken(format!("{:?}: {error}", error.kind())),
        }
    }

    /// Whether two engines say the same in the same order, but for the last digits of numbers.
    pub fn is_like(&self, other: &Self) -> bool {
        let near = |a: f64, b: f64| a == b || (a - b).abs() <= ENGINES_DIFFER * a.abs().max(b.abs());
        let alike = |a: &Sent, b: &Sent| {
            a.labels == b.labels && a.samples.len() == b.samples.len() && a.samples.iter().zip(&b.samples).all(|(a, b)| a.0 == b.0 && near(a.1, b.1))
        };
        match (self, other) {
            (Self::Series(a), Self::Series(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| alike(a, b)),
            (Self::Refused(_), Self::Refused(_)) => true,
            _ => false,
        }
    }

    /// Whether series of fewer labels stand before those of more.
    pub fn is_in_order(&self) -> bool {
        match self {
            Self::Series(series) => series.is_sorted_by_key(|sent| sent.labels.len()),
            _ => true,
        }
    }
}

fn of_series(series: TimeSeries) -> Sent {
    let mut labels: Vec<(String, String)> = series.labels.into_iter().map(of_key_value).collect();
    labels.sort_by(|(a, _), (b, _)| a.cmp(b));
    Sent { labels, samples: series.samples.into_iter().map(|sample| (sample.timestamp_ms, sample.value)).collect() }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Series(series) if series.is_empty() => writeln!(f, "    no series"),
            Self::Series(series) => series.iter().try_for_each(|sent| writeln!(f, "    {} {:?}", short(&sent.labels), sent.samples)),
            Self::Refused(message) => writeln!(f, "    refused: {message}"),
            Self::Broken(message) => writeln!(f, "    broken: {message}"),
        }
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let may_fail = match self {
            Self::Refusal => return writeln!(f, "    a refusal"),
            Self::Failure => return writeln!(f, "    an error"),
            Self::Open { reason, may_fail } => {
                writeln!(f, "    all the same ({reason})")?;
                may_fail
            }
            Self::Series { series, choices, times, may_fail } => {
                listed(f, series, times)?;
                for choice in choices {
                    writeln!(f, "    {} of these:", choice.count)?;
                    listed(f, &choice.among, times)?;
                }
                may_fail
            }
        };
        if *may_fail { writeln!(f, "    (an error is allowed)") } else { Ok(()) }
    }
}

fn listed(f: &mut fmt::Formatter<'_>, series: &[Series], times: &[i64]) -> fmt::Result {
    if series.is_empty() {
        return writeln!(f, "    no series");
    }
    for series in series {
        let samples: Vec<(i64, f64)> = series.points.iter().zip(times).filter_map(|(point, time)| Some((*time, (*point)?.value))).collect();
        writeln!(f, "    {} {samples:?}", short(&labels_of(series)))?;
    }
    Ok(())
}

fn short(labels: &[(String, String)]) -> String {
    format!("{labels:?}").replace(&"x".repeat(64 << 10), "[64 KiB]")
}
