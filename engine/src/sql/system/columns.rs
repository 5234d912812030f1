//! `system.columns`: the attributes that blocks and live spans have, and what they take, by the blocks' footers and indexes.

use std::collections::{BTreeMap, HashSet};

use arrow::{array::ArrayRef, datatypes::Field};

use super::{count_field, counts, optional_counts, text_field, texts};
use crate::{
    block::reader::{BlockReader, ColumnSize},
    exec::source::{RestScope, SourceRef},
    spans::{
        columns::AttributeType,
        schema::{Column, EventColumn},
        tables::Shared,
        value::Value,
    },
};

/// What is known of one attribute, by scope, key and type. Counts are of blocks.
#[derive(Debug, Default)]
struct Attribute {
    blocks: u64,
    /// Of columns of its own.
    size: Option<ColumnSize>,
    /// Of resources and scopes, which are held once.
    distinct: Option<HashSet<String>>,
}

/// Attributes without a column of their own have no type.
const NO_COLUMN: &str = "any";

type Attributes = BTreeMap<(&'static str, String, &'static str), Attribute>;

pub(super) fn fields() -> Vec<Field> {
    let known = ["compressed_bytes", "rows", "distinct_values"].map(|name| count_field(name, true));
    let named = ["scope", "key", "type"].map(|name| text_field(name, false));
    named.into_iter().chain([count_field("blocks", false)]).chain(known).collect()
}

pub(super) fn arrays(sources: &[SourceRef]) -> Vec<ArrayRef> {
    let mut attributes = Attributes::new();
    for source in sources {
        add_columns(&mut attributes, source);
        add_shared(&mut attributes, "resource", source.resources(), source.block().is_some());
        add_shared(&mut attributes, "instrumentation", source.scopes(), source.block().is_some());
    }
    let keys = || attributes.keys();
    let known = |of: fn(&Attribute) -> Option<u64>| optional_counts(attributes.values().map(of));
    vec![
        texts(keys().map(|(scope, ..)| (*scope).to_owned())),
        texts(keys().map(|(_, key, _)| key.clone())),
        texts(keys().map(|(.., kind)| (*kind).to_owned())),
        counts(attributes.values().map(|attribute| attribute.blocks)),
        known(|attribute| attribute.size.map(|size| size.bytes)),
        known(|attribute| attribute.size.map(|size| size.rows)),
        known(|attribute| attribute.distinct.as_ref().map(|values| values.len() as u64)),
    ]
}

/// Attributes of spans and events with a column, and of spans, events and links without.
fn add_columns(attributes: &mut Attributes, source: &SourceRef) {
    let (schema, block) = (source.schema(), source.block());
    let mut add = |scope, key: &str, kind, size: Option<&dyn Fn(&BlockReader) -> ColumnSize>| {
        let attribute = attributes.entry((scope, key.to_owned(), kind)).or_default();
        let Some(block) = block else { return };
        attribute.blocks += 1;
        if let Some(size) = size {
            attribute.size = Some(attribute.size.unwrap_or_default().plus(size(block)));
        }
    };
    for (at, field) in schema.attributes.iter().enumerate() {
        let size = |block: &BlockReader| block.column_size(Column::Attribute(at as u32), &[]);
        add("span", &field.column.key, type_name(field.column.kind), Some(&size));
    }
    for (at, field) in schema.event_attributes.iter().enumerate() {
        let size = |block: &BlockReader| block.column_size(Column::Events, &[EventColumn::Attribute(at as u32)]);
        add("event", &field.column.key, type_name(field.column.kind), Some(&size));
    }
    for (scope, name) in [(RestScope::Span, "span"), (RestScope::Event, "event"), (RestScope::Link, "link")] {
        source.rest_keys(scope).iter().for_each(|key| add(name, key, NO_COLUMN, None));
    }
}

fn add_shared(attributes: &mut Attributes, scope: &'static str, table: &Shared, is_block: bool) {
    let mut seen = HashSet::new();
    for (key, value) in (0..table.len()).flat_map(|id| table.attributes(id)).filter(|(_, value)| **value != Value::Nil) {
        let place = (scope, key.to_string(), type_of(value));
        let attribute = attributes.entry(place.clone()).or_default();
        attribute.distinct.get_or_insert_default().insert(value.to_string());
        if is_block && seen.insert(place) {
            attribute.blocks += 1;
        }
    }
}

fn type_name(kind: AttributeType) -> &'static str {
    match kind {
        AttributeType::String => "string",
        AttributeType::Int => "int",
        AttributeType::Double => "float",
        AttributeType::Bool => "bool",
    }
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::String(_) => type_name(AttributeType::String),
        Value::Int(_) => type_name(AttributeType::Int),
        Value::Float(_) => type_name(AttributeType::Double),
        Value::Bool(_) => type_name(AttributeType::Bool),
        _ => NO_COLUMN,
    }
}
