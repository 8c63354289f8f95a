//! What may change in a pod: almost nothing of its spec, and its status by rules.

use serde_json::Value;

use super::{MIRROR, aggregate, diff, internal, scheduling, security, spec};
use crate::error::FieldErrors;
use crate::kinds::edit::{self, count_generation, keep, keep_meta};
use crate::validation::common::{Holder, quantity, resources};
use crate::validation::field::{Field, Path};
use crate::validation::{metadata, names, net};

const UPDATABLE: &str = "`spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,\
    `spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set \
    to 1 if it was previously negative)";

fn spec_of(object: &Value) -> Field<'_> {
    Field::root(object).child("spec")
}

/// What holds for a pod on every write, beside its metadata.
pub fn metadata_and_spec(pod: &Value, errors: &mut FieldErrors) {
    let root = Field::root(pod);
    let (meta, spec) = (root.child("metadata"), root.child("spec"));
    spec::annotations(&meta.child("annotations"), &spec, errors);
    spec::validate(&spec, spec::Place::Pod(meta.child("name").str()), errors);
    if spec.child("serviceAccountName").is_empty() {
        for volume in spec.child("volumes").items() {
            for source in volume.below(&["projected", "sources"]).items() {
                let token = source.child("serviceAccountToken");
                if token.is_set() {
                    errors.forbidden(token.path(), "must not be specified when serviceAccountName is not set");
                }
            }
        }
    }
    for list in ["containers", "initContainers"] {
        for container in spec.child(list).items() {
            super::containers::only_in_pod(&container, errors);
        }
    }
}

/// A new pod.
pub fn validate_create(pod: &Value, errors: &mut FieldErrors) {
    metadata_and_spec(pod, errors);
    let spec = spec_of(pod);
    let ephemeral = spec.child("ephemeralContainers");
    if !ephemeral.is_empty() {
        errors.forbidden(ephemeral.path(), "cannot be set on create");
    }
    let node = spec.child("nodeName");
    if !node.is_empty() && !spec.child("schedulingGates").is_empty() {
        errors.forbidden(node.path(), "cannot be set until all schedulingGates have been cleared");
    }
    let annotations = Field::root(pod).below(&["metadata", "annotations"]);
    security::annotations_match(&annotations, &spec, errors);
}

pub fn prepare(new: &mut Value, old: &Value) {
    keep(new, old, "status");
    let changed = new.get("spec") != old.get("spec");
    count_generation(new, old, changed);
}

pub fn validate(new: &Value, old: &Value, errors: &mut FieldErrors) {
    metadata_and_spec(new, errors);
    let annotations = |object| Field::root(object).below(&["metadata", "annotations"]);
    security::annotation_updates(&annotations(new), &annotations(old), errors);
    spec::annotations(&annotations(new), &spec_of(new), errors);
    let (spec, before) = (spec_of(new), spec_of(old));
    for list in ["containers", "initContainers"] {
        let (list, before) = (spec.child(list), before.child(list));
        if list.len() != before.len() {
            errors.forbidden(list.path(), "pod updates may not add or remove containers");
            return;
        }
        for container in list.items() {
            let image = container.child("image");
            if image.is_empty() {
                errors.required(image.path(), "");
            }
            if image.str().trim() != image.str() {
                errors.invalid(&image, "must not have leading or trailing whitespace");
            }
        }
    }
    let (deadline, former) = (spec.child("activeDeadlineSeconds"), before.child("activeDeadlineSeconds"));
    match (deadline.opt_int(), former.opt_int()) {
        (Some(seconds), _) if !(0..=i64::from(i32::MAX)).contains(&seconds) => {
            errors.invalid(&deadline, "must be between 0 and 2147483647, inclusive");
            return;
        }
        (Some(seconds), Some(former)) if former < seconds => {
            errors.invalid(&deadline, "must be less than or equal to previous value");
            return;
        }
        (None, Some(_)) => errors.invalid(&deadline, "must not update from a positive integer to nil value"),
        _ => {}
    }
    tolerations(&spec, &before, errors);
    gates(&spec, &before, errors);
    if spec.value() == before.value() {
        return;
    }
    let mut munged = munge(&spec, &before);
    if !before.child("schedulingGates").is_empty() {
        gated(&mut munged, &spec, &before, errors);
    }
    if Some(&munged) != before.value() {
        let empty = Value::Null;
        let old_text = internal::pod_spec(before.value().unwrap_or(&empty));
        let difference = diff::unified(&old_text, &internal::pod_spec(&munged));
        let detail = format!("pod updates may not change fields other than {UPDATABLE}\n{difference}");
        errors.forbidden(spec.path(), detail);
    }
}

/// Tolerations may come; of those there only the seconds may change.
fn tolerations(spec: &Field<'_>, before: &Field<'_>, errors: &mut FieldErrors) {
    let list = spec.child("tolerations");
    let without_seconds = |one: &Field<'_>| {
        let mut value = one.value().cloned().unwrap_or_default();
        if let Some(map) = value.as_object_mut() {
            map.remove("tolerationSeconds");
        }
        value
    };
    let now: Vec<Value> = list.items().map(|one| without_seconds(&one)).collect();
    if before.child("tolerations").items().any(|old| !now.contains(&without_seconds(&old))) {
        errors.forbidden(list.path(), "existing toleration can not be modified except its tolerationSeconds");
        return;
    }
    scheduling::tolerations(&list, errors);
}

/// Scheduling gates only go.
fn gates(spec: &Field<'_>, before: &Field<'_>, errors: &mut FieldErrors) {
    let old = before.child("schedulingGates");
    for gate in spec.child("schedulingGates").items() {
        let name = gate.child("name");
        if !old.items().any(|gate| gate.child("name").str() == name.str()) {
            let detail = format!("only deletion is allowed, but found new scheduling gate '{}'", name.str());
            errors.forbidden(name.path(), detail);
        }
    }
}

/// The new spec with the stored value of every field that may change.
fn munge(spec: &Field<'_>, before: &Field<'_>) -> Value {
    let mut munged = spec.value().cloned().unwrap_or_default();
    let Some(map) = munged.as_object_mut() else {
        return munged;
    };
    for list in ["containers", "initContainers"] {
        let images = before.value().and_then(|old| old.get(list)).and_then(Value::as_array);
        let containers = map.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten();
        for (container, old) in containers.zip(images.into_iter().flatten()) {
            if let Some(container) = container.as_object_mut() {
                edit::put(container, "image", old.get("image"));
            }
        }
    }
    let old = |key: &str| before.value().and_then(|old| old.get(key));
    for key in ["activeDeadlineSeconds", "schedulingGates", "tolerations"] {
        edit::put(map, key, old(key));
    }
    let grace = "terminationGracePeriodSeconds";
    let was_negative = old(grace).and_then(Value::as_i64).is_some_and(|seconds| seconds < 0);
    if was_negative && map.get(grace).and_then(Value::as_i64) == Some(1) {
        edit::put(map, grace, old(grace));
    }
    munged
}

/// As long as a pod is held back its node selector and affinity may become narrower.
fn gated(munged: &mut Value, spec: &Field<'_>, before: &Field<'_>, errors: &mut FieldErrors) {
    let Some(map) = munged.as_object_mut() else {
        return;
    };
    let (selector, old_selector) = (spec.child("nodeSelector"), before.child("nodeSelector"));
    if selector.value() != old_selector.value() {
        let same = |key: &str, value: &Field<'_>| selector.value().and_then(|map| map.get(key)) == value.value();
        if !old_selector.entries().all(|(key, value)| same(key, &value)) {
            let detail = "only additions to spec.nodeSelector are allowed (no mutations or deletions)";
            errors.invalid(&selector, detail);
        }
        edit::put(map, "nodeSelector", old_selector.value());
    }
    let path = ["affinity", "nodeAffinity"];
    let (affinity, old_affinity) = (spec.below(&path), before.below(&path));
    if affinity.value() == old_affinity.value() {
        return;
    }
    node_affinity(&affinity, &old_affinity, errors);
    if let Some(now) = map.get_mut("affinity").and_then(Value::as_object_mut) {
        edit::put(now, "nodeAffinity", old_affinity.value());
        if now.is_empty() && !before.child("affinity").is_set() {
            map.remove("affinity");
        }
    } else if old_affinity.is_set() {
        map.insert("affinity".to_owned(), serde_json::json!({"nodeAffinity": old_affinity.value()}));
    }
}

fn node_affinity(new: &Field<'_>, old: &Field<'_>, errors: &mut FieldErrors) {
    let terms = ["requiredDuringSchedulingIgnoredDuringExecution", "nodeSelectorTerms"];
    let (new, old) = (new.below(&terms), old.below(&terms));
    if old.is_empty() {
        return;
    }
    if old.len() != new.len() {
        errors.invalid(&new, "no additions/deletions to non-empty NodeSelectorTerms list are allowed");
        return;
    }
    for (term, before) in new.items().zip(old.items()) {
        let empty =
            |term: &Field<'_>| term.child("matchExpressions").is_empty() && term.child("matchFields").is_empty();
        let grows = |name| {
            let (now, then) = (term.child(name), before.child(name));
            now.len() >= then.len() && now.items().zip(then.items()).all(|(a, b)| a.value() == b.value())
        };
        let only_additions = (!empty(&before) || empty(&term)) && grows("matchExpressions") && grows("matchFields");
        if !only_additions {
            errors.invalid(&term, "only additions are allowed (no mutations or deletions)");
        }
    }
}

/// A write to `status` changes nothing else.
pub fn prepare_status(new: &mut Value, old: &Value) {
    keep(new, old, "spec");
    keep_meta(new, old, "ownerReferences");
    keep_meta(new, old, "deletionTimestamp");
    keep_meta(new, old, "generation");
    if let Some(map) = new.as_object_mut() {
        super::defaults::sync_ips(map);
        let status = edit::ensure(map, "status");
        let before = old.get("status");
        if edit::text(status, "qosClass").is_empty() {
            edit::put(status, "qosClass", before.and_then(|status| status.get("qosClass")));
        }
        if status.get("observedGeneration").and_then(Value::as_i64).unwrap_or(0) == 0 {
            edit::put(status, "observedGeneration", before.and_then(|status| status.get("observedGeneration")));
        }
        keep_observed(status, before);
    }
}

/// Conditions keep the generation they were observed at unless a new one is told.
fn keep_observed(status: &mut edit::Object, before: Option<&Value>) {
    let old = before.and_then(|status| status.get("conditions")).and_then(Value::as_array);
    let mut old: Vec<&Value> = old.into_iter().flatten().collect();
    for condition in edit::objects(status, "conditions") {
        let position = old.iter().position(|other| other.get("type") == condition.get("type"));
        let former = position.map(|position| old.remove(position)).and_then(|one| one.get("observedGeneration"));
        if condition.get("observedGeneration").and_then(Value::as_i64).unwrap_or(0) == 0 && former.is_some() {
            edit::put(condition, "observedGeneration", former);
        }
    }
}

pub fn validate_status(new: &Value, old: &Value, errors: &mut FieldErrors) {
    let annotations = |object| Field::root(object).below(&["metadata", "annotations"]);
    security::annotation_updates(&annotations(new), &annotations(old), errors);
    spec::annotations(&annotations(new), &spec_of(new), errors);
    let (status, before) = (Field::root(new).child("status"), Field::root(old).child("status"));
    for (i, condition) in status.child("conditions").items().enumerate() {
        let kind = condition.child("type").str();
        if !matches!(kind, "PodScheduled" | "Ready" | "Initialized") {
            let path = Path::new("metadata").child("conditions").index(i).child("Type");
            errors.invalid_all(&path, kind, names::is_qualified_name(kind));
        }
    }
    let nominated = status.child("nominatedNodeName");
    if !nominated.is_empty() && nominated.value() != before.child("nominatedNodeName").value() {
        errors.invalid_all(nominated.path(), nominated.str(), names::is_dns_subdomain(nominated.str()));
    }
    let qos = status.child("qosClass");
    if qos.value() != before.child("qosClass").value() {
        errors.invalid_str(qos.path(), qos.str(), crate::validation::common::IMMUTABLE);
    }
    let (spec, restart) = (spec_of(old), spec_of(old).child("restartPolicy").str());
    let transition = |name: &'static str, policy: &str, errors: &mut FieldErrors| {
        let (list, former) = (status.child(name), before.child(name));
        if policy == "Always" {
            return;
        }
        for (i, old) in former.items().enumerate() {
            let terminated = old.below(&["state", "terminated"]);
            let failed = terminated.child("exitCode").int() != 0;
            let name = old.child("name").str();
            let is_sidecar = spec.child("initContainers").items().any(|container| {
                container.child("name").str() == name && container.child("restartPolicy").str() == "Always"
            });
            if !terminated.is_set() || (failed && policy == "OnFailure") || is_sidecar {
                continue;
            }
            for now in list.items() {
                if now.child("name").str() == name && !now.below(&["state", "terminated"]).is_set() {
                    let path = list.path().index(i).child("state");
                    errors.forbidden(&path, "may not be transitioned to non-terminated state");
                }
            }
        }
    };
    transition("containerStatuses", restart, errors);
    transition("initContainerStatuses", restart, errors);
    transition("ephemeralContainerStatuses", "Never", errors);
    claim_statuses(&status, &spec, errors);
    addresses(&status.child("podIPs"), errors);
    let hosts = status.child("hostIPs");
    if let Some(first) = hosts.items().next()
        && first.child("ip").str() != status.child("hostIP").str()
    {
        errors.invalid(&first.child("ip"), "must be equal to `hostIP`");
    }
    addresses(&hosts, errors);
}

fn claim_statuses(status: &Field<'_>, spec: &Field<'_>, errors: &mut FieldErrors) {
    let mut seen: Vec<&str> = Vec::new();
    for one in status.child("resourceClaimStatuses").items() {
        let name = one.child("name");
        if !spec.child("resourceClaims").items().any(|claim| claim.child("name").str() == name.str()) {
            errors.invalid_str(name.path(), name.str(), "must match the name of an entry in `spec.resourceClaims`");
        }
        if seen.contains(&name.str()) {
            errors.duplicate(name.path(), name.str());
        }
        seen.push(name.str());
        let claim = one.child("resourceClaimName");
        if claim.is_set() {
            errors.invalid_all(name.path(), claim.str(), names::is_dns_subdomain(claim.str()));
        }
    }
}

/// At most one address of each family.
fn addresses(list: &Field<'_>, errors: &mut FieldErrors) {
    for entry in list.items() {
        net::valid_ip(entry.path(), entry.child("ip").str(), errors);
    }
    if list.len() < 2 {
        return;
    }
    let all: Vec<&str> = list.items().map(|entry| entry.child("ip").str()).collect();
    let shown = |ip: &str| format!("{{\"IP\":{}}}", Value::from(ip));
    if all.len() > 2 || !net::is_dual_stack(all.iter().copied()) {
        let list_shown: Vec<String> = all.iter().map(|ip| shown(ip)).collect();
        let detail = "may specify no more than one IP for each IP family";
        errors.invalid_shown(list.path(), &format!("[{}]", list_shown.join(",")), detail);
    }
    for (i, entry) in list.items().enumerate() {
        if all.iter().take(i).any(|ip| *ip == entry.child("ip").str()) {
            errors.duplicate_shown(entry.path(), &shown(entry.child("ip").str()));
        }
    }
}

/// A write to `ephemeralcontainers` changes nothing else.
pub fn prepare_ephemeral(new: &mut Value, old: &Value) {
    let containers = new.pointer("/spec/ephemeralContainers").cloned();
    keep_all_but_spec(new, old);
    keep(new, old, "spec");
    if let Some(spec) = new.get_mut("spec").and_then(Value::as_object_mut) {
        edit::put(spec, "ephemeralContainers", containers.as_ref());
    }
    let changed = new.get("spec") != old.get("spec");
    count_generation(new, old, changed);
}

fn keep_all_but_spec(new: &mut Value, old: &Value) {
    keep(new, old, "status");
    for key in ["labels", "annotations", "finalizers", "ownerReferences", "deletionTimestamp", "generation"] {
        keep_meta(new, old, key);
    }
}

/// Containers may be put into a running pod, never changed or taken out.
pub fn validate_ephemeral(new: &Value, old: &Value) -> FieldErrors {
    let mut errors = FieldErrors::default();
    metadata::validate_update(&super::KIND, new, old, &mut errors);
    metadata_and_spec(new, &mut errors);
    if Field::root(old).below(&["metadata", "annotations"]).entries().any(|(key, _)| key == MIRROR) {
        let mut only = FieldErrors::default();
        only.forbidden(&Path::new(""), "static pods do not support ephemeral containers");
        return only;
    }
    let (list, before) = (spec_of(new).child("ephemeralContainers"), spec_of(old).child("ephemeralContainers"));
    for container in before.items() {
        let name = container.child("name").str();
        let quoted = crate::validation::field::quote(name);
        match list.items().find(|one| one.child("name").str() == name) {
            None => {
                let detail = format!("existing ephemeral containers {quoted} may not be removed\n");
                errors.forbidden(list.path(), detail);
            }
            Some(now) if now.value() != container.value() => {
                let text = |field: &Field<'_>| field.value().map(internal::ephemeral_container).unwrap_or_default();
                let difference = diff::unified(&text(&container), &text(&now));
                let detail = format!("existing ephemeral containers {quoted} may not be changed\n{difference}");
                errors.forbidden(list.path(), detail);
            }
            Some(_) => {}
        }
    }
    errors
}

/// A write to `resize` changes resources of containers only.
pub fn prepare_resize(new: &mut Value, old: &Value) {
    let fresh = new.clone();
    let names = |object: &Value, list: &str| -> Vec<String> {
        let list = object.pointer(&format!("/spec/{list}")).and_then(Value::as_array);
        list.into_iter()
            .flatten()
            .map(|one| one.get("name").and_then(Value::as_str).unwrap_or_default().to_owned())
            .collect()
    };
    // Containers that came, went or moved are left for validation to refuse.
    if ["containers", "initContainers"].iter().any(|list| names(&fresh, list) != names(old, list)) {
        return;
    }
    keep_all_but_spec(new, old);
    keep(new, old, "spec");
    if let Some(spec) = new.get_mut("spec").and_then(Value::as_object_mut) {
        edit::put(spec, "resources", fresh.pointer("/spec/resources"));
        for list in ["containers", "initContainers"] {
            let asked = fresh.pointer(&format!("/spec/{list}")).and_then(Value::as_array);
            for (container, asked) in edit::objects(spec, list).zip(asked.into_iter().flatten()) {
                edit::put(container, "resources", asked.get("resources"));
                edit::put(container, "resizePolicy", asked.get("resizePolicy"));
            }
        }
    }
    let changed = new.get("spec") != old.get("spec");
    count_generation(new, old, changed);
}

pub fn validate_resize(new: &Value, old: &Value) -> FieldErrors {
    let mut errors = FieldErrors::default();
    metadata::validate_update(&super::KIND, new, old, &mut errors);
    metadata_and_spec(new, &mut errors);
    let refuse = |detail: &str| {
        let mut only = FieldErrors::default();
        only.forbidden(&Path::new(""), detail);
        only
    };
    if Field::root(old).below(&["metadata", "annotations"]).entries().any(|(key, _)| key == MIRROR) {
        return refuse("static pods cannot be resized");
    }
    let (spec, before) = (spec_of(new), spec_of(old));
    if before.below(&["os", "name"]).str() == "windows" {
        return refuse("windows pods cannot be resized");
    }
    let class = Field::root(old).below(&["status", "qosClass"]).str();
    if class != aggregate::qos_class(new) {
        let detail = "Pod QOS Class may not change as a result of resizing";
        errors.invalid_str(spec.path(), class, detail);
    }
    for list in ["initContainers", "containers"] {
        for (container, old) in spec.child(list).items().zip(before.child(list).items()) {
            let is_sidecar = old.child("restartPolicy").str() == "Always";
            let (now, then) = (container.child("resources"), old.child("resources"));
            if list == "initContainers" && !is_sidecar {
                if container.value() != old.value() {
                    let detail = "resources for non-sidecar init containers are immutable";
                    errors.forbidden(spec.path(), detail);
                }
                continue;
            }
            for kind in ["requests", "limits"] {
                let (now, then) = (now.child(kind), then.child(kind));
                let gone = then.entries().any(|(name, _)| !now.entries().any(|(other, _)| other == name));
                if gone {
                    errors.forbidden(now.path(), format!("resource {kind} cannot be removed"));
                }
                let other = |list: &Field<'_>| -> Vec<(String, String)> {
                    let rest = list.entries().filter(|(name, _)| !matches!(*name, "cpu" | "memory"));
                    rest.map(|(name, value)| (name.to_owned(), quantity(&value).to_string())).collect()
                };
                if other(&now) != other(&then) {
                    let what = if is_sidecar { " resources for sidecar containers" } else { " resources" };
                    let detail = format!("only cpu and memory{what} are mutable");
                    errors.forbidden(spec.path(), detail);
                }
            }
            resources(&now, Holder::Container, &[], &mut FieldErrors::default());
        }
    }
    errors
}

/// Puts a pod on the node of a binding that was checked, so that what is valid stays valid; `Err` says why not.
pub fn bind(pod: &mut Value, binding: &Value, now: &str) -> Result<(), String> {
    let name = pod.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default().to_owned();
    if pod.pointer("/metadata/deletionTimestamp").is_some() {
        return Err(format!("pod {name} is being deleted, cannot be assigned to a host"));
    }
    if let Some(node) = pod.pointer("/spec/nodeName").and_then(Value::as_str).filter(|node| !node.is_empty()) {
        let node = crate::validation::field::quote(node);
        return Err(format!("pod {name} is already assigned to node {node}"));
    }
    if pod.pointer("/spec/schedulingGates").and_then(Value::as_array).is_some_and(|gates| !gates.is_empty()) {
        return Err(format!("pod {name} has non-empty .spec.schedulingGates"));
    }
    let Some(map) = pod.as_object_mut() else {
        return Err(format!("pod {name} is no object"));
    };
    let node = binding.pointer("/target/name").cloned().unwrap_or_default();
    edit::ensure(map, "spec").insert("nodeName".to_owned(), node);
    for key in ["annotations", "labels"] {
        let extra = binding.get("metadata").and_then(|meta| meta.get(key)).and_then(Value::as_object);
        if let Some(extra) = extra.filter(|extra| !extra.is_empty()) {
            edit::ensure(edit::ensure(map, "metadata"), key).extend(extra.clone());
        }
    }
    let metadata = edit::ensure(map, "metadata");
    let generation = metadata.get("generation").and_then(Value::as_i64).unwrap_or_default();
    metadata.insert("generation".to_owned(), (generation + 1).into());
    let status = edit::ensure(map, "status");
    let scheduled = serde_json::json!({
        "type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now,
    });
    let list = status.entry("conditions").or_insert_with(|| serde_json::json!([]));
    if let Some(list) = list.as_array_mut() {
        match list.iter_mut().find(|one| one.get("type").and_then(Value::as_str) == Some("PodScheduled")) {
            Some(one) if one.get("status").and_then(Value::as_str) == Some("True") => {}
            Some(one) => *one = scheduled,
            None => list.push(scheduled),
        }
    }
    Ok(())
}
