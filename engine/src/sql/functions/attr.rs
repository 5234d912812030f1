//! `attr('key')`: any attribute. Calls with a constant key are columns by the time that a plan is made; this is what the others meet, and
//! what lists of functions show.

use arrow::datatypes::DataType;
use datafusion::{
    common::{Result, plan_err},
    logical_expr::{ColumnarValue, DocSection, Documentation, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility},
};

use super::super::{columns::SqlType, system::described};

const NAME: &str = "attr";

/// The function.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct AttrFunction {
    signature: Signature,
    documentation: Option<Documentation>,
}

impl AttrFunction {
    /// The function.
    pub(crate) fn new() -> Self {
        let documentation = described(NAME)
            .map(|it| Documentation::builder(DocSection { label: "Traces", ..DocSection::default() }, it.description, "attr('key')").build());
        Self { signature: Signature::exact(vec![DataType::Utf8], Volatility::Immutable), documentation }
    }
}

impl ScalarUDFImpl for AttrFunction {
    fn name(&self) -> &str {
        NAME
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(SqlType::Text.data_type())
    }

    fn invoke_with_args(&self, _: ScalarFunctionArgs) -> Result<ColumnarValue> {
        plan_err!("attr() takes one key as text in single quotes, of the spans of the query's table")
    }

    fn documentation(&self) -> Option<&Documentation> {
        self.documentation.as_ref()
    }
}
