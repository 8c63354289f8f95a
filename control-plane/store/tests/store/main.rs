#![allow(clippy::unwrap_used)]

mod churn;
mod files;
mod model;
mod power_loss;
mod suite;
mod watches;

use std::sync::Arc;

use sampan_store::{Options, RedbStore, Store};

fn in_memory() -> Arc<dyn Store> {
    Arc::new(RedbStore::in_memory(Options::default()).unwrap())
}

#[tokio::test]
async fn redb_holds_what_every_store_holds() {
    suite::run(in_memory).await;
}
