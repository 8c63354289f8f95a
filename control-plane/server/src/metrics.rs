//! What the server counts, in OpenMetrics text.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use sampan_api::Kind;

use crate::cache::Cache;
use crate::endpoints::Label;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    verb: &'static str,
    group: &'static str,
    resource: &'static str,
    subresource: &'static str,
    code: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DurationLabels {
    verb: &'static str,
    group: &'static str,
    resource: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabels {
    group: &'static str,
    resource: &'static str,
}

const BUCKETS: [f64; 14] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

fn histogram() -> Histogram {
    Histogram::new(BUCKETS)
}

pub struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    durations: Family<DurationLabels, Histogram, fn() -> Histogram>,
    watches: Family<KindLabels, Gauge>,
    objects: Family<KindLabels, Gauge>,
    revision: Gauge<i64, AtomicI64>,
}

impl Metrics {
    pub fn new() -> Self {
        let mut registry = Registry::default();
        let requests = Family::default();
        let durations: Family<_, _, fn() -> Histogram> = Family::new_with_constructor(histogram);
        let watches = Family::default();
        let objects = Family::default();
        let revision = Gauge::default();
        registry.register("apiserver_request", "Requests answered", requests.clone());
        registry.register(
            "apiserver_request_duration_seconds",
            "Time until an answer began; watches left out",
            durations.clone(),
        );
        registry.register("apiserver_longrunning_requests", "Watches open", watches.clone());
        registry.register("apiserver_storage_objects", "Objects stored", objects.clone());
        registry.register("apiserver_watch_cache_resource_version", "Revision of the watch cache", revision.clone());
        Self { registry, requests, durations, watches, objects, revision }
    }

    pub fn request(&self, label: &Label, code: u16, elapsed: Duration) {
        let Label { verb, group, resource, subresource } = *label;
        self.requests.get_or_create(&RequestLabels { verb, group, resource, subresource, code }).inc();
        if verb != "watch" {
            self.durations.get_or_create(&DurationLabels { verb, group, resource }).observe(elapsed.as_secs_f64());
        }
    }

    /// Counts a watch for as long as what it returns lives.
    pub fn watching(&self, kind: &'static Kind) -> Watching {
        let gauge = self.watches.get_or_create(&KindLabels { group: kind.group, resource: kind.plural }).clone();
        gauge.inc();
        Watching(gauge)
    }

    pub fn encode(&self, cache: &Arc<Cache>) -> String {
        for kind in cache.kinds() {
            let labels = KindLabels { group: kind.kind.group, resource: kind.kind.plural };
            self.objects.get_or_create(&labels).set(i64::try_from(kind.len()).unwrap_or(i64::MAX));
        }
        self.revision.inner().store(i64::try_from(cache.revision()).unwrap_or(i64::MAX), Ordering::Relaxed);
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

pub struct Watching(Gauge);

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.dec();
    }
}
