//! How often the disk is waited for: writes that come together must be one commit.

use anyhow::Result;
use bytes::Bytes;
use futures::future::join_all;
use futures::poll;
use sampan_store::{Options, RedbStore, Store as _};

use super::Taken;
use crate::disk::Disk;

const WRITES: usize = 64;

pub async fn fsyncs() -> Result<Taken> {
    let disk = Disk::new();
    let store = RedbStore::open_backend(disk.clone(), Options::default())?;
    // Room in the file: growing takes an fsync of its own.
    let room = store.create("/room", Bytes::from(vec![b'x'; 1 << 20])).await?;
    store.delete("/room", room).await?;
    let value = Bytes::from(vec![b'x'; 2048]);
    let write = async |key: String| store.create(&key, value.clone()).await;

    let before = disk.syncs();
    for number in 0..WRITES {
        write(format!("/alone/{number}")).await?;
    }
    let alone = disk.syncs() - before;

    let before = disk.syncs();
    disk.hold();
    let mut first = Box::pin(write("/first".to_owned()));
    // Asked once, a write is in the store's queue.
    let _ = poll!(&mut first);
    disk.wait_for_more_than(before);
    let mut others = Box::pin(join_all((0..WRITES).map(|number| write(format!("/together/{number}")))));
    let _ = poll!(&mut others);
    disk.release();
    first.await?;
    for other in others.await {
        other?;
    }
    let together = disk.syncs() - before;
    Ok([("alone", alone), ("together", together)].map(|(name, count)| (name.to_owned(), count)).into())
}
