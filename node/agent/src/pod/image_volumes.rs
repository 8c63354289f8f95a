//! Image volumes: the files of an image, mounted read-only before the first container that wants them.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use sampan_client::EventKind;
use tokio_util::sync::CancellationToken;

use super::env::PodObjects;
use super::machine::{StartFailure, pulled};
use super::shared::Shared;
use super::start::{keyring, unless_ending};
use super::{empty_dir, spec};
use crate::image::{Held, Policy, PullError, Reference};

/// Brings the images that a container has as volumes, and shows what is in them. What is shown already
/// stays: an image is resolved once for a pod.
pub(super) async fn prepare(
    shared: &Arc<Shared>,
    pod: &core::Pod,
    container: &core::Container,
    source: &PodObjects<'_>,
    tenant: &str,
    ending: &CancellationToken,
) -> Result<(), StartFailure> {
    for (name, volume) in spec::image_volumes(pod) {
        if !container.volume_mounts.iter().flatten().any(|mount| mount.name == name) {
            continue;
        }
        let dir = shared.paths.volume(tenant, spec::uid(pod), name);
        let failed =
            |problem: String| StartFailure::Create(format!("failed to mount image volume \"{name}\": {problem}"));
        let at = dir.clone();
        let shown = tokio::task::spawn_blocking(move || is_shown(&at)).await;
        if shown.map_err(io::Error::other).flatten().map_err(|error| failed(error.to_string()))? {
            continue;
        }
        let image = volume.reference.as_deref().unwrap_or_default();
        match unless_ending(ending, image, obtain(shared, pod, volume, source)).await? {
            (_, Held::Linux(image)) => {
                let mounted = shared.oci().show(&image, spec::uid(pod), name, &dir).await;
                mounted.map_err(|error| failed(format!("{error:#}")))?;
            }
            (reference, Held::Wasm(image)) => {
                let blob = shared.images.blob(image.hex());
                let file = format!("{}.wasm", reference.program());
                let copied = tokio::task::spawn_blocking(move || copy(&blob, &dir, &file)).await;
                copied.map_err(io::Error::other).flatten().map_err(|error| failed(error.to_string()))?;
            }
        }
    }
    Ok(())
}

async fn obtain(
    shared: &Shared,
    pod: &core::Pod,
    volume: &core::ImageVolumeSource,
    source: &PodObjects<'_>,
) -> Result<(Reference, Held), StartFailure> {
    let text = volume.reference.clone().unwrap_or_default();
    let reference = Reference::parse(&text).map_err(|error| StartFailure::ImageName {
        message: format!("Failed to apply default image tag \"{text}\": couldn't parse image name \"{text}\": {error}"),
    })?;
    let keyring = keyring(shared, pod, source).await;
    let tell = |reason: &str, message: String| {
        shared.recorder.record_reference(spec::reference(pod, None), EventKind::Normal, reason, message);
    };
    let policy = Policy::of(volume.pull_policy.as_deref());
    let pulling = || tell("Pulling", format!("Pulling image \"{text}\""));
    match shared.puller.ensure(&reference, policy, &keyring, pulling).await {
        Ok(found) => {
            let size = match &found.image {
                Held::Wasm(image) => image.size,
                Held::Linux(image) => image.size,
            };
            tell("Pulled", pulled(&text, size, found.took));
            Ok((reference, found.image))
        }
        Err(PullError::Never(_)) => Err(StartFailure::ImageNever { image: text }),
        Err(PullError::Failed(message)) => Err(StartFailure::ImageAbsent { image: text, message }),
    }
}

fn is_shown(dir: &Path) -> io::Result<bool> {
    match fs::read_dir(dir) {
        Ok(mut entries) => Ok(entries.next().is_some() || empty_dir::is_mount(dir)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// A directory with a module in it, whole or not at all, whatever moment the power goes.
fn copy(blob: &Path, dir: &Path, file: &str) -> io::Result<()> {
    let volumes = dir.parent().unwrap_or(dir);
    // No volume has a dot in its name, and two containers may be at it.
    let new = volumes.join(format!(".new-{}", uuid::Uuid::new_v4().simple()));
    let made = || -> io::Result<()> {
        fs::create_dir_all(&new)?;
        let mut copy = fs::File::create(new.join(file))?;
        io::copy(&mut fs::File::open(blob)?, &mut copy)?;
        copy.set_permissions(fs::Permissions::from_mode(0o444))?;
        copy.sync_all()?;
        fs::File::open(&new)?.sync_all()?;
        match fs::rename(&new, dir) {
            Err(_) if is_shown(dir)? => fs::remove_dir_all(&new),
            renamed => renamed,
        }
    };
    made().inspect_err(|_| {
        let _ = fs::remove_dir_all(&new);
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_module_is_a_file_in_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        let (blob, volume) = (dir.path().join("blob"), dir.path().join("volumes/tool"));
        fs::write(&blob, "\0asm").unwrap();
        assert!(!is_shown(&volume).unwrap());
        // By two containers at once.
        copy(&blob, &volume, "tool.wasm").unwrap();
        copy(&blob, &volume, "tool.wasm").unwrap();
        assert!(is_shown(&volume).unwrap());
        assert_eq!(fs::read(volume.join("tool.wasm")).unwrap(), b"\0asm");
        assert_eq!(fs::read_dir(volume.parent().unwrap()).unwrap().count(), 1);
        // What fails leaves nothing.
        copy(&dir.path().join("gone"), &dir.path().join("volumes/other"), "other.wasm").unwrap_err();
        fs::write(dir.path().join("volumes/file"), "").unwrap();
        copy(&blob, &dir.path().join("volumes/file"), "tool.wasm").unwrap_err();
        assert_eq!(fs::read_dir(volume.parent().unwrap()).unwrap().count(), 2);
    }
}
