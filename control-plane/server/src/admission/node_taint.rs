//! A new node takes no pods until it has said that it is ready.

use serde_json::{Value, json};

const KEY: &str = "node.kubernetes.io/not-ready";
const EFFECT: &str = "NoSchedule";

pub fn create(node: &mut Value) {
    let Some(taints) = super::spec(node).and_then(|spec| super::list(spec, "taints")) else {
        return;
    };
    if !taints.iter().any(|taint| taint["key"] == KEY && taint["effect"] == EFFECT) {
        taints.push(json!({ "effect": EFFECT, "key": KEY }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_has_the_taint_once() {
        let mut node = json!({ "spec": { "taints": [{ "key": KEY, "effect": "NoExecute" }] } });
        create(&mut node);
        create(&mut node);
        let keys = [(KEY, "NoExecute"), (KEY, EFFECT)];
        let expected: Vec<Value> = keys.map(|(key, effect)| json!({ "key": key, "effect": effect })).into();
        assert_eq!(node["spec"]["taints"], json!(expected));
    }
}
