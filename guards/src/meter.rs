//! What is counted in the process that does the work.

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static ALLOCATED: AtomicU64 = AtomicU64::new(0);
static FREED: AtomicU64 = AtomicU64::new(0);

/// The system's allocator, which counts what it is asked for, on all threads.
pub struct Counting;

fn allocated(bytes: usize) {
    ALLOCATIONS.fetch_add(1, Relaxed);
    ALLOCATED.fetch_add(bytes as u64, Relaxed);
}

// Safety: passes everything on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        allocated(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        allocated(layout.size());
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        FREED.fetch_add(layout.size() as u64, Relaxed);
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        allocated(size);
        FREED.fetch_add(layout.size() as u64, Relaxed);
        unsafe { System.realloc(at, layout, size) }
    }
}

/// Bytes allocated and not freed.
pub fn held() -> u64 {
    ALLOCATED.load(Relaxed).saturating_sub(FREED.load(Relaxed))
}

/// Counts from its start to its end.
pub struct Meter {
    allocations: u64,
    allocated: u64,
}

impl Meter {
    pub fn start() -> Self {
        let meter = Self { allocations: ALLOCATIONS.load(Relaxed), allocated: ALLOCATED.load(Relaxed) };
        callgrind(START_INSTRUMENTATION);
        meter
    }

    /// What `times` operations took, by name.
    pub fn end(self, times: usize) -> BTreeMap<String, u64> {
        callgrind(STOP_INSTRUMENTATION);
        let allocations = ALLOCATIONS.load(Relaxed) - self.allocations;
        let allocated = ALLOCATED.load(Relaxed) - self.allocated;
        let named = [("times", times as u64), ("allocations", allocations), ("allocated", allocated)];
        named.map(|(name, count)| (name.to_owned(), count)).into()
    }
}

/// Of valgrind's `callgrind.h`.
const START_INSTRUMENTATION: u64 = 0x4354_0004;
const STOP_INSTRUMENTATION: u64 = 0x4354_0005;

/// A request to callgrind. On a CPU these instructions do nothing; valgrind knows them by sight.
#[cfg(target_arch = "x86_64")]
fn callgrind(request: u64) {
    let arguments = [request, 0, 0, 0, 0, 0];
    // Safety: rdi is turned by 128 bits in all, which leaves it as it was; valgrind reads the six
    // words that rax points to and writes rdx.
    unsafe {
        std::arch::asm!(
            "rol rdi, 3",
            "rol rdi, 13",
            "rol rdi, 61",
            "rol rdi, 51",
            "xchg rbx, rbx",
            in("rax") arguments.as_ptr(),
            inout("rdx") 0_u64 => _,
            options(nostack),
        );
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn callgrind(_: u64) {}
