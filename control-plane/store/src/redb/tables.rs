//! What the file holds, and how a log record is laid out.
//!
//! - `log`: revision -> record. A value is stored here and nowhere else.
//! - `index`: key -> revision of its current record. Deleted keys are absent.
//! - `meta`: format version, last revision, compaction revision, bytes of history.

use redb::{ReadableTable, TableDefinition};

use crate::{Change, Revision};

pub(super) const LOG: TableDefinition<u64, &[u8]> = TableDefinition::new("log");
pub(super) const INDEX: TableDefinition<&str, u64> = TableDefinition::new("index");
pub(super) const META: TableDefinition<&str, u64> = TableDefinition::new("meta");

/// The data format this version reads and writes. Another one is refused.
pub(super) const FORMAT: u64 = 1;

pub(super) const META_FORMAT: &str = "format";
const META_REVISION: &str = "revision";
const META_COMPACTED: &str = "compacted";
const META_HISTORY: &str = "history-bytes";

/// The row of `meta` that changes with commits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct State {
    /// Of the last write.
    pub revision: Revision,
    /// History before this is gone.
    pub compacted: Revision,
    /// Bytes of the records above `compacted`.
    pub history: u64,
}

impl State {
    pub(super) const EMPTY: Self = Self { revision: 1, compacted: 0, history: 0 };

    pub(super) fn read(meta: &impl ReadableTable<&'static str, u64>) -> redb::Result<Option<Self>> {
        let row = |name| Ok::<_, redb::StorageError>(meta.get(name)?.map(|v| v.value()));
        Ok(match (row(META_REVISION)?, row(META_COMPACTED)?, row(META_HISTORY)?) {
            (Some(revision), Some(compacted), Some(history)) => Some(Self { revision, compacted, history }),
            _ => None,
        })
    }

    /// Writes what differs from `old`.
    pub(super) fn write(&self, meta: &mut redb::Table<'_, &'static str, u64>, old: Option<&Self>) -> redb::Result<()> {
        let rows = [
            (META_REVISION, self.revision, old.map(|o| o.revision)),
            (META_COMPACTED, self.compacted, old.map(|o| o.compacted)),
            (META_HISTORY, self.history, old.map(|o| o.history)),
        ];
        for (name, new, old) in rows {
            if old != Some(new) {
                meta.insert(name, new)?;
            }
        }
        Ok(())
    }
}

/// One write in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record<'a> {
    pub change: Change,
    pub created: Revision,
    /// The key's revision before this write; 0 where it did not exist.
    pub previous: Revision,
    pub key: &'a str,
    /// Empty for a deletion.
    pub value: &'a [u8],
}

const HEADER: usize = 1 + 2 + 8 + 8;

impl<'a> Record<'a> {
    pub(super) fn size(key: &str, value: &[u8]) -> usize {
        HEADER + key.len() + value.len()
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.clear();
        out.reserve(Self::size(self.key, self.value));
        out.push(match self.change {
            Change::Created => 1,
            Change::Updated => 2,
            Change::Deleted => 3,
        });
        // Keys are checked to be at most MAX_KEY long before they get here.
        out.extend_from_slice(&(self.key.len() as u16).to_le_bytes());
        out.extend_from_slice(&self.created.to_le_bytes());
        out.extend_from_slice(&self.previous.to_le_bytes());
        out.extend_from_slice(self.key.as_bytes());
        out.extend_from_slice(self.value);
    }

    /// None where the bytes are no record.
    pub(super) fn decode(bytes: &'a [u8]) -> Option<Self> {
        let (op, rest) = bytes.split_first()?;
        let (key_len, rest) = rest.split_first_chunk::<2>()?;
        let (created, rest) = rest.split_first_chunk::<8>()?;
        let (previous, rest) = rest.split_first_chunk::<8>()?;
        let (key, value) = rest.split_at_checked(usize::from(u16::from_le_bytes(*key_len)))?;
        Some(Self {
            change: match op {
                1 => Change::Created,
                2 => Change::Updated,
                3 => Change::Deleted,
                _ => return None,
            },
            created: u64::from_le_bytes(*created),
            previous: u64::from_le_bytes(*previous),
            key: std::str::from_utf8(key).ok()?,
            value,
        })
    }
}

/// The longest key accepted, in bytes.
pub(super) const MAX_KEY: usize = 4096;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_record_survives_encoding(
            op in 0..3usize, created: u64, previous: u64, key in ".{1,60}",
            value in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let change = [Change::Created, Change::Updated, Change::Deleted][op];
            let record = Record { change, created, previous, key: &key, value: &value };
            let mut bytes = vec![9; 3];
            record.encode(&mut bytes);
            prop_assert_eq!(bytes.len(), Record::size(&key, &value));
            prop_assert_eq!(Record::decode(&bytes).unwrap(), record);
        }

        #[test]
        fn bytes_that_are_no_record_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            // Must not panic, whatever comes.
            let _ = Record::decode(&bytes);
        }
    }
}
