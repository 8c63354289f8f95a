//! Validation of containers, of every kind.

use super::volumes::{Volumes, descending, no_backsteps};
use super::{environment, security};
use crate::error::FieldErrors;
use crate::validation::common::{Holder, PROTOCOLS, resources};
use crate::validation::field::{Field, Path};
use crate::validation::metadata::non_negative;
use crate::validation::{names, net};

/// What containers are checked against.
pub struct Context<'v> {
    pub volumes: Volumes<'v>,
    /// Names of the pod's resource claims.
    pub claims: Vec<&'v str>,
    pub grace_period: Option<i64>,
    pub restart_policy: &'v str,
    pub host_users: bool,
}

/// The containers that run side by side.
pub fn containers(list: &Field<'_>, context: &Context<'_>, errors: &mut FieldErrors) {
    if list.is_empty() {
        errors.required(list.path(), "");
        return;
    }
    let mut seen: Vec<&str> = Vec::new();
    for container in list.items() {
        common(&container, context, errors);
        let name = container.child("name");
        if seen.contains(&name.str()) {
            errors.duplicate(name.path(), name.str());
        } else {
            seen.push(name.str());
        }
        lifecycle(&container, context, errors);
        probes(&container, context, errors);
        restart_policy(&container, errors);
    }
    host_ports(list.items(), errors);
}

/// The containers that run before, one after another, or beside as sidecars.
pub fn init_containers(list: &Field<'_>, regular: &Field<'_>, context: &Context<'_>, errors: &mut FieldErrors) {
    let mut seen: Vec<&str> = regular.items().map(|container| container.child("name").str()).collect();
    for container in list.items() {
        common(&container, context, errors);
        restart_policy(&container, errors);
        let name = container.child("name");
        if seen.contains(&name.str()) {
            errors.duplicate(name.path(), name.str());
        } else if !name.is_empty() {
            seen.push(name.str());
        }
        host_ports(std::iter::once(container.with_path(list.path().index(0))), errors);
        if container.child("restartPolicy").str() == "Always" {
            lifecycle(&container, context, errors);
            probes(&container, context, errors);
        } else {
            for name in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
                let field = container.child(name);
                if field.is_set() {
                    errors.forbidden(field.path(), "may not be set for init containers without restartPolicy=Always");
                }
            }
        }
    }
}

/// Fields that a container put into a running pod cannot have, in the order of the type.
const NOT_EPHEMERAL: &[&str] = &[
    "ports",
    "resources",
    "resizePolicy",
    "restartPolicy",
    "restartPolicyRules",
    "livenessProbe",
    "readinessProbe",
    "startupProbe",
    "lifecycle",
];

/// The containers that are put into a running pod.
pub fn ephemeral_containers(
    list: &Field<'_>,
    regular: &Field<'_>,
    init: &Field<'_>,
    context: &Context<'_>,
    errors: &mut FieldErrors,
) {
    let others: Vec<&str> = regular.items().chain(init.items()).map(|one| one.child("name").str()).collect();
    let mut seen = others.clone();
    let refusal = "cannot be set for an Ephemeral Container";
    for container in list.items() {
        common(&container, context, errors);
        only_in_pod(&container, errors);
        let name = container.child("name");
        if seen.contains(&name.str()) {
            errors.duplicate(name.path(), name.str());
        } else {
            seen.push(name.str());
        }
        let target = container.child("targetContainerName");
        if !target.is_empty() && !others.contains(&target.str()) {
            errors.not_found(target.path(), target.str());
        }
        for name in NOT_EPHEMERAL {
            let field = container.child(name);
            if !field.is_empty() {
                errors.forbidden(field.path(), refusal);
            }
        }
        for mount in container.child("volumeMounts").items() {
            for name in ["subPath", "subPathExpr"] {
                let field = mount.child(name);
                if !field.is_empty() {
                    errors.forbidden(field.path(), refusal);
                }
            }
        }
    }
}

/// What holds in a pod but not in a template.
pub fn only_in_pod(container: &Field<'_>, errors: &mut FieldErrors) {
    let image = container.child("image");
    if image.str().trim() != image.str() {
        errors.invalid(&image, "must not have leading or trailing whitespace");
    }
}

fn common(container: &Field<'_>, context: &Context<'_>, errors: &mut FieldErrors) {
    let name = container.child("name");
    if name.is_empty() {
        errors.required(name.path(), "");
    } else {
        errors.invalid_all(name.path(), name.str(), names::is_dns_label(name.str()));
    }
    let image = container.child("image");
    if image.is_empty() {
        errors.required(image.path(), "");
    }
    one_of(&container.child("terminationMessagePolicy"), &["File", "FallbackToLogsOnError"], errors);
    ports(&container.child("ports"), errors);
    environment::variables(&container.child("env"), errors);
    environment::sources(&container.child("envFrom"), errors);
    mounts(container, context, errors);
    devices(container, context, errors);
    one_of(&container.child("imagePullPolicy"), &["Always", "IfNotPresent", "Never"], errors);
    resources(&container.child("resources"), Holder::Container, &context.claims, errors);
    resize_policy(&container.child("resizePolicy"), context.restart_policy, errors);
    security::container(&container.child("securityContext"), context.host_users, errors);
}

/// A word out of a list that has to be given.
pub fn one_of(field: &Field<'_>, words: &[&str], errors: &mut FieldErrors) {
    if field.is_empty() {
        errors.required(field.path(), "");
    } else if !words.contains(&field.str()) {
        errors.not_supported(field.path(), field.str(), words);
    }
}

fn ports(list: &Field<'_>, errors: &mut FieldErrors) {
    let mut seen: Vec<&str> = Vec::new();
    for port in list.items() {
        let name = port.child("name");
        if !name.is_empty() {
            let wrong = net::is_port_name(name.str());
            if !wrong.is_empty() {
                errors.invalid_all(name.path(), name.str(), wrong);
            } else if seen.contains(&name.str()) {
                errors.duplicate(name.path(), name.str());
            } else {
                seen.push(name.str());
            }
        }
        let number = port.child("containerPort");
        if number.int() == 0 {
            errors.required(number.path(), "");
        } else {
            net::port_number(number.path(), number.int(), errors);
        }
        let host = port.child("hostPort");
        if host.int() != 0 {
            net::port_number(host.path(), host.int(), errors);
        }
        one_of(&port.child("protocol"), PROTOCOLS, errors);
    }
}

fn mounts(container: &Field<'_>, context: &Context<'_>, errors: &mut FieldErrors) {
    let list = container.child("volumeMounts");
    let devices = container.child("volumeDevices");
    let mut seen: Vec<&str> = Vec::new();
    for mount in list.items() {
        let (name, path) = (mount.child("name"), mount.child("mountPath"));
        if name.is_empty() {
            errors.required(name.path(), "");
        }
        let volume = context.volumes.get(name.str());
        if volume.is_none() {
            errors.not_found(name.path(), name.str());
        }
        if path.is_empty() {
            errors.required(path.path(), "");
        }
        if seen.contains(&path.str()) {
            errors.invalid_str(path.path(), path.str(), "must be unique");
        }
        seen.push(path.str());
        if devices.items().any(|device| device.child("name").str() == name.str()) {
            errors.invalid_str(name.path(), name.str(), "must not already exist in volumeDevices");
        }
        if devices.items().any(|device| device.child("devicePath").str() == path.str()) {
            errors.invalid_str(path.path(), path.str(), "must not already exist as a path in volumeDevices");
        }
        let (sub, expression) = (mount.child("subPath"), mount.child("subPathExpr"));
        // Errors of these are told at the list.
        let at = |name| list.path().child(name);
        if !sub.is_empty() {
            descending(&at("subPath"), sub.str(), errors);
        }
        if !expression.is_empty() {
            if !sub.is_empty() {
                errors.invalid(&expression, "subPathExpr and subPath are mutually exclusive");
            }
            descending(&at("subPathExpr"), expression.str(), errors);
        }
        propagation(&mount, container, &at("mountPropagation"), errors);
        recursive_read_only(&mount, &at("recursiveReadOnly"), errors);
    }
}

fn propagation(mount: &Field<'_>, container: &Field<'_>, at: &Path, errors: &mut FieldErrors) {
    let mode = mount.child("mountPropagation");
    if !mode.is_set() {
        return;
    }
    let supported = ["Bidirectional", "HostToContainer", "None"];
    if !supported.contains(&mode.str()) {
        errors.not_supported(at, mode.str(), &supported);
    }
    if mode.str() == "Bidirectional" && !container.below(&["securityContext", "privileged"]).bool() {
        errors.forbidden(at, "Bidirectional mount propagation is available only to privileged containers");
    }
}

fn recursive_read_only(mount: &Field<'_>, at: &Path, errors: &mut FieldErrors) {
    let mode = mount.child("recursiveReadOnly");
    match mode.opt_str() {
        None | Some("Disabled") => {}
        Some("Enabled" | "IfPossible") => {
            if !mount.child("readOnly").bool() {
                errors.forbidden(at, "may only be specified when readOnly is true");
            }
            if !matches!(mount.child("mountPropagation").opt_str(), None | Some("None")) {
                errors.forbidden(at, "may only be specified when mountPropagation is None or not specified");
            }
        }
        Some(other) => errors.not_supported(at, other, &["Disabled", "Enabled", "IfPossible"]),
    }
}

fn devices(container: &Field<'_>, context: &Context<'_>, errors: &mut FieldErrors) {
    let list = container.child("volumeDevices");
    let mounts = container.child("volumeMounts");
    let (mut names, mut paths): (Vec<&str>, Vec<&str>) = (Vec::new(), Vec::new());
    for device in list.items() {
        let (name, path) = (device.child("name"), device.child("devicePath"));
        if name.is_empty() {
            errors.required(name.path(), "");
        }
        if names.contains(&name.str()) {
            errors.invalid_str(name.path(), name.str(), "must be unique");
        }
        match context.volumes.get(name.str()) {
            None => errors.not_found(name.path(), name.str()),
            Some(volume) if !volume.child("persistentVolumeClaim").is_set() && !volume.child("ephemeral").is_set() => {
                let detail = "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode";
                errors.invalid_str(name.path(), name.str(), detail);
            }
            Some(_) => {}
        }
        if path.is_empty() {
            errors.required(path.path(), "");
        }
        if paths.contains(&path.str()) {
            errors.invalid_str(path.path(), path.str(), "must be unique");
        }
        let mut climbs = FieldErrors::default();
        no_backsteps(path.path(), path.str(), &mut climbs);
        if climbs.is_empty() {
            paths.push(path.str());
        } else {
            errors.invalid_str(path.path(), path.str(), "can not contain backsteps ('..')");
        }
        if mounts.items().any(|mount| mount.child("name").str() == name.str()) {
            errors.invalid_str(name.path(), name.str(), "must not already exist in volumeMounts");
        }
        if mounts.items().any(|mount| mount.child("mountPath").str() == path.str()) {
            errors.invalid_str(path.path(), path.str(), "must not already exist as a path in volumeMounts");
        }
        if !name.is_empty() {
            names.push(name.str());
        }
    }
}

fn resize_policy(list: &Field<'_>, restart_policy: &str, errors: &mut FieldErrors) {
    let mut seen: Vec<&str> = Vec::new();
    for entry in list.items() {
        let (resource, policy) = (entry.child("resourceName").str(), entry.child("restartPolicy").str());
        if seen.contains(&resource) {
            errors.duplicate(entry.path(), resource);
        }
        seen.push(resource);
        one_of(&entry.child("resourceName").with_path(list.path().clone()), &["cpu", "memory"], errors);
        let policies = ["NotRequired", "RestartContainer"];
        one_of(&entry.child("restartPolicy").with_path(list.path().clone()), &policies, errors);
        if restart_policy == "Never" && policy != "NotRequired" {
            let detail = "must be 'NotRequired' when `restartPolicy` is 'Never'";
            errors.invalid_str(list.path(), policy, detail);
        }
    }
}

/// A container's own restart policy, and rules by exit code.
fn restart_policy(container: &Field<'_>, errors: &mut FieldErrors) {
    let (policy, rules) = (container.child("restartPolicy"), container.child("restartPolicyRules"));
    let policies = ["Always", "Never", "OnFailure"];
    if policy.is_set() && !policies.contains(&policy.str()) {
        errors.not_supported(policy.path(), policy.str(), &policies);
    }
    if rules.is_empty() {
        return;
    }
    if !policy.is_set() {
        errors.required(policy.path(), "must specify restartPolicy when restart rules are used");
    }
    if rules.len() > 20 {
        errors.too_many(rules.path(), rules.len(), 20);
    }
    for rule in rules.items() {
        let action = rule.child("action");
        if !matches!(action.str(), "Restart" | "RestartAllContainers") {
            errors.not_supported(action.path(), action.str(), &["Restart", "RestartAllContainers"]);
        }
        let codes = rule.child("exitCodes");
        if !codes.is_set() {
            errors.required(codes.path(), "must be specified");
            continue;
        }
        let (operator, values) = (codes.child("operator"), codes.child("values"));
        if !matches!(operator.str(), "In" | "NotIn") {
            errors.not_supported(operator.path(), operator.str(), &["In", "NotIn"]);
        }
        if values.len() > 255 {
            errors.too_many(values.path(), values.len(), 255);
        }
    }
}

/// A port of the host goes to one container.
fn host_ports<'v>(list: impl Iterator<Item = Field<'v>>, errors: &mut FieldErrors) {
    let mut seen: Vec<String> = Vec::new();
    for container in list {
        for port in container.child("ports").items() {
            let host = port.child("hostPort");
            if host.int() == 0 {
                continue;
            }
            let key = format!("{}/{}/{}", port.child("protocol").str(), port.child("hostIP").str(), host.int());
            if seen.contains(&key) {
                errors.duplicate(host.path(), &key);
            } else {
                seen.push(key);
            }
        }
    }
}

fn lifecycle(container: &Field<'_>, context: &Context<'_>, errors: &mut FieldErrors) {
    let lifecycle = container.child("lifecycle");
    for name in ["postStart", "preStop"] {
        let hook = lifecycle.child(name);
        if hook.is_set() {
            handler(&hook, &["exec", "httpGet", "tcpSocket", "sleep"], context, errors);
        }
    }
    let signal = lifecycle.child("stopSignal");
    if signal.is_set() && !signal.str().starts_with("SIG") {
        errors.not_supported(signal.path(), signal.str(), &["SIGINT", "SIGKILL", "SIGQUIT", "SIGTERM"]);
    }
}

fn probes(container: &Field<'_>, context: &Context<'_>, errors: &mut FieldErrors) {
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let probe = container.child(name);
        if !probe.is_set() {
            continue;
        }
        handler(&probe, &["exec", "httpGet", "tcpSocket", "grpc"], context, errors);
        for name in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"] {
            non_negative(&probe.child(name), errors);
        }
        let grace = probe.child("terminationGracePeriodSeconds");
        if grace.opt_int().is_some_and(|seconds| seconds <= 0) {
            errors.invalid(&grace, "must be greater than 0");
        }
        if name == "readinessProbe" {
            if grace.is_set() {
                errors.invalid(&grace, "must not be set for readinessProbes");
            }
        } else if probe.child("successThreshold").int() != 1 {
            let threshold = probe.child("successThreshold");
            errors.invalid_int(threshold.path(), threshold.int(), "must be 1");
        }
    }
}

fn handler(field: &Field<'_>, kinds: &[&'static str], context: &Context<'_>, errors: &mut FieldErrors) {
    let mut found = false;
    for kind in kinds {
        let action = field.child(kind);
        if !action.is_set() {
            continue;
        }
        if found {
            errors.forbidden(action.path(), "may not specify more than 1 handler type");
            continue;
        }
        found = true;
        match *kind {
            "exec" => {
                let command = action.child("command");
                if command.is_empty() {
                    errors.required(command.path(), "");
                }
            }
            "httpGet" => {
                let path = action.child("path");
                if path.is_empty() {
                    errors.required(path.path(), "");
                }
                port_or_name(&action.child("port"), errors);
                let scheme = action.child("scheme");
                if !matches!(scheme.str(), "HTTP" | "HTTPS") {
                    errors.not_supported(scheme.path(), scheme.str(), &["HTTP", "HTTPS"]);
                }
                let headers = action.child("httpHeaders");
                for header in headers.items() {
                    let name = header.child("name").str();
                    errors.invalid_all(headers.path(), name, names::is_http_header(name));
                }
            }
            "tcpSocket" => port_or_name(&action.child("port"), errors),
            "grpc" => {
                let port = action.child("port");
                net::port_number(port.path(), port.int(), errors);
            }
            "sleep" => {
                let seconds = action.child("seconds").int();
                if let Some(grace) = context.grace_period
                    && !(0..=grace).contains(&seconds)
                {
                    let detail = format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})");
                    errors.invalid_int(action.path(), seconds, detail);
                }
            }
            _ => {}
        }
    }
    if !found {
        errors.required(field.path(), "must specify a handler type");
    }
}

/// A port by number or by the name of a container's port.
pub fn port_or_name(port: &Field<'_>, errors: &mut FieldErrors) {
    match port.opt_str() {
        Some(name) => errors.invalid_all(port.path(), name, net::is_port_name(name)),
        None => net::port_number(port.path(), port.int(), errors),
    }
}
