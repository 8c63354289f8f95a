//! Volume mounts as a WebAssembly host can give them: directories only. A single file mounted by
//! `subPath` becomes a directory that holds it, as its parent is asked for; like everywhere in
//! Kubernetes such a file does not follow its volume's changes.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path};

use k8s_openapi::api::core::v1 as core;

use super::expand::expand;
use super::paths;
use super::spec;
use crate::beneath::{self, Links};
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
    let mut files: BTreeMap<String, Vec<(String, fs::File)>> = BTreeMap::new();
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
            let within = tenant.join(&source);
            source = source.join(sub);
            let found = beneath::open(&within, sub.as_ref(), Links::Within);
            match found.and_then(|found| Ok((found.metadata()?.file_type(), found))) {
                Ok((kind, file)) if kind.is_file() => {
                    let (parent, name) = target.rsplit_once('/').unwrap_or(("", &target));
                    let parent = if parent.is_empty() { "/" } else { parent };
                    files.entry(parent.to_owned()).or_default().push((name.to_owned(), file));
                    continue;
                }
                Ok((kind, _)) if kind.is_dir() => {}
                Ok(_) => return Err(at(format!("subPath \"{sub}\" is neither a file nor a directory"))),
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(at(format!("subPath \"{sub}\": {error}")));
                }
                Err(_) if volume.empty_dir.is_some() => {
                    beneath::make_dirs(&within, sub.as_ref())
                        .map_err(|error| at(format!("subPath \"{sub}\": {error}")))?;
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
        let source = paths::files(uid, &container.name, attempt).join(number.to_string());
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
