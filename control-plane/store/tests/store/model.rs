//! The store against a model that keeps every state it was ever in.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use proptest::prelude::*;
use sampan_store::{Change, Error, Event, Options, Range, RedbStore, Revision, Store};

#[derive(Debug, Clone)]
enum Op {
    Create {
        key: u8,
        size: u16,
    },
    /// `behind`: how far the expected revision is off.
    Update {
        key: u8,
        size: u16,
        behind: u8,
    },
    Delete {
        key: u8,
        behind: u8,
    },
    /// Several writes at once, so that they share a commit.
    Together(Vec<Op>),
    /// All of these are percentages of the revisions so far.
    List {
        prefix: u8,
        after: Option<u8>,
        at: Option<u8>,
        limit: u8,
    },
    Watch {
        prefix: u8,
        from: u8,
    },
    Compact {
        before: u8,
    },
}

fn write() -> impl Strategy<Value = Op> {
    let behind = || prop_oneof![4 => Just(0u8), 1 => 1..4u8];
    let size = || prop_oneof![8 => 0..200u16, 1 => 0..10_000u16];
    prop_oneof![
        2 => (0..24u8, size()).prop_map(|(key, size)| Op::Create { key, size }),
        3 => (0..24u8, size(), behind())
            .prop_map(|(key, size, behind)| Op::Update { key, size, behind }),
        1 => (0..24u8, behind()).prop_map(|(key, behind)| Op::Delete { key, behind }),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => write(),
        2 => prop::collection::vec(write(), 2..12).prop_map(Op::Together),
        2 => (0..4u8, prop::option::of(0..24u8), prop::option::of(0..=100u8), 0..8u8)
            .prop_map(|(prefix, after, at, limit)| Op::List { prefix, after, at, limit }),
        1 => (0..4u8, 0..=100u8).prop_map(|(prefix, from)| Op::Watch { prefix, from }),
        1 => (0..=100u8).prop_map(|before| Op::Compact { before }),
    ]
}

/// Keys of three kinds, so that prefixes cover some.
fn key(index: u8) -> String {
    format!("/{}/{:02}", ["pods", "leases", "podtemplates"][usize::from(index % 3)], index)
}

fn prefix(index: u8) -> &'static str {
    ["/pods/", "/leases/", "/p", ""][usize::from(index)]
}

#[derive(Debug, Clone, PartialEq)]
struct Value {
    value: Bytes,
    created: Revision,
    revision: Revision,
}

#[derive(Default)]
struct Model {
    states: BTreeMap<Revision, BTreeMap<String, Value>>,
    events: Vec<Event>,
    compacted: Revision,
}

impl Model {
    fn revision(&self) -> Revision {
        self.states.keys().next_back().copied().unwrap_or(1)
    }

    fn now(&self) -> BTreeMap<String, Value> {
        self.states.values().next_back().cloned().unwrap_or_default()
    }

    fn expected(&self, key: &str, behind: u8) -> Revision {
        self.now().get(key).map_or(1, |v| v.revision).saturating_sub(behind.into())
    }

    fn percent(&self, percent: u8) -> Revision {
        self.revision() * u64::from(percent) / 100
    }

    fn apply(&mut self, op: &Op, expected: Revision, value: Bytes) -> Result<Revision, Error> {
        let (Op::Create { key: k, .. } | Op::Update { key: k, .. } | Op::Delete { key: k, .. }) = op else {
            unreachable!()
        };
        let key = key(*k);
        let mut state = self.now();
        let current = state.get(&key).cloned();
        let revision = self.revision() + 1;
        let created = current.as_ref().map_or(revision, |v| v.created);
        let change = match (op, &current) {
            (Op::Create { .. }, Some(_)) => return Err(Error::AlreadyExists { key }),
            (Op::Create { .. }, None) => Change::Created,
            (_, None) => return Err(Error::NotFound { key }),
            (_, Some(v)) if v.revision != expected => {
                return Err(Error::Conflict { key, current: v.revision });
            }
            (Op::Update { .. }, _) => Change::Updated,
            _ => Change::Deleted,
        };
        let previous = current.map(|v| v.value);
        let value = match change {
            Change::Deleted => {
                state.remove(&key);
                previous.clone().unwrap()
            }
            _ => {
                state.insert(key.clone(), Value { value: value.clone(), created, revision });
                value
            }
        };
        self.events.push(Event { revision, change, key: key.into(), value, created, previous });
        self.states.insert(revision, state);
        Ok(revision)
    }

    fn at(&self, revision: Revision) -> BTreeMap<String, Value> {
        self.states.range(..=revision).next_back().map(|(_, s)| s.clone()).unwrap_or_default()
    }
}

async fn send(store: &RedbStore, op: &Op, expected: Revision, value: Bytes) -> Result<Revision, Error> {
    match op {
        Op::Create { key: k, .. } => store.create(&key(*k), value).await,
        Op::Update { key: k, .. } => store.update(&key(*k), value, expected).await,
        Op::Delete { key: k, .. } => store.delete(&key(*k), expected).await,
        _ => unreachable!(),
    }
}

fn value_of(op: &Op, seed: u64) -> Bytes {
    match op {
        Op::Create { size, .. } | Op::Update { size, .. } => {
            (0..*size).map(|index| (seed as u8).wrapping_mul(31) ^ index as u8).collect()
        }
        _ => Bytes::new(),
    }
}

async fn run(ops: Vec<Op>) {
    // A short history, so that compaction by size happens within a run too.
    let options = Options { keep_bytes: 1 << 30, ..Options::default() };
    let store = RedbStore::in_memory(options).unwrap();
    let mut model = Model::default();
    let mut live = store.watch("", 1).unwrap();
    let mut told = 0;
    for (seed, op) in ops.into_iter().enumerate() {
        match &op {
            Op::Create { .. } | Op::Update { .. } | Op::Delete { .. } => {
                let expected = match &op {
                    Op::Update { key: k, behind, .. } | Op::Delete { key: k, behind } => {
                        model.expected(&key(*k), *behind)
                    }
                    _ => 0,
                };
                let value = value_of(&op, seed as u64);
                let answer = send(&store, &op, expected, value.clone()).await;
                assert_eq!(answer, model.apply(&op, expected, value));
            }
            Op::Together(ops) => {
                // Futures polled in order reach the queue in order.
                let sent: Vec<_> = ops
                    .iter()
                    .enumerate()
                    .map(|(index, op)| {
                        let expected = match op {
                            Op::Update { key: k, behind, .. } | Op::Delete { key: k, behind } => {
                                model.expected(&key(*k), *behind)
                            }
                            _ => 0,
                        };
                        (op, expected, value_of(op, (seed * 100 + index) as u64))
                    })
                    .collect();
                let answers = futures::future::join_all(
                    sent.iter().map(|(op, expected, value)| send(&store, op, *expected, value.clone())),
                );
                let answers = tokio::task::unconstrained(answers).await;
                for ((op, expected, value), answer) in sent.into_iter().zip(answers) {
                    assert_eq!(answer, model.apply(op, expected, value));
                }
            }
            Op::List { prefix: p, after, at, limit } => {
                let at = at.map(|at| model.percent(at));
                let range = Range { prefix: prefix(*p).into(), after: after.map(key) };
                let answer = store.list(range.clone(), at, usize::from(*limit)).await;
                let revision = at.unwrap_or(model.revision());
                if revision < model.compacted {
                    let oldest = model.compacted;
                    assert_eq!(answer, Err(Error::Compacted { requested: revision, oldest }));
                    continue;
                }
                let page = answer.unwrap();
                let state = model.at(revision);
                let all: Vec<_> = state
                    .iter()
                    .filter(|(key, _)| key.starts_with(&range.prefix))
                    .filter(|(key, _)| range.after.as_ref().is_none_or(|after| *key > after))
                    .collect();
                let taken = if *limit == 0 { all.len() } else { all.len().min(usize::from(*limit)) };
                assert_eq!(page.revision, revision);
                assert_eq!(page.remaining, (all.len() - taken) as u64);
                assert_eq!(page.entries.len(), taken);
                for (entry, (key, value)) in page.entries.iter().zip(all) {
                    assert_eq!(&*entry.key, key);
                    let Value { value, created, revision } = value;
                    assert_eq!((&entry.value, entry.created, entry.revision), (value, *created, *revision));
                }
            }
            Op::Watch { prefix: p, from } => {
                let from = model.percent(*from);
                match store.watch(prefix(*p), from) {
                    Err(error) => {
                        let oldest = model.compacted;
                        assert!(from < oldest);
                        assert_eq!(error, Error::Compacted { requested: from, oldest });
                    }
                    Ok(mut watch) => {
                        assert!(from >= model.compacted);
                        let expected =
                            model.events.iter().filter(|e| e.revision > from && e.key.starts_with(prefix(*p)));
                        for event in super::suite::next(&mut watch, expected.clone().count()).await.iter().zip(expected)
                        {
                            assert_eq!(event.0, event.1);
                        }
                    }
                }
            }
            Op::Compact { before } => {
                let before = model.percent(*before);
                store.compact(before).await.unwrap();
                model.compacted = model.compacted.max(before);
            }
        }
        // The watch that was there all along has every event by now, in order.
        while told < model.events.len() {
            let batch = tokio::task::unconstrained(live.next()).now_or_never().expect("published before acknowledged");
            for event in batch.unwrap().unwrap().iter() {
                assert_eq!(event, &model.events[told]);
                told += 1;
            }
        }
    }
    assert_eq!(store.revision().await, Ok(model.revision()));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, max_shrink_iters: 300, ..ProptestConfig::default() })]
    #[test]
    fn the_store_does_what_the_model_does(ops in prop::collection::vec(op(), 1..80)) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(run(ops));
    }
}
