//! `pod-template-hash`: which template a pod was made from.

use k8s_openapi::api::core::v1::PodTemplateSpec;
use serde_json::Value;
use sha2::{Digest, Sha256};

pub const LABEL: &str = "pod-template-hash";

/// No vowels and no digits that read as vowels, so that no name is a word.
const LETTERS: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// A short name for a template, the same on every machine and in every release for the same
/// template. `collisions` picks another one where two templates happen to share it.
pub fn hash(template: &PodTemplateSpec, collisions: i32) -> Result<String, serde_json::Error> {
    let mut digest = Sha256::new();
    write(&serde_json::to_value(without_label(template))?, &mut digest);
    digest.update(collisions.to_be_bytes());
    let bytes = digest.finalize();
    Ok(bytes.iter().take(10).map(|byte| char::from(LETTERS[usize::from(*byte) % LETTERS.len()])).collect())
}

/// Whether two templates differ in nothing but the hash itself.
pub fn same(a: &PodTemplateSpec, b: &PodTemplateSpec) -> bool {
    without_label(a) == without_label(b)
}

/// The template without the label that a controller put there.
pub fn without_label(template: &PodTemplateSpec) -> PodTemplateSpec {
    let mut template = template.clone();
    if let Some(meta) = &mut template.metadata {
        // It has no say in what a pod is, and some clients write it.
        meta.creation_timestamp = None;
        if let Some(labels) = &mut meta.labels {
            labels.remove(LABEL);
        }
        meta.labels.take_if(|labels| labels.is_empty());
        meta.annotations.take_if(|annotations| annotations.is_empty());
        if *meta == Default::default() {
            template.metadata = None;
        }
    }
    template
}

/// Canonical, whatever order a map keeps: every value says its kind and its length first.
fn write(value: &Value, digest: &mut Sha256) {
    let mut text = |tag: u8, text: &str| {
        digest.update([tag]);
        digest.update((text.len() as u64).to_be_bytes());
        digest.update(text.as_bytes());
    };
    match value {
        Value::Null => text(0, ""),
        Value::Bool(value) => text(1, if *value { "1" } else { "0" }),
        Value::Number(number) => text(2, &number.to_string()),
        Value::String(string) => text(3, string),
        Value::Array(items) => {
            text(4, &items.len().to_string());
            items.iter().for_each(|item| write(item, digest));
        }
        Value::Object(fields) => {
            text(5, &fields.len().to_string());
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_by_key(|(name, _)| *name);
            for (name, value) in fields {
                write(&Value::String(name.clone()), digest);
                write(value, digest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::HashSet;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn template(value: Value) -> PodTemplateSpec {
        serde_json::from_value(value).unwrap()
    }

    fn sample() -> Value {
        json!({
            "metadata": { "labels": { "app": "hello", "tier": "web" } },
            "spec": { "containers": [
                { "name": "hello", "image": "localhost/hello:v1", "ports": [{ "containerPort": 8080 }] }
            ]},
        })
    }

    /// A change of this value makes every Deployment of every cluster roll out anew.
    #[test]
    fn the_hash_never_changes() {
        assert_eq!(hash(&template(sample()), 0).unwrap(), "8znrcwd5cf");
        assert_eq!(hash(&template(sample()), 1).unwrap(), "6jvrhgqtjr");
    }

    #[test]
    fn the_label_itself_does_not_count() {
        let plain = template(sample());
        let mut labelled = sample();
        labelled["metadata"]["labels"][LABEL] = json!("abc");
        labelled["metadata"]["creationTimestamp"] = json!(null);
        let labelled = template(labelled);
        assert!(same(&plain, &labelled));
        assert_eq!(hash(&plain, 0).unwrap(), hash(&labelled, 0).unwrap());
        let mut other = sample();
        other["spec"]["containers"][0]["image"] = json!("localhost/hello:v2");
        assert!(!same(&plain, &template(other)));
    }

    #[test]
    fn different_templates_and_counts_have_different_hashes() {
        let mut seen = HashSet::new();
        for n in 0..2000 {
            let mut value = sample();
            value["spec"]["containers"][0]["image"] = json!(format!("localhost/hello:v{n}"));
            assert!(seen.insert(hash(&template(value), 0).unwrap()));
            assert!(seen.insert(hash(&template(sample()), n + 1).unwrap()));
        }
    }

    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "[a-z]{0,4}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[a-z]{0,3}", inner, 0..4)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    fn digest(value: &Value) -> Vec<u8> {
        let mut digest = Sha256::new();
        write(value, &mut digest);
        digest.finalize().to_vec()
    }

    proptest! {
        #[test]
        fn values_are_equal_exactly_when_their_digests_are(a in values(), b in values()) {
            prop_assert_eq!(a == b, digest(&a) == digest(&b));
            prop_assert_eq!(digest(&a), digest(&a.clone()));
        }
    }
}
