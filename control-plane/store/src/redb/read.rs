//! Reads: each in one short transaction, which pins the pages of its snapshot while it lasts.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use redb::{Database, ReadableDatabase, ReadableTable};

use super::errors::{Fault, Faulty};
use super::tables::{INDEX, LOG, META, Record, State};
use crate::{Change, Entry, Error, Event, Page, Range, Revision};

/// A record with its own copy of key and value.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    pub created: Revision,
    pub key: Arc<str>,
    pub value: Bytes,
}

/// The record that must be in the log at `revision`.
pub(super) fn load(log: &impl ReadableTable<u64, &'static [u8]>, revision: Revision) -> Faulty<Stored> {
    let bytes =
        log.get(revision)?.ok_or_else(|| Fault::Corrupt(format!("the log has no record of revision {revision}")))?;
    let record = decode(revision, bytes.value())?;
    Ok(Stored { created: record.created, key: record.key.into(), value: Bytes::copy_from_slice(record.value) })
}

pub(super) fn decode(revision: Revision, bytes: &[u8]) -> Faulty<Record<'_>> {
    Record::decode(bytes).ok_or_else(|| Fault::Corrupt(format!("the log's record of revision {revision} is garbled")))
}

fn state(txn: &redb::ReadTransaction) -> Faulty<State> {
    State::read(&txn.open_table(META)?)?.ok_or_else(|| Fault::Corrupt("the store's revision is missing".into()))
}

pub(super) fn revision(db: &Database) -> Faulty<Revision> {
    Ok(state(&db.begin_read()?)?.revision)
}

pub(super) fn get(db: &Database, key: &str) -> Faulty<Option<Entry>> {
    let txn = db.begin_read()?;
    let Some(revision) = txn.open_table(INDEX)?.get(key)?.map(|revision| revision.value()) else {
        return Ok(None);
    };
    let Stored { created, key, value } = load(&txn.open_table(LOG)?, revision)?;
    Ok(Some(Entry { key, value, created, revision }))
}

/// The entries of `range` as of revision `at` (none: of the snapshot), at most `limit` (0: all).
pub(super) fn list(db: &Database, range: &Range, at: Option<Revision>, limit: usize) -> Faulty<Page> {
    let txn = db.begin_read()?;
    let state = state(&txn)?;
    let at = at.unwrap_or(state.revision);
    check(&state, at)?;
    let index = txn.open_table(INDEX)?;
    let log = txn.open_table(LOG)?;

    // What the keys written since stood at then (0: did not exist).
    let mut then = BTreeMap::<String, Revision>::new();
    if at < state.revision {
        for item in log.range(at + 1..=state.revision)? {
            let (revision, bytes) = item?;
            let record = decode(revision.value(), bytes.value())?;
            if covers(range, record.key) && !then.contains_key(record.key) {
                then.insert(record.key.to_owned(), record.previous);
            }
        }
    }
    let mut then = then.into_iter().peekable();

    let mut page = Page { entries: Vec::new(), revision: at, remaining: 0 };
    let mut take = |revision: Revision| -> Faulty<()> {
        if revision == 0 {
            // Did not exist then.
        } else if limit != 0 && page.entries.len() >= limit {
            page.remaining += 1;
        } else {
            let Stored { created, key, value } = load(&log, revision)?;
            page.entries.push(Entry { key, value, created, revision });
        }
        Ok(())
    };
    let start = match range.after.as_deref() {
        Some(after) if after >= range.prefix.as_str() => Bound::Excluded(after),
        _ => Bound::Included(range.prefix.as_str()),
    };
    for item in index.range::<&str>((start, Bound::Unbounded))? {
        let (key, revision) = item?;
        let key = key.value();
        if !key.starts_with(&range.prefix) {
            break;
        }
        while let Some((_, revision)) = then.next_if(|(gone, _)| gone.as_str() < key) {
            take(revision)?;
        }
        match then.next_if(|(changed, _)| changed == key) {
            Some((_, revision)) => take(revision)?,
            None => take(revision.value())?,
        }
    }
    for (_, revision) in then {
        take(revision)?;
    }
    Ok(page)
}

fn covers(range: &Range, key: &str) -> bool {
    key.starts_with(&range.prefix) && range.after.as_deref().is_none_or(|after| key > after)
}

/// Whether `state` still, or already, knows revision `requested`.
fn check(state: &State, requested: Revision) -> Result<(), Error> {
    if requested < state.compacted {
        return Err(Error::Compacted { requested, oldest: state.compacted });
    }
    if requested > state.revision {
        return Err(Error::Future { requested, current: state.revision });
    }
    Ok(())
}

/// A stretch of history.
pub(super) struct Stretch {
    pub events: Vec<Event>,
    /// Everything up to here has been looked at.
    pub position: Revision,
}

/// At most this much in one transaction.
const STRETCH_RECORDS: usize = 2048;
const STRETCH_BYTES: usize = 4 << 20;

/// The events under `prefix` after `from`, up to `until` or as many as one transaction may read.
pub(super) fn history(db: &Database, prefix: &str, from: Revision, until: Revision) -> Faulty<Stretch> {
    let txn = db.begin_read()?;
    let state = state(&txn)?;
    check(&state, from)?;
    let log = txn.open_table(LOG)?;
    let mut stretch = Stretch { events: Vec::new(), position: from };
    let (mut records, mut size) = (0, 0);
    for item in log.range(from + 1..=until.min(state.revision))? {
        if records >= STRETCH_RECORDS || size >= STRETCH_BYTES {
            return Ok(stretch);
        }
        let (revision, bytes) = item?;
        let revision = revision.value();
        let record = decode(revision, bytes.value())?;
        records += 1;
        size += bytes.value().len();
        stretch.position = revision;
        if !record.key.starts_with(prefix) {
            continue;
        }
        let previous = match record.previous {
            0 => None,
            previous => Some(load(&log, previous)?.value),
        };
        size += previous.as_ref().map_or(0, Bytes::len);
        let value = match record.change {
            Change::Deleted => previous.clone().unwrap_or_default(),
            _ => Bytes::copy_from_slice(record.value),
        };
        stretch.events.push(Event {
            revision,
            change: record.change,
            key: record.key.into(),
            value,
            created: record.created,
            previous,
        });
    }
    stretch.position = until.min(state.revision).max(from);
    Ok(stretch)
}
