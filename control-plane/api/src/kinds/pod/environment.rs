//! Validation of environment variables, and of what shows fields of a pod or resources of a container.

use crate::error::FieldErrors;
use crate::validation::common::quantity;
use crate::validation::field::Field;
use crate::validation::names;

pub fn variables(list: &Field<'_>, errors: &mut FieldErrors) {
    for variable in list.items() {
        let name = variable.child("name");
        if name.is_empty() {
            errors.required(name.path(), "");
        } else {
            errors.invalid_all(name.path(), name.str(), names::is_env_name(name.str()));
        }
        value_from(&variable, errors);
    }
}

const ENV_FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

fn value_from(variable: &Field<'_>, errors: &mut FieldErrors) {
    let from = variable.child("valueFrom");
    if !from.is_set() {
        return;
    }
    let mut count = 0;
    let mut source = |name| {
        let field = from.child(name);
        count += i32::from(field.is_set());
        field
    };
    let (field, resource) = (source("fieldRef"), source("resourceFieldRef"));
    let (config_map, secret, file) = (source("configMapKeyRef"), source("secretKeyRef"), source("fileKeyRef"));
    if field.is_set() {
        field_selector(&field, ENV_FIELDS, errors);
    }
    if resource.is_set() {
        resource_selector(&resource, false, errors);
    }
    for selector in [config_map, secret] {
        if selector.is_set() {
            let (name, key) = (selector.child("name"), selector.child("key"));
            errors.invalid_all(name.path(), name.str(), names::is_dns_subdomain(name.str()));
            if key.is_empty() {
                errors.required(key.path(), "");
            } else {
                errors.invalid_all(key.path(), key.str(), names::is_config_key(key.str()));
            }
        }
    }
    if file.is_set() {
        for name in ["key", "volumeName", "path"] {
            if file.child(name).is_empty() {
                errors.required(file.child(name).path(), "");
            }
        }
    }
    if count == 0 {
        let detail = "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or \
                      `fileKeyRef`";
        errors.invalid_str(from.path(), "", detail);
    } else if !variable.child("value").is_empty() {
        errors.invalid_str(from.path(), "", "may not be specified when `value` is not empty");
    } else if count > 1 {
        errors.invalid_str(from.path(), "", "may not have more than one field specified at a time");
    }
}

/// Fields of a pod that can be named at all.
const FIELDS: &[&str] = &[
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.serviceAccountName",
    "spec.schedulerName",
    "status.phase",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

/// A field of the pod that a container or volume shows: `metadata.labels['key']`.
pub fn field_selector(field: &Field<'_>, supported: &[&str], errors: &mut FieldErrors) {
    let (version, path) = (field.child("apiVersion"), field.child("fieldPath"));
    for needed in [&version, &path] {
        if needed.is_empty() {
            errors.required(needed.path(), "");
            return;
        }
    }
    let mut fail = |detail: String| errors.invalid(&path, format!("error converting fieldPath: {detail}"));
    if version.str() != "v1" {
        fail(format!("unsupported pod version: {}", version.str()));
        return;
    }
    let subscript = path.str().strip_suffix("']").and_then(|text| text.split_once("['"));
    let (name, subscript) = match subscript {
        Some((name, key)) if !name.is_empty() && !key.is_empty() => (name, Some(key)),
        _ => (path.str(), None),
    };
    match subscript {
        Some(_) if !matches!(name, "metadata.annotations" | "metadata.labels") => {
            fail(format!("field label does not support subscript: {}", path.str()));
        }
        Some(key) if name == "metadata.annotations" => {
            errors.invalid_all(field.path(), &key.to_lowercase(), names::is_qualified_name(&key.to_lowercase()));
        }
        Some(key) => errors.invalid_all(field.path(), key, names::is_qualified_name(key)),
        None => {
            let name = if name == "spec.host" { "spec.nodeName" } else { name };
            if !FIELDS.contains(&name) {
                fail(format!("field label not supported: {name}"));
            } else if !supported.contains(&name) {
                errors.not_supported(path.path(), name, supported);
            }
        }
    }
}

const CONTAINER_RESOURCES: &[&str] = &[
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];

/// A resource of a container that it or a volume shows.
pub fn resource_selector(field: &Field<'_>, volume: bool, errors: &mut FieldErrors) {
    let (container, resource) = (field.child("containerName"), field.child("resource"));
    let name = resource.str();
    let huge = name.starts_with("requests.hugepages-") || name.starts_with("limits.hugepages-");
    if volume && container.is_empty() {
        errors.required(container.path(), "");
    } else if resource.is_empty() {
        errors.required(resource.path(), "");
    } else if !CONTAINER_RESOURCES.contains(&name) && !huge {
        errors.not_supported(resource.path(), name, CONTAINER_RESOURCES);
    }
    let divisor = field.child("divisor");
    let value = quantity(&divisor);
    if value.is_zero() {
        return;
    }
    let told = value.to_string();
    let sizes = ["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];
    let (allowed, list, what): (&[&str], _, _) = match name {
        "limits.cpu" | "requests.cpu" => (&["1m", "1"], "1m and 1", "cpu"),
        _ => {
            let what = match name {
                "limits.memory" | "requests.memory" => "memory",
                "limits.ephemeral-storage" | "requests.ephemeral-storage" => "local ephemeral storage",
                _ if huge => "hugepages",
                _ => return,
            };
            (&sizes, "1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei", what)
        }
    };
    if !allowed.contains(&told.as_str()) {
        let detail = format!("only divisor's values {list} are supported with the {what} resource");
        errors.invalid_str(divisor.path(), name, detail);
    }
}

pub fn sources(list: &Field<'_>, errors: &mut FieldErrors) {
    for source in list.items() {
        let prefix = source.child("prefix");
        if !prefix.is_empty() {
            errors.invalid_all(prefix.path(), prefix.str(), names::is_env_name(prefix.str()));
        }
        let mut count = 0;
        for kind in ["configMapRef", "secretRef"] {
            let reference = source.child(kind);
            if !reference.is_set() {
                continue;
            }
            count += 1;
            let name = reference.child("name");
            if name.is_empty() {
                errors.required(name.path(), "");
            } else {
                errors.invalid_all(name.path(), name.str(), names::dns_subdomain(name.str(), true));
            }
        }
        // The reference tells both at the list.
        if count == 0 {
            errors.invalid_str(list.path(), "", "must specify one of: `configMapRef` or `secretRef`");
        } else if count > 1 {
            errors.invalid_str(list.path(), "", "may not have more than one field specified at a time");
        }
    }
}
