//! A small API server in memory, for the simulation: enough of create, get, list, watch, update,
//! patch and delete for controllers to work against, slow and unreliable as told.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use http::{Request, Response};
use http_body_util::{BodyExt, StreamBody};
use kube::client::Body;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sampan_client::Clock;
use serde_json::{Value, json};
use tokio::sync::watch;

/// Group, version, kind, plural, namespaced.
pub const KINDS: [(&str, &str, &str, &str, bool); 13] = [
    ("", "v1", "ConfigMap", "configmaps", true),
    ("", "v1", "Endpoints", "endpoints", true),
    ("", "v1", "Event", "events", true),
    ("", "v1", "Namespace", "namespaces", false),
    ("", "v1", "Node", "nodes", false),
    ("", "v1", "Pod", "pods", true),
    ("", "v1", "Secret", "secrets", true),
    ("", "v1", "Service", "services", true),
    ("", "v1", "ServiceAccount", "serviceaccounts", true),
    ("apps", "v1", "Deployment", "deployments", true),
    ("apps", "v1", "ReplicaSet", "replicasets", true),
    ("coordination.k8s.io", "v1", "Lease", "leases", true),
    ("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices", true),
];

/// Plural, namespace (or empty), name.
pub type Key = (String, String, String);
type Frames = StreamBody<BoxStream<'static, Result<http_body::Frame<Bytes>, Infallible>>>;
/// Looks at the state after each write.
type Check = Box<dyn Fn(&BTreeMap<Key, Value>) + Send>;

struct State {
    objects: BTreeMap<Key, Value>,
    revision: u64,
    log: Vec<(u64, &'static str, Key, Value)>,
    random: StdRng,
    uids: u64,
    check: Option<Check>,
    /// What was asked for: method and path.
    requests: Vec<String>,
}

/// How the server behaves.
#[derive(Clone, Copy, Default)]
pub struct Behaviour {
    /// The longest wait before an answer, and before a change reaches a watch.
    pub latency: Duration,
    /// One request in so many fails without effect; 0: none.
    pub failures: u32,
}

#[derive(Clone)]
pub struct FakeApi {
    state: Arc<Mutex<State>>,
    revision: watch::Sender<u64>,
    pub clock: Clock,
    behaviour: Behaviour,
}

type Answer = Result<Value, (u16, &'static str, String)>;

fn not_found(name: &str) -> (u16, &'static str, String) {
    (404, "NotFound", format!("{name} not found"))
}

impl FakeApi {
    pub fn new(seed: u64, clock: Clock, behaviour: Behaviour) -> Self {
        let state = State {
            objects: BTreeMap::new(),
            revision: 1,
            log: Vec::new(),
            random: StdRng::seed_from_u64(seed),
            uids: 0,
            check: None,
            requests: Vec::new(),
        };
        let revision = watch::Sender::new(1);
        Self { state: Arc::new(Mutex::new(state)), revision, clock, behaviour }
    }

    pub fn client(&self) -> kube::Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move { Ok::<_, Infallible>(api.serve(request).await) }
        });
        kube::Client::new(service, "default")
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn check(&self, check: impl Fn(&BTreeMap<Key, Value>) + Send + 'static) {
        self.lock().check = Some(Box::new(check));
    }

    /// What was asked for since the last call.
    pub fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.lock().requests)
    }

    pub fn random(&self, below: u64) -> u64 {
        self.lock().random.random_range(0..below.max(1))
    }

    async fn pause(&self) {
        let most = u64::try_from(self.behaviour.latency.as_micros()).unwrap();
        if most > 0 {
            let wait = self.random(most);
            tokio::time::sleep(Duration::from_micros(wait)).await;
        }
    }

    /// All objects of a kind, in any namespace.
    pub fn list(&self, plural: &str) -> Vec<Value> {
        let state = self.lock();
        state.objects.iter().filter(|((of, _, _), _)| of == plural).map(|(_, it)| it.clone()).collect()
    }

    pub fn get(&self, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        self.lock().objects.get(&(plural.into(), namespace.into(), name.into())).cloned()
    }

    /// Changes an object directly, as its node or a user would.
    pub fn edit(&self, plural: &str, namespace: &str, name: &str, change: Value) {
        let key = (plural.to_owned(), namespace.to_owned(), name.to_owned());
        let mut state = self.lock();
        let Some(mut object) = state.objects.get(&key).cloned() else { return };
        json_patch::merge(&mut object, &change);
        state.write(&key, object, false);
        self.publish(state);
    }

    pub fn create(&self, plural: &str, namespace: &str, object: Value) -> Value {
        let mut state = self.lock();
        let created = state.create(plural, namespace, object, &self.clock).unwrap();
        self.publish(state);
        created
    }

    pub fn delete(&self, plural: &str, namespace: &str, name: &str, options: Value) {
        let key = (plural.to_owned(), namespace.to_owned(), name.to_owned());
        let mut state = self.lock();
        let _ = state.delete(&key, &options, &self.clock);
        self.publish(state);
    }

    fn publish(&self, state: MutexGuard<'_, State>) {
        let revision = state.revision;
        if let Some(check) = &state.check {
            check(&state.objects);
        }
        drop(state);
        self.revision.send_replace(revision);
    }

    async fn serve(&self, request: Request<Body>) -> Response<Frames> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        let query: BTreeMap<String, String> = parts
            .uri
            .query()
            .unwrap_or_default()
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.replace("%3D", "=")))
            .collect();
        let path: Vec<&str> = parts.uri.path().trim_matches('/').split('/').collect();
        match path.as_slice() {
            ["api"] => return whole(Ok(discovery(true))),
            ["apis"] => return whole(Ok(discovery(false))),
            _ => {}
        }
        self.lock().requests.push(format!("{} {}", parts.method, parts.uri));
        let rest = if path[0] == "api" { &path[2..] } else { &path[3..] };
        let (namespace, rest) = match rest {
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() && !matches!(rest, ["finalize" | "status"]) => {
                (*namespace, rest)
            }
            rest => ("", rest),
        };
        let (plural, name, sub) = match rest {
            [plural] => (*plural, "", ""),
            [plural, name] => (*plural, *name, ""),
            [plural, name, sub, ..] => (*plural, *name, *sub),
            [] => return whole(Err(not_found("path"))),
        };
        if query.get("watch").is_some_and(|it| it == "true") {
            return self.watch(plural, namespace, &query);
        }
        self.pause().await;
        if self.behaviour.failures > 0 && self.random(u64::from(self.behaviour.failures)) == 0 {
            return whole(Err((500, "InternalError", "made to fail".into())));
        }
        let value: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
        let key: Key = (plural.to_owned(), namespace.to_owned(), name.to_owned());
        let answer = {
            let mut state = self.lock();
            let answer = match (parts.method.as_str(), name) {
                ("GET", "") => Ok(state.list(plural, namespace, query.get("fieldSelector"))),
                ("GET", _) => state.objects.get(&key).cloned().ok_or_else(|| not_found(name)),
                ("POST", "") => state.create(plural, namespace, value, &self.clock),
                ("PUT", _) => state.update(&key, value, sub),
                ("PATCH", _) => state.patch(&key, &value, sub),
                ("DELETE", "") => {
                    let keys: Vec<Key> = state.keys(plural, namespace);
                    keys.iter().for_each(|key| drop(state.delete(key, &value, &self.clock)));
                    Ok(json!({ "kind": "Status", "status": "Success" }))
                }
                ("DELETE", _) => state.delete(&key, &value, &self.clock),
                _ => Err((405, "MethodNotAllowed", "no".into())),
            };
            self.publish(state);
            answer
        };
        self.pause().await;
        whole(answer)
    }

    fn watch(&self, plural: &str, namespace: &str, query: &BTreeMap<String, String>) -> Response<Frames> {
        let from: u64 = query.get("resourceVersion").and_then(|it| it.parse().ok()).unwrap_or_default();
        let seconds: u64 = query.get("timeoutSeconds").and_then(|it| it.parse().ok()).unwrap_or(290);
        let end = tokio::time::Instant::now() + Duration::from_secs(seconds);
        let (plural, namespace) = (plural.to_owned(), namespace.to_owned());
        let selector = query.get("fieldSelector").cloned();
        let (api, revision) = (self.clone(), self.revision.subscribe());
        let (from, initial) = match query.get("sendInitialEvents").is_some_and(|it| it == "true") {
            true => {
                let state = self.lock();
                let items = state.list(&plural, &namespace, selector.as_ref());
                (state.revision, Some(initial_events(&items)))
            }
            false => (from, None),
        };
        let late = self.clone();
        let initial = futures::stream::iter(initial).then(move |lines| {
            let late = late.clone();
            async move {
                late.pause().await;
                Ok(http_body::Frame::data(lines))
            }
        });
        let frames = futures::stream::unfold((from, revision), move |(from, mut revision)| {
            let (api, plural, namespace, selector) = (api.clone(), plural.clone(), namespace.clone(), selector.clone());
            async move {
                tokio::select! {
                    biased;
                    changed = revision.wait_for(|revision| *revision > from) => { changed.ok()?; }
                    () = tokio::time::sleep_until(end) => return None,
                }
                api.pause().await;
                let state = api.lock();
                let mut lines = Vec::new();
                let first = state.log.partition_point(|(at, ..)| *at <= from);
                for (_, kind, key, object) in &state.log[first..] {
                    let fits = key.0 == plural && (namespace.is_empty() || key.1 == namespace);
                    if fits && selected(object, selector.as_ref()) {
                        lines.extend(serde_json::to_vec(&json!({ "type": kind, "object": object })).unwrap());
                        lines.push(b'\n');
                    }
                }
                let frame = http_body::Frame::data(Bytes::from(lines));
                Some((Ok(frame), (state.revision, revision.clone())))
            }
        });
        Response::builder().status(200).body(StreamBody::new(initial.chain(frames).boxed())).unwrap()
    }
}

/// What a watch begins with that asked for all that is there.
fn initial_events(list: &Value) -> Bytes {
    let end = json!({
        "resourceVersion": list["metadata"]["resourceVersion"],
        "annotations": { "k8s.io/initial-events-end": "true" },
    });
    let added = list["items"].as_array().into_iter().flatten().map(|it| json!({ "type": "ADDED", "object": it }));
    let bookmark = json!({ "type": "BOOKMARK", "object": { "kind": "Any", "apiVersion": "v1", "metadata": end } });
    added.chain([bookmark]).map(|event| format!("{event}\n")).collect::<String>().into()
}

fn whole(answer: Answer) -> Response<Frames> {
    let (code, value) = match answer {
        Ok(value) => (200, value),
        Err((code, reason, message)) => (
            code,
            json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code,
                    "reason": reason, "message": message }),
        ),
    };
    let frame = Ok(http_body::Frame::data(Bytes::from(serde_json::to_vec(&value).unwrap())));
    let body = StreamBody::new(futures::stream::once(async { frame }).boxed());
    Response::builder().status(code).body(body).unwrap()
}

fn discovery(core: bool) -> Value {
    let mut groups: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
    for (group, version, kind, plural, namespaced) in KINDS {
        if group.is_empty() == core {
            groups.entry(group).or_default().push(json!({
                "resource": plural, "singularResource": kind.to_lowercase(),
                "responseKind": { "group": group, "version": version, "kind": kind },
                "scope": if namespaced { "Namespaced" } else { "Cluster" },
                "verbs": ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"],
            }));
        }
    }
    let items: Vec<Value> = groups
        .into_iter()
        .map(|(group, resources)| {
            json!({
                "metadata": { "name": group },
                "versions": [{ "version": "v1", "resources": resources, "freshness": "Current" }],
            })
        })
        .collect();
    json!({ "kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items })
}

fn selected(object: &Value, selector: Option<&String>) -> bool {
    match selector.and_then(|selector| selector.strip_prefix("metadata.name=")) {
        Some(name) => object["metadata"]["name"] == name,
        None => true,
    }
}

impl State {
    fn keys(&self, plural: &str, namespace: &str) -> Vec<Key> {
        let fits = |key: &&Key| key.0 == plural && (namespace.is_empty() || key.1 == namespace);
        self.objects.keys().filter(fits).cloned().collect()
    }

    fn list(&self, plural: &str, namespace: &str, selector: Option<&String>) -> Value {
        let keys = self.keys(plural, namespace);
        let items: Vec<&Value> =
            keys.iter().map(|key| &self.objects[key]).filter(|it| selected(it, selector)).collect();
        json!({ "kind": "List", "apiVersion": "v1", "items": items,
                "metadata": { "resourceVersion": self.revision.to_string() } })
    }

    fn record(&mut self, change: &'static str, key: &Key, mut object: Value) -> Value {
        self.revision += 1;
        object["metadata"]["resourceVersion"] = json!(self.revision.to_string());
        self.log.push((self.revision, change, key.clone(), object.clone()));
        if change == "DELETED" {
            self.objects.remove(key);
        } else {
            self.objects.insert(key.clone(), object.clone());
        }
        object
    }

    /// Stores an object, or ends it when nothing holds it any more.
    fn write(&mut self, key: &Key, mut object: Value, status: bool) -> Value {
        let old = &self.objects[key];
        let noted =
            key.0 == "deployments" && !status && object["metadata"]["annotations"] != old["metadata"]["annotations"];
        if (object["spec"] != old["spec"] || noted) && key.0 != "namespaces" {
            let generation = old["metadata"]["generation"].as_i64().unwrap_or(1);
            object["metadata"]["generation"] = json!(generation + 1);
        }
        if object == *old {
            return object;
        }
        if held(key, &object) { self.record("MODIFIED", key, object) } else { self.record("DELETED", key, object) }
    }

    fn create(&mut self, plural: &str, namespace: &str, mut object: Value, clock: &Clock) -> Answer {
        let (group, version, kind, ..) =
            KINDS.into_iter().find(|(.., of, _)| *of == plural).ok_or_else(|| not_found(plural))?;
        object["kind"] = json!(kind);
        object["apiVersion"] = json!(if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") });
        if plural != "namespaces" && !namespace.is_empty() {
            let key = ("namespaces".to_owned(), String::new(), namespace.to_owned());
            let going = self.objects.get(&key).is_none_or(|it| it["metadata"]["deletionTimestamp"].is_string());
            if going {
                return Err((403, "Forbidden", "namespace is gone or going".into()));
            }
            object["metadata"]["namespace"] = json!(namespace);
        }
        if plural == "namespaces" {
            object["spec"]["finalizers"] = json!(["kubernetes"]);
            object["status"] = json!({ "phase": "Active" });
        }
        if plural == "pods" {
            object["status"] = json!({ "phase": "Pending" });
        }
        if object["metadata"]["name"].is_null() {
            let letters = b"bcdfghjklmnpqrstvwxz2456789";
            let suffix: String =
                (0..5).map(|_| char::from(letters[self.random.random_range(0..letters.len())])).collect();
            let prefix = object["metadata"]["generateName"].as_str().unwrap_or_default().to_owned();
            object["metadata"]["name"] = json!(prefix + &suffix);
        }
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let key = (plural.to_owned(), namespace.to_owned(), name.clone());
        if self.objects.contains_key(&key) {
            return Err((409, "AlreadyExists", format!("{name} already exists")));
        }
        self.uids += 1;
        object["metadata"]["uid"] = json!(format!("uid-{:06}", self.uids));
        object["metadata"]["creationTimestamp"] = json!(clock.time());
        object["metadata"]["generation"] = json!(1);
        Ok(self.record("ADDED", &key, object))
    }

    fn guard(&self, key: &Key, meta: &Value) -> Result<Value, (u16, &'static str, String)> {
        let live = self.objects.get(key).cloned().ok_or_else(|| not_found(&key.2))?;
        for field in ["uid", "resourceVersion"] {
            if meta[field].is_string() && meta[field] != live["metadata"][field] {
                return Err((409, "Conflict", format!("{field} is another")));
            }
        }
        Ok(live)
    }

    fn update(&mut self, key: &Key, mut object: Value, sub: &str) -> Answer {
        let live = self.guard(key, &object["metadata"])?;
        match sub {
            "status" => {
                let mut new = live;
                new["status"] = object["status"].clone();
                if object["metadata"]["annotations"].is_object() {
                    new["metadata"]["annotations"] = object["metadata"]["annotations"].clone();
                }
                object = new;
            }
            "finalize" => {
                let mut new = live;
                new["spec"]["finalizers"] = object["spec"]["finalizers"].clone();
                object = new;
            }
            _ => {
                object["status"] = live["status"].clone();
                for field in ["uid", "creationTimestamp", "generation", "deletionTimestamp"] {
                    object["metadata"][field] = live["metadata"][field].clone();
                }
                object["kind"] = live["kind"].clone();
                object["apiVersion"] = live["apiVersion"].clone();
            }
        }
        Ok(self.write(key, object, sub == "status"))
    }

    fn patch(&mut self, key: &Key, patch: &Value, sub: &str) -> Answer {
        let live = self.guard(key, &patch["metadata"])?;
        let mut object = live.clone();
        let mut patch = patch.clone();
        // Of strategic merging, what controllers use: conditions are merged by their type.
        if sub == "status" && patch["status"]["conditions"].is_array() {
            let mut conditions = live["status"]["conditions"].as_array().cloned().unwrap_or_default();
            for change in patch["status"]["conditions"].as_array().unwrap() {
                match conditions.iter_mut().find(|it| it["type"] == change["type"]) {
                    Some(condition) => json_patch::merge(condition, change),
                    None => conditions.push(change.clone()),
                }
            }
            patch["status"]["conditions"] = json!(conditions);
        }
        json_patch::merge(&mut object, &patch);
        if sub != "status" {
            object["status"] = live["status"].clone();
            if object["status"].is_null() {
                object.as_object_mut().unwrap().remove("status");
            }
        }
        Ok(self.write(key, object, sub == "status"))
    }

    fn delete(&mut self, key: &Key, options: &Value, clock: &Clock) -> Answer {
        let mut object = self.guard(key, &options["preconditions"])?;
        let policy = options["propagationPolicy"].as_str().unwrap_or_default();
        let finalizer = match policy {
            "Foreground" => Some("foregroundDeletion"),
            "Orphan" => Some("orphan"),
            _ => None,
        };
        let at_once = options["gracePeriodSeconds"] == 0;
        if object["metadata"]["deletionTimestamp"].is_null() {
            object["metadata"]["deletionTimestamp"] = json!(clock.time());
            if let Some(finalizer) = finalizer {
                let mut finalizers = object["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
                finalizers.push(json!(finalizer));
                object["metadata"]["finalizers"] = json!(finalizers);
            }
            if key.0 == "pods" {
                object["metadata"]["deletionGracePeriodSeconds"] = json!(if at_once { 0 } else { 30 });
            }
            if key.0 == "namespaces" {
                object["status"]["phase"] = json!("Terminating");
            }
        } else if key.0 == "pods" && at_once {
            object["metadata"]["deletionGracePeriodSeconds"] = json!(0);
        }
        Ok(self.write(key, object, false))
    }
}

/// Whether something keeps an object that is to be deleted.
fn held(key: &Key, object: &Value) -> bool {
    let some = |value: &Value| value.as_array().is_some_and(|list| !list.is_empty());
    object["metadata"]["deletionTimestamp"].is_null()
        || some(&object["metadata"]["finalizers"])
        || (key.0 == "namespaces" && some(&object["spec"]["finalizers"]))
        || (key.0 == "pods"
            && object["spec"]["nodeName"].is_string()
            && object["metadata"]["deletionGracePeriodSeconds"] != 0)
}
