//! Truncated times where the time zone is UTC.
//!
//! DataFusion's `date_trunc()` looks at the calendar for each value that has a time zone. In UTC that is what it makes of a value without
//! one, by arithmetic: ten times as fast.

use std::{
    hash::{Hash, Hasher},
    sync::Arc,
};

use arrow::{
    array::{ArrayRef, AsArray, TimestampNanosecondArray},
    datatypes::{DataType, TimestampNanosecondType},
};
use datafusion::{
    common::Result,
    execution::SessionStateBuilder,
    logical_expr::{
        ColumnarValue, Documentation, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
        simplify::{ExprSimplifyResult, SimplifyContext},
        sort_properties::{ExprProperties, SortProperties},
    },
};

use super::columns::UTC;

/// Takes the place of `date_trunc()` in a session that has its default features.
pub(super) fn truncate_fast(mut builder: SessionStateBuilder) -> SessionStateBuilder {
    if let Some(functions) = builder.scalar_functions() {
        for function in functions.iter_mut().filter(|function| function.name() == "date_trunc") {
            *function = Arc::new(ScalarUDF::new_from_impl(TruncatedInUtc(function.clone())));
        }
    }
    builder
}

/// `date_trunc()`, which it holds.
#[derive(Debug)]
struct TruncatedInUtc(Arc<ScalarUDF>);

impl PartialEq for TruncatedInUtc {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl Eq for TruncatedInUtc {}

impl Hash for TruncatedInUtc {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

/// The times of `array` without their time zone, where that is UTC.
fn without_utc(array: &ArrayRef) -> Option<TimestampNanosecondArray> {
    let times = array.as_primitive_opt::<TimestampNanosecondType>().filter(|times| times.timezone() == Some(UTC))?;
    Some(times.clone().with_timezone_opt(None::<Arc<str>>))
}

impl ScalarUDFImpl for TruncatedInUtc {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn aliases(&self) -> &[String] {
        self.0.aliases()
    }

    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        self.0.schema_name(args)
    }

    fn signature(&self) -> &Signature {
        self.0.signature()
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        self.0.return_type(arguments)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<arrow::datatypes::FieldRef> {
        self.0.return_field_from_args(args)
    }

    fn invoke_with_args(&self, mut args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let stripped = match args.args.as_slice() {
            [_, ColumnarValue::Array(times)] => without_utc(times),
            _ => None,
        };
        let Some(times) = stripped else { return self.0.invoke_with_args(args) };
        args.args[1] = ColumnarValue::Array(Arc::new(times));
        // Past the check that the type of what is given is the one that was told.
        Ok(match self.0.inner().invoke_with_args(args)? {
            ColumnarValue::Array(truncated) => {
                ColumnarValue::Array(Arc::new(truncated.as_primitive::<TimestampNanosecondType>().clone().with_timezone(UTC)))
            }
            scalar => scalar,
        })
    }

    fn coerce_types(&self, arguments: &[DataType]) -> Result<Vec<DataType>> {
        self.0.coerce_types(arguments)
    }

    fn simplify(&self, args: Vec<Expr>, context: &SimplifyContext) -> Result<ExprSimplifyResult> {
        self.0.simplify(args, context)
    }

    fn output_ordering(&self, inputs: &[ExprProperties]) -> Result<SortProperties> {
        self.0.output_ordering(inputs)
    }

    fn documentation(&self) -> Option<&Documentation> {
        self.0.documentation()
    }
}
