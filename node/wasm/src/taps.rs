//! Who is attached to a container, and gets its output as it is written.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::sync::{Notify, mpsc};

use crate::logs::Stream;

/// Bytes that may wait for one reader before the guest has to.
const QUEUE: usize = 256 << 10;

#[derive(Debug, Default)]
pub struct Taps(Mutex<Vec<Tap>>);

#[derive(Debug, Clone)]
struct Tap {
    sender: mpsc::UnboundedSender<(Stream, Bytes)>,
    queue: Arc<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    bytes: AtomicUsize,
    room: Notify,
}

/// The reader's side.
pub struct Tapped {
    receiver: mpsc::UnboundedReceiver<(Stream, Bytes)>,
    queue: Arc<Queue>,
}

impl Tap {
    fn is_full(&self) -> bool {
        !self.sender.is_closed() && self.queue.bytes.load(Ordering::Acquire) >= QUEUE
    }
}

impl Taps {
    pub fn add(&self) -> Tapped {
        let (sender, receiver) = mpsc::unbounded_channel();
        let queue = Arc::new(Queue::default());
        let mut taps = self.0.lock().unwrap_or_else(|e| e.into_inner());
        taps.push(Tap { sender, queue: queue.clone() });
        Tapped { receiver, queue }
    }

    pub fn feed(&self, stream: Stream, bytes: &[u8]) {
        let mut taps = self.0.lock().unwrap_or_else(|e| e.into_inner());
        if taps.is_empty() {
            return;
        }
        let bytes = Bytes::copy_from_slice(bytes);
        taps.retain(|tap| {
            tap.queue.bytes.fetch_add(bytes.len(), Ordering::AcqRel);
            tap.sender.send((stream, bytes.clone())).is_ok()
        });
    }

    fn full(&self) -> Option<Tap> {
        let taps = self.0.lock().unwrap_or_else(|e| e.into_inner());
        taps.iter().find(|tap| tap.is_full()).cloned()
    }

    pub fn are_full(&self) -> bool {
        self.full().is_some()
    }

    /// Until every reader has room.
    pub async fn room(&self) {
        while let Some(tap) = self.full() {
            let room = tap.queue.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            if tap.is_full() {
                tokio::select! {
                    () = room => {}
                    () = tap.sender.closed() => {}
                }
            }
        }
    }
}

impl Tapped {
    fn taken(&self, next: Option<(Stream, Bytes)>) -> Option<(Stream, Bytes)> {
        let next = next?;
        self.queue.bytes.fetch_sub(next.1.len(), Ordering::AcqRel);
        self.queue.room.notify_waiters();
        Some(next)
    }

    pub async fn next(&mut self) -> Option<(Stream, Bytes)> {
        let next = self.receiver.recv().await;
        self.taken(next)
    }

    /// What is there already.
    pub fn ready(&mut self) -> Option<(Stream, Bytes)> {
        let next = self.receiver.try_recv().ok();
        self.taken(next)
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn a_slow_reader_holds_up_and_one_that_leaves_does_not() {
        let taps = Taps::default();
        taps.feed(Stream::Stdout, b"nobody listens");
        let (mut one, two) = (taps.add(), taps.add());
        taps.feed(Stream::Stdout, &vec![b'x'; QUEUE]);
        assert!(taps.are_full());
        assert!(taps.room().now_or_never().is_none());
        drop(two);
        assert!(taps.room().now_or_never().is_none());
        let waiting = taps.room();
        let reading = async { one.next().await };
        let ((), read) = tokio::join!(waiting, reading);
        assert_eq!(read.map(|(stream, bytes)| (stream, bytes.len())), Some((Stream::Stdout, QUEUE)));
        taps.feed(Stream::Stderr, b"more");
        assert_eq!(one.ready(), Some((Stream::Stderr, Bytes::from_static(b"more"))));
        assert_eq!(one.ready(), None);
    }
}
