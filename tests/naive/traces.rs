//! Random small traces, among them all that real senders get wrong: missing parents, several roots, cycles, ids used twice, ends before
//! starts, empty and huge values, one key with values of several types. Values come from small pools, from which the queries draw too.

use std::fmt;

use rand::{Rng, rngs::StdRng, seq::IndexedRandom};

use super::model::{Attributes, Event, Link, Scope, Span, Value};

/// The earliest start, a whole second years ago: nothing may depend on the clock.
pub const BASE_SECONDS: u64 = 1_600_000_000;
const BASE: u64 = BASE_SECONDS * 1_000_000_000;
const MILLI: u64 = 1_000_000;

/// Keys whose values have one type nearly always (`flag` bool, `n` int, `f` double, `s` text), arrays (`list`), and any type (others).
pub const KEYS: [&str; 12] = ["flag", "n", "f", "s", "list", "a", "b", "http.status_code", "user agent", "a+\"b\\", "", "ключ"];
pub const NAMES: [&str; 6] = ["GET /", "query", "a", "b", "", "nil"];
pub const SERVICES: [&str; 4] = ["shop", "cart", "a", ""];
pub const TEXTS: [&str; 12] = ["", "a", "b", "ab", "GET", "nil", "true", "1", "ä", "x y", "a\nb`\"", "false"];
pub const INTS: [i64; 10] = [0, 1, 2, 3, -1, 200, 404, i64::MAX, i64::MIN, 5_000_000];
pub const DOUBLES: [f64; 10] = [0.0, -0.0, 0.5, 1.0, 2.0, -1.5, 1e300, f64::INFINITY, f64::NEG_INFINITY, f64::NAN];
/// Nanoseconds.
pub const DURATIONS: [u64; 8] = [0, 1, 1_000, 1_500_000, 5_000_000, 250_000_000, 1_000_000_000, 90_000_000_000];
/// Parents that no trace holds.
const ABSENT: [u64; 2] = [0xdead, 0x00be_ef00_0000_0001];

/// Where a span lies when the spans are divided: a bit a place.
pub type Places = u8;
/// Places over which spans are divided: live, and two blocks.
pub const PLACES: usize = 3;

/// All spans of a world are over after this time.
pub const SECONDS_OF_A_TURN: u64 = 200;

/// Spans of a few traces.
#[derive(Clone)]
pub struct World {
    pub spans: Vec<(Span, Places)>,
}

impl World {
    pub fn random(random: &mut StdRng) -> Self {
        let mut spans = Vec::new();
        for trace in 0..random.random_range(1..=6) {
            let id = trace_id(random, trace);
            let mut of_trace = random_trace(random, id);
            repeat_some(random, &mut of_trace);
            spans.extend(of_trace);
        }
        let spans = spans.into_iter().map(|span| (span, random_places(random))).collect();
        Self { spans }
    }

    /// The same spans, each at one place, where those of a place are over before those of the place before it begin.
    pub fn in_turn(&self) -> Self {
        let turn = |(span, places): &(Span, Places)| {
            let place = places.trailing_zeros();
            let later = u64::from(PLACES as u32 - 1 - place) * SECONDS_OF_A_TURN * 1_000 * MILLI;
            let mut span = span.clone();
            span.start += later;
            span.end += later;
            span.events.iter_mut().for_each(|event| event.time += later);
            (span, 1 << place)
        };
        Self { spans: self.spans.iter().map(turn).collect() }
    }

    pub fn all(&self) -> impl Iterator<Item = &Span> {
        self.spans.iter().map(|(span, _)| span)
    }

    pub fn at(&self, place: usize) -> impl Iterator<Item = &Span> {
        self.spans.iter().filter(move |(_, places)| places & (1 << place) != 0).map(|(span, _)| span)
    }
}

impl fmt::Display for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (span, places) in &self.spans {
            writeln!(
                f,
                "places {places:03b} trace {:x} span {:x} parent {:x?} {:?} kind {}",
                span.trace, span.id, span.parent, span.name, span.kind
            )?;
            let relative = |time: u64| i128::from(time) - i128::from(BASE);
            writeln!(f, "    from base+{}ns to base+{}ns, status {:?}", relative(span.start), relative(span.end), span.status)?;
            writeln!(f, "    attributes {}", Shown(&span.attributes))?;
            if let Some(resource) = &span.resource {
                writeln!(f, "    resource {}", Shown(resource))?;
            }
            if let Some(scope) = &span.scope {
                writeln!(f, "    scope {:?} {:?} {}", scope.name, scope.version, Shown(&scope.attributes))?;
            }
            for event in &span.events {
                let since = i128::from(event.time) - i128::from(span.start);
                writeln!(f, "    event {:?} at start+{since}ns {}", event.name, Shown(&event.attributes))?;
            }
            for link in &span.links {
                writeln!(f, "    link {:x} {:x} {}", link.trace, link.span, Shown(&link.attributes))?;
            }
        }
        Ok(())
    }
}

/// Attributes for reading: huge text is cut.
struct Shown<'a>(&'a Attributes);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (key, value) in self.0 {
            match value {
                Value::Text(text) if text.len() > 100 => write!(f, "{key:?}=[{} bytes of {:?}] ", text.len(), &text[..1])?,
                value => write!(f, "{key:?}={value:?} ")?,
            }
        }
        Ok(())
    }
}

/// One of `pool`.
pub fn one<T: Copy>(random: &mut StdRng, pool: &[T]) -> T {
    *pool.choose(random).expect("pools are not empty")
}

/// True once in `n` times.
pub fn once_in(random: &mut StdRng, n: u32) -> bool {
    random.random_ratio(1, n)
}

fn trace_id(random: &mut StdRng, number: u128) -> u128 {
    match random.random_range(0..8) {
        0 => random.random(),
        1 => (number + 1) << 100,
        2 => number,
        _ => 0xabc0 + number,
    }
}

fn span_id(random: &mut StdRng, number: u64) -> u64 {
    match random.random_range(0..20) {
        0 => random.random(),
        1 => random.random_range(0..4),
        2 => u64::MAX - number,
        _ => number + 1,
    }
}

fn random_trace(random: &mut StdRng, trace: u128) -> Vec<Span> {
    let count = random.random_range(1..=12);
    let start = BASE + random.random_range(0..8) * 250 * MILLI * if once_in(random, 4) { 40 } else { 1 };
    let ids: Vec<u64> = (0..count).map(|number| span_id(random, number)).collect();
    let resources: Vec<Option<Attributes>> = (0..2).map(|_| random_resource(random)).collect();
    (0..count as usize)
        .map(|at| {
            let parent = random_parent(random, &ids, at);
            let resource = one_of(random, &resources);
            random_span(random, trace, ids[at], parent, start, resource)
        })
        .collect()
}

fn one_of<T: Clone>(random: &mut StdRng, pool: &[T]) -> T {
    pool.choose(random).expect("pools are not empty").clone()
}

/// Mostly an earlier span, sometimes a later one or itself (a cycle), none, one that is missing, or zeros.
fn random_parent(random: &mut StdRng, ids: &[u64], at: usize) -> Option<u64> {
    match random.random_range(0..20) {
        _ if at == 0 && !once_in(random, 5) => None,
        0..=12 => Some(ids[random.random_range(0..at.max(1))]),
        13 => Some(one(random, ids)),
        14 => Some(ids[at]),
        15 | 16 => Some(one(random, &ABSENT)),
        17 => Some(0),
        _ => None,
    }
}

fn random_span(random: &mut StdRng, trace: u128, id: u64, parent: Option<u64>, base: u64, resource: Option<Attributes>) -> Span {
    let start = base + random.random_range(0..6) * MILLI - if once_in(random, 8) { 2 * MILLI } else { 0 };
    let end = match random.random_range(0..20) {
        0 => start - 3 * MILLI,
        1 if once_in(random, 8) => 0,
        _ => start + one(random, &DURATIONS),
    };
    Span {
        trace,
        id,
        parent,
        name: one(random, &NAMES).to_owned(),
        kind: if once_in(random, 15) { one(random, &[6, 77, -1]) } else { random.random_range(0..=5) },
        start,
        end,
        status: random_status(random),
        attributes: random_attributes(random, 5),
        events: (0..several(random)).map(|_| random_event(random, start)).collect(),
        links: (0..several(random)).map(|_| random_link(random, trace)).collect(),
        resource,
        scope: random_scope(random),
    }
}

/// Mostly none, at most three.
fn several(random: &mut StdRng) -> usize {
    if random.random_bool(0.6) { 0 } else { random.random_range(1..=3) }
}

fn random_status(random: &mut StdRng) -> Option<(i32, String)> {
    let code = match random.random_range(0..8) {
        0..=2 => return None,
        3 => 9,
        _ => random.random_range(0..=2),
    };
    Some((code, if random.random_bool(0.5) { String::new() } else { one(random, &TEXTS).to_owned() }))
}

fn random_resource(random: &mut StdRng) -> Option<Attributes> {
    if once_in(random, 10) {
        return None;
    }
    let mut attributes = random_attributes(random, 3);
    for _ in 0..if once_in(random, 12) { 2 } else { 1 } {
        let service = if once_in(random, 10) { random_value(random, "a") } else { Value::Text(one(random, &SERVICES).to_owned()) };
        attributes.insert(random.random_range(0..=attributes.len()), ("service.name".to_owned(), service));
    }
    Some(attributes)
}

fn random_scope(random: &mut StdRng) -> Option<Scope> {
    random.random_bool(0.5).then(|| Scope {
        name: one(random, &["", "lib", "a"]).to_owned(),
        version: one(random, &["", "1.0", "2"]).to_owned(),
        attributes: random_attributes(random, 1),
    })
}

fn random_event(random: &mut StdRng, start: u64) -> Event {
    let time = match random.random_range(0..6) {
        0 => start - MILLI,
        1 => 0,
        _ => start + one(random, &DURATIONS),
    };
    Event { time, name: one(random, &["exception", "log", "a", ""]).to_owned(), attributes: random_attributes(random, 2) }
}

fn random_link(random: &mut StdRng, trace: u128) -> Link {
    let trace = match random.random_range(0..3) {
        0 => trace,
        1 => 0xabc,
        _ => 0,
    };
    Link { trace, span: random.random_range(0..3), attributes: random_attributes(random, 2) }
}

fn random_attributes(random: &mut StdRng, most: usize) -> Attributes {
    (0..random.random_range(0..=most))
        .map(|_| {
            let key = if once_in(random, 40) { "service.name" } else { one(random, &KEYS) };
            (key.to_owned(), random_value(random, key))
        })
        .collect()
}

fn random_value(random: &mut StdRng, key: &str) -> Value {
    let usual = !once_in(random, 30);
    match key {
        "flag" if usual => Value::Bool(random.random()),
        "n" if usual => Value::Int(one(random, &INTS[..7])),
        "f" if usual => Value::Double(one(random, &DOUBLES[..6])),
        "s" if usual => Value::Text(one(random, &TEXTS).to_owned()),
        "list" if usual => random_array(random),
        _ => match random.random_range(0..32) {
            0..=8 => Value::Text(one(random, &TEXTS).to_owned()),
            9..=17 => Value::Int(one(random, &INTS)),
            18..=22 => Value::Double(one(random, &DOUBLES)),
            23..=25 => Value::Bool(random.random()),
            26 | 27 => random_array(random),
            28 => Value::Map(vec![("a".to_owned(), Value::Int(1))]),
            29 => Value::Bytes(vec![1, 2, 3]),
            30 => Value::Empty,
            _ if once_in(random, 6) => Value::Text("x".repeat(64 << 10)),
            _ => Value::Text("nil".to_owned()),
        },
    }
}

/// Mostly of one type, of none to three elements.
fn random_array(random: &mut StdRng) -> Value {
    let count = random.random_range(0..=3);
    let mixed = once_in(random, 10);
    let mut kind = random.random_range(0..4);
    let mut values = Vec::new();
    for _ in 0..count {
        values.push(match kind {
            0 => Value::Text(one(random, &TEXTS[..4]).to_owned()),
            1 => Value::Int(one(random, &INTS[..4])),
            2 => Value::Double(one(random, &DOUBLES[..5])),
            _ => Value::Bool(random.random()),
        });
        if mixed {
            kind = random.random_range(0..4);
        }
    }
    if once_in(random, 20) {
        values.push(Value::Array(vec![Value::Int(1)]));
    }
    Value::Array(values)
}

/// Sends some spans twice, and some with the id of another and changed content.
fn repeat_some(random: &mut StdRng, spans: &mut Vec<Span>) {
    for at in 0..spans.len() {
        if once_in(random, 12) {
            spans.push(spans[at].clone());
        }
        if once_in(random, 16) {
            let mut twin = spans[at].clone();
            match random.random_range(0..4) {
                0 => twin.kind = random.random_range(0..=5),
                1 => twin.attributes = random_attributes(random, 3),
                2 => twin.start += MILLI,
                _ => twin.name = one(random, &NAMES).to_owned(),
            }
            spans.push(twin);
        }
    }
}

/// Mostly one place, sometimes several.
fn random_places(random: &mut StdRng) -> Places {
    let mut places = 1 << random.random_range(0..PLACES);
    if once_in(random, 5) {
        places |= 1 << random.random_range(0..PLACES);
    }
    places
}
