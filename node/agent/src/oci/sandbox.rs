//! Sandboxes: what the containers of a pod share.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use sampan_oci::{Containerd, NetworkMode, SandboxConfig, SandboxFilter, SandboxState, cgroup};

use super::{Oci, Which, spec};

/// Where a pod's containers are.
#[derive(Clone, Debug)]
pub struct Ground {
    pub sandbox: String,
    /// None with the node's network.
    pub addresses: Vec<IpAddr>,
    /// None with the node's network.
    pub netns: Option<PathBuf>,
    pub config: Arc<SandboxConfig>,
}

impl Oci {
    /// The control group of the node's sandboxes.
    pub(super) fn cgroups(&self) -> String {
        format!("/sampan-{}/{}_pods", self.settings.cluster_id, self.settings.node_name)
    }

    /// The control group that those of a pod's containers are in.
    pub fn cgroup(&self, qos: &str, pod_uid: &str) -> String {
        format!("{}/{qos}/pod{pod_uid}", self.cgroups())
    }

    fn of_pod(&self, pod_uid: &str) -> SandboxFilter {
        let mut labels = self.label();
        labels.insert(spec::POD_UID.to_owned(), pod_uid.to_owned());
        SandboxFilter { labels, ..SandboxFilter::default() }
    }

    /// The sandbox of a pod: the one it has, or a new one.
    pub async fn sandbox(
        self: &Arc<Self>,
        mut config: SandboxConfig,
        limits: cgroup::Limits,
    ) -> anyhow::Result<Ground> {
        let client = self.client().await?;
        if let Which::Given(_) = self.which
            && client.settings().await?.has_systemd_groups(&config.runtime_handler)
        {
            // Those have names of their own, and containerd's default is one.
            config.cgroup_parent.clear();
        } else {
            let group = config.cgroup_parent.clone();
            let missing = tokio::task::spawn_blocking(move || cgroup::set(&group, &limits)).await??;
            if !missing.is_empty() {
                tracing::debug!(pod = config.uid, ?missing, "limits that this machine does not keep");
            }
        }
        let uid = config.uid.clone();
        let mut found = client.list_sandboxes(&self.of_pod(&uid)).await?;
        found.sort_by_key(|sandbox| std::cmp::Reverse(sandbox.attempt));
        config.labels.append(&mut self.label());
        config.attempt = found.first().map_or(0, |newest| newest.attempt);
        let ready = found.iter().find(|sandbox| sandbox.state == SandboxState::Ready).cloned();
        for old in &found {
            if ready.as_ref().is_none_or(|ready| ready.id != old.id) {
                take_down(&client, &old.id).await?;
            }
        }
        let id = match ready {
            Some(sandbox) => {
                config.attempt = sandbox.attempt;
                sandbox.id
            }
            None => {
                if !found.is_empty() {
                    config.attempt += 1;
                }
                client.run_sandbox(&config).await?
            }
        };
        let status = client.sandbox_status(&id).await?;
        let ours = config.namespaces.network == NetworkMode::Pod;
        anyhow::ensure!(
            !ours || !status.ips.is_empty() && status.netns.is_some(),
            "the sandbox has no address; see containerd's network configuration"
        );
        let ground = Ground { sandbox: id, addresses: status.ips, netns: status.netns, config: Arc::new(config) };
        self.grounds().insert(uid, ground.clone());
        Ok(ground)
    }

    /// Takes down what a pod has, also what an earlier agent made. Nothing there is fine.
    pub async fn release(&self, pod_uid: &str) -> anyhow::Result<()> {
        let Some(client) = self.running() else {
            anyhow::ensure!(!self.has_sandbox(pod_uid), "containerd is not in use yet");
            return Ok(());
        };
        for sandbox in client.list_sandboxes(&self.of_pod(pod_uid)).await? {
            take_down(&client, &sandbox.id).await.with_context(|| sandbox.id.clone())?;
        }
        let gone: Vec<_> = self.known().ids.keys().filter(|id| id.pod_uid == pod_uid).cloned().collect();
        gone.iter().for_each(|id| self.forget(id));
        for qos in spec::QOS {
            let group = self.cgroup(qos, pod_uid);
            cgroup::remove(&group).await?;
        }
        self.grounds().remove(pod_uid);
        Ok(())
    }

    /// The pods that have sandboxes, by what containerd knows.
    pub async fn sandboxed(&self) -> anyhow::Result<BTreeMap<String, String>> {
        match self.running() {
            Some(client) => self.sandboxes_of(&client).await,
            None => Ok(BTreeMap::new()),
        }
    }

    pub(super) async fn sandboxes_of(&self, client: &Containerd) -> anyhow::Result<BTreeMap<String, String>> {
        let filter = SandboxFilter { labels: self.label(), ..SandboxFilter::default() };
        let all = client.list_sandboxes(&filter).await?;
        Ok(all.into_iter().map(|sandbox| (sandbox.uid, sandbox.namespace)).collect())
    }
}

async fn take_down(client: &Containerd, id: &str) -> anyhow::Result<()> {
    client.stop_sandbox(id).await?;
    client.remove_sandbox(id).await?;
    Ok(())
}
