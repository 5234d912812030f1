//! Parts of an answer on their way from the engine to a client.

use std::sync::Arc;

use futures::future::BoxFuture;
use parking_lot::Mutex;
use skein_engine::{
    parts::{Pace, Part, Parts},
    query::{MetricsResult, ScanStats, SearchResult, TagNames, TagValues},
};
use tokio::sync::mpsc;

use crate::tenancy::Tenants;

/// How far a query of one or several tenants is.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Progress {
    /// What was read so far.
    pub(crate) stats: ScanStats,
    /// Row groups in all.
    pub(crate) row_groups: u64,
}

impl Progress {
    fn plus(self, other: &Self) -> Self {
        Self { stats: self.stats.plus(&other.stats), row_groups: self.row_groups + other.row_groups }
    }
}

/// An answer of the engine that says what it cost.
pub(crate) trait Found: Default + Send + 'static {
    fn stats(&self) -> ScanStats;
}

macro_rules! found {
    ($($answer:ty),*) => {
        $(impl Found for $answer {
            fn stats(&self) -> ScanStats {
                self.stats
            }
        })*
    };
}

found!(SearchResult, MetricsResult, TagNames, TagValues);

type Tell<T> = dyn Fn(T, Progress) -> BoxFuture<'static, ()> + Send + Sync;

/// A client that hears the parts of an answer. Of the answers of several tenants it hears only how far they are: what is certain of one tenant
/// may be pushed out by what another finds.
pub(crate) struct Listening<T> {
    pace: Pace,
    tenants: Tenants,
    progress: Arc<Mutex<Vec<Progress>>>,
    tell: Arc<Tell<T>>,
}

impl<T: Found> Listening<T> {
    /// Parts are made into messages by `message` and sent to `client`, where as many wait as its channel has places.
    pub(crate) fn new<M: Send + 'static>(
        pace: Pace,
        tenants: &Tenants,
        client: mpsc::Sender<M>,
        message: impl Fn(T, Progress) -> M + Send + Sync + 'static,
    ) -> Self {
        let tell: Arc<Tell<T>> = Arc::new(move |found, progress| {
            let (client, message) = (client.clone(), message(found, progress));
            // A client that has left drops the query as well.
            Box::pin(async move { drop(client.send(message).await) })
        });
        Self { pace, tenants: tenants.clone(), progress: Arc::new(Mutex::new(vec![Progress::default(); tenants.ids().len()])), tell }
    }

    /// Where the parts of the answer for one of the tenants go.
    pub(crate) fn parts_of(&self, tenant: &skein_engine::tenant::TenantId) -> Parts<T> {
        let place = self.tenants.ids().iter().position(|other| other == tenant).unwrap_or_default();
        let (progress, tell) = (self.progress.clone(), self.tell.clone());
        Parts::new(self.pace, move |Part { found, row_groups }: Part<T>| {
            let (sum, alone) = {
                let mut all = progress.lock();
                all[place] = Progress { stats: found.stats(), row_groups };
                (all.iter().fold(Progress::default(), Progress::plus), all.len() == 1)
            };
            tell(if alone { found } else { T::default() }, sum)
        })
    }
}
