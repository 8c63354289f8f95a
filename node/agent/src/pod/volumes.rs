//! The volumes of a pod: made before its first container, kept up to date, removed after its last.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::Client;
use kube::api::{Api, PostParams};

use super::env::{self, PodObjects, Source};
use super::machine::SetUpError;
use super::objects::Kind;
use super::paths::Paths;
use super::writer::{self, File, Payload};
use super::{refuse, resources, spec};

/// Where volumes get their content.
pub struct Context<'a> {
    pub client: &'a Client,
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

/// Writes all volumes of a pod. Tells when they are to be written again for a token's sake.
pub async fn write(context: &Context<'_>, pod: &core::Pod) -> Result<Option<Timestamp>, SetUpError> {
    let mut refresh: Option<Timestamp> = None;
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
    let security = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
    let group = security.and_then(|context| context.fs_group).and_then(|group| u32::try_from(group).ok());
    let owner = match (context.owner, group.filter(|_| context.sandboxed)) {
        (owner, Some(group)) => Some((owner.map_or(0, |(user, _)| user), group)),
        (owner, None) => owner,
    };
    for volume in volumes {
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
        if volume.empty_dir.is_some() {
            // With medium Memory too: what the guest cannot tell apart needs no mount.
            blocking(move || make_empty(&dir, owner)).await.map_err(failed)?;
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
        blocking(move || writer::write(&dir, &payload, owner)).await.map_err(failed)?;
    }
    Ok(refresh)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> std::io::Result<T> + Send + 'static) -> Result<T, String> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

fn make_empty(dir: &PathBuf, owner: Option<(u32, u32)>) -> std::io::Result<()> {
    if let Some(parent) = dir.parent() {
        std::fs::create_dir_all(parent)?;
    }
    match std::fs::create_dir(dir) {
        // What a container has made of it since is the pod's own.
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => return Ok(()),
        made => made?,
    }
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o777))?;
    if let Some((user, group)) = owner {
        std::os::unix::fs::chown(dir, Some(user), Some(group))?;
        // What is made in it is the group's too, after the change of owner, which would take that away.
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o2777))?;
    }
    Ok(())
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
    payload.insert(path.to_owned(), File { content, mode });
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
    Ok(())
}
