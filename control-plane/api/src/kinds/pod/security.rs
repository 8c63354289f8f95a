//! Validation of security contexts and of the annotations that came before them.

use super::volumes::descending;
use crate::error::FieldErrors;
use crate::validation::field::{Field, Path, ordered};
use crate::validation::names;

const ID: &str = "must be between 0 and 2147483647, inclusive";
const SECCOMP: &str = "seccomp.security.alpha.kubernetes.io/pod";
const CONTAINER_SECCOMP: &str = "container.seccomp.security.alpha.kubernetes.io/";
const APP_ARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";

/// All containers of a spec: init, then regular, then ephemeral.
pub fn all_containers<'v>(spec: &Field<'v>) -> impl Iterator<Item = Field<'v>> + use<'v> {
    let (init, regular) = (spec.child("initContainers"), spec.child("containers"));
    let ephemeral = spec.child("ephemeralContainers");
    init.items().chain(regular.items()).chain(ephemeral.items())
}

fn id(field: &Field<'_>, errors: &mut FieldErrors) {
    if field.opt_int().is_some_and(|id| !(0..=i64::from(i32::MAX)).contains(&id)) {
        errors.invalid(field, ID);
    }
}

/// The context of a container; `host_users` where it shares the machine's users.
pub fn container(context: &Field<'_>, host_users: bool, errors: &mut FieldErrors) {
    if !context.is_set() {
        return;
    }
    id(&context.child("runAsUser"), errors);
    id(&context.child("runAsGroup"), errors);
    let mount = context.child("procMount");
    if mount.is_set() {
        if !matches!(mount.str(), "Default" | "Unmasked") {
            errors.not_supported(mount.path(), mount.str(), &["Default", "Unmasked"]);
        }
        if host_users && mount.str() == "Unmasked" {
            errors.invalid(&mount, "`hostUsers` must be false to use `Unmasked`");
        }
    }
    seccomp(&context.child("seccompProfile"), errors);
    if context.child("allowPrivilegeEscalation").opt_bool() == Some(false) {
        if context.child("privileged").bool() {
            let detail = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
            errors.invalid_shown(context.path(), &super::internal::container_security(context.value()), detail);
        }
        if context.below(&["capabilities", "add"]).strings().any(|name| name == "CAP_SYS_ADMIN") {
            let detail = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
            errors.invalid_shown(context.path(), &super::internal::container_security(context.value()), detail);
        }
    }
    windows(&context.child("windowsOptions"), errors);
    app_armor(&context.child("appArmorProfile"), errors);
}

/// The context of a pod.
pub fn pod(spec: &Field<'_>, errors: &mut FieldErrors) {
    let context = spec.child("securityContext");
    id(&context.child("fsGroup"), errors);
    id(&context.child("runAsUser"), errors);
    id(&context.child("runAsGroup"), errors);
    context.child("supplementalGroups").items().for_each(|group| id(&group, errors));
    let share = spec.child("shareProcessNamespace");
    if share.bool() && spec.child("hostPID").bool() {
        let path = context.path().child("shareProcessNamespace");
        errors.invalid_shown(&path, "true", "ShareProcessNamespace and HostPID cannot both be enabled");
    }
    sysctls(spec, &context.child("sysctls"), errors);
    word(&context.child("fsGroupChangePolicy"), &["Always", "OnRootMismatch"], errors);
    seccomp(&context.child("seccompProfile"), errors);
    windows(&context.child("windowsOptions"), errors);
    app_armor(&context.child("appArmorProfile"), errors);
    word(&context.child("supplementalGroupsPolicy"), &["Merge", "Strict"], errors);
    word(&context.child("seLinuxChangePolicy"), &["MountOption", "Recursive"], errors);
}

fn word(field: &Field<'_>, words: &[&str], errors: &mut FieldErrors) {
    if field.is_set() && !words.contains(&field.str()) {
        errors.not_supported(field.path(), field.str(), words);
    }
}

const SYSCTL: &str = "^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";

fn is_sysctl(name: &str) -> bool {
    let segment = |part: &str| {
        let bytes = part.as_bytes();
        let word = |c: &u8| c.is_ascii_lowercase() || c.is_ascii_digit();
        bytes.first().is_some_and(word)
            && bytes.last().is_some_and(word)
            && bytes.iter().all(|c| word(c) || matches!(c, b'-' | b'_'))
    };
    name.len() <= 253 && name.split(['.', '/']).all(segment)
}

fn sysctls(spec: &Field<'_>, list: &Field<'_>, errors: &mut FieldErrors) {
    let mut seen: Vec<&str> = Vec::new();
    for entry in list.items() {
        let name = entry.child("name");
        if name.is_empty() {
            errors.required(name.path(), "");
        } else if !is_sysctl(name.str()) {
            errors.invalid(&name, format!("must have at most 253 characters and match regex {SYSCTL}"));
        } else if seen.contains(&name.str()) {
            errors.duplicate(name.path(), name.str());
        }
        let dotted = name.str().replace('/', ".");
        let of_ipc = dotted.starts_with("kernel.shm")
            || dotted.starts_with("kernel.msg")
            || dotted.starts_with("fs.mqueue.")
            || dotted == "kernel.sem";
        if spec.child("hostNetwork").bool() && dotted.starts_with("net.") {
            errors.invalid(&name, "may not be specified when 'hostNetwork' is true");
        } else if spec.child("hostIPC").bool() && of_ipc {
            errors.invalid(&name, "may not be specified when 'hostIPC' is true");
        }
        seen.push(name.str());
    }
}

fn seccomp(profile: &Field<'_>, errors: &mut FieldErrors) {
    if !profile.is_set() {
        return;
    }
    let (kind, local) = (profile.child("type"), profile.child("localhostProfile"));
    match kind.str() {
        "Localhost" | "RuntimeDefault" | "Unconfined" => {}
        "" => errors.required(kind.path(), "type is required when seccompProfile is set"),
        other => errors.not_supported(kind.path(), other, &["Localhost", "RuntimeDefault", "Unconfined"]),
    }
    if kind.str() == "Localhost" {
        if local.is_set() {
            descending(local.path(), local.str(), errors);
        } else {
            errors.required(local.path(), "must be set when seccomp type is Localhost");
        }
    } else if local.is_set() {
        let shown = ordered(profile.value(), &[])
            .replace("\"type\"", "\"Type\"")
            .replace("\"localhostProfile\"", "\"LocalhostProfile\"");
        errors.invalid_shown(local.path(), &shown, "can only be set when seccomp type is Localhost");
    }
}

fn app_armor(profile: &Field<'_>, errors: &mut FieldErrors) {
    if !profile.is_set() {
        return;
    }
    let (kind, local) = (profile.child("type"), profile.child("localhostProfile"));
    match kind.str() {
        "Localhost" => {
            let needed = "must be set when AppArmor type is Localhost";
            match local.opt_str() {
                None => errors.required(local.path(), needed),
                Some(text) if text.trim() != text => errors.invalid(&local, "must not be padded with whitespace"),
                Some("") => errors.required(local.path(), needed),
                Some(_) => {}
            }
            if local.len() > 4095 {
                errors.too_long(local.path(), 4095);
            }
        }
        "RuntimeDefault" | "Unconfined" => {
            if local.is_set() {
                errors.invalid(&local, "can only be set when AppArmor type is Localhost");
            }
        }
        "" => errors.required(kind.path(), "type is required when appArmorProfile is set"),
        other => errors.not_supported(kind.path(), other, &["Localhost", "RuntimeDefault", "Unconfined"]),
    }
}

fn windows(options: &Field<'_>, errors: &mut FieldErrors) {
    if !options.is_set() {
        return;
    }
    let name = options.child("gmsaCredentialSpecName");
    if name.is_set() {
        errors.invalid_all(name.path(), name.str(), names::is_dns_subdomain(name.str()));
    }
    let spec = options.child("gmsaCredentialSpec");
    if spec.is_set() && spec.is_empty() {
        errors.invalid(&spec, "gmsaCredentialSpec cannot be an empty string");
    } else if spec.len() > 64 * 1024 {
        errors.invalid(&spec, "gmsaCredentialSpec size must be under 64 KiB");
    }
    let user = options.child("runAsUserName");
    if user.is_set() {
        let text = user.str();
        if text.is_empty() {
            errors.invalid(&user, "runAsUserName cannot be an empty string");
        } else if text.chars().any(char::is_control) {
            errors.invalid(&user, "runAsUserName cannot contain control characters");
        } else if text.matches('\\').count() > 1 {
            errors.invalid(&user, "runAsUserName cannot contain more than one backslash");
        } else {
            let (domain, name) = text.split_once('\\').unwrap_or(("", text));
            if domain.len() >= 256 {
                errors.invalid(&user, "runAsUserName's Domain length must be under 256 characters");
            }
            if name.is_empty() {
                errors.invalid(&user, "runAsUserName's User cannot be empty");
            } else if name.len() > 104 {
                errors.invalid(&user, "runAsUserName's User length must not be longer than 104 characters");
            }
            if !name.is_empty() && name.chars().all(|c| matches!(c, '.' | ' ')) {
                errors.invalid(&user, "runAsUserName's User cannot contain only periods or spaces");
            }
            if name.contains(['"', '/', '\\', ':', ';', '|', '=', ',', '+', '*', '?', '<', '>', '@', '[', ']']) {
                let detail = "runAsUserName's User cannot contain the following characters: \"/\\:;|=,+*?<>@[]";
                errors.invalid(&user, detail);
            }
        }
    }
}

/// Containers of the machine itself, as Windows has them: all or none, and on the machine's network.
pub fn host_process(spec: &Field<'_>, errors: &mut FieldErrors) {
    let of_pod = spec.below(&["securityContext", "windowsOptions", "hostProcess"]).opt_bool();
    let (mut all, mut host) = (0, 0);
    for container in all_containers(spec) {
        all += 1;
        let field = container.below(&["securityContext", "windowsOptions", "hostProcess"]);
        if let (Some(pod), Some(own)) = (of_pod, field.opt_bool())
            && pod != own
        {
            let detail = format!("pod hostProcess value must be identical if both are specified, was {pod}");
            errors.invalid(&field, detail);
        }
        host += i32::from(field.opt_bool().or(of_pod) == Some(true));
    }
    if host == 0 {
        return;
    }
    if host != all {
        let detail = "If pod contains any hostProcess containers then all containers must be HostProcess containers";
        errors.invalid_str(spec.path(), "", detail);
    }
    if !spec.child("hostNetwork").bool() {
        let detail = "hostNetwork must be true if pod contains any hostProcess containers";
        errors.invalid_shown(&spec.path().child("hostNetwork"), "false", detail);
    }
}

/// A pod with users of its own shares nothing else with the machine.
pub fn host_users(spec: &Field<'_>, errors: &mut FieldErrors) {
    if spec.child("hostUsers").opt_bool() != Some(false) {
        return;
    }
    for (field, told) in [("hostNetwork", "hostNetwork"), ("hostPID", "HostPID"), ("hostIPC", "HostIPC")] {
        if spec.child(field).bool() {
            errors.forbidden(&spec.path().child(told), "when `pod.Spec.HostUsers` is false");
        }
    }
}

/// What the other operating system has no notion of.
pub fn operating_system(spec: &Field<'_>, errors: &mut FieldErrors) {
    let os = spec.child("os");
    if !os.is_set() {
        return;
    }
    let name = os.child("name");
    match name.str() {
        "" => errors.required(name.path(), "cannot be empty"),
        "linux" => {
            let refusal = "windows options cannot be set for a linux pod";
            let contexts = std::iter::once(spec.child("securityContext"));
            for context in contexts.chain(all_containers(spec).map(|container| container.child("securityContext"))) {
                if context.child("windowsOptions").is_set() {
                    errors.forbidden(context.child("windowsOptions").path(), refusal);
                }
            }
        }
        "windows" => {
            let refusal = "cannot be set for a windows pod";
            let context = spec.child("securityContext");
            let forbid = |parent: &Field<'_>, names: &[&'static str], errors: &mut FieldErrors| {
                for name in names {
                    let field = parent.child(name);
                    let flag = matches!(*name, "hostPID" | "hostIPC");
                    if (flag && field.bool()) || (!flag && field.is_set()) {
                        errors.forbidden(field.path(), refusal);
                    }
                }
            };
            forbid(&context, &["appArmorProfile", "seLinuxOptions"], errors);
            forbid(spec, &["hostUsers", "hostPID", "hostIPC"], errors);
            forbid(&context, &["seccompProfile", "fsGroup", "fsGroupChangePolicy", "sysctls"], errors);
            forbid(spec, &["shareProcessNamespace"], errors);
            let rest =
                ["runAsUser", "runAsGroup", "supplementalGroups", "supplementalGroupsPolicy", "seLinuxChangePolicy"];
            forbid(&context, &rest, errors);
            for container in all_containers(spec) {
                let fields = [
                    "appArmorProfile",
                    "seLinuxOptions",
                    "seccompProfile",
                    "capabilities",
                    "readOnlyRootFilesystem",
                    "privileged",
                    "allowPrivilegeEscalation",
                    "procMount",
                    "runAsUser",
                    "runAsGroup",
                ];
                forbid(&container.child("securityContext"), &fields, errors);
            }
        }
        other => errors.not_supported(os.path(), other, &["linux", "windows"]),
    }
}

/// Annotations that a pod's security once was in, each by itself.
pub fn annotations(annotations: &Field<'_>, spec: &Field<'_>, errors: &mut FieldErrors) {
    for (key, value) in annotations.entries() {
        if key == SECCOMP || key.starts_with(CONTAINER_SECCOMP) {
            seccomp_name(&annotations.path().named(key), value.str(), errors);
        }
    }
    for (key, value) in annotations.entries() {
        let Some(name) = key.strip_prefix(APP_ARMOR) else {
            continue;
        };
        if !all_containers(spec).any(|container| container.child("name").str() == name) {
            errors.invalid_str(value.path(), name, "container not found");
        }
        let profile = value.str();
        if !matches!(profile, "" | "runtime/default" | "unconfined") && !profile.starts_with("localhost/") {
            let detail = format!("invalid AppArmor profile name: {}", crate::validation::field::quote(profile));
            errors.invalid_str(value.path(), profile, detail);
        }
    }
}

fn seccomp_name(path: &Path, profile: &str, errors: &mut FieldErrors) {
    if matches!(profile, "runtime/default" | "docker/default" | "unconfined") {
        return;
    }
    match profile.strip_prefix("localhost/") {
        Some(local) => descending(path, local, errors),
        None => errors.invalid_str(path, profile, "must be a valid seccomp profile"),
    }
}

/// Annotation and field, where both are given, must say the same.
pub fn annotations_match(annotations: &Field<'_>, spec: &Field<'_>, errors: &mut FieldErrors) {
    if !annotations.is_set() {
        return;
    }
    let annotation = |key: &str| annotations.value()?.get(key)?.as_str();
    let seccomp = |text: Option<&str>, profile: &Field<'_>, errors: &mut FieldErrors| {
        if let Some(text) = text.filter(|_| profile.is_set()) {
            let plain = match profile.child("type").str() {
                "Unconfined" => text == "unconfined",
                "RuntimeDefault" => matches!(text, "runtime/default" | "docker/default"),
                _ => return local_match(text, profile, "seccomp", errors),
            };
            if !plain {
                let detail = "seccomp type in annotation and field must match";
                errors.forbidden(&profile.path().child("type"), detail);
            }
        }
    };
    let context = spec.child("securityContext");
    seccomp(annotation(SECCOMP), &context.child("seccompProfile"), errors);
    for container in all_containers(spec) {
        let key = format!("{CONTAINER_SECCOMP}{}", container.child("name").str());
        seccomp(annotation(&key), &container.below(&["securityContext", "seccompProfile"]), errors);
    }
    if spec.below(&["os", "name"]).str() == "windows" {
        return;
    }
    for container in all_containers(spec) {
        let own = container.below(&["securityContext", "appArmorProfile"]);
        let profile = if own.is_set() { own } else { context.child("appArmorProfile").with_path(own.path().clone()) };
        let key = format!("{APP_ARMOR}{}", container.child("name").str());
        let Some(text) = annotation(&key).filter(|_| profile.is_set()) else {
            continue;
        };
        let plain = match profile.child("type").str() {
            "Unconfined" => text == "unconfined",
            "RuntimeDefault" => text == "runtime/default",
            _ => {
                local_match(text, &profile, "apparmor", errors);
                continue;
            }
        };
        if !plain {
            errors.forbidden(&profile.path().child("type"), "apparmor type in annotation and field must match");
        }
    }
}

fn local_match(text: &str, profile: &Field<'_>, what: &str, errors: &mut FieldErrors) {
    if profile.child("type").str() != "Localhost" {
        return;
    }
    let local = profile.child("localhostProfile");
    match text.strip_prefix("localhost/") {
        None => {
            let detail = format!("{what} type in annotation and field must match");
            errors.forbidden(&profile.path().child("type"), detail);
        }
        Some(name) if local.opt_str() != Some(name) => {
            errors.forbidden(local.path(), format!("{what} profile in annotation and field must match"));
        }
        Some(_) => {}
    }
}

/// Annotations of that kind cannot come, go or change.
pub fn annotation_updates(new: &Field<'_>, old: &Field<'_>, errors: &mut FieldErrors) {
    let mirror = super::MIRROR;
    let value = |field: &Field<'_>, key: &str| field.value().and_then(|map| map.get(key)).cloned();
    for (key, before) in old.entries() {
        if value(new, key).as_ref() == before.value() {
            continue;
        }
        if key.starts_with(APP_ARMOR) {
            errors.forbidden(&new.path().key(key), "may not remove or update AppArmor annotations");
        }
        if key == mirror {
            errors.forbidden(&new.path().key(key), "may not remove or update mirror pod annotation");
        }
    }
    for (key, after) in new.entries() {
        if value(old, key).is_some() {
            continue;
        }
        if key.starts_with(APP_ARMOR) {
            errors.forbidden(after.path(), "may not add AppArmor annotations");
        }
        if key == mirror {
            errors.forbidden(after.path(), "may not add mirror pod annotation");
        }
    }
}
