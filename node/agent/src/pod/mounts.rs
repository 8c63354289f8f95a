//! Volume mounts. A WebAssembly host can give directories only: a single file mounted by `subPath`
//! becomes a directory that holds it, as its parent is asked for; like everywhere in Kubernetes such
//! a file does not follow its volume's changes.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

use k8s_openapi::api::core::v1 as core;

use super::expand::expand;
use super::paths;
use super::spec;
use crate::beneath::{self, Links};
use crate::oci::spec as oci;
use crate::runtime::Mount;

/// What is mounted somewhere.
enum Found {
    /// A volume, below the tenant's directory, or a directory or file of the node, whose path is absolute.
    Whole(PathBuf),
    /// A directory of a volume: where it was, and itself.
    Dir(PathBuf, fs::File),
    /// A single file.
    File(fs::File),
}

struct Place {
    target: String,
    /// A path of the node.
    host: bool,
    read_only: bool,
    propagation: Option<String>,
    found: Found,
}

/// What a container mounts where; `tenant` is the directory that volumes are below. `guest`: it is
/// WebAssembly.
fn places(
    guest: bool,
    pod: &core::Pod,
    container: &core::Container,
    env: &BTreeMap<String, String>,
    tenant: &Path,
) -> Result<Vec<Place>, String> {
    let uid = spec::uid(pod);
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
    let mut places = Vec::new();
    for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
        let at = |problem: String| format!("volumeMounts[{index}] ({}): {problem}", mount.mount_path);
        let volume = volumes
            .iter()
            .find(|volume| volume.name == mount.name)
            .ok_or_else(|| at(format!("the pod has no volume \"{}\"", mount.name)))?;
        let target = clean(&mount.mount_path).ok_or_else(|| at("the path must be absolute and without '..'".into()))?;
        let writable = volume.empty_dir.is_some() || volume.host_path.is_some();
        let source = match &volume.host_path {
            Some(host) => PathBuf::from(&host.path),
            // What only Linux users may read has a copy for the host process.
            None => Some(paths::guest_volume(uid, &mount.name))
                .filter(|copy| guest && tenant.join(copy).is_dir())
                .unwrap_or_else(|| paths::volume(uid, &mount.name)),
        };
        let sub = match (&mount.sub_path, &mount.sub_path_expr) {
            (Some(path), _) if !path.is_empty() => Some(path.clone()),
            (_, Some(expression)) if !expression.is_empty() => {
                Some(expand(expression, |name| env.get(name).map(String::as_str)))
            }
            _ => None,
        };
        let found = match sub {
            None => Found::Whole(source),
            Some(sub) => part(&sub, &source, tenant, writable).map_err(at)?,
        };
        let read_only = mount.read_only == Some(true) || !writable;
        places.push(Place {
            target,
            host: volume.host_path.is_some(),
            read_only,
            propagation: mount.mount_propagation.clone(),
            found,
        });
    }
    Ok(places)
}

/// A part of a volume, opened so that no link of a guest's leads elsewhere.
fn part(sub: &str, source: &Path, tenant: &Path, writable: bool) -> Result<Found, String> {
    if !Path::new(sub).components().all(|part| matches!(part, Component::Normal(_))) {
        return Err(format!("subPath \"{sub}\" must be relative and without '..'"));
    }
    let within = tenant.join(source);
    let open = || -> std::io::Result<(fs::FileType, fs::File)> {
        let found = beneath::open(&within, sub.as_ref(), Links::Within)?;
        Ok((found.metadata()?.file_type(), found))
    };
    let said = |error: std::io::Error| format!("subPath \"{sub}\": {error}");
    let found = match open() {
        Err(error) if error.kind() == ErrorKind::NotFound && writable => {
            beneath::make_dirs(&within, sub.as_ref()).map_err(said)?;
            open()
        }
        found => found,
    };
    match found {
        Ok((kind, file)) if kind.is_file() => Ok(Found::File(file)),
        Ok((kind, dir)) if kind.is_dir() => Ok(Found::Dir(source.join(sub), dir)),
        Ok(_) => Err(format!("subPath \"{sub}\" is neither a file nor a directory")),
        Err(error) if error.kind() == ErrorKind::NotFound => Err(format!("subPath \"{sub}\" is not in the volume")),
        Err(error) => Err(said(error)),
    }
}

/// The mounts of a WebAssembly container.
pub fn resolve(
    pod: &core::Pod,
    container: &core::Container,
    attempt: u32,
    env: &BTreeMap<String, String>,
    tenant: &Path,
) -> Result<Vec<Mount>, String> {
    let mut mounts: Vec<Mount> = Vec::new();
    let mut files: BTreeMap<String, Vec<(String, fs::File)>> = BTreeMap::new();
    for Place { target, host, read_only, found, .. } in places(true, pod, container, env, tenant)? {
        if host {
            return Err(format!("volumeMounts ({target}): {}", super::refuse::HOST_PATH));
        }
        match found {
            Found::Whole(source) | Found::Dir(source, _) => mounts.push(Mount { source, target, read_only }),
            Found::File(file) => {
                let (parent, name) = target.rsplit_once('/').unwrap_or(("", &target));
                let parent = if parent.is_empty() { "/" } else { parent };
                files.entry(parent.to_owned()).or_default().push((name.to_owned(), file));
            }
        }
    }
    for (number, (parent, files)) in files.into_iter().enumerate() {
        if let Some(other) = mounts.iter().find(|mount| mount.target == parent) {
            return Err(format!(
                "volumeMounts: a file mounted by subPath into {parent} would need the directory that {} already is; mount the whole volume instead",
                other.target
            ));
        }
        let source = paths::files(spec::uid(pod), &container.name, attempt).join(number.to_string());
        let dir = tenant.join(&source);
        let copy = || -> std::io::Result<()> {
            fs::create_dir_all(&dir)?;
            for (name, mut file) in files {
                let mut copy = fs::File::create(dir.join(name))?;
                std::io::copy(&mut file, &mut copy)?;
                let from = file.metadata()?;
                copy.set_permissions(from.permissions())?;
                std::os::unix::fs::fchown(&copy, Some(from.uid()), Some(from.gid()))?;
            }
            Ok(())
        };
        copy().map_err(|error| format!("volumeMounts: {parent}: {error}"))?;
        mounts.push(Mount { source, target: parent, read_only: true });
    }
    Ok(mounts)
}

/// The mounts of a Linux container. Parts of volumes are bound by what was opened, not by a path
/// that a container may have changed since: to directories and files below its run's own.
pub fn bind(
    pod: &core::Pod,
    container: &core::Container,
    attempt: u32,
    env: &BTreeMap<String, String>,
    tenant: &Path,
) -> Result<Vec<sampan_oci::Mount>, String> {
    let dir = tenant.join(paths::files(spec::uid(pod), &container.name, attempt));
    remove(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    let mut mounts = Vec::new();
    for (number, place) in places(false, pod, container, env, tenant)?.into_iter().enumerate() {
        let bound = |file: fs::File, is_dir: bool| -> std::io::Result<PathBuf> {
            let target = dir.join(number.to_string());
            fs::create_dir_all(if is_dir { &target } else { &dir })?;
            if !is_dir {
                fs::File::create(&target)?;
            }
            rustix::mount::mount_bind(format!("/proc/self/fd/{}", file.as_raw_fd()), &target)?;
            Ok(target)
        };
        let source = match place.found {
            Found::Whole(source) => Ok(tenant.join(source)),
            Found::Dir(_, opened) => bound(opened, true),
            Found::File(opened) => bound(opened, false),
        };
        let source = source.map_err(|error| format!("volumeMounts ({}): {error}", place.target))?;
        mounts.push(oci::mount(&source, &place.target, place.read_only, place.propagation.as_deref()));
    }
    Ok(mounts)
}

/// Removes a directory of a pod's, and nothing of what is mounted in it: by us, or by a container
/// whose mounts reach the node.
pub fn remove(dir: &Path) -> std::io::Result<()> {
    if !dir.exists() {
        return Ok(());
    }
    sampan_oci::unmount_below(dir).map_err(std::io::Error::other)?;
    if sampan_oci::is_mounted_below(dir).map_err(std::io::Error::other)? {
        return Err(std::io::Error::other("something is still mounted in it"));
    }
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// An absolute path without doubled or trailing slashes.
fn clean(path: &str) -> Option<String> {
    let mut out = String::new();
    for part in Path::new(path).components() {
        match part {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(part) => {
                out.push('/');
                out.push_str(part.to_str()?);
            }
            Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    (path.starts_with('/') || !path.is_empty()).then(|| if out.is_empty() { "/".to_owned() } else { out })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn run(mounts: serde_json::Value, tenant: &Path) -> Result<Vec<Mount>, String> {
        let pod: core::Pod = serde_json::from_value(json!({
            "metadata": { "uid": "u" },
            "spec": {
                "volumes": [{ "name": "work", "emptyDir": {} }, { "name": "settings", "configMap": { "name": "c" } }],
                "containers": [{ "name": "a", "volumeMounts": mounts }],
            },
        }))
        .unwrap();
        let env = BTreeMap::from([("WHO".to_owned(), "me".to_owned())]);
        resolve(&pod, &spec::container(&pod, 0).unwrap(), 0, &env, tenant)
    }

    #[test]
    fn directories_and_single_files() {
        let dir = tempfile::tempdir().unwrap();
        let settings = dir.path().join("pods/u/volumes/settings");
        fs::create_dir_all(dir.path().join("pods/u/volumes/work")).unwrap();
        super::super::writer::write(
            &settings,
            &BTreeMap::from([(
                "app.toml".to_owned(),
                super::super::writer::File { content: b"x=1".to_vec(), mode: 0o644, user: None },
            )]),
            None,
        )
        .unwrap();
        let got = run(
            json!([
                { "name": "work", "mountPath": "/data/" },
                { "name": "work", "mountPath": "/mine", "subPathExpr": "of/$(WHO)" },
                { "name": "settings", "mountPath": "/etc/app/app.toml", "subPath": "app.toml" },
            ]),
            dir.path(),
        )
        .unwrap();
        assert_eq!(got[0], Mount { source: "pods/u/volumes/work".into(), target: "/data".into(), read_only: false });
        assert_eq!(got[1].source, Path::new("pods/u/volumes/work/of/me"));
        assert!(dir.path().join(&got[1].source).is_dir());
        assert_eq!(got[2].target, "/etc/app");
        assert!(got[2].read_only);
        assert_eq!(fs::read(dir.path().join(&got[2].source).join("app.toml")).unwrap(), b"x=1");
    }

    #[test]
    fn refused() {
        let dir = tempfile::tempdir().unwrap();
        // As a guest may have made it before another container starts.
        let work = dir.path().join("pods/u/volumes/work");
        fs::create_dir_all(&work).unwrap();
        for (name, target) in [("file", "../../../../secret"), ("dir", "../.."), ("gone", "../../new")] {
            std::os::unix::fs::symlink(target, work.join(name)).unwrap();
        }
        fs::write(dir.path().join("secret"), "x").unwrap();
        for mount in [
            json!({ "name": "work", "mountPath": "/a", "subPath": "file" }),
            json!({ "name": "work", "mountPath": "/a", "subPath": "dir" }),
            json!({ "name": "work", "mountPath": "/a", "subPath": "dir/b" }),
            json!({ "name": "work", "mountPath": "/a", "subPath": "gone/b" }),
            json!({ "name": "no", "mountPath": "/a" }),
            json!({ "name": "work", "mountPath": "/../a" }),
            json!({ "name": "work", "mountPath": "/a", "subPath": "../x" }),
            json!({ "name": "settings", "mountPath": "/a", "subPath": "gone" }),
        ] {
            assert!(run(json!([mount]), dir.path()).is_err(), "{mount}");
        }
        assert!(!dir.path().join("pods/u/new").exists() && !dir.path().join("pods/u/b").exists());
    }
}
