//! redb's errors, in the store's words.

use std::io::ErrorKind;

use redb::{CommitError, CursorError, DatabaseError, StorageError, TableError, TransactionError};

use crate::Error;

/// A failure inside a transaction, before it is known which file it is about.
#[derive(Debug)]
pub(super) enum Fault {
    Corrupt(String),
    Io(String),
    Closed,
    /// Nothing failed: the answer is an error.
    Answer(Error),
}

pub(super) type Faulty<T> = Result<T, Fault>;

impl Fault {
    pub(super) fn at(self, path: &str) -> Error {
        let path = path.to_owned();
        match self {
            Self::Corrupt(reason) => Error::Corrupt { path, reason },
            Self::Io(reason) => Error::Io { path, reason },
            Self::Closed => Error::Closed,
            Self::Answer(error) => error,
        }
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Answer(error)
    }
}

impl From<StorageError> for Fault {
    fn from(error: StorageError) -> Self {
        match error {
            StorageError::Corrupted(reason) => Self::Corrupt(reason),
            StorageError::Io(error) => Self::Io(io_reason(&error)),
            StorageError::PreviousIo => {
                Self::Io("an earlier read or write failed; restart to open the store again".into())
            }
            StorageError::DatabaseClosed => Self::Closed,
            other => Self::Io(other.to_string()),
        }
    }
}

impl From<TransactionError> for Fault {
    fn from(error: TransactionError) -> Self {
        match error {
            TransactionError::Storage(error) => error.into(),
            other => Self::Io(other.to_string()),
        }
    }
}

impl From<TableError> for Fault {
    fn from(error: TableError) -> Self {
        match error {
            TableError::Storage(error) => error.into(),
            other => Self::Corrupt(other.to_string()),
        }
    }
}

impl From<CommitError> for Fault {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::Storage(error) => error.into(),
            other => Self::Io(other.to_string()),
        }
    }
}

impl From<CursorError> for Fault {
    fn from(error: CursorError) -> Self {
        match error {
            CursorError::Storage(error) => error.into(),
            // The log's last key is not the last revision.
            other => Self::Corrupt(other.to_string()),
        }
    }
}

fn io_reason(error: &std::io::Error) -> String {
    match error.kind() {
        ErrorKind::StorageFull => format!("{error}; free some space and restart"),
        _ => error.to_string(),
    }
}

/// Why a file could not be opened.
pub(super) fn open_error(path: &str, error: DatabaseError) -> Error {
    let path = path.to_owned();
    match error {
        DatabaseError::DatabaseAlreadyOpen => Error::Locked { path },
        DatabaseError::UpgradeRequired(found) => {
            Error::Version { path, found: format!("redb {found}"), supported: super::tables::FORMAT }
        }
        DatabaseError::Storage(StorageError::Io(error)) => io_error(&path, &error),
        DatabaseError::Storage(error) => Fault::from(error).at(&path),
        other => Error::Corrupt { path, reason: other.to_string() },
    }
}

pub(super) fn io_error(path: &str, error: &std::io::Error) -> Error {
    let (path, reason) = (path.to_owned(), io_reason(error));
    match error.kind() {
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => Error::ReadOnly { path, reason },
        ErrorKind::InvalidData | ErrorKind::UnexpectedEof => Error::Corrupt { path, reason },
        _ => Error::Io { path, reason },
    }
}
