//! What the server has to know of a kind: one row, filled in by one file under `kinds/`.

use serde_json::Value;

use crate::error::FieldErrors;

/// Whether objects of a kind live in a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    Namespaced,
    Cluster,
}

/// What a client may do with a kind, in the order of discovery documents.
pub const ALL_VERBS: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

/// A part of an object with an endpoint of its own.
#[derive(Clone, Copy, Debug)]
pub struct Subresource {
    /// `status`, `scale`, `binding`, `log`, …
    pub name: &'static str,
    /// Group, version and kind of what is read and written there where it is not the object itself.
    pub object: Option<(&'static str, &'static str, &'static str)>,
    pub verbs: &'static [&'static str],
}

/// A column of the server-printed table.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    pub name: &'static str,
    pub kind: &'static str,
    pub format: &'static str,
    pub description: &'static str,
    /// 0 is always shown, 1 with `-o wide`.
    pub priority: i32,
}

/// A field that field selectors may name, besides `metadata.name` and `metadata.namespace`.
#[derive(Clone, Copy)]
pub struct SelectableField {
    pub path: &'static str,
    pub get: fn(&Value) -> String,
}

/// Life cycle of an object, one function a step. The server calls, for a create: `default`,
/// `prepare_create`, `validate`; for an update: `default`, `prepare_update`, `validate_update`
/// (which includes what `validate` checks); for a write to a subresource `status`: `default`,
/// `prepare_status_update`, `validate_status_update`. Metadata is the server's own business.
#[derive(Clone, Copy)]
pub struct Strategy {
    /// Fills in what the reference fills in. Idempotent.
    pub default: fn(&mut Value),
    /// Clears what a client may not set (status), sets generation.
    pub prepare_create: fn(&mut Value),
    /// `(new, old)`: keeps status, counts generation up when the specification changed.
    pub prepare_update: fn(&mut Value, &Value),
    /// `(new, old)`: keeps all but status (and the metadata a status write may change).
    pub prepare_status_update: fn(&mut Value, &Value),
    pub validate: fn(&Value, &mut FieldErrors),
    pub validate_update: fn(&Value, &Value, &mut FieldErrors),
    pub validate_status_update: fn(&Value, &Value, &mut FieldErrors),
    /// Texts of `Warning` headers for a write: `(new, old)`.
    pub warnings: fn(&Value, Option<&Value>) -> Vec<String>,
    /// Whether PUT to a name that does not exist creates it.
    pub create_on_update: bool,
    /// Whether an update without resourceVersion is taken.
    pub unconditional_update: bool,
    /// Seconds of grace for a delete, from the object and the option asked for; `None`: at once.
    pub grace_period: fn(&Value, Option<i64>) -> Option<i64>,
}

impl Strategy {
    /// What holds for a kind without status, defaults or rules of its own.
    pub const PLAIN: Self = Self {
        default: |_| (),
        prepare_create: |_| (),
        prepare_update: |_, _| (),
        prepare_status_update: |_, _| (),
        validate: |_, _| (),
        validate_update: |_, _, _| (),
        validate_status_update: |_, _, _| (),
        warnings: |_, _| Vec::new(),
        create_on_update: false,
        unconditional_update: true,
        grace_period: |_, _| None,
    };
}

/// One kind of the API.
pub struct Kind {
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    pub plural: &'static str,
    pub singular: &'static str,
    pub short_names: &'static [&'static str],
    pub categories: &'static [&'static str],
    pub scope: Scope,
    pub verbs: &'static [&'static str],
    pub subresources: &'static [Subresource],
    /// Name of the type in the schema table, as in OpenAPI: `io.k8s.api.core.v1.Pod`.
    pub schema: &'static str,
    pub selectable_fields: &'static [SelectableField],
    pub columns: &'static [Column],
    /// Cells of one row, one a column; `now` is given so that ages are deterministic (seconds since 1970).
    pub cells: fn(&Value, now: i64) -> Vec<Value>,
    /// Validates `metadata.name`: messages for what is wrong with it; `prefix` says a generateName is checked.
    pub name: fn(name: &str, prefix: bool) -> Vec<String>,
    pub strategy: Strategy,
    /// The kind whose storage this one shares, and the way there and back (core and events.k8s.io Event).
    pub stored_as: Option<StoredAs>,
    /// Text of the deprecation warning, where there is one.
    pub deprecated: Option<&'static str>,
}

#[derive(Clone, Copy)]
pub struct StoredAs {
    pub kind: fn() -> &'static Kind,
    pub to_stored: fn(Value) -> Value,
    pub from_stored: fn(Value) -> Value,
}

impl Kind {
    /// `apps/v1`, or `v1` for the core group.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_owned() } else { format!("{}/{}", self.group, self.version) }
    }

    /// `deployments.apps`, or `pods` for the core group: how messages name a resource.
    pub fn qualified_plural(&self) -> String {
        if self.group.is_empty() { self.plural.to_owned() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// `Deployment.apps`, or `Pod`: how messages of invalid objects name a kind.
    pub fn qualified_kind(&self) -> String {
        if self.group.is_empty() { self.kind.to_owned() } else { format!("{}.{}", self.kind, self.group) }
    }

    pub fn namespaced(&self) -> bool {
        self.scope == Scope::Namespaced
    }
}
