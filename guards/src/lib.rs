//! Counts that must not rise: what an operation costs in figures that do not depend on how fast or
//! how busy a machine is. Instructions (by callgrind), allocations, fsyncs, bytes held.
//!
//! `counts.json` has them as of the last time somebody took them over; the test in `tests/`, which
//! `make test` runs, counts again and fails with the names of all that rose by more than a tenth.
//! `make guards` takes the counts of now over. They are of the dev profile on x86-64: nothing is
//! compared with a release build.
//!
//! Each operation runs in a process of its own ([`operations`]), once as it is, which counts
//! allocations, and once under callgrind. Only what happens between [`meter::Meter::start`] and its
//! end is counted, on all threads: neither the start of the process nor what is warmed up before.

mod compare;
mod count;
mod disk;
pub mod meter;
pub mod operations;
mod server;

pub use compare::{Comparison, Count, Counts, Record, compare};
pub use count::{Counted, INSTRUCTIONS, count};

/// The compiler that this was built with.
pub const RUSTC: &str = env!("GUARDS_RUSTC");
