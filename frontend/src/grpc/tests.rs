#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use futures::StreamExt;
use skein_proto::tempo::SearchTagsResponse;
use tokio::sync::mpsc;
use tonic::{Code, Status};

use super::{Messages, Speaking};

fn message(names: &[&str]) -> SearchTagsResponse {
    SearchTagsResponse { tag_names: names.iter().map(|name| name.to_string()).collect(), metrics: None }
}

/// Work that tells parts `0`, `1`, … until it cannot, then waits for ever; what it has told, and whether it is there.
struct Work {
    told: Arc<AtomicUsize>,
    dropped: Arc<AtomicBool>,
}

struct SetOnDrop(Arc<AtomicBool>);

impl Drop for SetOnDrop {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

impl Work {
    fn start(parts: usize) -> (Self, Messages<SearchTagsResponse>) {
        let work = Self { told: Arc::default(), dropped: Arc::default() };
        let (told, guard) = (work.told.clone(), SetOnDrop(work.dropped.clone()));
        let (client, receiver) = mpsc::channel(1);
        let running = async move {
            let _guard = guard;
            for number in 0..parts {
                client.send(message(&[&number.to_string()])).await.unwrap();
                told.fetch_add(1, SeqCst);
            }
            Ok(message(&["all"]))
        };
        (work, Speaking::start(running, receiver, 0).messages())
    }
}

#[tokio::test]
async fn a_client_that_does_not_take_messages_holds_the_work_back() {
    let (work, mut messages) = Work::start(1000);
    for taken in 1..=5 {
        assert_eq!(messages.next().await.unwrap().unwrap(), message(&[&(taken - 1).to_string()]));
        // Let the work do what it can.
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        assert_eq!(work.told.load(SeqCst), taken + 1, "those that were taken and the one that waits");
    }
    assert!(!work.dropped.load(SeqCst));
    drop(messages);
    let dropped = async {
        while !work.dropped.load(SeqCst) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), dropped).await.expect("who leaves drops the work");
}

#[tokio::test]
async fn the_whole_comes_last_and_then_nothing() {
    for parts in [0, 1, 2, 7] {
        let (work, messages) = Work::start(parts);
        let all: Vec<_> = messages.map(Result::unwrap).collect().await;
        assert_eq!(all.last(), Some(&message(&["all"])));
        // A part may come together with the end, and is left out then; others are not.
        assert!((parts.saturating_sub(1)..=parts).contains(&(all.len() - 1)), "{parts} parts: {all:?}");
        assert_eq!(work.told.load(SeqCst), parts);
    }
}

#[tokio::test]
async fn an_error_ends_the_stream() {
    let (client, receiver) = mpsc::channel(1);
    let running = async move {
        client.send(message(&["part"])).await.unwrap();
        // The client takes the part.
        client.reserve().await.unwrap();
        Err(Status::resource_exhausted("too much"))
    };
    let mut messages: Messages<SearchTagsResponse> = Speaking::start(running, receiver, 0).messages();
    assert_eq!(messages.next().await.unwrap().unwrap(), message(&["part"]));
    assert_eq!(messages.next().await.unwrap().unwrap_err().code(), Code::ResourceExhausted);
    assert!(messages.next().await.is_none());
}
