//! What every implementation of [`Store`] must do. Another backend runs the same function.

use bytes::Bytes;
use futures::StreamExt;
use sampan_store::{Change, Error, Event, Events, Page, Range, Revision, Store};

/// Runs everything, each part on a fresh store.
pub async fn run<S: AsRef<dyn Store>>(fresh: impl Fn() -> S) {
    reads_and_writes(fresh().as_ref()).await;
    preconditions(fresh().as_ref()).await;
    lists(fresh().as_ref()).await;
    lists_of_the_past(fresh().as_ref()).await;
    watches_replay_then_follow(fresh().as_ref()).await;
    watches_filter_by_prefix(fresh().as_ref()).await;
    revisions_out_of_range(fresh().as_ref()).await;
    compaction(fresh().as_ref()).await;
    concurrent_writers(fresh()).await;
    watched_before_acknowledged(fresh().as_ref()).await;
}

pub fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn keys(page: &Page) -> Vec<&str> {
    page.entries.iter().map(|entry| &*entry.key).collect()
}

fn values(page: &Page) -> Vec<&[u8]> {
    page.entries.iter().map(|entry| &*entry.value).collect()
}

/// The next `count` events, however they are batched.
pub async fn next(events: &mut Events, count: usize) -> Vec<Event> {
    let mut seen = Vec::new();
    while seen.len() < count {
        let batch = events.next().await.expect("the watch goes on").unwrap();
        assert!(!batch.is_empty());
        seen.extend(batch.iter().cloned());
    }
    assert_eq!(seen.len(), count);
    seen
}

async fn reads_and_writes(store: &dyn Store) {
    assert_eq!(store.revision().await, Ok(1));
    assert_eq!(store.get("/a").await, Ok(None));
    let created = store.create("/a", bytes("one")).await.unwrap();
    assert_eq!(created, 2);
    let entry = store.get("/a").await.unwrap().unwrap();
    assert_eq!((&*entry.key, &*entry.value), ("/a", &b"one"[..]));
    assert_eq!((entry.created, entry.revision), (2, 2));

    assert_eq!(store.update("/a", bytes("two"), 2).await, Ok(3));
    let entry = store.get("/a").await.unwrap().unwrap();
    assert_eq!((&*entry.value, entry.created, entry.revision), (&b"two"[..], 2, 3));

    assert_eq!(store.delete("/a", 3).await, Ok(4));
    assert_eq!(store.get("/a").await, Ok(None));
    assert_eq!(store.create("/a", bytes("")).await, Ok(5));
    let entry = store.get("/a").await.unwrap().unwrap();
    assert_eq!((&*entry.value, entry.created, entry.revision), (&b""[..], 5, 5));
    assert_eq!(store.revision().await, Ok(5));
}

async fn preconditions(store: &dyn Store) {
    let key = || "/a".to_owned();
    assert_eq!(store.update("/a", bytes("x"), 1).await, Err(Error::NotFound { key: key() }));
    assert_eq!(store.delete("/a", 1).await, Err(Error::NotFound { key: key() }));
    let first = store.create("/a", bytes("1")).await.unwrap();
    assert_eq!(store.create("/a", bytes("2")).await, Err(Error::AlreadyExists { key: key() }));
    let second = store.update("/a", bytes("2"), first).await.unwrap();
    let conflict = Error::Conflict { key: key(), current: second };
    assert_eq!(store.update("/a", bytes("3"), first).await, Err(conflict.clone()));
    assert_eq!(store.delete("/a", first).await, Err(conflict.clone()));
    assert_eq!(store.delete("/a", second + 7).await, Err(conflict));
    // A refusal costs no revision.
    assert_eq!(store.revision().await, Ok(second));
    assert!(matches!(store.create("", bytes("")).await, Err(Error::InvalidKey { .. })));
    let long = "k".repeat(5000);
    assert!(matches!(store.create(&long, bytes("")).await, Err(Error::InvalidKey { .. })));
}

async fn lists(store: &dyn Store) {
    for key in ["/b/2", "/a/1", "/b/1", "/b", "/b/3", "/bb", "/c"] {
        store.create(key, bytes(key)).await.unwrap();
    }
    let page = store.list(Range::prefix("/b/"), None, 0).await.unwrap();
    assert_eq!(keys(&page), ["/b/1", "/b/2", "/b/3"]);
    assert_eq!(values(&page), [b"/b/1", b"/b/2", b"/b/3"]);
    assert_eq!((page.revision, page.remaining), (8, 0));

    let page = store.list(Range::prefix("/b"), None, 2).await.unwrap();
    assert_eq!((keys(&page), page.remaining), (vec!["/b", "/b/1"], 3));
    let page = store.list(Range::prefix("/b").after("/b/1"), None, 2).await.unwrap();
    assert_eq!((keys(&page), page.remaining), (vec!["/b/2", "/b/3"], 1));
    let page = store.list(Range::prefix("/b").after("/b/3"), None, 2).await.unwrap();
    assert_eq!((keys(&page), page.remaining), (vec!["/bb"], 0));
    // A place to go on from need not be a key, nor lie in the range.
    let page = store.list(Range::prefix("/b").after("/a"), None, 1).await.unwrap();
    assert_eq!(keys(&page), ["/b"]);
    let page = store.list(Range::prefix("/b").after("/z"), None, 1).await.unwrap();
    assert_eq!((keys(&page), page.remaining), (vec![], 0));
    let page = store.list(Range::prefix(""), None, 0).await.unwrap();
    assert_eq!(page.entries.len(), 7);
    let page = store.list(Range::prefix("/none/"), None, 0).await.unwrap();
    assert_eq!((keys(&page), page.revision), (vec![], 8));
}

async fn lists_of_the_past(store: &dyn Store) {
    let a = store.create("/p/a", bytes("a1")).await.unwrap();
    let b = store.create("/p/b", bytes("b1")).await.unwrap();
    let c = store.create("/p/c", bytes("c1")).await.unwrap();
    let then = c;
    store.update("/p/a", bytes("a2"), a).await.unwrap();
    store.delete("/p/b", b).await.unwrap();
    store.create("/p/d", bytes("d1")).await.unwrap();
    let gone = store.delete("/p/c", c).await.unwrap();
    store.create("/p/c", bytes("c2")).await.unwrap();

    let past = Range::prefix("/p/");
    let page = store.list(past.clone(), Some(then), 0).await.unwrap();
    assert_eq!(keys(&page), ["/p/a", "/p/b", "/p/c"]);
    assert_eq!(values(&page), [b"a1", b"b1", b"c1"]);
    assert_eq!(page.revision, then);
    assert_eq!(page.entries.iter().map(|e| e.revision).collect::<Vec<_>>(), [a, b, c]);
    let page = store.list(past.clone(), Some(gone), 0).await.unwrap();
    assert_eq!(values(&page), [b"a2", b"d1"]);
    let page = store.list(past.clone(), Some(1), 0).await.unwrap();
    assert_eq!(keys(&page), Vec::<&str>::new());

    let page = store.list(past.clone(), Some(then), 2).await.unwrap();
    assert_eq!((keys(&page), page.remaining), (vec!["/p/a", "/p/b"], 1));
    let page = store.list(past.clone().after("/p/b"), Some(then), 2).await.unwrap();
    assert_eq!((keys(&page), page.remaining), (vec!["/p/c"], 0));
    let now = store.list(past, None, 0).await.unwrap();
    assert_eq!(values(&now), [b"a2", b"c2", b"d1"]);
}

async fn watches_replay_then_follow(store: &dyn Store) {
    store.create("/a", bytes("1")).await.unwrap();
    let mut all = store.watch("", 1).unwrap();
    let mut later = store.watch("", 2).unwrap();
    store.update("/a", bytes("2"), 2).await.unwrap();
    store.delete("/a", 3).await.unwrap();
    let event = |revision, change, value: &str, previous: Option<&str>| Event {
        revision,
        change,
        key: "/a".into(),
        value: bytes(value),
        created: 2,
        previous: previous.map(bytes),
    };
    let told = [
        event(2, Change::Created, "1", None),
        event(3, Change::Updated, "2", Some("1")),
        event(4, Change::Deleted, "2", Some("2")),
    ];
    assert_eq!(next(&mut all, 3).await, told);
    assert_eq!(next(&mut later, 2).await, told[1..]);
    // And the same again when all of it is history.
    assert_eq!(next(&mut store.watch("", 0).unwrap(), 3).await, told);
    assert_eq!(next(&mut store.watch("", 3).unwrap(), 1).await, told[2..]);
    let mut new = store.watch("", 4).unwrap();
    assert_eq!(store.create("/a", bytes("3")).await, Ok(5));
    let event = Event { created: 5, ..event(5, Change::Created, "3", None) };
    assert_eq!(next(&mut new, 1).await, [event]);
}

async fn watches_filter_by_prefix(store: &dyn Store) {
    let mut pods = store.watch("/pods/", 1).unwrap();
    for index in 0..4 {
        store.create(&format!("/leases/{index}"), bytes("")).await.unwrap();
        store.create(&format!("/pods/{index}"), bytes("")).await.unwrap();
    }
    let live: Vec<Revision> = next(&mut pods, 4).await.iter().map(|e| e.revision).collect();
    assert_eq!(live, [3, 5, 7, 9]);
    let replayed = next(&mut store.watch("/pods/", 4).unwrap(), 3).await;
    assert_eq!(replayed.iter().map(|e| &*e.key).collect::<Vec<_>>(), ["/pods/1", "/pods/2", "/pods/3"]);
}

async fn revisions_out_of_range(store: &dyn Store) {
    store.create("/a", bytes("")).await.unwrap();
    let future = Error::Future { requested: 9, current: 2 };
    assert_eq!(store.list(Range::default(), Some(9), 0).await, Err(future.clone()));
    assert_eq!(store.watch("", 9).err(), Some(future.clone()));
    assert_eq!(store.compact(9).await, Err(future));
}

async fn compaction(store: &dyn Store) {
    let mut at = store.create("/a", bytes("0")).await.unwrap();
    let gone = store.create("/gone", bytes("x")).await.unwrap();
    for index in 1..10 {
        at = store.update("/a", bytes(&index.to_string()), at).await.unwrap();
    }
    let deleted = store.delete("/gone", gone).await.unwrap();
    let middle = at - 4;
    store.compact(middle).await.unwrap();
    store.compact(middle).await.unwrap();
    store.compact(1).await.unwrap();

    let compacted = Error::Compacted { requested: middle - 1, oldest: middle };
    let early = store.list(Range::default(), Some(middle - 1), 0).await;
    assert_eq!(early, Err(compacted.clone()));
    assert_eq!(store.watch("", middle - 1).err(), Some(compacted));
    let page = store.list(Range::default(), Some(middle), 0).await.unwrap();
    assert_eq!((keys(&page), values(&page)), (vec!["/a", "/gone"], vec![&b"5"[..], &b"x"[..]]));
    let replayed = next(&mut store.watch("", middle).unwrap(), 5).await;
    assert_eq!(replayed[0].previous, Some(bytes("5")));
    assert_eq!(replayed[4].revision, deleted);
    assert_eq!(replayed[4].value, bytes("x"));

    // Down to nothing but what there is now.
    store.compact(deleted).await.unwrap();
    let page = store.list(Range::default(), None, 0).await.unwrap();
    assert_eq!((values(&page), page.entries[0].revision), (vec![&b"9"[..]], at));
    assert_eq!(store.list(Range::default(), Some(deleted), 0).await, Ok(page));
    let mut live = store.watch("", deleted).unwrap();
    let next_revision = store.create("/gone", bytes("back")).await.unwrap();
    assert_eq!(next_revision, deleted + 1);
    assert_eq!(next(&mut live, 1).await[0].change, Change::Created);
}

async fn concurrent_writers<S: AsRef<dyn Store>>(store: S) {
    let store = store.as_ref();
    const WRITERS: usize = 16;
    const ROUNDS: usize = 20;
    // All increment one counter, each retrying until its turn comes.
    store.create("/counter", bytes("0")).await.unwrap();
    let mut watch = store.watch("/counter", 2).unwrap();
    let writers = (0..WRITERS).map(|_| async move {
        for _ in 0..ROUNDS {
            loop {
                let entry = store.get("/counter").await.unwrap().unwrap();
                let count: usize = std::str::from_utf8(&entry.value).unwrap().parse().unwrap();
                let value = bytes(&(count + 1).to_string());
                match store.update("/counter", value, entry.revision).await {
                    Ok(_) => break,
                    Err(Error::Conflict { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        }
    });
    futures::future::join_all(writers).await;
    let total = WRITERS * ROUNDS;
    assert_eq!(store.get("/counter").await.unwrap().unwrap().value, bytes(&total.to_string()));
    assert_eq!(store.revision().await, Ok(2 + total as u64));
    for (index, event) in next(&mut watch, total).await.iter().enumerate() {
        assert_eq!(event.revision, 3 + index as u64);
        assert_eq!(event.value, bytes(&(index + 1).to_string()));
        assert_eq!(event.previous, Some(bytes(&index.to_string())));
    }
}

async fn watched_before_acknowledged(store: &dyn Store) {
    let mut watch = store.watch("", 1).unwrap();
    for index in 0..50 {
        let revision = store.create(&format!("/{index}"), bytes("")).await.unwrap();
        let batch = futures::poll!(watch.next());
        let std::task::Poll::Ready(Some(Ok(batch))) = batch else {
            panic!("revision {revision} was acknowledged before the watch had it");
        };
        assert_eq!(batch[0].revision, revision);
    }
}
