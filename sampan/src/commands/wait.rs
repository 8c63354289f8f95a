//! Waiting for a Deployment that `sampan run` made, and telling why it does not come.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Result, bail};
use futures::StreamExt as _;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::api::{Api, ListParams};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, watcher};
use kube::{Client, ResourceExt as _};

use super::{explain, warnings};
use crate::terminal::Progress;

const REVISION: &str = "deployment.kubernetes.io/revision";
const HASH: &str = "pod-template-hash";
/// Reasons of a container that waits for what no time brings.
const HOPELESS: [&str; 5] =
    ["InvalidImageName", "ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "CreateContainerConfigError"];

/// Why a pod is not ready.
#[derive(Debug, PartialEq, Eq)]
struct Trouble {
    text: String,
    /// No waiting mends it.
    hopeless: bool,
}

/// What the watches have told so far.
#[derive(Default)]
struct Seen {
    deployment: Option<Deployment>,
    pods: HashMap<String, Pod>,
    /// The Deployment's revision, and the hash of its pods.
    newest: Option<(String, String)>,
}

/// Waits until the newest pods are available and the older ones gone; fails at once where waiting is in vain.
pub async fn wait(client: &Client, namespace: &str, name: &str, replicas: u32, limit: Duration) -> Result<()> {
    let message = |ready: i32| format!("waiting for {name}: {ready} of {replicas} pods are ready");
    let mut progress = Progress::new(replicas.into(), &message(0));
    let mut seen = Seen::default();
    let watching = seen.watch(client, namespace, name, replicas, |ready| {
        progress.update(ready.try_into().unwrap_or(0), &message(ready));
    });
    let outcome = tokio::time::timeout(limit, watching).await;
    progress.finish();
    match outcome {
        Ok(result) => result,
        Err(_) => {
            let why = match seen.trouble() {
                Some(trouble) => Some(trouble.text),
                None => seen.last_warning(client, namespace).await,
            };
            let why = why.map_or_else(String::new, |why| format!(": {why}"));
            bail!("{name} was not ready after {} s{why}", limit.as_secs())
        }
    }
}

impl Seen {
    async fn watch(
        &mut self,
        client: &Client,
        namespace: &str,
        name: &str,
        replicas: u32,
        mut tell: impl FnMut(i32),
    ) -> Result<()> {
        let labels = format!("app.kubernetes.io/name={name}");
        let deployments: Api<Deployment> = Api::namespaced(client.clone(), namespace);
        let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
        let sets: Api<ReplicaSet> = Api::namespaced(client.clone(), namespace);
        let only = watcher::Config::default().fields(&format!("metadata.name={name}"));
        let mut deployments = watcher(deployments, only).default_backoff().boxed();
        let mut pods = watcher(pods, watcher::Config::default().labels(&labels)).default_backoff().boxed();
        loop {
            tokio::select! {
                change = deployments.next() => match change {
                    Some(Ok(watcher::Event::Apply(it) | watcher::Event::InitApply(it))) => self.deployment = Some(it),
                    Some(Ok(watcher::Event::Delete(_))) => bail!("somebody deleted deployment {name} meanwhile"),
                    Some(Ok(_)) => continue,
                    Some(Err(error)) => of_watch(error)?,
                    None => bail!("the watch of deployment {name} ended"),
                },
                change = pods.next() => match change {
                    Some(Ok(watcher::Event::Apply(it) | watcher::Event::InitApply(it))) => {
                        self.pods.insert(it.name_any(), it);
                    }
                    Some(Ok(watcher::Event::Delete(it))) => drop(self.pods.remove(&it.name_any())),
                    Some(Ok(watcher::Event::Init)) => self.pods.clear(),
                    Some(Ok(watcher::Event::InitDone)) => {}
                    Some(Err(error)) => of_watch(error)?,
                    None => bail!("the watch of the pods of {name} ended"),
                },
            }
            if let Some(revision) = self.revision().filter(|it| self.newest.as_ref().is_none_or(|(of, _)| of != it)) {
                let sets = sets.list(&ListParams::default().labels(&labels)).await.map_err(explain)?;
                self.newest = hash(&sets.items, &revision).map(|hash| (revision, hash));
            }
            let (ready, done) = self.progress(replicas);
            tell(ready.min(i32::try_from(replicas).unwrap_or(i32::MAX)));
            if done {
                return Ok(());
            }
            if let Some(trouble) = self.trouble().filter(|trouble| trouble.hopeless) {
                bail!("{name} cannot run: {}", trouble.text);
            }
        }
    }

    /// The Deployment, once its controller has seen what was asked for.
    fn current(&self) -> Option<&Deployment> {
        self.deployment.as_ref().filter(|deployment| {
            let observed = deployment.status.as_ref().and_then(|status| status.observed_generation);
            observed >= deployment.metadata.generation
        })
    }

    fn revision(&self) -> Option<String> {
        self.current()?.annotations().get(REVISION).cloned()
    }

    /// How many of the newest pods are ready, and whether that is all.
    fn progress(&self, replicas: u32) -> (i32, bool) {
        let Some(status) = self.current().and_then(|deployment| deployment.status.as_ref()) else { return (0, false) };
        let [all, new, available] =
            [status.replicas, status.updated_replicas, status.available_replicas].map(Option::unwrap_or_default);
        // Older pods may be among the available ones: at least so many are not.
        let ready = new.min(available.saturating_sub(all.saturating_sub(new))).max(0);
        (ready, i64::from(ready) >= i64::from(replicas) && i64::from(all) <= i64::from(replicas))
    }

    /// Those of the newest template; what older ones suffer from is being replaced.
    fn newest_pods(&self) -> impl Iterator<Item = &Pod> {
        let hash = self.newest.as_ref().map(|(_, hash)| hash);
        self.pods.values().filter(move |pod| {
            hash.is_some() && pod.labels().get(HASH) == hash && pod.metadata.deletion_timestamp.is_none()
        })
    }

    fn trouble(&self) -> Option<Trouble> {
        let mut troubles: Vec<Trouble> = self.newest_pods().filter_map(trouble).collect();
        // The same one each time, and first what is sure.
        troubles.sort_by(|one, other| (!one.hopeless, &one.text).cmp(&(!other.hopeless, &other.text)));
        troubles.into_iter().next().or_else(|| {
            let conditions = self.current()?.status.as_ref()?.conditions.iter().flatten();
            let mut failed = conditions.filter(|it| it.type_ == "ReplicaFailure" && it.status == "True");
            let text = failed.next()?.message.clone()?;
            Some(Trouble { text, hopeless: false })
        })
    }

    /// What an event says about a pod that its status does not: a probe that fails, a volume that is missing.
    async fn last_warning(&self, client: &Client, namespace: &str) -> Option<String> {
        let events: Api<Event> = Api::namespaced(client.clone(), namespace);
        let found = events.list(&ListParams::default().fields("type=Warning")).await.ok()?;
        let about = |event: &Event| self.newest_pods().any(|pod| pod.metadata.uid == event.involved_object.uid);
        let newest = found.items.into_iter().filter(about).max_by_key(warnings::time)?;
        Some(format!("{}: {}", newest.reason.unwrap_or_default(), newest.message.unwrap_or_default()))
    }
}

/// A watch that breaks begins anew; only where that fails too is the cluster gone.
fn of_watch(error: watcher::Error) -> Result<()> {
    match error {
        watcher::Error::InitialListFailed(error) => Err(explain(error)),
        error => {
            tracing::debug!(%error, "watch");
            Ok(())
        }
    }
}

/// What marks the pods of a Deployment's revision.
fn hash(sets: &[ReplicaSet], revision: &str) -> Option<String> {
    let of_revision = |set: &&ReplicaSet| set.annotations().get(REVISION).is_some_and(|it| it == revision);
    sets.iter().find(of_revision)?.labels().get(HASH).cloned()
}

/// Why this pod is not ready, as its status says; `None` where nothing is known to be wrong.
fn trouble(pod: &Pod) -> Option<Trouble> {
    let status = pod.status.as_ref()?;
    if status.conditions.iter().flatten().any(|it| it.type_ == "Ready" && it.status == "True") {
        return None;
    }
    for container in status.container_statuses.iter().flatten() {
        let state = container.state.clone().unwrap_or_default();
        let last = container.last_state.clone().and_then(|last| last.terminated);
        if let Some(ended) = state.terminated.or(last) {
            if ended.exit_code == 0 {
                let text = "the module ended with exit code 0: `sampan run` is for servers; give one that ends a Job, \
                            or a Pod with restartPolicy Never";
                return Some(Trouble { text: text.to_owned(), hopeless: true });
            }
            let told = [ended.reason.filter(|it| it != "Error"), ended.message].into_iter().flatten();
            let why = told.map(|it| format!(": {}", it.trim_end())).collect::<String>();
            let text = format!(
                "the module ended with exit code {}{why} (`sampan logs {}` shows what it wrote)",
                ended.exit_code,
                pod.name_any()
            );
            return Some(Trouble { text, hopeless: false });
        }
        let Some(waiting) = state.waiting else { continue };
        let reason = waiting.reason.unwrap_or_default();
        if let Some(message) = waiting.message.filter(|message| !message.is_empty()) {
            return Some(Trouble {
                text: format!("{reason}: {message}"),
                hopeless: HOPELESS.contains(&reason.as_str()),
            });
        }
    }
    let conditions = status.conditions.iter().flatten();
    let mut unplaced = conditions.filter(|it| it.type_ == "PodScheduled" && it.status == "False");
    let condition = unplaced.next()?;
    let text = [condition.reason.as_deref(), condition.message.as_deref()]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
        .join(": ");
    Some(Trouble { text, hopeless: false })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{Value, json};

    use super::*;

    fn pod(name: &str, hash: &str, container: &Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": { "name": name, "labels": { HASH: hash } },
            "status": { "containerStatuses": [container] },
        }))
        .unwrap()
    }

    fn container(state: &Value, last: &Value) -> Value {
        json!({ "name": "a", "image": "a", "imageID": "", "ready": false, "restartCount": 0, "state": state, "lastState": last })
    }

    fn of(state: &Value, last: &Value) -> Option<(String, bool)> {
        trouble(&pod("a-1", "x", &container(state, last))).map(|trouble| (trouble.text, trouble.hopeless))
    }

    #[test]
    fn the_most_telling_reason() {
        let none = json!({});
        let waiting = |reason: &str, message: &str| json!({ "waiting": { "reason": reason, "message": message } });
        let ended = |code: i32| json!({ "terminated": { "exitCode": code, "reason": "Error", "message": "trap\n" } });
        assert_eq!(of(&json!({ "running": {} }), &none), None);
        assert_eq!(of(&json!({ "waiting": { "reason": "ContainerCreating" } }), &none), None);
        for reason in HOPELESS {
            assert_eq!(of(&waiting(reason, "why"), &none), Some((format!("{reason}: why"), true)));
        }
        assert_eq!(of(&waiting("CreateContainerError", "b"), &none), Some(("CreateContainerError: b".into(), false)));
        // A back-off says less than the end before it.
        for (state, last) in [(ended(3), none.clone()), (waiting("CrashLoopBackOff", "back-off 10s"), ended(3))] {
            let (text, hopeless) = of(&state, &last).unwrap();
            assert!(text.starts_with("the module ended with exit code 3: trap (`sampan logs a-1`"), "{text}");
            assert!(!hopeless);
        }
        let (text, hopeless) =
            of(&waiting("CrashLoopBackOff", "back-off 10s"), &json!({ "terminated": { "exitCode": 0 } })).unwrap();
        assert!(text.contains("exit code 0") && text.contains("for servers") && hopeless, "{text}");
        let unplaced: Pod = serde_json::from_value(json!({ "status": { "conditions": [
            { "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes" },
        ]}}))
        .unwrap();
        assert_eq!(trouble(&unplaced), Some(Trouble { text: "Unschedulable: 0/1 nodes".into(), hopeless: false }));
    }

    #[test]
    fn what_older_pods_suffer_from_does_not_count() {
        let missing = container(&json!({ "waiting": { "reason": "ErrImagePull", "message": "gone" } }), &json!({}));
        let mut seen = Seen::default();
        seen.pods.insert("a-old".into(), pod("a-old", "old", &missing));
        assert_eq!(seen.trouble(), None, "it is not known yet which pods are meant");
        seen.newest = Some(("2".into(), "new".into()));
        assert_eq!(seen.trouble(), None);
        seen.pods.insert("a-new".into(), pod("a-new", "new", &missing));
        assert!(seen.trouble().unwrap().hopeless);
    }

    #[test]
    fn the_hash_of_a_revision() {
        let set = |revision: &str, hash: &str| -> ReplicaSet {
            serde_json::from_value(
                json!({ "metadata": { "annotations": { REVISION: revision }, "labels": { HASH: hash } } }),
            )
            .unwrap()
        };
        let sets = [set("1", "one"), set("2", "two")];
        assert_eq!(hash(&sets, "2").as_deref(), Some("two"));
        assert_eq!(hash(&sets, "3"), None);
    }

    #[test]
    fn done_when_all_are_new_and_ready() {
        let seen = |generation: i64, all: i32, new: i32, available: i32| {
            let deployment = json!({
                "metadata": { "generation": generation },
                "status": {
                    "observedGeneration": 2, "replicas": all, "updatedReplicas": new, "availableReplicas": available,
                },
            });
            Seen { deployment: Some(serde_json::from_value(deployment).unwrap()), ..Default::default() }
        };
        assert_eq!(seen(2, 2, 2, 2).progress(2), (2, true));
        assert_eq!(seen(2, 3, 2, 3).progress(2), (2, false), "an old one is left");
        assert_eq!(seen(2, 2, 1, 1).progress(1), (0, false), "the old one is the available one");
        assert_eq!(seen(2, 2, 2, 2).progress(1), (2, false), "one too many");
        assert_eq!(seen(3, 2, 2, 2).progress(2), (0, false), "the controller has not seen the change");
        assert_eq!(seen(2, 2, 2, 2).progress(3), (2, false));
        assert_eq!(seen(2, 0, 0, 0).progress(0), (0, true));
    }
}
