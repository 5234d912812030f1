//! What a metrics query keeps beyond Tempo's plain cells, by its hints and its request.

use std::fmt::{self, Display, Formatter};

use serde::{Deserialize, Serialize};

use super::cells::CellKind;
use crate::{
    error::{Error, Result},
    traceql::{AttributeScope, FieldRef, Hint, MetricsExpr, MetricsFunction, OverTime, Static},
};

/// What is kept of the spans in addition to what the function needs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Detail {
    /// Most exemplars of an answer; 0 keeps none.
    pub exemplars: u32,
    /// Quantiles from sketches instead of powers of two: `with(exact=true)`.
    pub exact: bool,
    /// How sampled spans are weighted: `with(extrapolate=true)`.
    pub extrapolation: Option<Extrapolation>,
}

/// How sampled spans are weighted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Extrapolation {
    /// The attribute that tells the probability or weight of spans whose tracestate does not; None for no such attribute.
    pub attribute: Option<String>,
    /// Whether 95 % intervals are wanted too: `with(confidence=true)`.
    pub confidence: bool,
}

impl Extrapolation {
    /// The attribute as a field of spans or their resources.
    pub fn field(&self) -> Option<FieldRef> {
        self.attribute.as_ref().map(|name| FieldRef::Attribute { scope: AttributeScope::Any, name: name.clone() })
    }
}

/// The first hint of a name. Hints of a wrong type mean nothing, as those that nobody knows.
fn flag(hints: &[Hint], name: &str) -> bool {
    matches!(hints.iter().find(|hint| hint.name == name).map(|hint| &hint.value), Some(Static::Bool(true)))
}

/// The number of exemplars that is asked for: by the hint `exemplars=N|true|false`, else by the request, where 0 is none named. `most` is
/// what there are at most, and what there are when no number is named.
pub fn exemplars_of(hints: &[Hint], asked: u32, most: u32) -> u32 {
    match hints.iter().find(|hint| hint.name == "exemplars").map(|hint| &hint.value) {
        Some(Static::Int(number)) => u32::try_from(*number).unwrap_or(if *number < 0 { 0 } else { u32::MAX }).min(most),
        Some(Static::Bool(false)) => 0,
        Some(Static::Bool(true)) => most,
        _ if asked == 0 => most,
        _ => asked.min(most),
    }
}

impl Detail {
    /// What `hints` ask of `query`. Errors: `Invalid` for intervals of what has none.
    pub fn of(query: &MetricsExpr, hints: &[Hint], exemplars: u32, sampling_attribute: Option<&str>) -> Result<Self> {
        let (extrapolate, confidence) = (flag(hints, "extrapolate"), flag(hints, "confidence"));
        if confidence {
            if !extrapolate {
                return Err(Error::invalid("confidence=true tells how sure an extrapolation is: it needs extrapolate=true beside it"));
            }
            check_intervals_of(query)?;
        }
        let extrapolation = extrapolate.then(|| Extrapolation { attribute: sampling_attribute.map(str::to_owned), confidence });
        Ok(Self { exemplars, exact: flag(hints, "exact"), extrapolation })
    }

    /// What of it matters to `function`: only quantiles can be more exact, and the least and the greatest have no weights.
    pub fn for_function(&self, function: &MetricsFunction) -> Self {
        let weighted = !matches!(function, MetricsFunction::OverTime { function: OverTime::Min | OverTime::Max, .. });
        Self {
            exemplars: self.exemplars,
            exact: self.exact && matches!(function, MetricsFunction::QuantileOverTime { .. }),
            extrapolation: self.extrapolation.clone().filter(|_| weighted),
        }
    }

    /// Whether 95 % intervals are wanted.
    pub fn confidence(&self) -> bool {
        self.extrapolation.as_ref().is_some_and(|extrapolation| extrapolation.confidence)
    }

    /// What `function` keeps of the spans.
    pub fn cell_kind(&self, function: &MetricsFunction) -> CellKind {
        let own = self.for_function(function);
        match (function, own.extrapolation.is_some()) {
            (MetricsFunction::Rate { .. } | MetricsFunction::CountOverTime { .. }, false) => CellKind::Counts,
            // A series for each value of each attribute: many values occur once.
            (MetricsFunction::Compare { .. }, false) => CellKind::FewCounts,
            (MetricsFunction::Rate { .. } | MetricsFunction::CountOverTime { .. } | MetricsFunction::Compare { .. }, true) => {
                CellKind::WeightedCounts
            }
            (MetricsFunction::QuantileOverTime { .. }, false) if own.exact => CellKind::Sketches,
            (MetricsFunction::OverTime { function: OverTime::Histogram, .. } | MetricsFunction::QuantileOverTime { .. }, false) => CellKind::Buckets,
            (MetricsFunction::OverTime { function: OverTime::Histogram, .. } | MetricsFunction::QuantileOverTime { .. }, true) => {
                CellKind::WeightedBuckets
            }
            (MetricsFunction::OverTime { .. }, false) => CellKind::Numbers,
            (MetricsFunction::OverTime { .. }, true) => CellKind::WeightedNumbers,
        }
    }
}

fn check_intervals_of(query: &MetricsExpr) -> Result<()> {
    match query {
        MetricsExpr::Pipeline { function, .. } => match function {
            MetricsFunction::Rate { .. } | MetricsFunction::CountOverTime { .. } => Ok(()),
            MetricsFunction::OverTime { function: OverTime::Sum | OverTime::Avg | OverTime::Histogram, .. } => Ok(()),
            other => Err(Error::invalid(format!(
                "confidence=true: there are no intervals for {}, only for rate, count_over_time, sum_over_time, avg_over_time and \
                 histogram_over_time",
                other.name()
            ))),
        },
        MetricsExpr::Scalar(_) => Ok(()),
        MetricsExpr::SecondStages { input, .. } => check_intervals_of(input),
        MetricsExpr::Binary { lhs, rhs, .. } if matches!(**lhs, MetricsExpr::Scalar(_)) || matches!(**rhs, MetricsExpr::Scalar(_)) => {
            check_intervals_of(lhs)?;
            check_intervals_of(rhs)
        }
        MetricsExpr::Binary { .. } => {
            Err(Error::invalid("confidence=true: there are no intervals for arithmetic between two metrics queries; ask for each of them alone"))
        }
    }
}

/// For explained plans; nothing for plain cells.
impl Display for Detail {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.exact {
            write!(f, ", exact")?;
        }
        if let Some(Extrapolation { attribute, confidence }) = &self.extrapolation {
            write!(f, ", extrapolated by tracestate")?;
            attribute.iter().try_for_each(|attribute| write!(f, " or {attribute}"))?;
            write!(f, "{}", if *confidence { " with intervals" } else { "" })?;
        }
        if self.exemplars > 0 {
            write!(f, ", exemplars={}", self.exemplars)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::traceql::{self, QueryBody};

    fn detail(query: &str) -> Result<Detail> {
        let query = traceql::parse(query).unwrap();
        let QueryBody::Metrics(metrics) = &query.body else { panic!("no metrics query") };
        Detail::of(metrics, &query.hints, exemplars_of(&query.hints, 7, 100), Some("rate"))
    }

    #[test]
    fn hints_of_a_wrong_type_and_unknown_ones_mean_nothing() {
        let plain = Detail { exemplars: 7, ..Detail::default() };
        for hints in ["", " with (exact=1, extrapolate=`true`, exemplars=`x`, confidence=2)", " with (exact=false, other=true)", " with (sample=0.1)"]
        {
            assert_eq!(detail(&format!("{{ }} | rate(){hints}")).unwrap(), plain, "{hints}");
        }
        let extrapolation = Some(Extrapolation { attribute: Some("rate".into()), confidence: true });
        let all = detail("{ } | rate() with (extrapolate=true, confidence=true, exact=true, exemplars=3)").unwrap();
        assert_eq!(all, Detail { exemplars: 3, exact: true, extrapolation });
    }

    #[test]
    fn numbers_of_exemplars() {
        let check = |hints: &str, asked: u32, expected: u32| {
            let hints = traceql::parse(&format!("{{ }} | rate(){hints}")).unwrap().hints;
            assert_eq!(exemplars_of(&hints, asked, 100), expected, "{hints:?} {asked}");
        };
        check("", 0, 100);
        check("", 5, 5);
        check("", 1000, 100);
        check(" with (exemplars=0)", 5, 0);
        check(" with (exemplars=false)", 5, 0);
        check(" with (exemplars=true)", 5, 100);
        check(" with (exemplars=9)", 5, 9);
        check(" with (exemplars=900000000000)", 5, 100);
        check(" with (exemplars=1.5)", 5, 5);
    }

    #[test]
    fn intervals_of_what_has_none_are_refused() {
        let refused = |query: &str, part: &str| {
            let error = detail(query).unwrap_err();
            assert!(error.kind() == crate::error::ErrorKind::Invalid && error.message().contains(part), "{query}: {error}");
        };
        refused("{ } | rate() with (confidence=true)", "it needs extrapolate=true");
        refused("{ } | max_over_time(duration) with (extrapolate=true, confidence=true)", "max_over_time");
        refused("{ } | compare({ status = error }) with (extrapolate=true, confidence=true)", "compare");
        refused("({ } | rate()) / ({ } | rate()) with (extrapolate=true, confidence=true)", "each of them alone");
        for query in ["({ } | rate()) * 60", "{ } | rate() by (name) | topk(3)", "{ } | sum_over_time(duration) > 3"] {
            assert!(detail(&format!("{query} with (extrapolate=true, confidence=true)")).unwrap().confidence(), "{query}");
        }
    }

    #[test]
    fn cells_are_of_the_simplest_kind_that_does() {
        let kind = |query: &str| {
            let parsed = traceql::parse(query).unwrap();
            let QueryBody::Metrics(MetricsExpr::Pipeline { function, .. }) = &parsed.body else { panic!("{query}") };
            detail(query).unwrap().cell_kind(function)
        };
        let hints = [" with (exact=true)", " with (extrapolate=true)", " with (exact=true, extrapolate=true)"];
        for (function, expected) in [
            ("rate()", [CellKind::Counts, CellKind::WeightedCounts, CellKind::WeightedCounts]),
            ("compare({ true })", [CellKind::FewCounts, CellKind::WeightedCounts, CellKind::WeightedCounts]),
            ("max_over_time(duration)", [CellKind::Numbers; 3]),
            ("avg_over_time(duration)", [CellKind::Numbers, CellKind::WeightedNumbers, CellKind::WeightedNumbers]),
            ("histogram_over_time(duration)", [CellKind::Buckets, CellKind::WeightedBuckets, CellKind::WeightedBuckets]),
            ("quantile_over_time(duration, .9)", [CellKind::Sketches, CellKind::WeightedBuckets, CellKind::WeightedBuckets]),
        ] {
            assert_eq!(hints.map(|hint| kind(&format!("{{ }} | {function}{hint}"))), expected, "{function}");
        }
        assert_eq!(kind("{ } | quantile_over_time(duration, .9)"), CellKind::Buckets);
    }
}
