//! The one thread that writes: it gathers what is waiting, checks it against what it is about to
//! write, commits it in one transaction, publishes it, and then acknowledges it.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use redb::{ReadableTable, Table};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tracing::{debug, error};

use super::Shared;
use super::compact::{self, History};
use super::errors::{Fault, Faulty};
use super::read::{self, Stored};
use super::tables::{INDEX, LOG, META, Record, State};
use crate::{Change, Error, Event, Result, Revision};

pub(super) enum Request {
    Write(Write),
    Compact { before: Revision, reply: oneshot::Sender<Result<()>> },
    Stop,
}

pub(super) struct Write {
    pub key: Arc<str>,
    pub op: Op,
    pub reply: oneshot::Sender<Result<Revision>>,
    /// Its place in the queue, given back with the answer.
    pub room: OwnedSemaphorePermit,
}

pub(super) enum Op {
    Create(Bytes),
    Update(Bytes, Revision),
    Delete(Revision),
}

/// A commit holds at most this much, so that its latency stays bounded.
const BATCH_WRITES: usize = 1024;
const BATCH_BYTES: usize = 16 << 20;
/// Revisions compacted beside a batch of writes (and twice its size more), and on an idle store.
const CHUNK_BESIDE: usize = 128;
const CHUNK_IDLE: usize = 1024;
/// The longest a commit is held back for writes that are about to come.
const GATHER: Duration = Duration::from_millis(1);

pub(super) struct Writer {
    shared: Arc<Shared>,
    requests: Receiver<Request>,
    state: State,
    history: History,
    /// Compaction is under way to here.
    target: Revision,
    compactions: Vec<(Revision, oneshot::Sender<Result<()>>)>,
    /// How many writes the last commit answered, and how long it took: who was answered together
    /// tends to come back together.
    last: (usize, Duration),
    stopping: bool,
}

/// What a commit did.
struct Outcome {
    state: State,
    events: Vec<Event>,
    answers: Vec<Result<Revision>>,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, requests: Receiver<Request>, state: State) -> Self {
        let history = History::new(&shared.options, shared.options.clock.now(), state.revision);
        Self {
            shared,
            requests,
            state,
            history,
            target: state.compacted,
            compactions: Vec::new(),
            last: (0, Duration::ZERO),
            stopping: false,
        }
    }

    pub(super) fn run(mut self) {
        let mut batch = Vec::new();
        while !self.stopping {
            self.receive(&mut batch);
            self.plan();
            if batch.is_empty() && self.target <= self.state.compacted {
                continue;
            }
            if let Err(fault) = self.commit(&mut batch) {
                let reason = fault.at(&self.shared.path);
                return self.fail(reason, batch);
            }
        }
        self.end(Error::Closed);
    }

    /// Waits for the next request, or for history to grow old, and takes all that is waiting.
    fn receive(&mut self, batch: &mut Vec<Write>) {
        let first = if self.target > self.state.compacted {
            self.requests.try_recv().ok()
        } else if self.state.compacted < self.state.revision {
            match self.requests.recv_timeout(self.history.tick()) {
                Ok(request) => Some(request),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => Some(Request::Stop),
            }
        } else {
            Some(self.requests.recv().unwrap_or(Request::Stop))
        };
        let Some(first) = first else { return };
        let mut size = 0;
        self.take(first, batch, &mut size);
        let (expected, took) = self.last;
        let mut deadline = None;
        let mut polite = false;
        while !self.stopping && batch.len() < BATCH_WRITES && size < BATCH_BYTES {
            if let Ok(request) = self.requests.try_recv() {
                self.take(request, batch, &mut size);
                continue;
            }
            // Others that write at the same time may wait for a processor: they go first, once, and what they
            // write comes into this commit. Where a processor is free this is no wait.
            if !polite && batch.len().max(expected) > 1 {
                polite = true;
                std::thread::yield_now();
                continue;
            }
            if batch.len() >= expected {
                return;
            }
            let now = Instant::now();
            let deadline = *deadline.get_or_insert_with(|| now + (took / 4).min(GATHER));
            let Ok(request) = self.requests.recv_timeout(deadline.saturating_duration_since(now)) else {
                return;
            };
            self.take(request, batch, &mut size);
        }
    }

    fn take(&mut self, request: Request, batch: &mut Vec<Write>, size: &mut usize) {
        match request {
            Request::Write(write) => {
                *size += match &write.op {
                    Op::Create(value) | Op::Update(value, _) => value.len(),
                    Op::Delete(_) => 0,
                };
                batch.push(write);
            }
            Request::Compact { before, reply } => {
                if before > self.state.revision {
                    let current = self.state.revision;
                    let _ = reply.send(Err(Error::Future { requested: before, current }));
                } else if before <= self.state.compacted {
                    let _ = reply.send(Ok(()));
                } else {
                    self.target = self.target.max(before);
                    self.compactions.push((before, reply));
                }
            }
            Request::Stop => self.stopping = true,
        }
    }

    fn plan(&mut self) {
        let now = self.shared.options.clock.now();
        self.history.note(now, self.state.revision, 0);
        if let Some(target) = self.history.forget(now, &self.state) {
            self.target = self.target.max(target);
        }
    }

    /// Commits, publishes and answers `batch`; leaves it as it is where that fails.
    fn commit(&mut self, batch: &mut Vec<Write>) -> Faulty<()> {
        let started = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| self.transact(batch)))
            .unwrap_or_else(|_| Err(Fault::Corrupt("writing it ended in a contradiction".into())))?;
        let Outcome { state, events, answers } = outcome;
        let logged = events.iter().map(|event| logged(event) as u64).sum();
        self.last = (batch.len(), started.elapsed());
        if state.compacted > self.state.compacted {
            debug!(before = state.compacted, history = state.history, "compacted history");
        }
        self.state = state;
        self.history.note(self.shared.options.clock.now(), state.revision, logged);
        self.shared.note(&state, events.len());
        if !events.is_empty() {
            self.shared.hub.publish(events, state.revision);
        }
        for (write, answer) in batch.drain(..).zip(answers) {
            // Whoever asked may have gone away; the write stands all the same.
            let _ = write.reply.send(answer);
            drop(write.room);
        }
        for (_, reply) in self.compactions.extract_if(.., |(before, _)| *before <= state.compacted) {
            let _ = reply.send(Ok(()));
        }
        Ok(())
    }

    fn transact(&self, batch: &[Write]) -> Faulty<Outcome> {
        let db = self.shared.db()?;
        let txn = db.begin_write()?;
        let mut state = self.state;
        let (mut events, mut answers) = (Vec::new(), Vec::with_capacity(batch.len()));
        {
            let mut log = txn.open_table(LOG)?;
            let mut index = txn.open_table(INDEX)?;
            let mut pending = Pending { log: &log, index: &index, keys: BTreeMap::new() };
            let mut previous = Vec::with_capacity(batch.len());
            for write in batch {
                answers.push(match pending.apply(write, state.revision + 1)? {
                    Ok((event, before)) => {
                        state.revision = event.revision;
                        state.history += logged(&event) as u64;
                        events.push(event);
                        previous.push(before);
                        Ok(state.revision)
                    }
                    Err(error) => Err(error),
                });
            }
            let keys = pending.keys;
            append(&mut log, &events, &previous)?;
            for (key, current) in keys {
                match current {
                    Some((revision, _)) => index.insert(key, revision)?,
                    None => index.remove(key)?,
                };
            }
            let limit = match batch.len() {
                0 => CHUNK_IDLE,
                writes => CHUNK_BESIDE + 2 * writes,
            };
            state = compact::chunk(&mut log, state, self.target, limit)?;
            if state != self.state {
                state.write(&mut txn.open_table(META)?, Some(&self.state))?;
            }
        }
        if state == self.state {
            // Refusals only: nothing to write, and what they are about is on disk already.
            txn.abort()?;
        } else {
            // A reader can see the commit before it is published: it must count as known by then.
            self.shared.attempted.store(state.revision, Ordering::Release);
            txn.commit()?;
        }
        Ok(Outcome { state, events, answers })
    }

    /// After a failed commit nobody knows what is on disk until the file is opened again, so all
    /// that was asked, and is asked from now on, fails.
    fn fail(mut self, reason: Error, batch: Vec<Write>) {
        error!(error = %reason, "the store can no longer be written");
        let _ = self.shared.failure.set(reason.clone());
        self.shared.hub.close(reason.clone());
        for write in batch {
            let _ = write.reply.send(Err(reason.clone()));
        }
        for (_, reply) in self.compactions.drain(..) {
            let _ = reply.send(Err(reason.clone()));
        }
        while let Ok(request) = self.requests.recv() {
            match request {
                Request::Write(write) => drop(write.reply.send(Err(reason.clone()))),
                Request::Compact { reply, .. } => drop(reply.send(Err(reason.clone()))),
                Request::Stop => break,
            }
        }
        self.end(reason);
    }

    fn end(self, reason: Error) {
        self.shared.hub.close(reason);
        self.shared.close();
    }
}

/// The bytes an event takes in the log.
fn logged(event: &Event) -> usize {
    Record::size(&event.key, stored_value(event))
}

fn stored_value(event: &Event) -> &[u8] {
    match event.change {
        Change::Deleted => &[],
        _ => &event.value,
    }
}

fn append(log: &mut Table<'_, u64, &'static [u8]>, events: &[Event], previous: &[Revision]) -> Faulty<()> {
    let mut end = log.upper_bound_mut(std::ops::Bound::<u64>::Unbounded)?;
    let mut bytes = Vec::new();
    for (event, previous) in events.iter().zip(previous) {
        let record = Record {
            change: event.change,
            created: event.created,
            previous: *previous,
            key: &event.key,
            value: stored_value(event),
        };
        record.encode(&mut bytes);
        end.insert_before(event.revision, bytes.as_slice())?;
    }
    end.close()?;
    Ok(())
}

/// The tables as they will be once the batch so far is in them.
struct Pending<'t, 'b, L, I> {
    log: &'t L,
    index: &'t I,
    /// Keys written by this batch; none where it deleted them.
    keys: BTreeMap<&'b str, Option<(Revision, Stored)>>,
}

impl<'b, L, I> Pending<'_, 'b, L, I>
where
    L: ReadableTable<u64, &'static [u8]>,
    I: ReadableTable<&'static str, u64>,
{
    /// The event that `write` makes at `revision` and the key's revision before it, or why not.
    fn apply(&mut self, write: &'b Write, revision: Revision) -> Faulty<Result<(Event, Revision)>> {
        let key = &*write.key;
        let current = match self.keys.get(key) {
            Some(pending) => pending.as_ref().map(|(revision, _)| *revision),
            None => self.index.get(key)?.map(|revision| revision.value()),
        };
        let refused = |error: fn(String) -> Error| Ok(Err(error(key.to_owned())));
        let current = match (&write.op, current) {
            (Op::Create(_), Some(_)) => return refused(|key| Error::AlreadyExists { key }),
            (Op::Create(_), None) => None,
            (_, None) => return refused(|key| Error::NotFound { key }),
            (Op::Update(_, expected) | Op::Delete(expected), Some(current)) => {
                if *expected != current {
                    return Ok(Err(Error::Conflict { key: key.to_owned(), current }));
                }
                Some((current, self.stored(key, current)?))
            }
        };
        let before = current.as_ref().map_or(0, |(revision, _)| *revision);
        let created = current.as_ref().map_or(revision, |(_, stored)| stored.created);
        let previous = current.map(|(_, stored)| stored.value);
        let (change, value, now) = match &write.op {
            Op::Create(value) | Op::Update(value, _) => {
                let key = Arc::clone(&write.key);
                let stored = Stored { created, key, value: value.clone() };
                let change = if before == 0 { Change::Created } else { Change::Updated };
                (change, value.clone(), Some((revision, stored)))
            }
            Op::Delete(_) => (Change::Deleted, previous.clone().unwrap_or_default(), None),
        };
        self.keys.insert(key, now);
        let key = Arc::clone(&write.key);
        Ok(Ok((Event { revision, change, key, value, created, previous }, before)))
    }

    fn stored(&self, key: &str, revision: Revision) -> Faulty<Stored> {
        match self.keys.get(key) {
            Some(Some((_, stored))) => Ok(stored.clone()),
            _ => read::load(self.log, revision),
        }
    }
}
