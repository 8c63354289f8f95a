//! Validation of volumes.

use std::collections::BTreeMap;

use super::environment::{field_selector, resource_selector};
use crate::error::FieldErrors;
use crate::validation::common::{label_selector, quantity};
use crate::validation::field::{Field, Path};
use crate::validation::names;

/// Volumes by name, those without errors.
pub type Volumes<'v> = BTreeMap<&'v str, Field<'v>>;

const FILE_MODE: &str = "must be a number between 0 and 0777 (octal), both inclusive";

/// `pod` is the pod's name where the spec is of a real pod: claims are named after it.
pub fn volumes<'v>(list: &Field<'v>, pod: &str, errors: &mut FieldErrors) -> Volumes<'v> {
    let mut valid = Volumes::new();
    let mut created: Vec<String> = Vec::new();
    if !pod.is_empty() {
        let ephemeral = list.items().filter(|volume| volume.child("ephemeral").is_set());
        created = ephemeral.map(|volume| format!("{pod}-{}", volume.child("name").str())).collect();
    }
    for volume in list.items() {
        let mut wrong = FieldErrors::default();
        source(&volume, pod, &mut wrong);
        let name = volume.child("name");
        if name.is_empty() {
            wrong.required(name.path(), "");
        } else {
            wrong.invalid_all(name.path(), name.str(), names::is_dns_label(name.str()));
        }
        if valid.contains_key(name.str()) {
            wrong.duplicate(name.path(), name.str());
        }
        if wrong.is_empty() {
            valid.insert(name.str(), volume.clone());
        } else {
            errors.extend(wrong);
        }
        let claim = volume.below(&["persistentVolumeClaim", "claimName"]);
        if claim.is_set() && created.iter().any(|name| name == claim.str()) {
            errors.invalid(&claim, "must not reference a PVC that gets created for an ephemeral volume");
        }
    }
    valid
}

/// The kinds of volume in the order of checking, with the name that a second one is told under.
const SOURCES: &[(&str, &str)] = &[
    ("emptyDir", "emptyDir"),
    ("hostPath", "hostPath"),
    ("gitRepo", "gitRepo"),
    ("gcePersistentDisk", "gcePersistentDisk"),
    ("awsElasticBlockStore", "awsElasticBlockStore"),
    ("secret", "secret"),
    ("nfs", "nfs"),
    ("iscsi", "iscsi"),
    ("glusterfs", "glusterfs"),
    ("flocker", "flocker"),
    ("persistentVolumeClaim", "persistentVolumeClaim"),
    ("rbd", "rbd"),
    ("cinder", "cinder"),
    ("cephfs", "cephFS"),
    ("quobyte", "quobyte"),
    ("downwardAPI", "downwarAPI"),
    ("fc", "fc"),
    ("flexVolume", "flexVolume"),
    ("configMap", "configMap"),
    ("azureFile", "azureFile"),
    ("vsphereVolume", "vsphereVolume"),
    ("photonPersistentDisk", "photonPersistentDisk"),
    ("portworxVolume", "portworxVolume"),
    ("azureDisk", "azureDisk"),
    ("storageos", "storageos"),
    ("projected", "projected"),
    ("scaleIO", "scaleIO"),
    ("csi", "csi"),
    ("ephemeral", "ephemeral"),
    ("image", "image"),
];

fn source(volume: &Field<'_>, pod: &str, errors: &mut FieldErrors) {
    let mut found = false;
    for (name, told) in SOURCES {
        let source = volume.child(name);
        if !source.is_set() {
            continue;
        }
        if found && *name != "emptyDir" {
            errors.forbidden(&volume.path().child(told), "may not specify more than 1 volume type");
            continue;
        }
        found = true;
        one(name, &source, volume, pod, errors);
    }
    if !found {
        errors.required(volume.path(), "must specify a volume type");
    }
}

fn required(source: &Field<'_>, names: &[&'static str], errors: &mut FieldErrors) {
    for name in names {
        let field = source.child(name);
        if field.is_empty() {
            errors.required(field.path(), "");
        }
    }
}

fn one(name: &str, source: &Field<'_>, volume: &Field<'_>, pod: &str, errors: &mut FieldErrors) {
    match name {
        "emptyDir" => {
            let limit = source.child("sizeLimit");
            if limit.is_set() && quantity(&limit).sign() < 0 {
                errors.forbidden(limit.path(), "SizeLimit field must be a valid resource quantity");
            }
        }
        "hostPath" => {
            let path = source.child("path");
            if path.is_empty() {
                errors.required(path.path(), "");
                return;
            }
            no_backsteps(path.path(), path.str(), errors);
            let kind = source.child("type");
            let supported =
                ["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];
            if kind.is_set() && !supported.contains(&kind.str()) {
                errors.not_supported(kind.path(), kind.str(), &supported);
            }
        }
        "gitRepo" => {
            required(source, &["repository"], errors);
            let directory = source.child("directory");
            descending(directory.path(), directory.str(), errors);
        }
        "gcePersistentDisk" => {
            let source = source.with_path(volume.path().child("persistentDisk"));
            required(&source, &["pdName"], errors);
            partition(&source, errors);
        }
        "awsElasticBlockStore" => {
            required(source, &["volumeID"], errors);
            partition(source, errors);
        }
        "secret" => {
            required(source, &["secretName"], errors);
            mode(&source.child("defaultMode"), errors);
            source.child("items").items().for_each(|item| key_to_path(&item, errors));
        }
        "configMap" => {
            required(source, &["name"], errors);
            mode(&source.child("defaultMode"), errors);
            source.child("items").items().for_each(|item| key_to_path(&item, errors));
        }
        "nfs" => {
            required(source, &["server", "path"], errors);
            let path = source.child("path");
            if !path.str().starts_with('/') {
                errors.invalid_str(path.path(), path.str(), "must be an absolute path");
            }
        }
        "iscsi" => iscsi(source, volume, errors),
        "glusterfs" => required(source, &["endpoints", "path"], errors),
        "flocker" => {
            let (name, uuid) = (source.child("datasetName"), source.child("datasetUUID"));
            if name.is_empty() && uuid.is_empty() {
                errors.required(source.path(), "one of datasetName and datasetUUID is required");
            }
            if !name.is_empty() && !uuid.is_empty() {
                let detail = "datasetName and datasetUUID can not be specified simultaneously";
                errors.invalid_str(source.path(), "resource", detail);
            }
            if name.str().contains('/') {
                errors.invalid(&name, "must not contain '/'");
            }
        }
        "persistentVolumeClaim" => required(source, &["claimName"], errors),
        "rbd" => required(source, &["monitors", "image"], errors),
        "cinder" => {
            required(source, &["volumeID"], errors);
            secret_ref(source, errors);
        }
        "cephfs" => required(source, &["monitors"], errors),
        "quobyte" => {
            required(source, &["registry", "volume"], errors);
        }
        "downwardAPI" => {
            mode(&source.child("defaultMode"), errors);
            // Errors of a file are told at the volume.
            source
                .child("items")
                .items()
                .for_each(|item| downward_file(&item.with_path(source.path().clone()), errors));
        }
        "fc" => fibre_channel(source, errors),
        "flexVolume" => {
            required(source, &["driver"], errors);
            for (key, option) in source.child("options").entries() {
                let domain = format!(".{}", key.split('/').next().unwrap_or_default().to_lowercase());
                if domain.ends_with(".kubernetes.io") || domain.ends_with(".k8s.io") {
                    let detail = "kubernetes.io and k8s.io namespaces are reserved";
                    errors.invalid_str(option.path(), key, detail);
                }
            }
        }
        "azureFile" => required(source, &["secretName", "shareName"], errors),
        "vsphereVolume" => required(source, &["volumePath"], errors),
        "photonPersistentDisk" => required(source, &["pdID"], errors),
        "portworxVolume" => required(source, &["volumeID"], errors),
        "azureDisk" => azure_disk(source, errors),
        "storageos" => required(source, &["volumeName"], errors),
        "projected" => projected(source, errors),
        "scaleIO" => required(source, &["gateway", "system", "volumeName"], errors),
        "csi" => csi(source, errors),
        "ephemeral" => ephemeral(source, volume, pod, errors),
        "image" => {
            // In a template somebody may fill it in later.
            if !pod.is_empty() {
                required(source, &["reference"], errors);
            }
            let policy = source.child("pullPolicy");
            let supported = ["Always", "IfNotPresent", "Never"];
            if policy.is_empty() {
                errors.required(policy.path(), "");
            } else if !supported.contains(&policy.str()) {
                errors.not_supported(policy.path(), policy.str(), &supported);
            }
        }
        _ => {}
    }
}

fn partition(source: &Field<'_>, errors: &mut FieldErrors) {
    let partition = source.child("partition");
    if !(0..=255).contains(&partition.int()) {
        errors.invalid(&partition, "must be between 1 and 255, inclusive");
    }
}

fn secret_ref(source: &Field<'_>, errors: &mut FieldErrors) {
    let secret = source.child("secretRef");
    if secret.is_set() {
        required(&secret, &["name"], errors);
    }
}

pub fn mode(field: &Field<'_>, errors: &mut FieldErrors) {
    if field.opt_int().is_some_and(|mode| !(0..=0o777).contains(&mode)) {
        errors.invalid(field, FILE_MODE);
    }
}

fn key_to_path(item: &Field<'_>, errors: &mut FieldErrors) {
    required(item, &["key", "path"], errors);
    let path = item.child("path");
    local_path(path.path(), path.str(), errors);
    mode(&item.child("mode"), errors);
}

pub fn no_backsteps(path: &Path, text: &str, errors: &mut FieldErrors) {
    if text.split('/').any(|part| part == "..") {
        errors.invalid_str(path, text, "must not contain '..'");
    }
}

/// A relative path that does not climb.
pub fn descending(path: &Path, text: &str, errors: &mut FieldErrors) {
    if text.starts_with('/') {
        errors.invalid_str(path, text, "must be a relative path");
    }
    no_backsteps(path, text, errors);
}

/// A relative path that does not begin with two dots either: those names are the volume's own.
pub fn local_path(path: &Path, text: &str, errors: &mut FieldErrors) {
    descending(path, text, errors);
    if text.starts_with("..") && !text.starts_with("../") {
        errors.invalid_str(path, text, "must not start with '..'");
    }
}

fn downward_file(file: &Field<'_>, errors: &mut FieldErrors) {
    let path = file.child("path");
    if path.is_empty() {
        errors.required(path.path(), "");
    }
    local_path(path.path(), path.str(), errors);
    let (field, resource) = (file.child("fieldRef"), file.child("resourceFieldRef"));
    if field.is_set() {
        let supported =
            ["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];
        field_selector(&field, &supported, errors);
        if resource.is_set() {
            let detail = "fieldRef and resourceFieldRef can not be specified simultaneously";
            errors.invalid_str(file.path(), "resource", detail);
        }
    } else if resource.is_set() {
        resource_selector(&resource, true, errors);
    } else {
        errors.required(file.path(), "one of fieldRef and resourceFieldRef is required");
    }
    mode(&file.child("mode"), errors);
}

fn projected(source: &Field<'_>, errors: &mut FieldErrors) {
    mode(&source.child("defaultMode"), errors);
    let mut paths: Vec<&str> = Vec::new();
    let clash = "conflicting duplicate paths";
    for one in source.child("sources").items() {
        let mut count = 0;
        for kind in ["secret", "configMap"] {
            let part = one.child(kind);
            if !part.is_set() {
                continue;
            }
            count += 1;
            required(&part, &["name"], errors);
            for item in part.child("items").items() {
                key_to_path(&item, errors);
                let path = item.child("path").str();
                if path.is_empty() {
                } else if paths.contains(&path) {
                    errors.invalid_str(source.path(), part.child("name").str(), clash);
                } else {
                    paths.push(path);
                }
            }
        }
        let part = one.child("downwardAPI");
        if part.is_set() {
            count += 1;
            for item in part.child("items").items() {
                downward_file(&item.with_path(part.path().clone()), errors);
                let path = item.child("path").str();
                if path.is_empty() {
                } else if paths.contains(&path) {
                    errors.invalid_str(source.path(), path, clash);
                } else {
                    paths.push(path);
                }
            }
        }
        let part = one.child("serviceAccountToken");
        if part.is_set() {
            count += 1;
            let seconds = part.child("expirationSeconds");
            if seconds.int() < 600 {
                errors.invalid_int(seconds.path(), seconds.int(), "may not specify a duration less than 10 minutes");
            }
            if seconds.int() > 1 << 32 {
                let detail = "may not specify a duration larger than 2^32 seconds";
                errors.invalid_int(seconds.path(), seconds.int(), detail);
            }
            // The reference tells these at the volume.
            let at = source.path().child("path");
            let path = part.child("path");
            if path.is_empty() {
                errors.required(&at, "");
            } else {
                local_path(&at, path.str(), errors);
            }
        }
        let part = one.child("clusterTrustBundle");
        if part.is_set() {
            count += 1;
            trust_bundle(&part, errors);
            let path = part.child("path").str();
            if paths.contains(&path) {
                errors.invalid_str(source.path(), path, clash);
            } else {
                paths.push(path);
            }
        }
        if one.child("podCertificate").is_set() {
            count += 1;
        }
        if count > 1 {
            errors.forbidden(one.path(), "may not specify more than 1 volume type per source");
        }
    }
}

fn trust_bundle(part: &Field<'_>, errors: &mut FieldErrors) {
    let (name, signer, selector) = (part.child("name"), part.child("signerName"), part.child("labelSelector"));
    match (name.is_set(), signer.is_set()) {
        (true, true) => errors.invalid(part, "only one of name and signerName may be used"),
        (true, false) => {
            if name.is_empty() {
                errors.required(name.path(), "must be a valid object name");
            }
            for message in names::is_dns_subdomain(name.str()) {
                errors.invalid(&name, format!("not a valid clustertrustbundlename: {message}"));
            }
            if selector.is_set() {
                errors.invalid(&selector, "labelSelector must be unset if name is specified");
            }
        }
        (false, true) => {
            if signer.is_empty() {
                errors.required(signer.path(), "must be a valid signer name");
            }
            label_selector(&selector, errors);
        }
        (false, false) => errors.required(part.path(), "either name or signerName must be specified"),
    }
    required(part, &["path"], errors);
    let path = part.child("path");
    local_path(path.path(), path.str(), errors);
}

fn iscsi(source: &Field<'_>, volume: &Field<'_>, errors: &mut FieldErrors) {
    required(source, &["targetPortal"], errors);
    let iqn = source.child("iqn");
    if iqn.is_empty() {
        errors.required(iqn.path(), "");
    } else if !["iqn", "eui", "naa"].iter().any(|prefix| iqn.str().starts_with(prefix)) {
        errors.invalid(&iqn, "must be valid format starting with iqn, eui, or naa");
    }
    let lun = source.child("lun");
    if !(0..=255).contains(&lun.int()) {
        errors.invalid(&lun, "must be between 0 and 255, inclusive");
    }
    let chap = source.child("chapAuthDiscovery").bool() || source.child("chapAuthSession").bool();
    if chap && !source.child("secretRef").is_set() {
        errors.required(&source.path().child("secretRef"), "");
    }
    let name = volume.child("name");
    if source.child("initiatorName").is_set() && name.len() + 1 + source.child("targetPortal").len() > 64 {
        let detail = "Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if \
                      iscsi.initiatorName is specified.";
        errors.invalid(&name, detail);
    }
}

fn fibre_channel(source: &Field<'_>, errors: &mut FieldErrors) {
    let (targets, ids, lun) = (source.child("targetWWNs"), source.child("wwids"), source.child("lun"));
    if targets.is_empty() && ids.is_empty() {
        errors.required(targets.path(), "must specify either targetWWNs or wwids, but not both");
    }
    if !targets.is_empty() && !ids.is_empty() {
        errors.invalid(&targets, "targetWWNs and wwids can not be specified simultaneously");
    }
    if !targets.is_empty() {
        match lun.opt_int() {
            None => errors.required(lun.path(), "lun is required if targetWWNs is specified"),
            Some(number) if !(0..=255).contains(&number) => {
                errors.invalid(&lun, "must be between 0 and 255, inclusive");
            }
            Some(_) => {}
        }
    }
}

fn azure_disk(source: &Field<'_>, errors: &mut FieldErrors) {
    required(source, &["diskName", "diskURI"], errors);
    let mode = source.child("cachingMode");
    let modes = ["None", "ReadOnly", "ReadWrite"];
    if mode.is_set() && !modes.contains(&mode.str()) {
        errors.not_supported(mode.path(), mode.str(), &modes);
    }
    let kind = source.child("kind");
    let kinds = ["Dedicated", "Managed", "Shared"];
    if kind.is_set() && !kinds.contains(&kind.str()) {
        errors.not_supported(kind.path(), kind.str(), &kinds);
    }
    let uri = source.child("diskURI");
    if kind.str() == "Managed" && !uri.str().starts_with("/subscriptions/") {
        let form = "/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}";
        errors.not_supported(uri.path(), uri.str(), &[form]);
    }
    if kind.is_set() && kind.str() != "Managed" && !uri.str().starts_with("https://") {
        let form = "https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd";
        errors.not_supported(uri.path(), uri.str(), &[form]);
    }
}

fn csi(source: &Field<'_>, errors: &mut FieldErrors) {
    let driver = source.child("driver");
    if driver.is_empty() {
        errors.required(driver.path(), "");
    }
    if driver.len() > 63 {
        errors.too_long(driver.path(), 63);
    }
    errors.invalid_all(driver.path(), driver.str(), names::is_dns_subdomain(&driver.str().to_lowercase()));
    let secret = source.child("nodePublishSecretRef");
    if secret.is_set() {
        let name = secret.child("name");
        if name.is_empty() {
            errors.required(name.path(), "");
        } else {
            errors.invalid_all(name.path(), name.str(), names::is_dns_subdomain(name.str()));
        }
    }
}

const ACCESS_MODES: &[&str] = &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];

fn ephemeral(source: &Field<'_>, volume: &Field<'_>, pod: &str, errors: &mut FieldErrors) {
    let template = source.child("volumeClaimTemplate");
    if template.is_set() {
        let spec = template.child("spec");
        let modes = spec.child("accessModes");
        if modes.is_empty() {
            errors.required(modes.path(), "at least 1 access mode is required");
        }
        for mode in modes.items() {
            if !ACCESS_MODES.contains(&mode.str()) {
                errors.not_supported(modes.path(), mode.str(), ACCESS_MODES);
            }
        }
        let storage = spec.below(&["resources", "requests"]).entries().find(|(name, _)| *name == "storage");
        match storage {
            None => errors.required(&spec.path().child("resources").key("storage"), ""),
            Some((_, size)) if quantity(&size).sign() <= 0 => {
                let path = spec.path().child("resources").key("storage");
                errors.invalid_str(&path, size.str(), "must be greater than zero");
            }
            Some(_) => {}
        }
        let class = spec.child("storageClassName");
        if !class.is_empty() {
            errors.invalid_all(class.path(), class.str(), names::is_dns_subdomain(class.str()));
        }
    } else {
        errors.required(template.path(), "");
    }
    let name = volume.child("name");
    if !pod.is_empty() && !name.is_empty() {
        let claim = format!("{pod}-{}", name.str());
        for message in names::is_dns_subdomain(&claim) {
            let detail = format!("PVC name {}: {message}", crate::validation::field::quote(&claim));
            errors.invalid(&name, detail);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_template_may_leave_an_image_open() {
        let messages = |pod: &str, image: serde_json::Value| {
            let value = json!({ "volumes": [{ "name": "v", "image": image }] });
            let mut errors = FieldErrors::default();
            volumes(&Field::root(&value).child("volumes"), pod, &mut errors);
            errors.0.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
        };
        let open = json!({ "pullPolicy": "IfNotPresent" });
        assert_eq!(messages("", open.clone()), "");
        assert_eq!(messages("p", open), "volumes[0].image.reference: Required value");
        assert_eq!(messages("p", json!({ "reference": "a", "pullPolicy": "Never" })), "");
        let often = messages("", json!({ "reference": "a", "pullPolicy": "Often" }));
        assert!(often.contains("supported values: \"Always\", \"IfNotPresent\", \"Never\""), "{often}");
    }
}
