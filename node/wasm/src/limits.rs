//! What one container may use, over all of its instances: processor time by quota, memory by sum.

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use wasmtime::{ResourceLimiter, UpdateDeadline};

use crate::engine::Ticker;

/// Quotas are spent and given anew in this rhythm, as the kernel's are.
const PERIOD: Duration = Duration::from_millis(100);

thread_local! {
    /// This thread's processor time when the current guest was last charged.
    static MARK: Cell<u64> = const { Cell::new(0) };
}

fn thread_time() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    (time.tv_sec as u64).saturating_mul(1_000_000_000).saturating_add(time.tv_nsec as u64)
}

/// Processor time of one container: counted always, held to a quota if there is one.
#[derive(Debug)]
pub struct Cpu {
    total: AtomicU64,
    /// Nanoseconds in each period.
    quota: Option<u64>,
    window: Mutex<Window>,
}

#[derive(Debug)]
struct Window {
    start: Instant,
    /// May exceed the quota: what is over is paid in the next periods.
    used: u64,
}

impl Cpu {
    pub fn new(millicores: u32) -> Cpu {
        let quota = (millicores > 0).then(|| u64::from(millicores) * PERIOD.as_nanos() as u64 / 1000);
        Cpu { total: AtomicU64::new(0), quota, window: Mutex::new(Window { start: Instant::now(), used: 0 }) }
    }

    pub fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    /// Counts what was used; answers until when the container has to rest.
    fn charge(&self, nanoseconds: u64, now: Instant) -> Option<Instant> {
        self.total.fetch_add(nanoseconds, Ordering::Relaxed);
        let quota = self.quota?;
        let mut window = self.window.lock().unwrap_or_else(|e| e.into_inner());
        window.roll(quota, now);
        window.used = window.used.saturating_add(nanoseconds);
        window.rest(quota)
    }

    fn rest(&self, now: Instant) -> Option<Instant> {
        let quota = self.quota?;
        let mut window = self.window.lock().unwrap_or_else(|e| e.into_inner());
        window.roll(quota, now);
        window.rest(quota)
    }
}

impl Window {
    fn roll(&mut self, quota: u64, now: Instant) {
        let periods = now.saturating_duration_since(self.start).as_nanos() / PERIOD.as_nanos();
        let periods = u32::try_from(periods).unwrap_or(u32::MAX);
        if periods > 0 {
            self.used = self.used.saturating_sub(quota.saturating_mul(u64::from(periods)));
            self.start = match self.start.checked_add(PERIOD.saturating_mul(periods)) {
                Some(start) if start <= now => start,
                _ => now,
            };
        }
    }

    fn rest(&self, quota: u64) -> Option<Instant> {
        // As many periods as it takes to pay the debt.
        let periods = u32::try_from(self.used / quota.max(1)).unwrap_or(u32::MAX).min(600);
        (periods > 0).then(|| self.start + PERIOD * periods)
    }
}

/// Memory of one container: the sum of its instances' linear memories and tables.
#[derive(Debug, Default)]
pub struct Memory {
    used: AtomicU64,
    /// 0: no limit.
    limit: u64,
    refused: AtomicBool,
    /// Most that one instance has used: what the next one is expected to.
    largest: AtomicU64,
    freed: Notify,
}

impl Memory {
    pub fn new(limit: u64) -> Memory {
        Memory { limit, ..Memory::default() }
    }

    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Whether an instance wanted more than the container may have.
    pub fn refused(&self) -> bool {
        self.refused.load(Ordering::Relaxed)
    }

    pub fn limit(&self) -> u64 {
        self.limit
    }

    fn take(&self, bytes: u64) -> bool {
        let limit = match self.limit {
            0 => u64::MAX,
            limit => limit,
        };
        let taken = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            used.checked_add(bytes).filter(|sum| *sum <= limit)
        });
        taken.is_ok()
    }

    /// Waits until one more instance as large as the largest so far would fit. Requests queue here
    /// rather than end a container that is merely popular.
    pub async fn room(&self) {
        loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            let used = self.used();
            let next = used.saturating_add(self.largest.load(Ordering::Relaxed));
            if self.limit == 0 || used == 0 || next <= self.limit {
                return;
            }
            freed.await;
        }
    }
}

/// One instance's part of a container's memory, given back when its store goes.
pub struct Share {
    memory: Arc<Memory>,
    bytes: u64,
    /// Of an instance beside the container's own: what it is refused ends it alone.
    refused: Option<Arc<AtomicBool>>,
}

impl Share {
    pub fn new(memory: Arc<Memory>) -> Share {
        Share { memory, bytes: 0, refused: None }
    }

    /// Of the same memory, but with word of its own of being refused.
    pub fn beside(memory: Arc<Memory>, refused: Arc<AtomicBool>) -> Share {
        Share { memory, bytes: 0, refused: Some(refused) }
    }

    fn grow(&mut self, current: u64, desired: u64) -> bool {
        let more = desired.saturating_sub(current);
        let fits = self.memory.take(more);
        if fits {
            self.bytes += more;
            self.memory.largest.fetch_max(self.bytes, Ordering::Relaxed);
        } else {
            self.refused.as_deref().unwrap_or(&self.memory.refused).store(true, Ordering::Relaxed);
        }
        fits
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.memory.used.fetch_sub(self.bytes, Ordering::Relaxed);
        self.memory.freed.notify_waiters();
    }
}

/// Most that one table may hold.
const TABLE_ELEMENTS: usize = 1 << 20;

impl ResourceLimiter for Share {
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        // Past its own maximum a memory does not grow anyway: that is no want of ours.
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        Ok(self.grow(current as u64, desired as u64))
    }

    fn table_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        if desired > maximum.unwrap_or(usize::MAX).min(TABLE_ELEMENTS) {
            return Ok(false);
        }
        let element = size_of::<usize>() as u64;
        Ok(self.grow(current as u64 * element, desired as u64 * element))
    }

    fn instances(&self) -> usize {
        1000
    }

    fn tables(&self) -> usize {
        1000
    }

    fn memories(&self) -> usize {
        100
    }
}

/// What the epoch's callback does: charge, and let others run; rest if the quota is spent.
pub fn on_tick(cpu: &Cpu) -> UpdateDeadline {
    let now = thread_time();
    let used = now.saturating_sub(MARK.replace(now));
    let rest = cpu.charge(used, Instant::now());
    UpdateDeadline::YieldCustom(
        1,
        Box::pin(async move {
            match rest {
                Some(until) => tokio::time::sleep_until(until.into()).await,
                None => tokio::task::yield_now().await,
            }
        }),
    )
}

/// A guest's future: ticks the epoch while on a thread, charges its container, and is not polled
/// while the container rests.
pub struct Metered<F> {
    inner: Pin<Box<F>>,
    cpu: Arc<Cpu>,
    ticker: Ticker,
    rest: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl<F: Future> Metered<F> {
    pub fn new(inner: F, cpu: Arc<Cpu>, ticker: Ticker) -> Metered<F> {
        Metered { inner: Box::pin(inner), cpu, ticker, rest: None }
    }
}

impl<F: Future> Future for Metered<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        loop {
            if let Some(rest) = &mut self.rest {
                std::task::ready!(rest.as_mut().poll(context));
                self.rest = None;
            }
            match self.cpu.rest(Instant::now()) {
                Some(until) => self.rest = Some(Box::pin(tokio::time::sleep_until(until.into()))),
                None => break,
            }
        }
        let this = &mut *self;
        let _running = this.ticker.enter();
        MARK.set(thread_time());
        let result = this.inner.as_mut().poll(context);
        let now = thread_time();
        this.cpu.charge(now.saturating_sub(MARK.replace(now)), Instant::now());
        result
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn a_spent_quota_rests_until_the_period_ends_and_debt_is_carried() {
        let cpu = Cpu::new(100);
        let start = cpu.window.lock().unwrap().start;
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(cpu.charge(9 * MS, at(9)), None);
        assert_eq!(cpu.charge(2 * MS, at(11)), Some(at(100)));
        // One millisecond was too many: nine are left in the next period.
        assert_eq!(cpu.charge(8 * MS, at(110)), None);
        assert_eq!(cpu.charge(MS, at(120)), Some(at(200)));
        // Periods that nobody used give nothing in advance.
        assert_eq!(cpu.charge(9 * MS, at(5000)), None);
        assert_eq!(cpu.charge(25 * MS, at(5001)), Some(at(5300)));
        assert_eq!(cpu.total(), 54 * MS);
    }

    proptest! {
        /// Whatever a guest does, over time it gets its share and at most one burst more.
        #[test]
        fn long_run_share_holds(millicores in 10u32..2000, slices in prop::collection::vec(1u64..5, 200)) {
            let cpu = Cpu::new(millicores);
            let start = cpu.window.lock().unwrap().start;
            let mut now = start;
            for slice in slices {
                now += Duration::from_millis(slice);
                if let Some(until) = cpu.charge(slice * MS, now) {
                    now = now.max(until);
                }
            }
            let periods = (now - start).as_millis() as u64 / 100 + 1;
            let allowed = periods * u64::from(millicores) * 100_000 + 5 * MS;
            prop_assert!(cpu.total() <= allowed, "{} > {allowed}", cpu.total());
        }

        #[test]
        fn memory_never_exceeds_the_limit_and_all_comes_back(
            sizes in prop::collection::vec((0usize..5, 0usize..1000), 1..50)
        ) {
            let memory = Arc::new(Memory::new(1000));
            let mut shares: Vec<_> = (0..5).map(|_| (Share::new(memory.clone()), 0)).collect();
            for (which, size) in sizes {
                let (share, now) = &mut shares[which];
                if size > *now && share.memory_growing(*now, size, None).unwrap() {
                    *now = size;
                }
                prop_assert!(memory.used() <= 1000);
            }
            let sum: usize = shares.iter().map(|(_, size)| size).sum();
            prop_assert_eq!(memory.used(), sum as u64);
            drop(shares);
            prop_assert_eq!(memory.used(), 0);
        }
    }
}
