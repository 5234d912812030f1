//! Arguments of table functions: constants, worked out when the statement is planned.

use datafusion::{
    catalog::{Session, TableFunctionArgs},
    common::{DFSchema, Result, ScalarValue, plan_err},
    logical_expr::{Expr, simplify::SimplifyContext},
    optimizer::simplify_expressions::ExprSimplifier,
};

use crate::{
    clock::{nanos, parse_duration},
    query::Window,
    traceql::{self, Pipeline, QueryBody},
};

/// The constants that `function` was called with. Errors: `Plan` for fewer than `least` or more than `most`, or for one that is no constant.
pub(crate) fn constants(function: &str, args: &TableFunctionArgs<'_, '_>, least: usize, most: usize) -> Result<Vec<ScalarValue>> {
    let given = args.exprs().len();
    if !(least..=most).contains(&given) {
        return plan_err!("{function}() takes {least} to {most} arguments, not {given}");
    }
    args.exprs().iter().enumerate().map(|(at, expr)| constant(function, at + 1, expr, args.session())).collect()
}

fn constant(function: &str, number: usize, expr: &Expr, session: &dyn Session) -> Result<ScalarValue> {
    let props = session.execution_props();
    let context = SimplifyContext::builder()
        .with_schema(std::sync::Arc::new(DFSchema::empty()))
        .with_config_options(session.config().options().clone())
        .with_query_execution_start_time(props.query_execution_start_time)
        .build();
    match ExprSimplifier::new(context).simplify(expr.clone())? {
        Expr::Literal(value, _) => Ok(value),
        Expr::Column(column) => plan_err!("argument {number} of {function}() must be a constant: write text in single quotes, not {column}"),
        other => plan_err!("argument {number} of {function}() must be a constant, not {other}"),
    }
}

/// Text. Errors: `Plan`.
pub(crate) fn text(function: &str, what: &str, value: &ScalarValue) -> Result<String> {
    match value.try_as_str() {
        Some(Some(text)) => Ok(text.to_owned()),
        _ => plan_err!("{function}() needs {what} as text in single quotes, not {value}"),
    }
}

/// A time in Unix nanoseconds: a timestamp, text that reads as one, or a number of Unix seconds. Errors: `Plan`.
pub(crate) fn unix_nanos(function: &str, what: &str, value: &ScalarValue) -> Result<i64> {
    let nanos = arrow::datatypes::DataType::Timestamp(arrow::datatypes::TimeUnit::Nanosecond, None);
    let seconds = |seconds: i64| seconds.checked_mul(1_000_000_000);
    let found = match value {
        ScalarValue::Int64(Some(value)) => seconds(*value),
        ScalarValue::UInt64(Some(value)) => i64::try_from(*value).ok().and_then(seconds),
        other => match other.cast_to(&nanos) {
            Ok(ScalarValue::TimestampNanosecond(value, _)) => value,
            _ => None,
        },
    };
    match found {
        Some(nanos) if nanos >= 0 => Ok(nanos),
        _ => plan_err!("{function}() needs {what} as a timestamp or as Unix seconds since 1970, not {value}"),
    }
}

/// A length of time in nanoseconds: an interval, text such as `1m`, or a number of seconds. Errors: `Plan`.
pub(crate) fn duration_nanos(function: &str, what: &str, value: &ScalarValue) -> Result<u64> {
    const DAY_NANOS: i64 = 86_400_000_000_000;
    let whole = |nanos: Option<i64>| nanos.and_then(|nanos| u64::try_from(nanos).ok());
    let found = match value {
        ScalarValue::Int64(Some(seconds)) => whole(seconds.checked_mul(1_000_000_000)),
        ScalarValue::IntervalMonthDayNano(Some(interval)) if interval.months == 0 => {
            whole(i64::from(interval.days).checked_mul(DAY_NANOS).and_then(|days| days.checked_add(interval.nanoseconds)))
        }
        other => other.try_as_str().flatten().and_then(parse_duration).map(nanos),
    };
    match found {
        Some(nanos) if nanos > 0 => Ok(nanos),
        _ => plan_err!("{function}() needs {what} as an interval, as text such as '1m', or in seconds, not {value}"),
    }
}

/// The window that the arguments after the first ask for: none, or a start and an end. Errors: `Plan`.
pub(crate) fn optional_window(function: &str, times: &[ScalarValue]) -> Result<Option<Window>> {
    match times {
        [] => Ok(None),
        [start, end] => window(function, unix_nanos(function, "the start", start)?, unix_nanos(function, "the end", end)?).map(Some),
        _ => plan_err!("{function}() takes a query, or a query, a start and an end"),
    }
}

/// The search that a query is. Errors: `Plan` for one of metrics, else as [`traceql::parse`].
pub(crate) fn search(function: &str, query: &str) -> Result<Pipeline> {
    match traceql::parse(query)?.body {
        QueryBody::Search(pipeline) => Ok(pipeline),
        QueryBody::Metrics(_) => plan_err!("{function}() takes a search; for metrics there is traceql_metrics()"),
    }
}

/// The window of whole seconds from `start` to `end`, rounded outwards. Errors: `Plan` when it ends before it starts.
pub(crate) fn window(function: &str, start: i64, end: i64) -> Result<Window> {
    if end < start {
        return plan_err!("{function}(): the end is before the start");
    }
    let seconds = |nanos: i64| u32::try_from(nanos).unwrap_or(u32::MAX);
    Ok(Window {
        start_seconds: seconds(start.div_euclid(1_000_000_000)),
        end_seconds: seconds(end.div_euclid(1_000_000_000) + i64::from(end % 1_000_000_000 > 0)),
    })
}
