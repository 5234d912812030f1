//! What ran lately, by tenant: `system.queries`.

use std::{collections::VecDeque, sync::Arc};

use moka::sync::Cache;
use parking_lot::Mutex;

use crate::{
    clock::{Clock, Stopwatch, SystemClock, nanos},
    error::{Error, Result},
    query::ScanStats,
    tenant::TenantId,
};

/// Queries that are remembered of a tenant.
const QUERIES_MAX: usize = 256;

/// Tenants whose queries are remembered; those that asked least lately are forgotten.
const TENANTS_MAX: u64 = 1024;

/// Bytes of a query's text and of its error that are remembered.
const TEXT_BYTES_MAX: usize = 4096;

/// What a query is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Language {
    Sql,
    Traceql,
}

impl Language {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sql => "sql",
            Self::Traceql => "traceql",
        }
    }
}

/// A query that has ended.
#[derive(Debug, Clone)]
pub struct EndedQuery {
    /// When it began.
    pub began_unix_nano: u64,
    /// What it is written in.
    pub language: Language,
    /// Its text, perhaps cut.
    pub text: String,
    /// How long it ran.
    pub duration_nanos: u64,
    /// Rows, traces or series that it gave.
    pub rows: u64,
    /// Why it failed, if it did.
    pub error: Option<String>,
    /// What it read.
    pub stats: ScanStats,
}

/// The latest queries of each tenant. Bounded.
#[derive(Debug)]
pub struct QueryLog {
    tenants: Cache<TenantId, Arc<Mutex<VecDeque<EndedQuery>>>>,
}

impl Default for QueryLog {
    fn default() -> Self {
        Self { tenants: Cache::new(TENANTS_MAX) }
    }
}

impl QueryLog {
    /// Notes that a query begins. It is in the log when it has ended, also when that is by being dropped.
    pub fn begin(self: &Arc<Self>, tenant: &TenantId, language: Language, text: &str) -> RunningQuery {
        let query = EndedQuery {
            began_unix_nano: SystemClock.now_unix_nano(),
            language,
            text: cut(text),
            duration_nanos: 0,
            rows: 0,
            error: Some("the client left before the end".to_owned()),
            stats: ScanStats::default(),
        };
        RunningQuery { log: self.clone(), tenant: tenant.clone(), watch: Stopwatch::start(), query, forgotten: false }
    }

    /// The queries of `tenant` that have ended, the latest first.
    pub fn latest(&self, tenant: &TenantId) -> Vec<EndedQuery> {
        self.tenants.get(tenant).map(|queries| queries.lock().iter().rev().cloned().collect()).unwrap_or_default()
    }
}

fn cut(text: &str) -> String {
    text[..text.floor_char_boundary(TEXT_BYTES_MAX)].to_owned()
}

/// A query that has not ended.
#[derive(Debug)]
pub struct RunningQuery {
    log: Arc<QueryLog>,
    tenant: TenantId,
    watch: Stopwatch,
    query: EndedQuery,
    forgotten: bool,
}

impl RunningQuery {
    /// Notes what it has given and read so far.
    pub fn so_far(&mut self, rows: u64, stats: ScanStats) {
        self.query.rows = rows;
        self.query.stats = stats;
    }

    /// It was no query of its own after all.
    pub fn forget(mut self) {
        self.forgotten = true;
    }

    /// The query has ended.
    pub fn end(mut self, error: Option<&Error>) {
        self.query.error = error.map(|error| cut(&error.to_string()));
    }

    /// The query has ended with `result`, of which `told` are the rows and what it has read.
    pub fn end_with<T>(mut self, result: &Result<T>, told: impl Fn(&T) -> (usize, ScanStats)) {
        if let Ok(found) = result {
            let (rows, stats) = told(found);
            self.so_far(rows as u64, stats);
        }
        self.end(result.as_ref().err());
    }
}

impl Drop for RunningQuery {
    fn drop(&mut self) {
        if self.forgotten {
            return;
        }
        self.query.duration_nanos = nanos(self.watch.elapsed());
        let queries = self.log.tenants.get_with(self.tenant.clone(), Arc::default);
        let mut queries = queries.lock();
        if queries.len() == QUERIES_MAX {
            queries.pop_front();
        }
        queries.push_back(self.query.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_bounded_and_of_one_tenant() {
        let log = Arc::new(QueryLog::default());
        for number in 0..QUERIES_MAX + 3 {
            log.begin(&TenantId::single(), Language::Sql, &format!("{number}{}", "ä".repeat(TEXT_BYTES_MAX))).end(None);
        }
        let latest = log.latest(&TenantId::single());
        assert_eq!(latest.len(), QUERIES_MAX);
        assert!(latest[0].text.starts_with(&(QUERIES_MAX + 2).to_string()) && latest[0].text.len() <= TEXT_BYTES_MAX);
        drop(log.begin(&TenantId::single(), Language::Traceql, "{}"));
        assert!(log.latest(&TenantId::single())[0].error.is_some(), "who leaves is told");
        assert!(TenantId::parse("other").is_ok_and(|other| log.latest(&other).is_empty()));
    }
}
