//! Attribute names and values of the spans in some sources.

use std::collections::{BTreeMap, BTreeSet};

use arrow::{array::Array, buffer::BooleanBuffer};
use futures::future::BoxFuture;
use skein_proto::tempo::TagValue;

use super::{
    eval::{
        ColumnNeeds, Frame,
        frame::{FieldLevel, level_of},
        vector::Vector,
    },
    memory::{Pool, Reservation},
    source::{RestScope, SourceRef},
    sources::{active_rows, scan_units},
    spansets::filter_rows,
    stats::{Pruned, ScanMetrics},
};
use crate::{
    error::Result,
    optimize::filter_terms,
    query::{TagScope, Window},
    spans::{
        read::{Texts, Typed},
        schema::Column,
        tables::Shared,
        value::Value,
    },
    stop,
    traceql::{AttributeScope, FieldExpr, FieldRef, Intrinsic, Static},
};

/// Names by scope.
pub type NamesByScope = BTreeMap<TagScope, BTreeSet<String>>;

/// All names in `sources`, as their schemas and tables say: no row is read.
pub fn all_names(sources: &[SourceRef]) -> NamesByScope {
    let mut names = NamesByScope::new();
    for source in sources {
        let schema = source.schema();
        let mut add = |scope, keys: &mut dyn Iterator<Item = String>| names.entry(scope).or_default().extend(keys);
        add(TagScope::Span, &mut schema.attributes.iter().map(|field| field.column.key.to_string()));
        add(TagScope::Span, &mut source.rest_keys(RestScope::Span).iter().map(|key| key.to_string()));
        add(TagScope::Event, &mut schema.event_attributes.iter().map(|field| field.column.key.to_string()));
        add(TagScope::Event, &mut source.rest_keys(RestScope::Event).iter().map(|key| key.to_string()));
        add(TagScope::Link, &mut source.rest_keys(RestScope::Link).iter().map(|key| key.to_string()));
        add(TagScope::Resource, &mut table_keys(source.resources()));
        add(TagScope::Instrumentation, &mut table_keys(source.scopes()));
    }
    names.retain(|_, names| !names.is_empty());
    names
}

fn table_keys(table: &Shared) -> impl Iterator<Item = String> + '_ {
    (0..table.len()).flat_map(|id| table.attributes(id).keys().map(|key| key.to_string()))
}

/// Called after each row group with what was found so far; the future, if there is one, ends when it was told.
pub type Telling<'a, F> = dyn FnMut(&F) -> Option<BoxFuture<'static, ()>> + Send + 'a;

/// Which spans are looked at.
#[derive(Clone, Copy)]
struct Looked<'a> {
    sources: &'a [SourceRef],
    filter: Option<&'a FieldExpr>,
    window: Option<Window>,
    metrics: &'a ScanMetrics,
    pool: &'a Pool,
}

/// Calls `visit` with each row group in the window and its rows that pass the filter, if there are any, to add to what was found.
async fn for_each_group<F>(
    looked: Looked<'_>,
    needs: &(dyn Fn(&SourceRef) -> ColumnNeeds + Sync),
    visit: &(dyn Fn(&mut F, &Frame, &BooleanBuffer) -> Result<()> + Sync),
    found: &mut F,
    telling: &mut Telling<'_, F>,
) -> Result<()> {
    let Looked { sources, filter, window, metrics, pool } = looked;
    let filter = filter.map(filter_terms);
    let (units, outside) = scan_units(sources, window);
    metrics.pruned(Pruned::Window, outside);
    for unit in units {
        stop::check()?;
        let mut frame = Frame::new(sources[unit.source].clone(), unit.group, None, pool);
        let mut rows = active_rows(&mut frame, unit.group, window, &[], metrics).await?;
        metrics.row_group(frame.len() as u64);
        if let Some(filter) = &filter {
            rows = filter_rows(filter, &mut frame, unit.group, &rows, metrics).await?;
        }
        if rows.count_set_bits() > 0 {
            frame.load(&needs(frame.source()), metrics).await?;
            visit(found, &frame, &rows)?;
        }
        if let Some(told) = telling(found) {
            told.await;
        }
    }
    Ok(())
}

/// The names on spans that pass `filter`. Cost: reads every attribute column of row groups with a match.
/// Errors: as the sources', `Exhausted`.
pub async fn names_where(
    sources: &[SourceRef],
    filter: &FieldExpr,
    window: Option<Window>,
    (metrics, pool): (&ScanMetrics, &Pool),
    telling: &mut Telling<'_, NamesByScope>,
) -> Result<NamesByScope> {
    let mut names = NamesByScope::new();
    let needs = |source: &SourceRef| {
        let mut needs = ColumnNeeds { columns: vec![Column::Resource, Column::Scope], events: Vec::new() };
        needs.columns.extend((0..source.schema().attributes.len() as u32).map(Column::Attribute));
        needs.columns.extend([Column::Rest, Column::Links]);
        needs
    };
    let visit = |names: &mut NamesByScope, frame: &Frame, rows: &BooleanBuffer| -> Result<()> {
        let source = frame.source().clone();
        for (at, field) in source.schema().attributes.iter().enumerate() {
            let present = Vector::Typed(Typed::of(frame.column(Column::Attribute(at as u32))?)?).exists();
            if (&present & rows).count_set_bits() > 0 {
                names.entry(TagScope::Span).or_default().insert(field.column.key.to_string());
            }
        }
        for (scope, column, table) in
            [(TagScope::Resource, Column::Resource, source.resources()), (TagScope::Instrumentation, Column::Scope, source.scopes())]
        {
            let ids = frame.small_ints(column)?;
            let used: BTreeSet<i32> = rows.set_indices().map(|row| ids.value(row)).collect();
            let keys = used.into_iter().flat_map(|id| table.attributes(id as usize).keys().map(|key| key.to_string()));
            names.entry(scope).or_default().extend(keys);
        }
        if source.schema().has(Column::Rest) {
            let rest = arrow::array::AsArray::as_binary::<i32>(frame.column(Column::Rest)?);
            let mut keys = BTreeSet::new();
            for row in rows.set_indices().filter(|&row| rest.is_valid(row)) {
                crate::spans::gather::note_keys(&mut keys, rest.value(row), 1);
            }
            names.entry(TagScope::Span).or_default().extend(keys.into_iter().map(String::from));
        }
        Ok(())
    };
    for_each_group(Looked { sources, filter: Some(filter), window, metrics, pool }, &needs, &visit, &mut names, telling).await?;
    names.retain(|_, names| !names.is_empty());
    Ok(names)
}

/// The distinct values of `field` on spans that pass `filter`. Errors: as the sources', `Exhausted`.
pub async fn values_of(
    sources: &[SourceRef],
    field: &FieldRef,
    filter: Option<&FieldExpr>,
    window: Option<Window>,
    (metrics, pool): (&ScanMetrics, &Pool),
    telling: &mut Telling<'_, FoundValues>,
) -> Result<Vec<TagValue>> {
    if let FieldRef::Intrinsic(intrinsic) = field
        && let Some(values) = fixed_values(*intrinsic)
    {
        return Ok(values);
    }
    let (mut found, held) = (FoundValues::default(), Reservation::new("distinct values", pool));
    if let (None, None, Some(values)) = (filter, window, table_values(sources, field)) {
        values.iter().for_each(|value| found.note(value));
        held.settle(found.bytes)?;
        return Ok(found.into_values());
    }
    let needs = |source: &SourceRef| {
        let mut needs = ColumnNeeds::default();
        needs.add_field(field, source);
        needs
    };
    let visit = |found: &mut FoundValues, frame: &Frame, rows: &BooleanBuffer| -> Result<()> {
        let vector = frame.vector(field)?;
        match level_of(field) {
            FieldLevel::Span => {
                note_distinct(found, &vector, rows);
                if matches!(field, FieldRef::Intrinsic(Intrinsic::RootName | Intrinsic::RootService)) && has_null(&vector, rows) {
                    found.note(&Value::from(""));
                }
            }
            level => {
                let bindings = frame.bindings(rows, level == FieldLevel::Event, level == FieldLevel::Link)?;
                let chosen = if level == FieldLevel::Event { &bindings.events } else { &bindings.links };
                chosen.iter().flatten().for_each(|at| found.note(&vector.get(at as usize)));
            }
        }
        held.settle(found.bytes)
    };
    for_each_group(Looked { sources, filter, window, metrics, pool }, &needs, &visit, &mut found, telling).await?;
    Ok(found.into_values())
}

fn to_tag_value((kind, value): (&'static str, String)) -> TagValue {
    TagValue { r#type: kind.to_owned(), value }
}

/// Distinct values, by type and text, and the bytes that they take until they are answered.
#[derive(Default)]
pub struct FoundValues {
    values: BTreeSet<(&'static str, String)>,
    bytes: usize,
}

impl FoundValues {
    fn note(&mut self, value: &Value) {
        match value {
            Value::Nil => {}
            Value::Array(values) => values.iter().for_each(|value| self.note(value)),
            value => {
                let text = value.to_string();
                let bytes = size_of::<(&str, String)>() + size_of::<TagValue>() + text.len();
                if self.values.insert((value.type_name(), text)) {
                    self.bytes += bytes;
                }
            }
        }
    }

    /// Those that are not among `told`, which are then.
    pub fn take_new(&self, told: &mut BTreeSet<(&'static str, String)>) -> Vec<TagValue> {
        let new: Vec<_> = self.values.difference(told).cloned().collect();
        told.extend(new.iter().cloned());
        new.into_iter().map(to_tag_value).collect()
    }

    fn into_values(self) -> Vec<TagValue> {
        self.values.into_iter().map(to_tag_value).collect()
    }
}

/// Values that need no row: those of resources and scopes.
fn table_values(sources: &[SourceRef], field: &FieldRef) -> Option<Vec<Value>> {
    let of = |values: &dyn Fn(&SourceRef) -> Vec<Value>| Some(sources.iter().flat_map(values).collect());
    match field {
        FieldRef::Attribute { scope: AttributeScope::Resource, name } => of(&|source| source.resources().values_of(name)),
        FieldRef::Attribute { scope: AttributeScope::Instrumentation, name } => of(&|source| source.scopes().values_of(name)),
        _ => None,
    }
}

/// Values that are the same for every tenant; none for durations and ids, of which there are too many to be of use.
fn fixed_values(intrinsic: Intrinsic) -> Option<Vec<TagValue>> {
    let keywords = |words: &[&str]| Some(words.iter().map(|word| TagValue { r#type: "keyword".to_owned(), value: (*word).to_owned() }).collect());
    match intrinsic {
        Intrinsic::Status => keywords(&["error", "ok", "unset"]),
        Intrinsic::Kind => keywords(&["client", "consumer", "internal", "producer", "server", "unspecified"]),
        Intrinsic::Duration
        | Intrinsic::TraceDuration
        | Intrinsic::EventTimeSinceStart
        | Intrinsic::TraceId
        | Intrinsic::SpanId
        | Intrinsic::ParentId
        | Intrinsic::LinkTraceId
        | Intrinsic::LinkSpanId
        | Intrinsic::NestedSetLeft
        | Intrinsic::NestedSetRight
        | Intrinsic::NestedSetParent
        | Intrinsic::Parent => Some(Vec::new()),
        _ => None,
    }
}

/// Whether a row has no text of its own: the trace has no root.
fn has_null(vector: &Vector, rows: &BooleanBuffer) -> bool {
    match vector {
        Vector::Text(texts, _) => rows.set_indices().any(|row| texts.get(row).is_none()),
        _ => false,
    }
}

fn note_distinct(found: &mut FoundValues, vector: &Vector, rows: &BooleanBuffer) {
    match vector {
        Vector::First(vectors) => {
            let mut open = rows.clone();
            for vector in vectors {
                note_distinct(found, vector, &open);
                open = &open & &!&vector.exists();
            }
        }
        Vector::Indexed(keys, values) => {
            let used: BTreeSet<i32> = rows.set_indices().filter(|&row| keys.is_valid(row)).map(|row| keys.value(row)).collect();
            used.into_iter().for_each(|key| found.note(&values[key as usize]));
        }
        Vector::Typed(Typed::Text(Texts::Dictionary(dictionary, values))) | Vector::Text(Texts::Dictionary(dictionary, values), _) => {
            let mut used = vec![false; values.len()];
            let keys = dictionary.keys();
            rows.set_indices().filter(|&row| keys.is_valid(row)).for_each(|row| used[keys.value(row) as usize] = true);
            used.iter().enumerate().filter(|(_, used)| **used).for_each(|(key, _)| found.note(&Value::from(values.value(key))));
        }
        vector => rows.set_indices().for_each(|row| found.note(&vector.get(row))),
    }
}

/// A filter that keeps everything is no filter.
pub fn is_trivial(filter: &FieldExpr) -> bool {
    *filter == FieldExpr::Literal(Static::Bool(true))
}
