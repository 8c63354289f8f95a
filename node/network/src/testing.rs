//! For tests: a cluster's API without a cluster, networks that a test makes for itself, and
//! loopback addresses that no other test process has.
#![allow(clippy::unwrap_used)]

use std::convert::Infallible;
use std::future::Future;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use kube::Client;
use kube::client::Body;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::mode::{Mode, detect_mode};
use crate::netlink::Netlink;

/// An address in 127.0.0.0/8 that belongs to this process among those of a test run.
pub(crate) fn own_loopback(last: u8) -> Ipv4Addr {
    let [_, _, high, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, 64 + (high & 63), low, last)
}

/// Runs a test on a thread that is alone in a network namespace, with `lo` up and nothing else.
/// Needs root; says so where that is not given.
pub(crate) fn in_fresh_network<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    if detect_mode() != Mode::Privileged {
        println!("skipped: needs root with CAP_NET_ADMIN and CAP_SYS_ADMIN");
        return;
    }
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            Netlink::here().unwrap().up("lo").await.unwrap();
            let test = tokio::time::timeout(std::time::Duration::from_secs(60), test());
            test.await.expect("the test ends within a minute");
        });
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

type Answer = UnsyncBoxBody<Bytes, Infallible>;

fn whole(value: &Value) -> Answer {
    Full::new(Bytes::from(value.to_string())).boxed_unsync()
}

#[derive(Default)]
struct Objects {
    /// Plural, what happened, the object; the place is the revision.
    log: Vec<(String, &'static str, Value)>,
}

/// Just enough of the Kubernetes API: lists, watches, and events that are taken in.
#[derive(Clone)]
pub(crate) struct FakeApi {
    objects: Arc<Mutex<Objects>>,
    revision: watch::Sender<usize>,
}

fn identity(object: &Value) -> (&Value, &Value) {
    (&object["metadata"]["namespace"], &object["metadata"]["name"])
}

impl FakeApi {
    pub(crate) fn new() -> Self {
        Self { objects: Arc::default(), revision: watch::Sender::new(0) }
    }

    fn log(&self, plural: &str, what: &'static str, mut object: Value) {
        let mut objects = self.objects.lock().unwrap();
        let revision = objects.log.len() + 1;
        object["metadata"]["resourceVersion"] = json!(revision.to_string());
        object["metadata"]["uid"] = json!(object["metadata"]["name"]);
        objects.log.push((plural.to_owned(), what, object));
        self.revision.send_replace(revision);
    }

    fn current(&self, plural: &str) -> Vec<Value> {
        let objects = self.objects.lock().unwrap();
        let mut current: Vec<Value> = Vec::new();
        for (_, what, object) in objects.log.iter().filter(|entry| entry.0 == plural) {
            current.retain(|it| identity(it) != identity(object));
            if *what != "DELETED" {
                current.push(object.clone());
            }
        }
        current
    }

    pub(crate) fn put(&self, plural: &str, object: Value) {
        let there = self.current(plural).iter().any(|it| identity(it) == identity(&object));
        self.log(plural, if there { "MODIFIED" } else { "ADDED" }, object);
    }

    pub(crate) fn delete(&self, plural: &str, name: &str) {
        let object = self.current(plural).into_iter().find(|it| it["metadata"]["name"] == name).unwrap();
        self.log(plural, "DELETED", object);
    }

    pub(crate) fn events(&self) -> Vec<Value> {
        self.current("events")
    }

    pub(crate) fn client(&self) -> Client {
        let api = self.clone();
        Client::new(tower::service_fn(move |request| api.clone().answer(request)), "default")
    }

    async fn answer(self, request: http::Request<Body>) -> Result<http::Response<Answer>, Infallible> {
        let (parts, body) = request.into_parts();
        let plural = parts.uri.path().rsplit('/').next().unwrap().to_owned();
        let query = parts.uri.query().unwrap_or_default().to_owned();
        if parts.method == http::Method::POST {
            let object: Value = serde_json::from_slice(&body.collect().await.unwrap().to_bytes()).unwrap();
            self.put(&plural, object.clone());
            return Ok(http::Response::builder().status(201).body(whole(&object)).unwrap());
        }
        if query.contains("watch=true") || query.contains("watch=1") {
            let from = query.split('&').find_map(|it| it.strip_prefix("resourceVersion=")).unwrap();
            return Ok(http::Response::new(match query.contains("sendInitialEvents=true") {
                true => self.watch_all(plural),
                false => self.watch(plural, from.parse().unwrap()),
            }));
        }
        Ok(http::Response::builder().status(405).body(whole(&json!({}))).unwrap())
    }

    /// All that is there, then what comes.
    fn watch_all(self, plural: String) -> Answer {
        let last = self.objects.lock().unwrap().log.len();
        let end = json!({
            "resourceVersion": last.to_string(),
            "annotations": { "k8s.io/initial-events-end": "true" },
        });
        let added = self.current(&plural).into_iter().map(|it| json!({ "type": "ADDED", "object": it }));
        let bookmark = json!({ "type": "BOOKMARK", "object": { "kind": "Any", "apiVersion": "v1", "metadata": end } });
        let lines: String = added.chain([bookmark]).map(|event| format!("{event}\n")).collect();
        let first = Full::new(Bytes::from(lines)).into_data_stream().map_ok(http_body::Frame::data);
        StreamBody::new(first.chain(self.watch(plural, last).into_data_stream().map_ok(http_body::Frame::data)))
            .boxed_unsync()
    }

    fn watch(self, plural: String, from: usize) -> Answer {
        let revision = self.revision.subscribe();
        let stream = futures::stream::unfold((self, revision, from), move |(api, mut revision, from)| {
            let plural = plural.clone();
            async move {
                let last = *revision.wait_for(|last| *last > from).await.ok()?;
                let lines: String = {
                    let objects = api.objects.lock().unwrap();
                    let new = objects.log[from..last].iter().filter(|entry| entry.0 == plural);
                    new.map(|(_, what, object)| format!("{}\n", json!({ "type": what, "object": object }))).collect()
                };
                Some((Ok::<_, Infallible>(http_body::Frame::data(Bytes::from(lines))), (api, revision, last)))
            }
        });
        StreamBody::new(stream.boxed()).boxed_unsync()
    }
}
