//! Volume mounts as a WebAssembly host can give them: directories only. A single file mounted by
//! `subPath` becomes a directory that holds it, as its parent is asked for; like everywhere in
//! Kubernetes such a file does not follow its volume's changes.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Component, Path, PathBuf};

use k8s_openapi::api::core::v1 as core;

use super::expand::expand;
use super::paths;
use super::spec;
use crate::runtime::Mount;

/// The mounts of a container; `tenant` is the directory that sources are below.
pub fn resolve(
    pod: &core::Pod,
    container: &core::Container,
    attempt: u32,
    env: &BTreeMap<String, String>,
    tenant: &Path,
) -> Result<Vec<Mount>, String> {
    let uid = spec::uid(pod);
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
    let mut mounts: Vec<Mount> = Vec::new();
    let mut files: BTreeMap<String, Vec<(String, PathBuf)>> = BTreeMap::new();
    for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
        let at = |problem: String| format!("volumeMounts[{index}] ({}): {problem}", mount.mount_path);
        let volume = volumes
            .iter()
            .find(|volume| volume.name == mount.name)
            .ok_or_else(|| at(format!("the pod has no volume \"{}\"", mount.name)))?;
        let target = clean(&mount.mount_path).ok_or_else(|| at("the path must be absolute and without '..'".into()))?;
        let mut source = paths::volume(uid, &mount.name);
        let sub = match (&mount.sub_path, &mount.sub_path_expr) {
            (Some(path), _) if !path.is_empty() => Some(path.clone()),
            (_, Some(expression)) if !expression.is_empty() => {
                Some(expand(expression, |name| env.get(name).map(String::as_str)))
            }
            _ => None,
        };
        if let Some(sub) = &sub {
            let plain = Path::new(sub).components().all(|part| matches!(part, Component::Normal(_)));
            if !plain {
                return Err(at(format!("subPath \"{sub}\" must be relative and without '..'")));
            }
            source = source.join(sub);
            let full = tenant.join(&source);
            match fs::metadata(&full) {
                Ok(meta) if meta.is_file() => {
                    let (parent, name) = target.rsplit_once('/').unwrap_or(("", &target));
                    let parent = if parent.is_empty() { "/" } else { parent };
                    files.entry(parent.to_owned()).or_default().push((name.to_owned(), full));
                    continue;
                }
                Ok(_) => {}
                Err(_) if volume.empty_dir.is_some() => {
                    make_below(&tenant.join(paths::volume(uid, &mount.name)), sub)
                        .map_err(|error| at(error.to_string()))?;
                }
                Err(_) => return Err(at(format!("subPath \"{sub}\" is not in volume \"{}\"", mount.name))),
            }
        }
        mounts.push(Mount { source, target, read_only: mount.read_only == Some(true) || volume.empty_dir.is_none() });
    }
    for (number, (parent, files)) in files.into_iter().enumerate() {
        if let Some(other) = mounts.iter().find(|mount| mount.target == parent) {
            return Err(format!(
                "volumeMounts: a file mounted by subPath into {parent} would need the directory that {} already is; mount the whole volume instead",
                other.target
            ));
        }
        let source = paths::container(uid, &container.name).join(format!("{attempt}.files")).join(number.to_string());
        let dir = tenant.join(&source);
        let copy = || -> std::io::Result<()> {
            fs::create_dir_all(&dir)?;
            for (name, file) in files {
                fs::copy(file, dir.join(name))?;
            }
            Ok(())
        };
        copy().map_err(|error| format!("volumeMounts: {parent}: {error}"))?;
        mounts.push(Mount { source, target: parent, read_only: true });
    }
    Ok(mounts)
}

/// Directories for a subPath, writable as the volume is.
fn make_below(volume: &Path, sub: &str) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let mut dir = volume.to_owned();
    for part in Path::new(sub).components() {
        dir.push(part);
        match fs::create_dir(&dir) {
            Ok(()) => fs::set_permissions(&dir, fs::Permissions::from_mode(0o777))?,
            // A link that a guest laid would lead elsewhere.
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                if !fs::symlink_metadata(&dir)?.is_dir() {
                    return Err(std::io::Error::other(format!(
                        "subPath \"{sub}\" passes through what is no directory"
                    )));
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
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
        resolve(&pod, spec::container(&pod, 0).unwrap(), 0, &env, tenant)
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
                super::super::writer::File { content: b"x=1".to_vec(), mode: 0o644 },
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
        for mount in [
            json!({ "name": "no", "mountPath": "/a" }),
            json!({ "name": "work", "mountPath": "/../a" }),
            json!({ "name": "work", "mountPath": "/a", "subPath": "../x" }),
            json!({ "name": "settings", "mountPath": "/a", "subPath": "gone" }),
        ] {
            assert!(run(json!([mount]), dir.path()).is_err(), "{mount}");
        }
    }
}
