//! Does what the state machines decide. One loop hands facts to machines; everything that waits
//! (set-up, starts, stops, probes, writes) runs beside it and comes back as a fact.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1 as core;
use sampan_client::{Change, Subscription};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::ground::Ground;
use super::machine::{Action, Input, Machine};
use super::publish::Publishing;
use super::shared::Shared;
use super::volumes::Write;
use super::work::{clean_up, delete, is_urgent, release, remove, set_up, stop, target, write_status, write_volumes};
use super::{admit, evict, mounts, paths, spec, start, tenants};
use crate::runtime::{ContainerId, RunState, RuntimeEvent, RuntimeEvents};

/// What came of something that ran beside the loop.
enum Fact {
    Input(Input),
    /// Where the pod is from now on.
    Standing(Ground, Option<Timestamp>),
    /// The status write ended; the version that it made, or none if it is to be tried again.
    Written(Result<Option<u64>, ()>),
    /// The deletion was refused and is to be tried again.
    NotDeleted,
    Refreshed(Option<Timestamp>),
}

struct Worker {
    machine: Machine,
    tenant: String,
    /// When the machine wants to be woken; entries of the heap that differ are old.
    wake: Option<Timestamp>,
    publishing: Publishing,
    delete: bool,
    deleting: bool,
    refresh_at: Option<Timestamp>,
    /// Cancelled when the refresh that is under way has ended.
    refreshing: Option<CancellationToken>,
    refresh_again: bool,
    share: admit::Share,
    /// Cancelled when nothing is to be started any more.
    ending: CancellationToken,
}

/// The channels that a manager reads beside the pods themselves.
pub struct Sources {
    pub pods: Subscription<core::Pod>,
    pub runtime: RuntimeEvents,
    pub objects: mpsc::UnboundedReceiver<Vec<String>>,
    pub images: watch::Receiver<u64>,
}

pub struct Manager {
    shared: Arc<Shared>,
    workers: HashMap<String, Worker>,
    timers: BinaryHeap<Reverse<(Timestamp, String)>>,
    facts: mpsc::UnboundedSender<(String, Fact)>,
    inbox: mpsc::UnboundedReceiver<(String, Fact)>,
    tenants: mpsc::UnboundedSender<tenants::News>,
    tenants_inbox: mpsc::UnboundedReceiver<tenants::News>,
    ending: tenants::Ending,
    /// What the runtime had at the start, by pod, until its pod is seen.
    known: HashMap<String, Vec<(ContainerId, RunState)>>,
    used: admit::Share,
    looks: evict::Looks,
}

impl Manager {
    /// `known` is what the runtime has from before.
    pub fn new(shared: Arc<Shared>, known: Vec<(ContainerId, RunState)>) -> Self {
        let (facts, inbox) = mpsc::unbounded_channel();
        let (tenants, tenants_inbox) = mpsc::unbounded_channel();
        let mut by_pod: HashMap<String, Vec<_>> = HashMap::new();
        for (id, state) in known {
            by_pod.entry(id.pod_uid.clone()).or_default().push((id, state));
        }
        Self {
            shared,
            workers: HashMap::new(),
            timers: BinaryHeap::new(),
            facts,
            inbox,
            tenants,
            tenants_inbox,
            ending: tenants::Ending::default(),
            known: by_pod,
            used: admit::Share::default(),
            looks: evict::Looks::default(),
        }
    }

    /// Serves pods until shutdown. The first pods that `sources` tells of are all there are.
    pub async fn run(mut self, mut sources: Sources, shutdown: CancellationToken) {
        while let Ok(change) = sources.pods.try_recv() {
            self.pod_changed(change);
        }
        self.orphans().await;
        let mut looking = tokio::time::interval(evict::GLANCE);
        looking.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let next = self.next_timer();
            let sleep = async {
                match next {
                    Some(at) => {
                        let wait = at.duration_since(Timestamp::now());
                        tokio::time::sleep(Duration::try_from(wait).unwrap_or_default()).await;
                    }
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                Some((uid, fact)) = self.inbox.recv() => self.fact(&uid, fact),
                Some(event) = sources.runtime.recv() => self.runtime_event(event),
                change = sources.pods.recv() => match change {
                    Some(change) => self.pod_changed(change),
                    None => return,
                },
                Some(uids) = sources.objects.recv() => self.objects_changed(&uids),
                Ok(()) = sources.images.changed() => self.all(|| Input::Retry),
                Some(news) = self.tenants_inbox.recv() => match news {
                    tenants::News::Idle(tenant) => self.tenant_idle(&tenant),
                    tenants::News::Ended(namespace) => {
                        self.ending.end(&namespace).into_iter().for_each(|change| self.pod_changed(change));
                    }
                },
                () = sleep => self.timers_due(),
                _ = looking.tick() => self.glance(),
            }
        }
    }

    fn pod_changed(&mut self, change: Change<core::Pod>) {
        let known = self.workers.contains_key(spec::uid(change.object()));
        let Some(change) = (if known { Some(change) } else { self.ending.hold(change) }) else { return };
        match change {
            Change::Added(pod) => self.added(pod),
            Change::Updated { old, new } => {
                let uid = spec::uid(&new).to_owned();
                if self.workers.contains_key(&uid) {
                    self.updated(&uid, &old, new);
                } else {
                    self.added(new);
                }
            }
            Change::Deleted(pod) => {
                let uid = spec::uid(&pod).to_owned();
                self.input(&uid, Input::Removed(pod));
            }
        }
    }

    fn added(&mut self, pod: Arc<core::Pod>) {
        let now = Timestamp::now();
        let uid = spec::uid(&pod).to_owned();
        let known = self.known.remove(&uid).unwrap_or_default();
        let known = known.into_iter().map(|(id, state)| (id.container, id.attempt, state)).collect();
        let begun = pod.status.as_ref().is_some_and(|status| status.start_time.is_some());
        let machine = Machine::new(pod.clone(), now, known);
        let mut share = admit::Share::default();
        let mut refusal = None;
        if machine.is_active() {
            share = admit::Share::of(&pod);
            // What was taken once stays.
            if !begun && !spec::is_deleted(&pod) {
                refusal = admit::check(&pod, &share, &self.used, &self.shared)
                    .or_else(|| admit::app_armor(&pod, admit::has_app_armor));
            }
        }
        if refusal.is_some() {
            share = admit::Share::default();
        }
        self.used.add(&share);
        self.workers.insert(
            uid.clone(),
            Worker {
                machine,
                tenant: self.shared.tenant(&pod),
                wake: None,
                publishing: Publishing::default(),
                delete: false,
                deleting: false,
                refresh_at: None,
                refreshing: None,
                refresh_again: false,
                ending: CancellationToken::new(),
                share,
            },
        );
        match refusal {
            Some((reason, message)) => {
                let reference = spec::reference(&pod, None);
                self.shared.recorder.record_reference(
                    reference,
                    sampan_client::EventKind::Warning,
                    &reason,
                    message.clone(),
                );
                self.input(&uid, Input::Rejected { reason, message });
            }
            None => self.input(&uid, Input::Timer),
        }
    }

    fn updated(&mut self, uid: &str, old: &core::Pod, new: Arc<core::Pod>) {
        let meta_changed =
            old.metadata.labels != new.metadata.labels || old.metadata.annotations != new.metadata.annotations;
        if let Some(worker) = self.workers.get_mut(uid) {
            let version = new.metadata.resource_version.as_deref().and_then(|it| it.parse::<u64>().ok()).unwrap_or(0);
            worker.publishing.seen(version, new.status.as_ref());
        }
        self.input(uid, Input::Spec(new));
        if meta_changed {
            self.refresh(uid);
        }
    }

    fn objects_changed(&mut self, uids: &[String]) {
        for uid in uids {
            self.input(uid, Input::Retry);
            self.refresh(uid);
        }
    }

    fn all(&mut self, input: impl Fn() -> Input) {
        let uids: Vec<String> = self.workers.keys().cloned().collect();
        for uid in uids {
            self.input(&uid, input());
        }
    }

    fn runtime_event(&mut self, event: RuntimeEvent) {
        match event {
            RuntimeEvent::Changed(id, state) => {
                let input = Input::Changed { container: id.container, attempt: id.attempt, state };
                self.input(&id.pod_uid, input);
            }
            RuntimeEvent::SandboxLost { pod_uid } => {
                let Some(worker) = self.workers.get(&pod_uid) else { return };
                let (shared, tenant) = (self.shared.clone(), worker.tenant.clone());
                tracing::warn!(pod = pod_uid, "its sandbox has ended");
                // What runs in its network would be alone there.
                self.beside(&pod_uid, async move {
                    if let Err(error) = shared.runtimes.wasm.release_tenant(&tenant).await {
                        tracing::warn!(tenant, error = format!("{error:#}"), "host stays");
                    }
                    Fact::Input(Input::GroundLost)
                });
            }
            RuntimeEvent::HostLost { tenant } => {
                let lost: Vec<(String, String, u32)> = self
                    .workers
                    .iter()
                    .filter(|(_, worker)| worker.tenant == tenant)
                    .flat_map(|(uid, worker)| {
                        worker.machine.containers().iter().filter_map(|container| match container.state {
                            super::container::State::Running { attempt, .. } => {
                                let id = ContainerId {
                                    tenant: tenant.clone(),
                                    pod_uid: uid.clone(),
                                    container: container.name.clone(),
                                    attempt,
                                };
                                // Linux containers of the same pod go on.
                                let other = self.shared.oci().has(&id);
                                (!other).then_some((id.pod_uid, id.container, attempt))
                            }
                            _ => None,
                        })
                    })
                    .collect();
                for (uid, container, attempt) in lost {
                    self.input(&uid, Input::Lost { container, attempt });
                }
            }
        }
    }

    fn fact(&mut self, uid: &str, fact: Fact) {
        match fact {
            Fact::Input(input) => self.input(uid, input),
            Fact::Standing(ground, refresh) => {
                if let Some(worker) = self.workers.get_mut(uid) {
                    worker.tenant = ground.tenant;
                    worker.refresh_at = refresh;
                }
                self.input(uid, Input::SetUp(Ok(ground.addresses)));
                self.refresh_if_asked(uid);
            }
            Fact::Written(result) => {
                let Some(worker) = self.workers.get_mut(uid) else { return };
                worker.publishing.written(Timestamp::now(), result);
                self.after(uid);
            }
            Fact::NotDeleted => {
                if let Some(worker) = self.workers.get_mut(uid) {
                    worker.deleting = false;
                }
                self.after(uid);
            }
            Fact::Refreshed(next) => {
                let Some(worker) = self.workers.get_mut(uid) else { return };
                worker.refreshing = None;
                worker.refresh_at = next;
                self.refresh_if_asked(uid);
                self.after(uid);
            }
        }
    }

    fn input(&mut self, uid: &str, input: Input) {
        let Some(worker) = self.workers.get_mut(uid) else { return };
        let actions = worker.machine.handle(Timestamp::now(), input);
        if worker.machine.is_ending() {
            worker.ending.cancel();
        }
        for action in actions {
            self.act(uid, action);
        }
        self.after(uid);
    }

    /// Runs `work` beside the loop; what it answers comes back as a fact.
    fn beside(&self, uid: &str, work: impl Future<Output = Fact> + Send + 'static) {
        let facts = self.facts.clone();
        let uid = uid.to_owned();
        tokio::spawn(async move {
            let fact = work.await;
            let _ = facts.send((uid, fact));
        });
    }

    fn act(&mut self, uid: &str, action: Action) {
        let Some(worker) = self.workers.get_mut(uid) else { return };
        let pod = worker.machine.pod().clone();
        let shared = self.shared.clone();
        if matches!(action, Action::CleanUp | Action::Forget) {
            // A set-up that failed half-way told nobody where the pod was to be.
            worker.tenant = shared.tenant(&pod);
        }
        let addresses = worker.machine.addresses().to_vec();
        let (tenant, ending) = (worker.tenant.clone(), worker.ending.clone());
        let id = |container: &str, attempt| ContainerId {
            tenant: tenant.clone(),
            pod_uid: uid.to_owned(),
            container: container.to_owned(),
            attempt,
        };
        match action {
            Action::SetUp => self.beside(uid, async move {
                match set_up(&shared, &pod, &ending).await {
                    Ok((ground, refresh)) => Fact::Standing(ground, refresh),
                    Err(error) => Fact::Input(Input::SetUp(Err(error))),
                }
            }),
            Action::Start { index, attempt } => self.beside(uid, async move {
                let result = start::start(&shared, &pod, index, attempt, &addresses, &tenant, &ending).await;
                Fact::Input(Input::Started { index, attempt, result })
            }),
            Action::Stop { index, attempt, grace } => {
                let Some(container) = spec::container(&pod, index).map(Cow::into_owned) else { return };
                let id = id(&container.name, attempt);
                self.beside(uid, async move {
                    let exit = stop(&shared, &container, &id, &addresses, grace, &pod).await;
                    Fact::Input(match exit {
                        Some(exit) => {
                            Input::Changed { container: id.container, attempt, state: RunState::Exited(exit) }
                        }
                        None => Input::Lost { container: id.container, attempt },
                    })
                });
            }
            Action::Remove { container, attempt } => {
                let id = id(&container, attempt);
                tokio::spawn(async move { remove(&shared, &id).await });
            }
            Action::Probe { index, attempt, kind } => {
                let target = target(&pod, index, kind, &addresses);
                let Some(id) = spec::container(&pod, index).map(|container| id(&container.name, attempt)) else {
                    return;
                };
                self.beside(uid, async move {
                    let result = match target {
                        Ok(target) => shared.asker(&id).ask(&target).await,
                        Err(problem) => Err(problem),
                    };
                    Fact::Input(Input::Probed { index, attempt, kind, result })
                });
            }
            Action::Event { index, kind, reason, message } => {
                self.shared.recorder.record_reference(spec::reference(&pod, index), kind, reason, message);
            }
            Action::CleanUp => {
                let ended: Vec<ContainerId> = worker
                    .machine
                    .containers()
                    .iter()
                    .filter_map(|container| container.attempt.map(|attempt| id(&container.name, attempt)))
                    .collect();
                self.used.subtract(&std::mem::take(&mut worker.share));
                let refreshing = worker.refreshing.clone();
                self.beside(uid, async move {
                    // It would write again what is removed.
                    if let Some(refreshing) = refreshing {
                        refreshing.cancelled().await;
                    }
                    clean_up(&shared, &pod, &tenant, ended).await;
                    Fact::Input(Input::CleanedUp)
                });
            }
            Action::Delete => worker.delete = true,
            Action::Forget => {
                let dir = shared.paths.pod(&tenant, uid);
                self.used.subtract(&worker.share);
                self.workers.remove(uid);
                self.shared.forget_runs(uid);
                tokio::task::spawn_blocking(move || {
                    if let Err(error) = mounts::remove(&dir) {
                        tracing::warn!(dir = %dir.display(), %error, "a pod's directory stays");
                    }
                });
                self.watch_idle(tenant);
            }
        }
    }

    /// Tells in a while that a tenant may have no pods any more.
    fn watch_idle(&self, tenant: String) {
        if self.workers.values().any(|worker| worker.tenant == tenant) {
            return;
        }
        let tenants = self.tenants.clone();
        tokio::spawn(async move {
            tokio::time::sleep(tenants::wait_of(&tenant)).await;
            let _ = tenants.send(tenants::News::Idle(tenant));
        });
    }

    fn tenant_idle(&mut self, tenant: &str) {
        if self.workers.values().any(|worker| worker.tenant == tenant) {
            return;
        }
        let namespace = paths::namespace_of(tenant).to_owned();
        let network = !self.workers.values().any(|worker| spec::namespace(worker.machine.pod()) == namespace);
        let (shared, tenants) = (self.shared.clone(), self.tenants.clone());
        let tenant = tenant.to_owned();
        self.ending.begin(&namespace);
        tokio::spawn(async move {
            match shared.runtimes.wasm.release_tenant(&tenant).await {
                Err(error) => tracing::warn!(tenant, error = format!("{error:#}"), "host stays"),
                Ok(()) if network => {
                    if let Err(error) = shared.addresses.remove_namespace(&namespace).await {
                        tracing::warn!(namespace, error = format!("{error:#}"), "network namespace stays");
                    }
                }
                Ok(()) => {}
            }
            let _ = tenants.send(tenants::News::Ended(namespace));
        });
    }

    /// What follows a change: the status is written and timers are set.
    fn after(&mut self, uid: &str) {
        let Some(worker) = self.workers.get_mut(uid) else { return };
        let now = Timestamp::now();
        self.shared.note_runs(uid, &worker.tenant, worker.machine.containers());
        if worker.machine.tells_status() {
            let pod = worker.machine.pod().clone();
            let status = worker.machine.status(now, &self.shared.host);
            let at_once = worker.delete || is_urgent(worker.publishing.told(), &status, &pod);
            if let Some(status) = worker.publishing.offer(now, status, at_once) {
                let shared = self.shared.clone();
                self.beside(uid, async move { Fact::Written(write_status(&shared, &pod, &status).await) });
            }
        } else {
            worker.publishing.fall_silent();
        }
        let Some(worker) = self.workers.get_mut(uid) else { return };
        if worker.delete && !worker.deleting && worker.publishing.is_settled() {
            worker.deleting = true;
            let (shared, pod) = (self.shared.clone(), worker.machine.pod().clone());
            let facts = self.facts.clone();
            let uid = uid.to_owned();
            tokio::spawn(async move {
                if !delete(&shared, &pod).await {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    let _ = facts.send((uid, Fact::NotDeleted));
                }
            });
        }
        let Some(worker) = self.workers.get_mut(uid) else { return };
        let wake =
            [worker.machine.next_timer(), worker.publishing.due(), worker.refresh_at].into_iter().flatten().min();
        if wake != worker.wake {
            worker.wake = wake;
            if let Some(at) = wake {
                self.timers.push(Reverse((at, uid.to_owned())));
            }
        }
    }

    fn next_timer(&mut self) -> Option<Timestamp> {
        while let Some(Reverse((at, uid))) = self.timers.peek() {
            if self.workers.get(uid).is_some_and(|worker| worker.wake == Some(*at)) {
                return Some(*at);
            }
            self.timers.pop();
        }
        None
    }

    fn timers_due(&mut self) {
        let now = Timestamp::now();
        // All that are due first, and each once: one that is due again at once must not keep the
        // loop from the facts that would change that.
        let mut due = Vec::new();
        while self.next_timer().is_some_and(|at| at <= now) {
            due.extend(self.timers.pop().map(|Reverse((_, uid))| uid));
        }
        for uid in due {
            if let Some(worker) = self.workers.get_mut(&uid) {
                worker.wake = None;
                if worker.refresh_at.is_some_and(|at| at <= now) {
                    self.refresh(&uid);
                }
            }
            self.input(&uid, Input::Timer);
        }
    }

    /// Sees to it that no pod takes more of the disk than it may.
    fn glance(&mut self) {
        let (workers, facts) = (&self.workers, self.facts.clone());
        let standing = || {
            let standing =
                workers.values().filter(|worker| worker.machine.is_set_up() && worker.machine.can_be_evicted());
            standing.map(|it| evict::Candidate { pod: it.machine.pod().clone(), tenant: it.tenant.clone() }).collect()
        };
        let is_there = |uid: &str| workers.get(uid).is_some_and(|worker| !worker.machine.is_ended());
        self.looks.glance(&self.shared, standing, is_there, move |uid, evicted| {
            let _ = facts.send((uid, Fact::Input(Input::Evicted(evicted))));
        });
    }

    fn refresh_if_asked(&mut self, uid: &str) {
        if self.workers.get_mut(uid).is_some_and(|worker| std::mem::take(&mut worker.refresh_again)) {
            self.refresh(uid);
        }
    }

    /// Writes anew what a pod's volumes show of objects and tokens.
    fn refresh(&mut self, uid: &str) {
        let Some(worker) = self.workers.get_mut(uid) else { return };
        worker.refresh_at = None;
        if worker.machine.addresses().is_empty() {
            return;
        }
        if worker.refreshing.is_some() || !worker.machine.keeps_volumes() {
            // One that is being set up anew may have read already what has changed.
            worker.refresh_again = true;
            return;
        }
        let ended = CancellationToken::new();
        worker.refreshing = Some(ended.clone());
        let (shared, pod) = (self.shared.clone(), worker.machine.pod().clone());
        let (addresses, tenant) = (worker.machine.addresses().to_vec(), worker.tenant.clone());
        self.beside(uid, async move {
            let _ended = ended.drop_guard();
            match write_volumes(&shared, &pod, &addresses, &tenant, Write::Payload).await {
                Ok(next) => Fact::Refreshed(next),
                Err(error) => {
                    let reference = spec::reference(&pod, None);
                    let kind = sampan_client::EventKind::Warning;
                    shared.recorder.record_reference(reference, kind, error.reason, error.message);
                    let later = Timestamp::now().saturating_add(SignedDuration::from_secs(60));
                    Fact::Refreshed(later.ok())
                }
            }
        });
    }

    /// What nobody asked for any more: containers, addresses and files of pods that are gone.
    async fn orphans(&mut self) {
        let known = std::mem::take(&mut self.known);
        let mut found: HashSet<String> = HashSet::new();
        let sandboxed = self.shared.oci().sandboxed().await.unwrap_or_default();
        let gone = sandboxed.into_keys().filter(|uid| !self.workers.contains_key(uid)).map(|uid| (uid, Vec::new()));
        let mut ending: HashMap<String, Vec<(ContainerId, RunState)>> = gone.collect();
        ending.extend(known);
        for (uid, containers) in ending {
            tracing::info!(pod = uid, "ending a pod that is gone");
            found.extend(containers.iter().map(|(id, _)| id.tenant.clone()));
            let shared = self.shared.clone();
            tokio::spawn(async move {
                for (id, state) in containers {
                    if matches!(state, RunState::Running { .. }) {
                        let _ = shared.runtimes.of(&id).stop(&id, 10).await;
                    }
                    remove(&shared, &id).await;
                    let dir = shared.paths.pod(&id.tenant, &id.pod_uid);
                    let _ = tokio::task::spawn_blocking(move || mounts::remove(&dir)).await;
                }
                release(&shared, &uid).await;
            });
        }
        for uid in self.shared.addresses.assigned().await {
            if !self.workers.contains_key(&uid)
                && let Err(error) = self.shared.addresses.release(&uid).await
            {
                tracing::warn!(pod = uid, error = format!("{error:#}"), "address stays");
            }
        }
        let tenants = std::fs::read_dir(self.shared.paths.tenants()).into_iter().flatten().flatten();
        for tenant in tenants {
            let tenant = tenant.file_name().to_string_lossy().into_owned();
            let pods = std::fs::read_dir(self.shared.paths.pods(&tenant)).into_iter().flatten().flatten();
            for pod in pods {
                let uid = pod.file_name().to_string_lossy().into_owned();
                if !self.workers.contains_key(&uid) {
                    let _ = tokio::task::spawn_blocking(move || mounts::remove(&pod.path())).await;
                }
            }
            found.insert(tenant);
        }
        // Nothing is mounted any more of pods that are gone.
        if let Err(error) = self.shared.oci().hide(|uid| !self.workers.contains_key(uid)).await {
            tracing::warn!(error = format!("{error:#}"), "files of images stay in containerd");
        }
        for tenant in found {
            self.watch_idle(tenant);
        }
    }
}
