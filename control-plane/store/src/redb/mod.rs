//! [`Store`](crate::Store) on one redb file.

mod options;

pub use options::{Clock, Options, SystemClock};
