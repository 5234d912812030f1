//! What keeps a statement from harm that limits of memory and time do not see: functions that tell of the host are not there, those that make
//! much of little are bounded before they are called, and a text whose plan would be far larger than itself is refused.

use std::{
    collections::HashMap,
    hash::{Hash, Hasher},
    ops::ControlFlow,
    sync::{Arc, OnceLock},
};

use arrow::{
    array::{Array, AsArray},
    compute::{cast, max},
    datatypes::{DataType, Int64Type},
};
use datafusion::{
    common::{
        DFSchema, Result, ScalarValue,
        config::ConfigOptions,
        plan_err,
        tree_node::{Transformed, TreeNode, TreeNodeRecursion},
    },
    execution::SessionStateBuilder,
    logical_expr::{
        ColumnarValue, Documentation, Expr, LogicalPlan, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
        expr::ScalarFunction,
        planner::{ExprPlanner, PlannerResult, RawBinaryExpr},
        simplify::{ExprSimplifyResult, SimplifyContext},
    },
    physical_optimizer::PhysicalOptimizerRule,
    physical_plan::{ExecutionPlan, coop::CooperativeExec},
    sql::{
        parser::Statement,
        sqlparser::{
            ast::{self, BinaryOperator, ObjectName, Query, Visit, Visitor},
            dialect::GenericDialect,
            keywords::Keyword,
            tokenizer::{Token, Tokenizer},
        },
    },
};

use super::error::sql_error;
use crate::{
    error::{Error, Result as EngineResult},
    exec::memory::{Pool, Reservation},
};

/// Longest value that a function makes, in bytes: a batch of them is half a gigabyte at most.
const VALUE_BYTES_MAX: usize = 64 << 10;
/// Steps of a function whose work is the product of its arguments' lengths.
const STEPS_MAX: usize = 1 << 20;
/// Fields of a value: each level of nesting may double them.
const FIELDS_MAX: usize = 1_000;
/// Tables that a statement reads, each as often as it is named through the common table expressions that name it.
const TABLES_MAX: usize = 128;

/// Signs and words of a statement that make its tree deeper: all but names, constants and commas.
const DEPTH_MAX: usize = 4_000;

/// Functions that tell of the host or have no bound of their own, and what there is instead.
const ABSENT: [&str; 13] = [
    "version",
    "input_file_name",
    "file_row_index",
    "range",
    "generate_series",
    "array_repeat",
    "list_repeat",
    "array_resize",
    "list_resize",
    "with_metadata",
    "arrow_metadata",
    "arrow_field",
    "factorial",
];

/// How large a value of a function becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Growth {
    /// All arguments together.
    Sum,
    /// Twice its argument.
    Double,
    /// The first as often as the second says.
    Repeated,
    /// As many characters as the second says.
    Padded,
    /// The third for each occurrence of the second.
    Replaced,
    /// Not large, but as many steps as the product of the first two.
    Steps,
}

const GROWING: [(&str, Growth); 24] = [
    ("concat", Growth::Sum),
    ("concat_ws", Growth::Sum),
    ("overlay", Growth::Sum),
    ("array_concat", Growth::Sum),
    ("array_append", Growth::Sum),
    ("array_prepend", Growth::Sum),
    ("array_union", Growth::Sum),
    ("array_to_string", Growth::Sum),
    ("array_replace", Growth::Sum),
    ("array_replace_n", Growth::Sum),
    ("array_replace_all", Growth::Sum),
    ("arrays_zip", Growth::Sum),
    ("make_array", Growth::Sum),
    ("struct", Growth::Sum),
    ("named_struct", Growth::Sum),
    ("map", Growth::Sum),
    ("encode", Growth::Double),
    ("repeat", Growth::Repeated),
    ("lpad", Growth::Padded),
    ("rpad", Growth::Padded),
    ("replace", Growth::Replaced),
    ("regexp_replace", Growth::Replaced),
    ("translate", Growth::Double),
    ("levenshtein", Growth::Steps),
];

/// Where the functions of a statement take their memory; empty until it runs.
pub(super) type FunctionMemory = Arc<OnceLock<Pool>>;

/// Puts bounds around the functions of a session that has its default features; what they make is held in `memory`.
pub(super) fn make_harmless(mut builder: SessionStateBuilder, memory: &FunctionMemory) -> SessionStateBuilder {
    if let Some(functions) = builder.scalar_functions() {
        functions.retain(|function| !ABSENT.contains(&function.name()));
        for function in functions.iter_mut() {
            if let Some((_, growth)) = GROWING.iter().find(|(name, _)| *name == function.name()) {
                *function = Arc::new(ScalarUDF::new_from_impl(Bounded { inner: function.clone(), growth: *growth, memory: memory.clone() }));
            }
        }
    }
    if let Some(planners) = builder.expr_planners() {
        planners.insert(0, Arc::new(ShortOperands));
    }
    builder.with_physical_optimizer_rule(Arc::new(Yielding))
}

/// Lets nodes that make many rows of few give way to others now and then; else a statement that nobody waits for would run on.
#[derive(Debug)]
struct Yielding;

impl PhysicalOptimizerRule for Yielding {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        let yielding = |node: Arc<dyn ExecutionPlan>| match node.children().len() > 1 || matches!(node.name(), "UnnestExec" | "RecursiveQueryExec") {
            true => Ok(Transformed::yes(Arc::new(CooperativeExec::new(node)) as Arc<dyn ExecutionPlan>)),
            false => Ok(Transformed::no(node)),
        };
        Ok(plan.transform_up(yielding)?.data)
    }

    fn name(&self) -> &str {
        "yielding"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// A function that is not called with arguments of which it would make too much.
#[derive(Debug)]
struct Bounded {
    inner: Arc<ScalarUDF>,
    growth: Growth,
    memory: FunctionMemory,
}

impl PartialEq for Bounded {
    fn eq(&self, other: &Self) -> bool {
        self.inner == other.inner
    }
}

impl Eq for Bounded {}

impl Hash for Bounded {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.inner.hash(state);
    }
}

impl Bounded {
    /// The most bytes that a value will have.
    fn check(&self, args: &ScalarFunctionArgs) -> Result<usize> {
        let longest = |at: usize| args.args.get(at).map_or(Ok(0), longest_value);
        let number = |at: usize| args.args.get(at).map_or(Ok(0), largest_number);
        let bytes = match self.growth {
            Growth::Sum => args.args.iter().map(longest_value).sum::<Result<usize>>()?,
            Growth::Double => longest(0)?.saturating_mul(2),
            Growth::Repeated => longest(0)?.saturating_mul(number(1)?),
            Growth::Padded => number(1)?.saturating_mul(4),
            Growth::Replaced => (longest(0)? + 1).saturating_mul(longest(2)?.max(1)),
            Growth::Steps => {
                let steps = longest(0)?.saturating_mul(longest(1)?);
                return match steps > STEPS_MAX {
                    true => plan_err!("{}() of texts of which one is {} times the other's bytes: shorten them with left()", self.inner.name(), steps),
                    false => Ok(8),
                };
            }
        };
        match bytes > VALUE_BYTES_MAX {
            true => plan_err!(
                "{}() could make a value of {bytes} bytes, and functions make at most {VALUE_BYTES_MAX}: shorten the arguments, for instance with \
                 left()",
                self.inner.name()
            ),
            false => Ok(bytes),
        }
    }
}

impl ScalarUDFImpl for Bounded {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn aliases(&self) -> &[String] {
        self.inner.aliases()
    }

    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        self.inner.schema_name(args)
    }

    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        self.inner.return_type(arguments)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<arrow::datatypes::FieldRef> {
        let field = self.inner.return_field_from_args(args)?;
        match fields_of(field.data_type()) > FIELDS_MAX {
            true => plan_err!("{}() would make values of more than {FIELDS_MAX} fields", self.name()),
            false => Ok(field),
        }
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let bytes = self.check(&args)?;
        let Some(pool) = self.memory.get() else { return self.inner.invoke_with_args(args) };
        let memory = Reservation::new("values that a function makes", pool);
        memory.grow(bytes.saturating_mul(args.number_rows))?;
        Ok(match self.inner.invoke_with_args(args)? {
            ColumnarValue::Array(array) => ColumnarValue::Array(memory.attach_to_array(array)?),
            scalar => scalar,
        })
    }

    fn coerce_types(&self, arguments: &[DataType]) -> Result<Vec<DataType>> {
        self.inner.coerce_types(arguments)
    }

    fn simplify(&self, args: Vec<Expr>, context: &SimplifyContext) -> Result<ExprSimplifyResult> {
        Ok(match self.inner.simplify(args, context)? {
            // Some functions become themselves with fewer arguments.
            ExprSimplifyResult::Simplified(Expr::ScalarFunction(call)) if call.func.name() == self.name() => {
                let func = Arc::new(ScalarUDF::new_from_impl(Self { inner: self.inner.clone(), growth: self.growth, memory: self.memory.clone() }));
                ExprSimplifyResult::Simplified(Expr::ScalarFunction(ScalarFunction { func, args: call.args }))
            }
            other => other,
        })
    }

    fn documentation(&self) -> Option<&Documentation> {
        self.inner.documentation()
    }
}

/// The number of fields without fields of their own; counts no further than one too many.
fn fields_of(kind: &DataType) -> usize {
    match kind {
        DataType::Struct(fields) => fields.iter().try_fold(0, |sum, field| {
            let sum = sum + fields_of(field.data_type());
            if sum > FIELDS_MAX { Err(sum) } else { Ok(sum) }
        }),
        DataType::List(field) | DataType::LargeList(field) | DataType::FixedSizeList(field, _) | DataType::Map(field, _) => {
            Ok(fields_of(field.data_type()))
        }
        _ => Ok(1),
    }
    .unwrap_or_else(|too_many| too_many)
}

/// Bytes of the longest value.
fn longest_value(value: &ColumnarValue) -> Result<usize> {
    match value {
        ColumnarValue::Scalar(ScalarValue::Utf8(text) | ScalarValue::LargeUtf8(text) | ScalarValue::Utf8View(text)) => {
            Ok(text.as_ref().map_or(0, String::len))
        }
        ColumnarValue::Scalar(value) => longest_in(&value.to_array()?),
        ColumnarValue::Array(array) => longest_in(array),
    }
}

fn longest_in(array: &dyn Array) -> Result<usize> {
    let in_lists = |lengths: &mut dyn Iterator<Item = usize>, values: &dyn Array| {
        Ok::<_, datafusion::common::DataFusionError>(lengths.max().unwrap_or(0).saturating_mul(longest_in(values)?))
    };
    Ok(match array.data_type() {
        DataType::Utf8 => array.as_string::<i32>().offsets().lengths().max().unwrap_or(0),
        DataType::LargeUtf8 => array.as_string::<i64>().offsets().lengths().max().unwrap_or(0),
        DataType::Binary => array.as_binary::<i32>().offsets().lengths().max().unwrap_or(0),
        DataType::LargeBinary => array.as_binary::<i64>().offsets().lengths().max().unwrap_or(0),
        DataType::Utf8View => array.as_string_view().lengths().max().unwrap_or(0) as usize,
        DataType::BinaryView => array.as_binary_view().lengths().max().unwrap_or(0) as usize,
        DataType::Dictionary(..) => longest_in(array.as_any_dictionary().values())?,
        DataType::List(_) => in_lists(&mut array.as_list::<i32>().offsets().lengths(), array.as_list::<i32>().values())?,
        DataType::LargeList(_) => in_lists(&mut array.as_list::<i64>().offsets().lengths(), array.as_list::<i64>().values())?,
        DataType::Map(..) => in_lists(&mut array.as_map().offsets().lengths(), array.as_map().entries())?,
        DataType::Struct(_) => array.as_struct().columns().iter().map(|column| longest_in(column)).sum::<Result<usize>>()?,
        DataType::FixedSizeList(_, length) => (*length as usize).saturating_mul(longest_in(array.as_fixed_size_list().values())?),
        other => other.primitive_width().unwrap_or(16),
    })
}

/// The largest number, 0 for none; what is no number is checked by the function.
fn largest_number(value: &ColumnarValue) -> Result<usize> {
    let array = value.to_array(1)?;
    let largest = cast(&array, &DataType::Int64).ok().and_then(|numbers| max(numbers.as_primitive::<Int64Type>()));
    Ok(largest.map_or(0, |number| usize::try_from(number).unwrap_or(0)))
}

/// Lets `||` join only texts of half the longest value.
#[derive(Debug)]
struct ShortOperands;

impl ExprPlanner for ShortOperands {
    fn plan_binary_op(&self, expr: RawBinaryExpr, schema: &DFSchema) -> Result<PlannerResult<RawBinaryExpr>> {
        use datafusion::logical_expr::ExprSchemable;
        let is_text = |side: &Expr| side.get_type(schema).is_ok_and(|kind| !kind.is_nested());
        if expr.op != BinaryOperator::StringConcat || !is_text(&expr.left) || !is_text(&expr.right) {
            return Ok(PlannerResult::Original(expr));
        }
        let short = |side: Expr| match side {
            // Constants are no longer than the text of the statement.
            Expr::Literal(..) => side,
            side => ScalarUDF::new_from_impl(Short::default()).call(vec![side]),
        };
        Ok(PlannerResult::Original(RawBinaryExpr { op: expr.op, left: short(expr.left), right: short(expr.right) }))
    }
}

/// Its argument, if that is short.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Short {
    signature: Signature,
}

impl Default for Short {
    fn default() -> Self {
        Self { signature: Signature::any(1, Volatility::Immutable) }
    }
}

impl ScalarUDFImpl for Short {
    fn name(&self) -> &str {
        "short"
    }

    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        Ok(args.first().map(|side| side.schema_name().to_string()).unwrap_or_default())
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        Ok(arguments.first().cloned().unwrap_or(DataType::Null))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let Some(value) = args.args.into_iter().next() else { return plan_err!("|| has no operand") };
        match longest_value(&value)? {
            bytes if bytes > VALUE_BYTES_MAX / 2 => {
                plan_err!("|| of a text of {bytes} bytes, and it joins at most {}: shorten it, for instance with left()", VALUE_BYTES_MAX / 2)
            }
            _ => Ok(value),
        }
    }
}

/// Errors: `Invalid` when the constants that an optimised plan gives as columns are too long: each is there once for every row of a batch.
pub(super) fn check_constants(plan: &LogicalPlan) -> EngineResult<()> {
    let mut bytes = 0;
    let count = |expr: &Expr| {
        if let Expr::Literal(value, _) = expr {
            bytes += value.try_as_str().flatten().map_or(0, str::len);
        }
        Ok(TreeNodeRecursion::Continue)
    };
    let mut count = count;
    let walked = plan.apply_with_subqueries(|node| match node {
        LogicalPlan::Projection(projection) => {
            projection.expr.iter().try_for_each(|expr| expr.apply(&mut count).map(drop))?;
            Ok(TreeNodeRecursion::Continue)
        }
        _ => Ok(TreeNodeRecursion::Continue),
    });
    walked.map_err(sql_error)?;
    if bytes > VALUE_BYTES_MAX {
        return Err(Error::invalid(format!("the constants of the statement have {bytes} bytes as columns, at most {VALUE_BYTES_MAX} are allowed")));
    }
    Ok(())
}

/// Errors: `Invalid` for a text of so many operators that its tree could be too deep to be walked.
pub(super) fn check_text(text: &str) -> EngineResult<()> {
    let tokens = Tokenizer::new(&GenericDialect {}, text).tokenize().map_err(|error| Error::invalid(format!("SQL: {error}")))?;
    let deepens = |token: &&Token| match token {
        Token::Word(word) => !matches!(word.keyword, Keyword::NoKeyword | Keyword::AS | Keyword::NULL | Keyword::TRUE | Keyword::FALSE),
        Token::EOF
        | Token::Number(..)
        | Token::SingleQuotedString(_)
        | Token::DoubleQuotedString(_)
        | Token::Comma
        | Token::Whitespace(_)
        | Token::LParen
        | Token::RParen => false,
        _ => true,
    };
    match tokens.iter().filter(deepens).count() {
        count if count > DEPTH_MAX => Err(Error::invalid(format!(
            "the statement has {count} operators and keywords, at most {DEPTH_MAX} are read: use IN for long lists, or split it up"
        ))),
        _ => Ok(()),
    }
}

/// Errors: `Invalid` for a statement that reads more tables than are allowed, or settings.
pub(super) fn check_statement(statement: &Statement) -> EngineResult<()> {
    let settings =
        || Error::invalid("settings cannot be read or changed: only statements that read spans are allowed (SELECT, EXPLAIN, SHOW TABLES)");
    let statement = match statement {
        Statement::Explain(explained) => return check_statement(&explained.statement),
        Statement::Statement(statement) => statement,
        // Whatever else there is does not read.
        _ => return Ok(()),
    };
    if matches!(**statement, ast::Statement::ShowVariable { .. } | ast::Statement::ShowVariables { .. }) {
        return Err(settings());
    }
    let mut tables = Tables::default();
    match statement.visit(&mut tables) {
        ControlFlow::Break(Refused::Settings) => Err(settings()),
        ControlFlow::Break(Refused::Tables) => Err(Error::invalid(format!(
            "the statement reads more than {TABLES_MAX} tables, counting each as often as common table expressions name it: split it up"
        ))),
        ControlFlow::Continue(()) => Ok(()),
    }
}

/// Whether a statement is one of those that read.
pub(super) fn reads(statement: &Statement) -> bool {
    match statement {
        Statement::Explain(explained) => reads(&explained.statement),
        Statement::Statement(statement) => !matches!(
            **statement,
            ast::Statement::Set(_)
                | ast::Statement::StartTransaction { .. }
                | ast::Statement::Commit { .. }
                | ast::Statement::Rollback { .. }
                | ast::Statement::Insert(_)
                | ast::Statement::Update { .. }
                | ast::Statement::Delete(_)
        ),
        _ => false,
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Refused {
    Settings,
    Tables,
}

/// Counts the tables that are named, those of a common table expression wherever it is named: plans are as large as that.
#[derive(Default)]
struct Tables {
    /// The names of common table expressions, by the address of their query.
    names: HashMap<usize, String>,
    /// Tables of common table expressions; of several with one name the most.
    named: HashMap<String, usize>,
    /// Tables of the queries around the current place, innermost last.
    open: Vec<usize>,
}

fn address(query: &Query) -> usize {
    std::ptr::from_ref(query) as usize
}

impl Visitor for Tables {
    type Break = Refused;

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<Refused> {
        let expressions = query.with.iter().flat_map(|with| &with.cte_tables);
        self.names.extend(expressions.map(|named| (address(&named.query), named.alias.name.value.to_lowercase())));
        self.open.push(0);
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, query: &Query) -> ControlFlow<Refused> {
        let count = self.open.pop().unwrap_or(0);
        if let Some(name) = self.names.get(&address(query)) {
            let known = self.named.entry(name.clone()).or_default();
            *known = count.max(*known);
        } else if let Some(around) = self.open.last_mut() {
            *around += count;
        }
        if count > TABLES_MAX { ControlFlow::Break(Refused::Tables) } else { ControlFlow::Continue(()) }
    }

    fn pre_visit_relation(&mut self, relation: &ObjectName) -> ControlFlow<Refused> {
        let Some(name) = relation.0.last().and_then(|part| part.as_ident()).map(|ident| ident.value.to_lowercase()) else {
            return ControlFlow::Continue(());
        };
        if name == "df_settings" {
            return ControlFlow::Break(Refused::Settings);
        }
        let count = self.named.get(&name).map_or(1, |&count| count.max(1));
        if let Some(around) = self.open.last_mut() {
            *around += count;
        }
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use datafusion::sql::parser::DFParser;

    use super::*;

    fn check(text: &str, expected: Option<&str>) {
        let statement = DFParser::parse_sql(text).unwrap().pop_front().unwrap();
        let found = check_statement(&statement).err().map(|error| error.message().to_owned());
        assert_eq!(found.is_some(), expected.is_some(), "{text}: {found:?}");
        assert!(expected.is_none_or(|part| found.as_ref().unwrap().contains(part)), "{text}: {found:?}");
    }

    /// `levels` common table expressions, each of which names the one before twice.
    fn doubling(levels: usize) -> String {
        let mut text = "WITH c0 AS (SELECT 1 AS x)".to_owned();
        (1..=levels).for_each(|at| text.push_str(&format!(", c{at} AS (SELECT a.x FROM c{} AS a, C{} AS b)", at - 1, at - 1)));
        format!("{text} SELECT count(*) FROM c{levels}")
    }

    #[test]
    fn a_statement_is_as_large_as_its_plan() {
        check("SELECT * FROM spans JOIN events USING (trace_id)", None);
        check(&doubling(7), None);
        check(&doubling(8), Some("more than 128 tables"));
        check(&doubling(200), Some("more than 128 tables"));
        check(&format!("EXPLAIN {}", doubling(60)), Some("more than 128 tables"));
        check(&vec!["SELECT 1 FROM spans"; 129].join(" UNION ALL "), Some("more than 128 tables"));
        check("WITH RECURSIVE n AS (SELECT 1 AS x UNION ALL SELECT x + 1 FROM n) SELECT * FROM n", None);
    }

    #[test]
    fn long_lists_are_read_and_deep_trees_are_not() {
        let check = |text: String, read: bool| assert_eq!(check_text(&text).is_ok(), read, "{}", &text[..50]);
        check(format!("SELECT 1 FROM spans WHERE name IN ({})", vec!["'x'"; 10_000].join(", ")), true);
        check(format!("SELECT {} FROM spans", vec!["name AS n"; 3_000].join(", ")), true);
        check(format!("SELECT {}", vec!["1"; 5_000].join(" + ")), false);
        check(format!("SELECT 1 {}", "IS NULL ".repeat(5_000)), false);
        check(vec!["SELECT 1"; 3_000].join(" UNION "), false);
    }

    #[test]
    fn settings_are_not_seen() {
        check("SHOW ALL", Some("settings cannot be read"));
        check("SHOW datafusion.execution.batch_size", Some("settings cannot be read"));
        check("SELECT * FROM information_schema.DF_settings", Some("settings cannot be read"));
        check("SHOW TABLES", None);
    }

    #[test]
    fn the_longest_value_is_found_in_any_form() {
        use arrow::array::{ArrayRef, DictionaryArray, Int64Array, ListArray, StringArray, StringViewArray};
        use arrow::datatypes::Int32Type;
        let check = |array: ArrayRef, expected: usize| assert_eq!(longest_in(&array).unwrap(), expected, "{}", array.data_type());
        check(Arc::new(StringArray::from(vec![Some("abc"), None, Some("abcde")])), 5);
        check(Arc::new(StringViewArray::from(vec!["abc", "a text of more than twelve bytes"])), 32);
        check(Arc::new(["abc", "de"].into_iter().collect::<DictionaryArray<Int32Type>>()), 3);
        check(Arc::new(Int64Array::from(vec![1])), 8);
        check(Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>([Some(vec![Some(1), Some(2)]), None])), 16);
        check(Arc::new(StringArray::from(Vec::<&str>::new())), 0);
    }
}
