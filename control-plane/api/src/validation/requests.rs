//! What requests carry besides objects: options, and the bodies of subresources.

use serde_json::Value;

use super::field::{Field, Path};
use super::metadata;
use super::names;
use crate::error::{Error, FieldErrors};

/// The errors of a request's options, or nothing: `kind` is `DeleteOptions`, `ListOptions`, …
pub fn options_error(kind: &str, errors: FieldErrors) -> Result<(), Error> {
    object_error(&format!("{kind}.meta.k8s.io"), "", errors)
}

/// The errors of an object, or nothing; `kind` is qualified by its group.
pub fn object_error(kind: &str, name: &str, errors: FieldErrors) -> Result<(), Error> {
    if errors.is_empty() {
        return Ok(());
    }
    Err(Error::Invalid { kind: kind.to_owned(), name: name.to_owned(), errors })
}

fn dry_run(values: &Field<'_>, errors: &mut FieldErrors) {
    if values.strings().any(|value| value != "All") {
        let shown = values.value().map(ToString::to_string).unwrap_or_default();
        errors.not_supported_shown(values.path(), &shown, &["All"]);
    }
}

/// `DeleteOptions`, from a body or made of the query.
pub fn delete_options(options: &Value) -> Result<(), Error> {
    let options = Field::root(options);
    let mut errors = FieldErrors::default();
    let policy = options.child("propagationPolicy");
    if policy.is_set() && options.child("orphanDependents").is_set() {
        errors.invalid(&policy, "orphanDependents and deletionPropagation cannot be both set");
    }
    if policy.is_set() && !matches!(policy.str(), "Foreground" | "Background" | "Orphan") {
        errors.not_supported(policy.path(), policy.str(), &["Foreground", "Background", "Orphan", "nil"]);
    }
    dry_run(&options.child("dryRun"), &mut errors);
    options_error("DeleteOptions", errors)
}

/// How an object is written, in the query of a create, update or patch.
#[derive(Clone, Copy, Debug, Default)]
pub struct WriteOptions<'a> {
    pub field_manager: &'a str,
    pub dry_run: &'a [String],
    pub field_validation: &'a str,
}

impl WriteOptions<'_> {
    fn check(&self, errors: &mut FieldErrors) {
        metadata::field_manager(&Path::new("fieldManager"), self.field_manager, errors);
        let values = Value::from(self.dry_run.to_vec());
        dry_run(&Field::at(Some(&values), Path::new("dryRun")), errors);
        if !matches!(self.field_validation, "" | "Ignore" | "Warn" | "Strict") {
            let supported = ["", "Ignore", "Strict", "Warn"];
            errors.not_supported(&Path::new("fieldValidation"), self.field_validation, &supported);
        }
    }

    /// `kind` is `CreateOptions` or `UpdateOptions`.
    pub fn validate(&self, kind: &str) -> Result<(), Error> {
        let mut errors = FieldErrors::default();
        self.check(&mut errors);
        options_error(kind, errors)
    }

    /// Of a patch: an apply needs a manager, only an apply can be forced.
    pub fn validate_patch(&self, apply: bool, force: Option<bool>) -> Result<(), Error> {
        let mut errors = FieldErrors::default();
        if apply && self.field_manager.is_empty() {
            errors.required(&Path::new("fieldManager"), "is required for apply patch");
        }
        if !apply && force.is_some() {
            errors.forbidden(&Path::new("force"), "may not be specified for non-apply patch");
        }
        self.check(&mut errors);
        options_error("PatchOptions", errors)
    }
}

/// The parts of `ListOptions` that constrain one another.
#[derive(Clone, Copy, Debug, Default)]
pub struct ListOptions<'a> {
    pub watch: bool,
    pub resource_version: &'a str,
    pub resource_version_match: &'a str,
    pub continue_token: &'a str,
    pub send_initial_events: Option<bool>,
}

impl ListOptions<'_> {
    pub fn validate(&self) -> Result<(), Error> {
        let mut errors = FieldErrors::default();
        let (version, version_match) = (self.resource_version, self.resource_version_match);
        let path = Path::new("resourceVersionMatch");
        let initial = Path::new("sendInitialEvents");
        if self.watch {
            if self.send_initial_events.is_some() && version_match != "NotOlderThan" {
                errors.forbidden(&path, "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan");
            }
            if self.send_initial_events.is_none() && !version_match.is_empty() {
                let detail = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
                errors.forbidden(&path, detail);
            }
            if self.send_initial_events.is_some() && !self.continue_token.is_empty() {
                errors.forbidden(&path, "continue is forbidden for watch with sendInitialEvents");
            }
            return options_error("ListOptions", errors);
        }
        if self.send_initial_events.is_some() {
            errors.forbidden(&initial, "sendInitialEvents is forbidden for list");
        }
        if !version_match.is_empty() {
            if version.is_empty() {
                errors.forbidden(&path, "resourceVersionMatch is forbidden unless resourceVersion is provided");
            }
            if !self.continue_token.is_empty() {
                errors.forbidden(&path, "resourceVersionMatch is forbidden when continue is provided");
            }
            if !matches!(version_match, "Exact" | "NotOlderThan") {
                errors.not_supported(&path, version_match, &["Exact", "NotOlderThan", ""]);
            }
            if version_match == "Exact" && version == "0" {
                errors.forbidden(&path, "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"");
            }
        }
        options_error("ListOptions", errors)
    }
}

/// A `Scale` that is written: `metadata.name` and a count that is not negative.
pub fn scale(scale: &Value) -> Result<(), Error> {
    let scale = Field::root(scale);
    let mut errors = FieldErrors::default();
    let name = scale.below(&["metadata", "name"]);
    if name.is_empty() {
        errors.required(name.path(), "name or generateName is required");
    } else {
        errors.invalid_all(name.path(), name.str(), names::is_dns_subdomain(name.str()));
    }
    metadata::non_negative(&scale.below(&["spec", "replicas"]), &mut errors);
    object_error("Scale.autoscaling", name.str(), errors)
}

/// A `Binding`: a node's name; `name` is that of the pod.
pub fn binding(binding: &Value, name: &str) -> Result<(), Error> {
    let target = Field::root(binding).child("target");
    let mut errors = FieldErrors::default();
    let kind = target.child("kind");
    if !matches!(kind.str(), "" | "Node") {
        errors.not_supported(kind.path(), kind.str(), &["Node", "<empty>"]);
    }
    // All of it becomes the pod's.
    let (node, metadata) = (target.child("name"), Field::root(binding).child("metadata"));
    match node.str() {
        "" => errors.required(node.path(), ""),
        name => errors.invalid_all(node.path(), name, names::is_dns_subdomain(name)),
    }
    metadata::annotations(&metadata.child("annotations"), &mut errors);
    metadata::labels(&metadata.child("labels"), &mut errors);
    object_error("Binding", name, errors)
}

/// A `TokenRequest`, after `default_token_request`.
pub fn token_request(request: &Value) -> Result<(), Error> {
    let seconds = Field::root(request).below(&["spec", "expirationSeconds"]);
    let mut errors = FieldErrors::default();
    if seconds.int() < 600 {
        errors.invalid_int(seconds.path(), seconds.int(), "may not specify a duration less than 10 minutes");
    }
    if seconds.int() > 1 << 32 {
        errors.invalid_int(seconds.path(), seconds.int(), "may not specify a duration larger than 2^32 seconds");
    }
    object_error("TokenRequest.authentication.k8s.io", "", errors)
}

/// A token lasts an hour unless told otherwise.
pub fn default_token_request(request: &mut Value) {
    if let Some(map) = request.as_object_mut() {
        let spec = map.entry("spec").or_insert_with(|| serde_json::json!({}));
        if let Some(spec) = spec.as_object_mut()
            && !spec.get("expirationSeconds").is_some_and(Value::is_number)
        {
            spec.insert("expirationSeconds".to_owned(), 3600.into());
        }
    }
}

/// The query of `pods/NAME/log`.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogOptions<'a> {
    pub tail_lines: Option<i64>,
    pub limit_bytes: Option<i64>,
    pub since_seconds: Option<i64>,
    pub since_time: Option<&'a str>,
    pub stream: Option<&'a str>,
}

impl LogOptions<'_> {
    pub fn validate(&self, pod: &str) -> Result<(), Error> {
        let mut errors = FieldErrors::default();
        if let Some(lines) = self.tail_lines.filter(|lines| *lines < 0) {
            errors.invalid_int(&Path::new("tailLines"), lines, metadata::NEGATIVE);
        }
        if let Some(bytes) = self.limit_bytes.filter(|bytes| *bytes < 1) {
            errors.invalid_int(&Path::new("limitBytes"), bytes, "must be greater than 0");
        }
        if self.since_seconds.is_some() && self.since_time.is_some() {
            errors.forbidden(&Path::new(""), "at most one of `sinceTime` or `sinceSeconds` may be specified");
        } else if let Some(seconds) = self.since_seconds.filter(|seconds| *seconds < 1) {
            errors.invalid_int(&Path::new("sinceSeconds"), seconds, "must be greater than 0");
        }
        if let Some(stream) = self.stream {
            if !matches!(stream, "Stdout" | "Stderr" | "All") {
                errors.not_supported(&Path::new("stream"), stream, &["All", "Stderr", "Stdout"]);
            }
            if stream != "All" && self.tail_lines.is_some() {
                let detail = "`tailLines` and specific `stream` are mutually exclusive for now";
                errors.forbidden(&Path::new(""), detail);
            }
        }
        object_error("PodLogOptions", pod, errors)
    }
}
