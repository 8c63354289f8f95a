//! The volumes of a pod: made before its first container, kept up to date, removed after its last.

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::Client;
use kube::api::{Api, PostParams};
use sampan_client::{EventKind, EventRecorder};

use super::empty_dir::{self, Made};
use super::env::{self, PodObjects, Source};
use super::machine::SetUpError;
use super::objects::Kind;
use super::paths::{self, Paths};
use super::writer::{self, File, Payload};
use super::{refuse, resources, spec};

/// Where volumes get their content.
pub struct Context<'a> {
    pub client: &'a Client,
    pub recorder: &'a EventRecorder,
    pub paths: &'a Paths,
    pub tenant: &'a str,
    pub source: PodObjects<'a>,
    pub host: &'a [IpAddr],
    pub addresses: &'a [IpAddr],
    pub allocatable: &'a BTreeMap<String, Quantity>,
    /// Whose files they are, where the host process is another user.
    pub owner: Option<(u32, u32)>,
    /// The pod stands in a sandbox of containerd's, so some of its containers may be Linux.
    pub sandboxed: bool,
}

const DEFAULT_MODE: i32 = 0o644;

/// Which volumes are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    All,
    /// Those whose content is ours to keep up to date; what is the pod's own is made once.
    Payload,
}

impl Write {
    fn takes(self, volume: &core::Volume) -> bool {
        self == Self::All || volume.empty_dir.is_none() && volume.host_path.is_none()
    }
}

/// Writes the volumes of a pod. Tells when they are to be written again for a token's sake.
pub async fn write(context: &Context<'_>, pod: &core::Pod, which: Write) -> Result<Option<Timestamp>, SetUpError> {
    let mut refresh: Option<Timestamp> = None;
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
    let security = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
    let group = security.and_then(|context| context.fs_group).and_then(|group| u32::try_from(group).ok());
    // Linux containers find what the kubelet would give them: root's.
    let owner = if context.sandboxed { group.map(|group| (0, group)) } else { context.owner };
    for volume in volumes.iter().filter(|volume| which.takes(volume)) {
        let failed = |message: String| SetUpError {
            reason: "FailedMount",
            message: format!("MountVolume.SetUp failed for volume \"{}\" : {message}", volume.name),
        };
        if let Some(refusal) = refuse::volume(volume, context.sandboxed) {
            return Err(failed(refusal));
        }
        let dir = context.paths.volume(context.tenant, spec::uid(pod), &volume.name);
        if let Some(host) = volume.host_path.clone() {
            blocking(move || check_host_path(&host)).await.map_err(failed)?;
            continue;
        }
        if let Some(source) = &volume.empty_dir {
            let memory = empty_dir::in_memory(source).then(|| empty_dir::memory(pod, source, context.allocatable));
            let made = blocking(move || empty_dir::make(&dir, memory, owner)).await.map_err(failed)?;
            if made == Made::OnDisk {
                let message = format!(
                    "volume \"{}\" with medium Memory is a directory on the node's disk: the node is not root, and mounts nothing",
                    volume.name
                );
                let reference = spec::reference(pod, None);
                context.recorder.record_reference(reference, EventKind::Warning, "EmptyDirOnDisk", message);
            }
            continue;
        }
        if volume.image.is_some() {
            // Comes with the first container that mounts it: what is wrong with it is the container's to tell.
            continue;
        }
        let mut token_ends = None;
        let mut payload = content(context, pod, volume, &mut token_ends).await.map_err(failed)?;
        if group.is_some() {
            // The group is there to read it.
            payload.values_mut().for_each(|file| file.mode |= 0o440);
        }
        refresh = match (refresh, token_ends) {
            (Some(known), Some(new)) => Some(known.min(new)),
            (known, new) => known.or(new),
        };
        let guests = context.owner.filter(|_| context.sandboxed);
        let copy = context.paths.tenant(context.tenant).join(paths::guest_volume(spec::uid(pod), &volume.name));
        let written = blocking(move || {
            writer::write(&dir, &payload, owner)?;
            let hidden = payload.values().any(|file| file.mode & 0o004 == 0);
            if let Some(host) = guests.filter(|_| hidden || copy.is_dir()) {
                payload.values_mut().for_each(|file| file.user = None);
                writer::write(&copy, &payload, Some(host))?;
            }
            Ok(())
        });
        written.await.map_err(failed)?;
    }
    Ok(refresh)
}

/// The user that all containers of a pod run as, if they say so.
fn common_user(pod: &core::Pod) -> Option<u32> {
    let of_pod = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref()).and_then(|it| it.run_as_user);
    let user = |container: &core::Container| {
        let own = container.security_context.as_ref().and_then(|context| context.run_as_user);
        own.or(of_pod).and_then(|user| u32::try_from(user).ok())
    };
    let mut users = spec::containers(pod).map(|(container, _)| user(container));
    let first = users.next()??;
    users.all(|user| user == Some(first)).then_some(first)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> std::io::Result<T> + Send + 'static) -> Result<T, String> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

/// Whether what is at a path of the node is what the volume's `type` says; made where it says so.
fn check_host_path(host: &core::HostPathVolumeSource) -> std::io::Result<()> {
    use std::os::unix::fs::FileTypeExt as _;
    let path = std::path::Path::new(&host.path);
    let wrong = |message: String| Err(std::io::Error::other(format!("hostPath type check failed: {message}")));
    if !path.is_absolute() || path.components().any(|part| part == std::path::Component::ParentDir) {
        return wrong(format!("{} is not absolute or has '..'", host.path));
    }
    let kind = host.type_.as_deref().unwrap_or_default();
    let found = match std::fs::metadata(path) {
        Ok(metadata) => Some(metadata.file_type()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    match (kind, found) {
        ("", None) | ("DirectoryOrCreate", None) => std::fs::create_dir_all(path),
        ("FileOrCreate", None) => std::fs::File::create(path).map(drop),
        ("", Some(_)) => Ok(()),
        ("Directory" | "DirectoryOrCreate", Some(found)) if found.is_dir() => Ok(()),
        ("File" | "FileOrCreate", Some(found)) if found.is_file() => Ok(()),
        ("Socket", Some(found)) if found.is_socket() => Ok(()),
        ("CharDevice", Some(found)) if found.is_char_device() => Ok(()),
        ("BlockDevice", Some(found)) if found.is_block_device() => Ok(()),
        (kind, _) => wrong(format!("{} is not a {kind}", host.path)),
    }
}

async fn content(
    context: &Context<'_>,
    pod: &core::Pod,
    volume: &core::Volume,
    token_ends: &mut Option<Timestamp>,
) -> Result<Payload, String> {
    let mut payload = Payload::new();
    if let Some(source) = &volume.config_map {
        let default = source.default_mode.unwrap_or(DEFAULT_MODE);
        let optional = source.optional == Some(true);
        object(context, Kind::ConfigMap, &source.name, source.items.as_deref(), default, optional, &mut payload)
            .await?;
    } else if let Some(source) = &volume.secret {
        let default = source.default_mode.unwrap_or(DEFAULT_MODE);
        let optional = source.optional == Some(true);
        let name = source.secret_name.as_deref().unwrap_or_default();
        object(context, Kind::Secret, name, source.items.as_deref(), default, optional, &mut payload).await?;
    } else if let Some(source) = &volume.downward_api {
        let default = source.default_mode.unwrap_or(DEFAULT_MODE);
        downward(context, pod, source.items.as_deref().unwrap_or_default(), default, &mut payload)?;
    } else if let Some(projected) = &volume.projected {
        let default = projected.default_mode.unwrap_or(DEFAULT_MODE);
        for source in projected.sources.as_deref().unwrap_or_default() {
            if let Some(source) = &source.config_map {
                let optional = source.optional == Some(true);
                object(
                    context,
                    Kind::ConfigMap,
                    &source.name,
                    source.items.as_deref(),
                    default,
                    optional,
                    &mut payload,
                )
                .await?;
            } else if let Some(source) = &source.secret {
                let optional = source.optional == Some(true);
                object(context, Kind::Secret, &source.name, source.items.as_deref(), default, optional, &mut payload)
                    .await?;
            } else if let Some(source) = &source.downward_api {
                downward(context, pod, source.items.as_deref().unwrap_or_default(), default, &mut payload)?;
            } else if let Some(source) = &source.service_account_token {
                token(context, pod, source, default, token_ends, &mut payload).await?;
            } else {
                return Err("projected: a source that this node does not have; it has configMap, secret, downwardAPI and serviceAccountToken".to_owned());
            }
        }
    }
    Ok(payload)
}

fn put(payload: &mut Payload, path: &str, content: Vec<u8>, mode: i32) {
    let mode = u32::try_from(mode).unwrap_or(0o644) & 0o777;
    payload.insert(path.to_owned(), File { content, mode, user: None });
}

async fn object(
    context: &Context<'_>,
    kind: Kind,
    name: &str,
    items: Option<&[core::KeyToPath]>,
    default_mode: i32,
    optional: bool,
    payload: &mut Payload,
) -> Result<(), String> {
    let data = match context.source.object(kind, name).await? {
        Some(data) => data,
        None if optional => return Ok(()),
        None => return Err(format!("{} \"{name}\" not found", kind.resource())),
    };
    let Some(items) = items.filter(|items| !items.is_empty()) else {
        for (key, value) in data.files() {
            put(payload, key, value.clone(), default_mode);
        }
        return Ok(());
    };
    for item in items {
        match data.get(&item.key) {
            Some(value) => put(payload, &item.path, value.to_vec(), item.mode.unwrap_or(default_mode)),
            None if optional => {}
            None => {
                let words = match kind {
                    Kind::ConfigMap => "configmap references non-existent config key",
                    Kind::Secret => "references non-existent secret key",
                };
                return Err(format!("{words}: {}", item.key));
            }
        }
    }
    Ok(())
}

fn downward(
    context: &Context<'_>,
    pod: &core::Pod,
    items: &[core::DownwardAPIVolumeFile],
    default_mode: i32,
    payload: &mut Payload,
) -> Result<(), String> {
    for item in items {
        let text = if let Some(field) = &item.field_ref {
            env::field(pod, &field.field_path, context.addresses, context.host)?
        } else if let Some(field) = &item.resource_field_ref {
            let name = field.container_name.as_deref().unwrap_or_default();
            let container = spec::containers(pod)
                .map(|(container, _)| container)
                .find(|container| container.name == name)
                .ok_or_else(|| format!("container {name} not found"))?;
            resources::field(container, &field.resource, field.divisor.as_ref(), context.allocatable)?
        } else {
            String::new()
        };
        put(payload, &item.path, text.into_bytes(), item.mode.unwrap_or(default_mode));
    }
    Ok(())
}

async fn token(
    context: &Context<'_>,
    pod: &core::Pod,
    source: &core::ServiceAccountTokenProjection,
    mode: i32,
    ends: &mut Option<Timestamp>,
    payload: &mut Payload,
) -> Result<(), String> {
    let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.as_deref()).unwrap_or("default");
    let seconds = source.expiration_seconds.unwrap_or(3600);
    let request = TokenRequest {
        spec: Some(TokenRequestSpec {
            audiences: source.audience.clone().filter(|audience| !audience.is_empty()).map(|audience| vec![audience]),
            expiration_seconds: Some(seconds),
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                name: pod.metadata.name.clone(),
                uid: pod.metadata.uid.clone(),
            }),
        }),
        ..Default::default()
    };
    let accounts: Api<core::ServiceAccount> = Api::namespaced(context.client.clone(), spec::namespace(pod));
    let answer = accounts
        .create_token_request(account, &PostParams::default(), &request)
        .await
        .map_err(|error| format!("failed to fetch token: {error}"))?;
    let status = answer.status.ok_or("failed to fetch token: the answer has no status")?;
    let now = Timestamp::now();
    // Renewed when a fifth of its life is left, and daily.
    let token = status.token.ok_or("failed to fetch token: the answer has no token")?;
    let life = status.expiration_timestamp.map_or(seconds, |end| end.0.duration_since(now).as_secs());
    let renew = SignedDuration::from_secs((life * 4 / 5).clamp(60, 24 * 3600));
    let renew = now.saturating_add(renew).unwrap_or(Timestamp::MAX);
    *ends = Some(ends.map_or(renew, |known| known.min(renew)));
    put(payload, &source.path, token.into_bytes(), mode);
    let group = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref()).and_then(|it| it.fs_group);
    let user = common_user(pod);
    if let Some(file) =
        payload.get_mut(&source.path).filter(|_| context.sandboxed && (user.is_some() || group.is_some()))
    {
        // It is for nobody but who is to have it.
        (file.mode, file.user) = (0o600, user);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_the_pods_own_is_made_once() {
        let again = |volume: serde_json::Value| Write::Payload.takes(&serde_json::from_value(volume).unwrap());
        assert!(!again(json!({ "name": "v", "emptyDir": { "medium": "Memory" } })));
        assert!(!again(json!({ "name": "v", "hostPath": { "path": "/a" } })));
        assert!(again(json!({ "name": "v", "configMap": { "name": "c" } })));
        assert!(again(json!({ "name": "v", "projected": { "sources": [] } })));
        assert!(Write::All.takes(&serde_json::from_value(json!({ "name": "v", "emptyDir": {} })).unwrap()));
    }

    #[test]
    fn a_token_is_for_who_runs() {
        let user = |spec: serde_json::Value| common_user(&serde_json::from_value(json!({ "spec": spec })).unwrap());
        let own = |user: u32| json!({ "name": "a", "securityContext": { "runAsUser": user } });
        assert_eq!(user(json!({ "containers": [own(7), own(7)] })), Some(7));
        assert_eq!(user(json!({ "containers": [own(7), own(8)] })), None);
        assert_eq!(user(json!({ "containers": [own(7), { "name": "a" }] })), None);
        let of_pod = json!({ "runAsUser": 9 });
        assert_eq!(user(json!({ "securityContext": of_pod, "containers": [{ "name": "a" }] })), Some(9));
        assert_eq!(
            user(json!({ "securityContext": of_pod, "initContainers": [own(0)], "containers": [own(9)] })),
            None
        );
    }
}
