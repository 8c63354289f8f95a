//! From a container's spec to what a runtime needs to start it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use sampan_client::EventKind;
use tokio_util::sync::CancellationToken;

use super::env::{self, PodObjects, Source as _};
use super::expand::expand;
use super::machine::{StartFailure, Started};
use super::objects::Kind;
use super::shared::{Handler, Shared};
use super::{hooks, image_volumes, mounts, paths, refuse, resources, spec};
use crate::image::{Defaults, Held, Image, Keyring, Policy, PullError, Pulled, Reference};
use crate::oci::images::Linux;
use crate::oci::spec as oci;
use crate::runtime::{ContainerId, Dns, RunState, StartError, StartSpec};

/// Starts one container of a pod: image, environment, mounts, then the runtime.
pub async fn start(
    shared: &Arc<Shared>,
    pod: &core::Pod,
    index: usize,
    attempt: u32,
    addresses: &[IpAddr],
    tenant: &str,
    ending: &CancellationToken,
) -> Result<Started, StartFailure> {
    let container = spec::container(pod, index).ok_or_else(|| StartFailure::Config("no such container".to_owned()))?;
    let services = shared.services(spec::namespace(pod));
    let source = PodObjects { objects: &shared.objects, namespace: spec::namespace(pod), uid: spec::uid(pod) };
    let context = env::Context {
        pod,
        addresses,
        host: &shared.host,
        allocatable: &shared.allocatable,
        services: &services,
        objects: &source,
    };
    image_volumes::prepare(shared, pod, &container, &source, tenant, ending).await?;
    let image = container.image.clone().unwrap_or_default();
    let (reference, pulled) = unless_ending(ending, &image, obtain(shared, pod, index, &source)).await?;
    // Neither a registry nor a hook may keep others from starting.
    let permit = shared.busy.acquire().await;
    let starting = Starting {
        shared,
        pod,
        container: &container,
        addresses,
        variables: env::build(&context, &container).await.map_err(StartFailure::Config)?,
        id: ContainerId {
            tenant: tenant.to_owned(),
            pod_uid: spec::uid(pod).to_owned(),
            container: container.name.clone(),
            attempt,
        },
    };
    let handler = shared.handler(pod).map_err(StartFailure::Config)?;
    let (image_id, size, state) = match pulled.image {
        Held::Wasm(image) => {
            if let Handler::Linux(name) = handler {
                let problem = format!(
                    "image \"{reference}\" is WebAssembly, which handler {name} of the pod's RuntimeClass does not run"
                );
                return Err(StartFailure::Config(problem));
            }
            let state = starting.wasm(&reference, &image).await?;
            (format!("{}@{}", reference.repository, image.identity()), image.size, state)
        }
        Held::Linux(image) => {
            if shared.oci().ground(spec::uid(pod)).is_none() {
                let problem = match shared.oci().available() {
                    Ok(()) => refuse::WASM_GROUND.to_owned(),
                    Err(why) => format!("this node runs WebAssembly only: {why}"),
                };
                return Err(StartFailure::Config(format!("image \"{reference}\" is for Linux containers: {problem}")));
            }
            if let Some(platform) = &image.foreign {
                let own = sampan_oci::layout::platform();
                let message = format!(
                    "Image \"{reference}\" is for {platform} and this node is {own}: it runs only where the node emulates that"
                );
                let object = spec::reference(pod, Some(index));
                shared.recorder.record_reference(object, EventKind::Warning, "PlatformMismatch", message);
            }
            let state = starting.linux(&image).await?;
            (image.identity, image.size, state)
        }
    };
    drop(permit);
    if matches!(state, RunState::Running { .. })
        && let Err(problem) =
            hooks::post_start(&container, addresses.first().copied(), &shared.asker(&starting.id)).await
    {
        let grace = spec::grace_seconds(pod);
        let id = &starting.id;
        if let Err(error) = shared.runtimes.of(id).stop(id, grace).await {
            tracing::warn!(container = id.id(), %error, "not stopped after its postStart hook failed");
        }
        return Err(StartFailure::PostStart(problem));
    }
    let id = shared.oci().name(&starting.id);
    Ok(Started { image: container.image.clone().unwrap_or_default(), image_id, id, size, took: pulled.took, state })
}

/// A registry may take for ever: nobody is to wait for it who does not want the image any more.
pub(super) async fn unless_ending<T>(
    ending: &CancellationToken,
    image: &str,
    pull: impl Future<Output = Result<T, StartFailure>>,
) -> Result<T, StartFailure> {
    tokio::select! {
        pulled = pull => pulled,
        () = ending.cancelled() => {
            let message = "the pull was given up: the pod is ending".to_owned();
            Err(StartFailure::ImageAbsent { image: image.to_owned(), message })
        }
    }
}

fn failed(error: StartError) -> StartFailure {
    match error {
        StartError::Run(message) => StartFailure::Run(message),
        StartError::Create(message) => StartFailure::Create(message),
    }
}

/// What a start knows, whatever runs the image.
struct Starting<'a> {
    shared: &'a Arc<Shared>,
    pod: &'a core::Pod,
    container: &'a core::Container,
    addresses: &'a [IpAddr],
    variables: BTreeMap<String, String>,
    id: ContainerId,
}

impl Starting<'_> {
    async fn wasm(&self, reference: &Reference, image: &Image) -> Result<RunState, StartFailure> {
        let Self { shared, pod, container, addresses, variables, id } = self;
        let target = || spec::target_container(pod, &container.name).map(|_| refuse::TARGET.to_owned());
        if let Some(refusal) = refuse::pod(pod).or_else(|| refuse::container(container)).or_else(target) {
            return Err(StartFailure::Config(refusal));
        }
        let attempt = id.attempt;
        let owner = shared.owner(&id.tenant);
        let mounts = self.prepare(owner, move |pod, container, variables, tenant| {
            mounts::resolve(pod, container, attempt, variables, tenant).map_err(StartFailure::Config)
        });
        let mounts = mounts.await?;
        let (memory_bytes, cpu_millicores) = resources::enforced(container);
        let own_dir = container.working_dir.clone().filter(|dir| !dir.is_empty());
        let start = StartSpec {
            pod_name: spec::name(pod).to_owned(),
            netns: shared.oci().ground(&id.pod_uid).and_then(|ground| ground.netns),
            module: image.hex().to_owned(),
            args: arguments(container, reference, &image.defaults, variables),
            env: environment(&image.defaults, variables.clone()),
            working_dir: own_dir.or(image.defaults.working_dir.clone()),
            mounts,
            addresses: addresses.to_vec(),
            http_port: http_port(container),
            memory_bytes,
            cpu_millicores,
            log_path: paths::log(id),
            exit_path: paths::exit(id),
            termination_message_path: Some(paths::termination_message(id)),
            hostname: hostname(pod),
            dns: dns(pod, &shared.cluster_domain),
            host_aliases: host_aliases(pod),
            stdin: container.stdin == Some(true),
            stdin_once: container.stdin_once == Some(true),
            tty: container.tty == Some(true),
            id: id.clone(),
        };
        shared.runtimes.wasm.start(start).await.map_err(failed)
    }

    async fn linux(&self, image: &Linux) -> Result<RunState, StartFailure> {
        let Self { shared, pod, container, variables, id, .. } = self;
        let words = |list: &Option<Vec<String>>| -> Vec<String> {
            list.iter().flatten().map(|word| expand(word, |name| variables.get(name).map(String::as_str))).collect()
        };
        let run = id.clone();
        let mut mounts = self
            .prepare(Some((0, 0)), move |pod, container, variables, tenant| {
                // The directory is nobody else's by now, but may have been: what was laid there goes.
                let _ = std::fs::remove_file(tenant.join(paths::log(&run)));
                let message = tenant.join(paths::termination_message(&run));
                let _ = std::fs::remove_file(&message);
                // Made before, so that it is a file and not a directory that the runtime would make.
                let made = std::fs::File::create_new(&message)
                    .and_then(|file| file.set_permissions(std::fs::Permissions::from_mode(0o666)));
                made.map_err(|error| StartFailure::Create(format!("{}: {error}", message.display())))?;
                mounts::bind(pod, container, run.attempt, variables, tenant).map_err(StartFailure::Config)
            })
            .await?;
        let tenant = shared.paths.tenant(&id.tenant);
        let message = container.termination_message_path.as_deref().filter(|path| !path.is_empty());
        let message = message.unwrap_or("/dev/termination-log");
        for (source, target) in [
            (tenant.join(paths::etc_hosts(&id.pod_uid)), "/etc/hosts"),
            (tenant.join(paths::termination_message(id)), message),
        ] {
            if !mounts.iter().any(|mount| mount.container_path == target) {
                mounts.push(oci::mount(&source, target, false, None));
            }
        }
        let log = paths::log(id);
        let log = log.strip_prefix(paths::containers(&id.pod_uid)).unwrap_or(&log).to_owned();
        let target = match spec::target_container(pod, &container.name) {
            Some(target) => {
                let found = shared.oci().latest(&id.pod_uid, target);
                Some(
                    found
                        .ok_or_else(|| StartFailure::Create(format!("unable to find target container \"{target}\"")))?,
                )
            }
            None => None,
        };
        let start = oci::Start {
            id,
            target,
            image: image.id.clone(),
            image_user: image.user,
            command: words(&container.command),
            args: words(&container.args),
            env: variables.clone().into_iter().collect(),
            mounts,
            log,
            node_memory: shared.allocatable.get("memory").map_or(0, resources::value),
        };
        let config = oci::container(pod, container, start).map_err(StartFailure::Config)?;
        shared.oci().start(id, config).await.map_err(failed)
    }

    /// Makes the container's directory, whose only writer is its owner, and what `mounts` wants of the disk.
    async fn prepare<T: Send + 'static>(
        &self,
        owner: Option<(u32, u32)>,
        mounts: impl FnOnce(&core::Pod, &core::Container, &BTreeMap<String, String>, &Path) -> Result<T, StartFailure>
        + Send
        + 'static,
    ) -> Result<T, StartFailure> {
        let (pod, container, variables) = (self.pod.clone(), self.container.clone(), self.variables.clone());
        let id = self.id.clone();
        let tenant = self.shared.paths.tenant(&id.tenant);
        let prepared = tokio::task::spawn_blocking(move || {
            let dir = tenant.join(paths::container(&id.pod_uid, &id.container));
            let made = std::fs::create_dir_all(&dir)
                .and_then(|()| std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755)))
                .and_then(|()| match owner {
                    Some((user, group)) => std::os::unix::fs::chown(&dir, Some(user), Some(group)),
                    None => Ok(()),
                });
            made.map_err(|error| StartFailure::Create(format!("{}: {error}", dir.display())))?;
            mounts(&pod, &container, &variables, &tenant)
        });
        prepared.await.map_err(|error| StartFailure::Create(error.to_string()))?
    }
}

/// The container's image, pulled if its policy wants that.
async fn obtain(
    shared: &Shared,
    pod: &core::Pod,
    index: usize,
    source: &PodObjects<'_>,
) -> Result<(Reference, Pulled), StartFailure> {
    let container = spec::container(pod, index).ok_or_else(|| StartFailure::Config("no such container".to_owned()))?;
    let text = container.image.clone().unwrap_or_default();
    let reference = Reference::parse(&text).map_err(|error| StartFailure::ImageName {
        message: format!("Failed to apply default image tag \"{text}\": couldn't parse image name \"{text}\": {error}"),
    })?;
    let keyring = keyring(shared, pod, source).await;
    let pulling = || {
        let message = format!("Pulling image \"{text}\"");
        let reference = spec::reference(pod, Some(index));
        shared.recorder.record_reference(reference, EventKind::Normal, "Pulling", message);
    };
    let policy = Policy::of(container.image_pull_policy.as_deref());
    match shared.puller.ensure(&reference, policy, &keyring, pulling).await {
        Ok(pulled) => Ok((reference, pulled)),
        Err(PullError::Never(_)) => Err(StartFailure::ImageNever { image: text }),
        Err(PullError::Failed(message)) => Err(StartFailure::ImageAbsent { image: text, message }),
    }
}

/// What the pod's pull secrets say. One that cannot be read is told of, and the pull tried without.
pub(super) async fn keyring(shared: &Shared, pod: &core::Pod, source: &PodObjects<'_>) -> Keyring {
    let mut keyring = Keyring::default();
    let secrets = pod.spec.as_ref().and_then(|spec| spec.image_pull_secrets.as_deref()).unwrap_or_default();
    for secret in secrets {
        let problem = match source.object(Kind::Secret, &secret.name).await {
            Ok(Some(data)) => match (data.get(".dockerconfigjson"), data.get(".dockercfg")) {
                (Some(json), _) => keyring.add_config_json(json).err(),
                (None, Some(json)) => keyring.add_config(json).err(),
                (None, None) => Some("it has neither .dockerconfigjson nor .dockercfg".to_owned()),
            },
            Ok(None) => Some("not found".to_owned()),
            Err(error) => Some(error),
        };
        if let Some(problem) = problem {
            let message = format!(
                "Unable to retrieve some image pull secrets ({}: {problem}); attempting to pull the image may not succeed.",
                secret.name
            );
            let reference = spec::reference(pod, None);
            shared.recorder.record_reference(reference, EventKind::Warning, "FailedToRetrieveImagePullSecret", message);
        }
    }
    keyring
}

/// `command` is the program and its first arguments, `args` the rest; where they are absent the
/// image's own count. A module has one entry, so the program's name is what the guest sees as its own.
fn arguments(
    container: &core::Container,
    reference: &Reference,
    defaults: &Defaults,
    env: &BTreeMap<String, String>,
) -> Vec<String> {
    let given = |list: &Option<Vec<String>>| -> Vec<String> {
        list.iter().flatten().map(|word| expand(word, |name| env.get(name).map(String::as_str))).collect()
    };
    let (mut arguments, mut rest) = (given(&container.command), given(&container.args));
    if arguments.is_empty() {
        arguments.clone_from(&defaults.entrypoint);
        if rest.is_empty() {
            rest.clone_from(&defaults.cmd);
        }
    }
    if arguments.is_empty() && defaults.cmd.is_empty() {
        arguments.push(reference.program().to_owned());
    }
    arguments.extend(rest);
    arguments
}

/// The image's variables, with the container's over them.
fn environment(defaults: &Defaults, variables: BTreeMap<String, String>) -> Vec<(String, String)> {
    let own = defaults.env.iter().filter_map(|line| line.split_once('='));
    let mut all: BTreeMap<String, String> = own.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    all.extend(variables);
    all.into_iter().collect()
}

fn http_port(container: &core::Container) -> u16 {
    container
        .ports
        .iter()
        .flatten()
        .next()
        .and_then(|port| u16::try_from(port.container_port).ok())
        .filter(|port| *port != 0)
        .unwrap_or(8080)
}

pub(super) fn hostname(pod: &core::Pod) -> String {
    let given = pod.spec.as_ref().and_then(|spec| spec.hostname.clone()).filter(|name| !name.is_empty());
    let name = given.unwrap_or_else(|| spec::name(pod).to_owned());
    let cut: String = name.chars().take(63).collect();
    cut.trim_end_matches(['-', '.']).to_owned()
}

fn dns(pod: &core::Pod, domain: &str) -> Dns {
    let Some(spec) = pod.spec.as_ref() else { return Dns::default() };
    let mut dns = Dns::default();
    if !matches!(spec.dns_policy.as_deref(), Some("None" | "Default")) {
        dns.search = vec![format!("{}.svc.{domain}", spec::namespace(pod)), format!("svc.{domain}"), domain.to_owned()];
    }
    if let Some(config) = &spec.dns_config {
        dns.nameservers.extend(config.nameservers.iter().flatten().cloned());
        for search in config.searches.iter().flatten() {
            if !dns.search.contains(search) {
                dns.search.push(search.clone());
            }
        }
        let ndots = config.options.iter().flatten().find(|option| option.name.as_deref() == Some("ndots"));
        dns.ndots = ndots.and_then(|option| option.value.as_ref()).and_then(|value| value.parse().ok()).unwrap_or(0);
    }
    dns
}

fn host_aliases(pod: &core::Pod) -> Vec<(IpAddr, Vec<String>)> {
    let aliases = pod.spec.as_ref().and_then(|spec| spec.host_aliases.as_deref()).unwrap_or_default();
    aliases
        .iter()
        .filter_map(|alias| Some((alias.ip.parse().ok()?, alias.hostnames.clone().unwrap_or_default())))
        .collect()
}

/// Files of a run that is no longer of use.
pub fn files_of(id: &ContainerId) -> Vec<PathBuf> {
    let log = paths::log(id);
    let turned = (1..LOG_FILES).map(|number| {
        let mut name = log.clone().into_os_string();
        name.push(format!(".{number}"));
        PathBuf::from(name)
    });
    let files = paths::files(&id.pod_uid, &id.container, id.attempt);
    turned.chain([log.clone(), paths::exit(id), paths::termination_message(id), files]).collect()
}

/// How many files a log may have become.
const LOG_FILES: u32 = 10;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    #[test]
    fn command_and_args() {
        let reference = Reference::parse("localhost/tools/resvg:v1").unwrap();
        let env = BTreeMap::from([("N".to_owned(), "7".to_owned())]);
        let run = |container: serde_json::Value| {
            arguments(&serde_json::from_value(container).unwrap(), &reference, &Defaults::default(), &env)
        };
        assert_eq!(run(json!({ "name": "a" })), ["resvg"]);
        assert_eq!(run(json!({ "name": "a", "args": ["-n", "$(N)"] })), ["resvg", "-n", "7"]);
        assert_eq!(run(json!({ "name": "a", "command": ["x", "$(N)"], "args": ["$$(N)"] })), ["x", "7", "$(N)"]);
        let words = |list: &[&str]| list.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let defaults = Defaults { entrypoint: words(&["/a.wasm"]), cmd: words(&["-d"]), ..Defaults::default() };
        let run = |container: serde_json::Value| {
            arguments(&serde_json::from_value(container).unwrap(), &reference, &defaults, &env)
        };
        assert_eq!(run(json!({ "name": "a" })), ["/a.wasm", "-d"]);
        assert_eq!(run(json!({ "name": "a", "args": ["-n"] })), ["/a.wasm", "-n"]);
        assert_eq!(run(json!({ "name": "a", "command": ["x"] })), ["x"]);
    }

    #[test]
    fn names_are_searched_in_the_cluster() {
        let pod = |spec: serde_json::Value| -> core::Pod {
            serde_json::from_value(json!({ "metadata": { "namespace": "shop" }, "spec": spec })).unwrap()
        };
        let dns_of = |spec| dns(&pod(spec), "cluster.local");
        assert_eq!(
            dns_of(json!({ "containers": [] })).search,
            ["shop.svc.cluster.local", "svc.cluster.local", "cluster.local"]
        );
        let own = dns_of(json!({ "containers": [], "dnsPolicy": "None", "dnsConfig": {
            "nameservers": ["192.0.2.9"], "searches": ["x.example"], "options": [{ "name": "ndots", "value": "2" }] } }));
        assert_eq!(own, Dns { nameservers: vec!["192.0.2.9".into()], search: vec!["x.example".into()], ndots: 2 });
    }
}
