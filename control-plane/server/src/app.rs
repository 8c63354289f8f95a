//! What every request reaches: configuration, store, cache, keys.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use jiff::Timestamp;
use sampan_api::{Kind, kinds};
use sampan_store::Store;
use tokio_util::sync::CancellationToken;

use crate::Config;
use crate::authentication::service_account::Tokens;
use crate::cache::{Cache, KindCache, Object};
use crate::metrics::Metrics;
use crate::nodes::NodeClient;
use crate::pki::Pki;
use crate::services::Allocators;

/// Where the server reads the time from.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

pub struct App {
    pub config: Config,
    pub store: Arc<dyn Store>,
    pub cache: Arc<Cache>,
    pub pki: Pki,
    pub tokens: Tokens,
    pub services: Allocators,
    pub nodes: NodeClient,
    pub metrics: Metrics,
    pub clock: Clock,
    pub shutdown: CancellationToken,
    pub ready: AtomicBool,
}

impl App {
    pub fn now(&self) -> Timestamp {
        (self.clock)()
    }

    /// The time as metadata has it: whole seconds.
    pub fn now_text(&self) -> String {
        time_text(self.now())
    }

    pub fn kind_cache(&self, group: &str, plural: &str) -> Option<&Arc<KindCache>> {
        let kind = kinds::ALL.iter().copied().find(|kind| kind.group == group && kind.plural == plural)?;
        self.cache.of(kind)
    }

    /// An object by its names, as the cache has it.
    pub fn find(&self, group: &str, plural: &str, namespace: &str, name: &str) -> Option<Arc<Object>> {
        self.kind_cache(group, plural)?.get(namespace, name)
    }

    /// The value of a selectable field of a core kind's object.
    pub fn field<'a>(&self, object: &'a Object, plural: &str, path: &str) -> Option<&'a str> {
        let kind: &Kind = self.kind_cache("", plural)?.kind;
        let at = kind.selectable_fields.iter().position(|field| field.path == path)?;
        object.fields.get(at).map(String::as_str)
    }

    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire) && !self.shutdown.is_cancelled() && !self.cache.has_failed()
    }
}

/// RFC 3339 in whole seconds, UTC.
pub fn time_text(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
