//! One wasmtime engine per process, tuned for many short-lived instances.

use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use sha2::{Digest, Sha256};
use wasmtime::{Config, Enabled, Engine, InstanceAllocationStrategy, PoolingAllocationConfig};

/// How often the epoch advances while a guest runs: the longest a guest holds its thread.
pub const TICK: Duration = Duration::from_millis(1);

/// Instances alive at once in one process. `vm.max_map_count` ends a process not far above.
const MAX_INSTANCES: u32 = 4000;

/// Guest stacks; half of it may be used by WebAssembly.
const ASYNC_STACK: usize = 2 << 20;

/// What decides the code that is generated: the same for the compiler's process and the host.
fn base() -> Config {
    let mut config = Config::new();
    config.epoch_interruption(true);
    // Gives up WASI 0.3 for half again as many requests a second.
    config.concurrency_support(false);
    config.async_stack_size(ASYNC_STACK);
    config.max_wasm_stack(1 << 20);
    config
}

/// The engine that only compiles: no address space set aside, so that limits can be put on it.
pub fn compiler() -> wasmtime::Result<Engine> {
    let mut config = base();
    config.allocation_strategy(InstanceAllocationStrategy::OnDemand);
    Engine::new(&config)
}

/// The engine that runs guests: pooled where the machine lets us, on demand elsewhere.
pub fn runner() -> wasmtime::Result<Engine> {
    for scan in [Enabled::Auto, Enabled::No] {
        let mut pool = PoolingAllocationConfig::new();
        pool.total_component_instances(MAX_INSTANCES)
            .total_core_instances(MAX_INSTANCES * 8)
            .total_memories(MAX_INSTANCES)
            .total_tables(MAX_INSTANCES * 2)
            .total_stacks(MAX_INSTANCES)
            .total_gc_heaps(16)
            .table_elements(50_000)
            .max_core_instances_per_component(200)
            .max_memories_per_component(20)
            .max_tables_per_component(100)
            .max_tables_per_module(10)
            .max_memories_per_module(4)
            .max_component_instance_size(4 << 20)
            .max_core_instance_size(4 << 20)
            .max_unused_warm_slots(64)
            .linear_memory_keep_resident(1 << 20)
            .table_keep_resident(64 << 10)
            .async_stack_keep_resident(64 << 10)
            .pagemap_scan(scan);
        let mut config = base();
        config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
        match Engine::new(&config) {
            Ok(engine) => return Ok(engine),
            Err(error) => tracing::warn!(%error, "no pooled instances on this machine"),
        }
    }
    compiler()
}

/// Names everything that decides whether compiled code can be mapped: wasmtime's version, its
/// settings and the processor's features.
pub fn hash(engine: &Engine) -> String {
    struct Feed(Sha256);
    impl Hasher for Feed {
        fn write(&mut self, bytes: &[u8]) {
            self.0.update(bytes);
        }
        fn finish(&self) -> u64 {
            0
        }
    }
    let mut feed = Feed(Sha256::new());
    engine.precompile_compatibility_hash().hash(&mut feed);
    feed.0.finalize().iter().take(8).map(|b| format!("{b:02x}")).collect()
}

/// Advances the epoch while any guest is on a thread, and sleeps otherwise.
#[derive(Clone)]
pub struct Ticker(Arc<Inner>);

struct Inner {
    running: AtomicUsize,
    parked: AtomicBool,
    thread: std::sync::OnceLock<std::thread::Thread>,
}

impl Ticker {
    /// Ticks without a guest before the thread goes to sleep: waking it costs a system call.
    const LINGER: u32 = 20;

    pub fn start(engine: &Engine) -> std::io::Result<Ticker> {
        let ticker = Ticker(Arc::new(Inner {
            running: AtomicUsize::new(0),
            parked: AtomicBool::new(false),
            thread: std::sync::OnceLock::new(),
        }));
        let inner = ticker.0.clone();
        let engine = engine.weak();
        let handle = std::thread::Builder::new().name("epoch".into()).spawn(move || {
            let mut quiet = 0;
            loop {
                if inner.running.load(Ordering::SeqCst) > 0 {
                    quiet = 0;
                } else {
                    quiet += 1;
                }
                if quiet > Self::LINGER {
                    inner.parked.store(true, Ordering::SeqCst);
                    if inner.running.load(Ordering::SeqCst) == 0 {
                        std::thread::park_timeout(Duration::from_secs(5));
                    }
                    inner.parked.store(false, Ordering::SeqCst);
                    if inner.running.load(Ordering::SeqCst) > 0 {
                        quiet = 0;
                    }
                } else {
                    std::thread::sleep(TICK);
                }
                match engine.upgrade() {
                    Some(engine) => engine.increment_epoch(),
                    None => return,
                }
            }
        })?;
        let _ = ticker.0.thread.set(handle.thread().clone());
        Ok(ticker)
    }

    /// Says that a guest is on a thread until the answer is dropped.
    pub fn enter(&self) -> Running<'_> {
        self.0.running.fetch_add(1, Ordering::SeqCst);
        if self.0.parked.load(Ordering::SeqCst)
            && let Some(thread) = self.0.thread.get()
        {
            thread.unpark();
        }
        Running(&self.0)
    }
}

pub struct Running<'a>(&'a Inner);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}
