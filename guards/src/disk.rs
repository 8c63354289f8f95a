//! A disk for the store: memory that counts its fsyncs and can hold one up.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use sampan_store::StorageBackend;

/// Room from the start, so that growing never copies: memory that is not written to costs nothing.
const ROOM: usize = 256 << 20;

#[derive(Clone, Debug)]
pub struct Disk(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    bytes: Mutex<Vec<u8>>,
    syncs: Mutex<Syncs>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Syncs {
    begun: u64,
    held: bool,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Disk {
    pub fn new() -> Self {
        let bytes = Mutex::new(Vec::with_capacity(ROOM));
        Self(Arc::new(Inner { bytes, syncs: Mutex::default(), changed: Condvar::new() }))
    }

    /// How many fsyncs have begun.
    pub fn syncs(&self) -> u64 {
        locked(&self.0.syncs).begun
    }

    /// Lets no fsync end before [`Self::release`].
    pub fn hold(&self) {
        locked(&self.0.syncs).held = true;
    }

    /// Blocks until more than `syncs` fsyncs have begun.
    pub fn wait_for_more_than(&self, syncs: u64) {
        let known = locked(&self.0.syncs);
        let _begun = self.0.changed.wait_while(known, |known| known.begun <= syncs);
    }

    pub fn release(&self) {
        locked(&self.0.syncs).held = false;
        self.0.changed.notify_all();
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(locked(&self.0.bytes).len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let offset = offset as usize;
        let bytes = locked(&self.0.bytes);
        let part = bytes.get(offset..offset + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(part);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        locked(&self.0.bytes).resize(len as usize, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut known = locked(&self.0.syncs);
        known.begun += 1;
        self.0.changed.notify_all();
        let _released = self.0.changed.wait_while(known, |known| known.held);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let offset = offset as usize;
        let mut bytes = locked(&self.0.bytes);
        let part = bytes.get_mut(offset..offset + data.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        part.copy_from_slice(data);
        Ok(())
    }
}
