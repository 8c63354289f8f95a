//! The server from outside: recorded answers, access over TLS, objects over time.

#![allow(clippy::unwrap_used)]

mod access;
mod harness;
mod objects;
mod recorded;
