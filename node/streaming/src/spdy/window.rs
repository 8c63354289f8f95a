//! Flow control of what is sent. Only a peer that announces a window is held to one: the library
//! that kubectl and containerd use knows no windows and would never open one again.

use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};

use futures::task::AtomicWaker;

/// The session's window, and each stream's, until a peer says otherwise.
pub const INITIAL: i64 = 64 << 10;
const LARGEST: i64 = i32::MAX as i64;

#[derive(Debug, Default)]
pub struct Window {
    /// None: no limit.
    open: Mutex<Option<i64>>,
    waker: AtomicWaker,
}

impl Window {
    pub fn new(open: Option<i64>) -> Self {
        Self { open: Mutex::new(open), waker: AtomicWaker::new() }
    }

    /// Takes at most `wanted` bytes; waits while the window is shut.
    pub fn poll_take(&self, context: &mut Context<'_>, wanted: usize) -> Poll<usize> {
        self.waker.register(context.waker());
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *open {
            None => Poll::Ready(wanted),
            Some(open) if *open <= 0 && wanted > 0 => Poll::Pending,
            Some(open) => {
                let taken = wanted.min(usize::try_from(*open).unwrap_or(0));
                *open -= i64::try_from(taken).unwrap_or(i64::MAX);
                Poll::Ready(taken)
            }
        }
    }

    /// Opens by so much, or shuts if negative. False: wider than the protocol allows.
    pub fn change(&self, delta: i64) -> bool {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(now) = &mut *open else { return true };
        *now = now.saturating_add(delta);
        let fits = *now <= LARGEST;
        drop(open);
        self.waker.wake();
        fits
    }

    /// Begins to limit what had no limit.
    pub fn enforce(&self, open: i64) {
        *self.open.lock().unwrap_or_else(PoisonError::into_inner) = Some(open);
    }

    /// Lets a waiting writer look again: the stream has ended.
    pub fn wake(&self) {
        self.waker.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(window: &Window, wanted: usize) -> Poll<usize> {
        window.poll_take(&mut Context::from_waker(futures::task::noop_waker_ref()), wanted)
    }

    #[test]
    fn a_window_shuts_and_opens() {
        let window = Window::new(None);
        assert_eq!(take(&window, 1 << 30), Poll::Ready(1 << 30));
        window.enforce(10);
        assert_eq!(take(&window, 7), Poll::Ready(7));
        assert_eq!(take(&window, 7), Poll::Ready(3));
        assert_eq!(take(&window, 1), Poll::Pending);
        // A smaller initial window may leave a debt.
        assert!(window.change(-5) && window.change(4));
        assert_eq!(take(&window, 1), Poll::Pending);
        assert!(window.change(2));
        assert_eq!(take(&window, 9), Poll::Ready(1));
        assert!(!window.change(i64::MAX));
    }
}
