//! A pod stays on a node that is not ready or unreachable for five minutes, unless it says otherwise.

use serde_json::{Value, json};

const SECONDS: i64 = 300;
const KEYS: &[&str] = &["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];

pub fn create(pod: &mut Value) {
    let Some(spec) = super::spec(pod) else { return };
    let Some(tolerations) = super::list(spec, "tolerations") else {
        return;
    };
    for key in KEYS {
        let tolerated = tolerations.iter().any(|toleration| {
            let text = |name: &str| toleration.get(name).and_then(Value::as_str).unwrap_or_default();
            matches!(text("effect"), "" | "NoExecute") && (text("key").is_empty() || text("key") == *key)
        });
        if !tolerated {
            tolerations.push(json!({
                "key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": SECONDS,
            }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_missing_is_added() {
        let mut pod = json!({"spec": {"tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists"}]}});
        create(&mut pod);
        let keys: Vec<_> =
            pod["spec"]["tolerations"].as_array().into_iter().flatten().map(|t| t["key"].clone()).collect();
        assert_eq!(keys, ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"]);
        let mut pod = json!({"spec": {"tolerations": [{"operator": "Exists"}]}});
        create(&mut pod);
        assert_eq!(pod["spec"]["tolerations"].as_array().map(Vec::len), Some(1));
    }
}
