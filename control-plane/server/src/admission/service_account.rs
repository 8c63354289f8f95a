//! A pod runs as a service account that exists, and finds its token where programs look for it.

use std::time::Duration;

use sampan_api::Error;
use serde_json::{Map, Value, json};

use super::{Attributes, list, spec};
use crate::app::App;
use crate::naming;

const DEFAULT: &str = "default";
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const VOLUME_PREFIX: &str = "kube-api-access-";
/// A namespace's default account is made by a controller: a pod that comes right after its
/// namespace waits for it this long.
const PATIENCE: Duration = Duration::from_secs(1);
const TOKEN_SECONDS: i64 = 3607;
const MIRROR: &str = "kubernetes.io/config.mirror";

pub async fn create(app: &App, attributes: &Attributes<'_>, pod: &mut Value) -> Result<(), Error> {
    if pod.pointer("/metadata/annotations").and_then(|all| all.get(MIRROR)).is_some() {
        return Ok(());
    }
    let Some(spec) = spec(pod) else { return Ok(()) };
    let given = ["serviceAccountName", "serviceAccount"]
        .iter()
        .find_map(|key| spec.get(*key).and_then(Value::as_str).filter(|name| !name.is_empty()));
    let name = given.unwrap_or(DEFAULT).to_owned();
    spec.insert("serviceAccountName".to_owned(), name.clone().into());
    spec.insert("serviceAccount".to_owned(), name.clone().into());
    let account = find(app, attributes.namespace, &name).await.ok_or_else(|| {
        attributes.forbidden(&format!(
            "error looking up service account {}/{name}: serviceaccount {name:?} not found",
            attributes.namespace
        ))
    })?;
    if spec.get("imagePullSecrets").and_then(Value::as_array).is_none_or(Vec::is_empty)
        && let Some(secrets) = account.get("imagePullSecrets").filter(|secrets| !secrets.is_null())
    {
        spec.insert("imagePullSecrets".to_owned(), secrets.clone());
    }
    let automount = spec.get("automountServiceAccountToken").or_else(|| account.get("automountServiceAccountToken"));
    if automount.and_then(Value::as_bool).unwrap_or(true) {
        mount_token(spec);
    }
    Ok(())
}

async fn find(app: &App, namespace: &str, name: &str) -> Option<Value> {
    let accounts = app.kind_cache("", "serviceaccounts")?;
    if let Some(found) = accounts.get(namespace, name) {
        return Some(found.value());
    }
    if name != DEFAULT {
        return None;
    }
    // Watched before it is looked for again: what comes between is not missed.
    let mut watcher = accounts.list(namespace, None, 1, |_| true).0.watcher;
    if let Some(found) = accounts.get(namespace, name) {
        return Some(found.value());
    }
    let found = tokio::time::timeout(PATIENCE, async {
        while watcher.changed().await {
            if let Some(found) = accounts.get(namespace, name) {
                return Some(found.value());
            }
        }
        None
    });
    found.await.ok().flatten()
}

fn mount_token(spec: &mut Map<String, Value>) {
    let existing =
        spec.get("volumes").and_then(Value::as_array).into_iter().flatten().find_map(|volume| {
            volume.get("name").and_then(Value::as_str).filter(|name| name.starts_with(VOLUME_PREFIX))
        });
    let volume = existing.map_or_else(|| format!("{VOLUME_PREFIX}{}", naming::suffix()), str::to_owned);
    let existed = existing.is_some();
    let mut mounted = false;
    for key in ["initContainers", "containers"] {
        let Some(containers) = spec.get_mut(key).and_then(Value::as_array_mut) else {
            continue;
        };
        for container in containers.iter_mut().filter_map(Value::as_object_mut) {
            let Some(mounts) = list(container, "volumeMounts") else {
                continue;
            };
            let has = mounts.iter().any(|mount| mount.get("mountPath").and_then(Value::as_str) == Some(MOUNT_PATH));
            if !has {
                mounts.push(json!({"name": volume, "readOnly": true, "mountPath": MOUNT_PATH}));
                mounted = true;
            }
        }
    }
    if !mounted || existed {
        return;
    }
    if let Some(volumes) = list(spec, "volumes") {
        volumes.push(json!({
            "name": volume,
            "projected": {
                "defaultMode": 0o644,
                "sources": [
                    {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
                    {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                    {"downwardAPI": {"items": [{"path": "namespace",
                        "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
                ],
            },
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_is_mounted_once() {
        let mut spec = json!({
            "initContainers": [{"name": "i"}],
            "containers": [{"name": "a"}, {"name": "b", "volumeMounts": [{"name": "own", "mountPath": MOUNT_PATH}]}],
        });
        let map = spec.as_object_mut().expect("a map");
        mount_token(map);
        let once = map.clone();
        mount_token(map);
        assert_eq!(*map, once);
        assert_eq!(map["volumes"].as_array().map(Vec::len), Some(1));
        assert_eq!(map["containers"][1]["volumeMounts"].as_array().map(Vec::len), Some(1));
        assert_eq!(map["initContainers"][0]["volumeMounts"][0]["mountPath"], MOUNT_PATH);
    }
}
