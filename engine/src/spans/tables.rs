//! Resource and scope tables: what many spans share, kept once, as it came over the wire, and as values for queries.

use std::{
    mem::{Discriminant, discriminant},
    sync::{Arc, OnceLock},
};

use hashbrown::HashMap;
use skein_proto::otlp::{common::v1::InstrumentationScope, resource::v1::Resource};

use super::{
    pool::{Pool, utf8},
    value::{Value, value_of_any},
    wire::{Fields, KeyValue, write_bytes_field, write_varint},
};

/// What a shared message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SharedKind {
    /// OTLP `Resource`: attributes in field 1.
    Resource,
    /// OTLP `InstrumentationScope`: name, version, attributes in fields 1 to 3.
    Scope,
}

/// Interns messages that spans share together with their schema URL. Equal bytes get equal numbers.
#[derive(Debug)]
pub struct SharedTable {
    kind: SharedKind,
    pool: Pool,
    scratch: Vec<u8>,
    snapshot: Option<Arc<Shared>>,
}

impl SharedTable {
    /// An empty table.
    pub fn new(kind: SharedKind) -> Self {
        Self { kind, pool: Pool::default(), scratch: Vec::new(), snapshot: None }
    }

    /// The number of `message` (None: not sent) with `schema_url`.
    pub fn intern(&mut self, message: Option<&[u8]>, schema_url: &[u8]) -> u32 {
        self.scratch.clear();
        write_shared(&mut self.scratch, message, schema_url);
        let before = self.pool.len();
        let id = self.pool.intern(&self.scratch);
        if self.pool.len() > before {
            self.snapshot = None;
        }
        id
    }

    /// All entries so far; parses them again only when there are new ones.
    pub fn snapshot(&mut self) -> Arc<Shared> {
        if let Some(snapshot) = &self.snapshot {
            return snapshot.clone();
        }
        let entries = (0..self.pool.len() as u32).map(|id| self.pool.get(id).to_vec().into_boxed_slice()).collect();
        let snapshot = Arc::new(Shared::new(self.kind, entries));
        self.snapshot = Some(snapshot.clone());
        snapshot
    }
}

/// Field 1: the message, if one was sent; field 2: the schema URL, unless empty. See engine/FORMAT.md, "Shared tables".
fn write_shared(out: &mut Vec<u8>, message: Option<&[u8]>, schema_url: &[u8]) {
    if let Some(message) = message {
        write_bytes_field(out, 1, message);
    }
    if !schema_url.is_empty() {
        write_varint(out, 2 << 3 | 2);
        write_varint(out, schema_url.len() as u64);
        out.extend_from_slice(schema_url);
    }
}

/// One entry's attributes as values, first value of a key only.
pub type Attributes = HashMap<Box<str>, Value, foldhash::fast::FixedState>;

/// Start and end in an entry.
type Place = (u32, u32);

/// An immutable table of shared messages.
#[derive(Debug, Default)]
pub struct Shared {
    entries: Vec<Box<[u8]>>,
    attributes: Vec<Attributes>,
    names: Vec<(Value, Value)>,
    /// Where in its entry the message lies, if there is one, and the schema URL.
    parts: Vec<(Option<Place>, Place)>,
    examples: OnceLock<Vec<(Box<str>, Value)>>,
}

impl Shared {
    /// Reads entries in the stored form. Damaged entries read as empty messages; stored tables are checksummed before they get here.
    pub fn new(kind: SharedKind, entries: Vec<Box<[u8]>>) -> Self {
        let mut table = Self { entries, ..Self::default() };
        for entry in &table.entries {
            let (message, schema_url) = split(entry);
            table.attributes.push(attributes_of(kind, message.unwrap_or_default()));
            table.names.push(scope_names(message.unwrap_or_default()));
            table.parts.push((message.map(|part| range_in(entry, part)), range_in(entry, schema_url)));
        }
        table
    }

    /// How many entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The entries in stored form.
    pub fn entries(&self) -> &[Box<[u8]>] {
        &self.entries
    }

    /// The attributes of entry `id`.
    pub fn attributes(&self, id: usize) -> &Attributes {
        &self.attributes[id]
    }

    /// Value of `key` in every entry, `Nil` where it is missing.
    pub fn values_of(&self, key: &str) -> Vec<Value> {
        self.attributes.iter().map(|attributes| attributes.get(key).cloned().unwrap_or(Value::Nil)).collect()
    }

    /// Of each attribute a value of each type that it has, by key. Cost: once per attribute of an entry, the first time.
    pub fn examples(&self) -> &[(Box<str>, Value)] {
        self.examples.get_or_init(|| {
            let mut known: HashMap<(&str, Discriminant<Value>), &Value> = HashMap::new();
            let values = self.attributes.iter().flatten().filter(|(_, value)| **value != Value::Nil);
            values.for_each(|(key, value)| {
                known.entry((key, discriminant(value))).or_insert(value);
            });
            let mut examples: Vec<(Box<str>, Value)> = known.into_iter().map(|((key, _), value)| (Box::from(key), value.clone())).collect();
            examples.sort_by(|one, other| one.0.cmp(&other.0));
            examples
        })
    }

    /// Whether an entry has `key`, and all that have it a text. Cost: as [`examples`](Self::examples).
    pub fn only_texts(&self, key: &str) -> bool {
        let examples = self.examples();
        let from = examples.partition_point(|(known, _)| **known < *key);
        let mut of_key = examples[from..].iter().take_while(|(known, _)| **known == *key).peekable();
        of_key.peek().is_some() && of_key.all(|(_, value)| matches!(value, Value::String(_)))
    }

    /// Whether an entry has `key`.
    pub fn has(&self, key: &str) -> bool {
        self.attributes.iter().any(|attributes| attributes.contains_key(key))
    }

    /// Name of every scope, empty text where it has none.
    pub fn scope_names(&self) -> Vec<Value> {
        self.names.iter().map(|(name, _)| name.clone()).collect()
    }

    /// Version of every scope, empty text where it has none.
    pub fn scope_versions(&self) -> Vec<Value> {
        self.names.iter().map(|(_, version)| version.clone()).collect()
    }

    /// The message of entry `id` as it was sent, None if none was.
    pub fn message(&self, id: usize) -> Option<&[u8]> {
        self.parts[id].0.map(|(start, end)| &self.entries[id][start as usize..end as usize])
    }

    /// The schema URL of entry `id`.
    pub fn schema_url(&self, id: usize) -> &[u8] {
        let (start, end) = self.parts[id].1;
        &self.entries[id][start as usize..end as usize]
    }

    /// Entry `id` as a resource. Unreadable messages give an empty one.
    pub fn resource(&self, id: usize) -> Option<Resource> {
        self.message(id).map(|message| prost::Message::decode(message).unwrap_or_default())
    }

    /// Entry `id` as a scope. Unreadable messages give an empty one.
    pub fn scope(&self, id: usize) -> Option<InstrumentationScope> {
        self.message(id).map(|message| prost::Message::decode(message).unwrap_or_default())
    }
}

fn split(entry: &[u8]) -> (Option<&[u8]>, &[u8]) {
    let (mut message, mut schema_url) = (None, &[][..]);
    let mut fields = Fields::new(entry);
    while let Ok(Some((number, field))) = fields.next_field() {
        match (number, field.bytes()) {
            (1, Ok(bytes)) => message = Some(bytes),
            (2, Ok(bytes)) => schema_url = bytes,
            _ => {}
        }
    }
    (message, schema_url)
}

/// Where `part`, a slice of `whole`, lies in it; an empty slice from elsewhere is the empty range.
fn range_in(whole: &[u8], part: &[u8]) -> Place {
    if part.is_empty() {
        return (0, 0);
    }
    let start = part.as_ptr() as usize - whole.as_ptr() as usize;
    (start as u32, (start + part.len()) as u32)
}

fn attributes_of(kind: SharedKind, message: &[u8]) -> Attributes {
    let wanted = match kind {
        SharedKind::Resource => 1,
        SharedKind::Scope => 3,
    };
    let mut attributes = Attributes::default();
    let mut fields = Fields::new(message);
    while let Ok(Some((number, field))) = fields.next_field() {
        if number == wanted
            && let Ok(bytes) = field.bytes()
            && let Ok(pair) = KeyValue::parse(bytes)
        {
            let key = utf8(pair.key).into_owned().into_boxed_str();
            let value = pair.value.map_or(Value::Nil, value_of_any);
            if value != Value::Nil && !attributes.contains_key(&key) {
                attributes.insert(key, value);
            }
        }
    }
    attributes
}

fn scope_names(message: &[u8]) -> (Value, Value) {
    let (mut name, mut version) = (Value::from(""), Value::from(""));
    let mut fields = Fields::new(message);
    while let Ok(Some((number, field))) = fields.next_field() {
        match (number, field.bytes()) {
            (1, Ok(bytes)) => name = Value::from(&*utf8(bytes)),
            (2, Ok(bytes)) => version = Value::from(&*utf8(bytes)),
            _ => {}
        }
    }
    (name, version)
}
