//! The OpenAPI v3 documents, one a group version, from the schema table and the kinds. Clients take
//! from them what fields there are (`kubectl explain`), how lists are merged (`kubectl apply`) and
//! which parameters a request takes.

use std::collections::BTreeSet;

use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::kind::{Kind, Subresource};
use crate::kinds;
use crate::schema::{Field, FieldKind, ListType, Schema, TypeDef};

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
const TIME: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Time";
const MICRO_TIME: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime";
const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";
const INT_OR_STRING: &str = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";
const PATCH: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Patch";

/// The document of a group version, as JSON; the core group is the empty one. Nothing is kept:
/// callers do that.
pub fn document(group: &str, version: &str) -> Option<Bytes> {
    let served: Vec<&Kind> =
        kinds::ALL.iter().copied().filter(|kind| kind.group == group && kind.version == version).collect();
    if served.is_empty() {
        return None;
    }
    let mut schemas = Schemas::default();
    let mut paths = Map::new();
    for kind in served {
        paths.extend(kind_paths(kind, &mut schemas));
    }
    let document = json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": "v1.36"},
        "paths": paths,
        "components": {"schemas": schemas.build()},
    });
    serde_json::to_vec(&document).ok().map(Bytes::from)
}

/// The types that a document refers to.
#[derive(Default)]
struct Schemas {
    names: BTreeSet<String>,
}

impl Schemas {
    fn reference(&mut self, name: &str) -> Value {
        if !self.names.contains(name) {
            self.names.insert(name.to_owned());
        }
        json!({"$ref": format!("#/components/schemas/{name}")})
    }

    /// Every type referred to, and those they refer to.
    fn build(mut self) -> Map<String, Value> {
        let mut built = Map::new();
        while let Some(name) = self.names.iter().find(|name| !built.contains_key(*name)).cloned() {
            let schema = match special(&name) {
                Some(schema) => schema,
                None => match Schema::get().type_(&name) {
                    Some(of) => self.object(of),
                    None => json!({"type": "object"}),
                },
            };
            built.insert(name, schema);
        }
        built
    }

    fn object(&mut self, of: &TypeDef) -> Value {
        let mut schema = Map::new();
        insert_text(&mut schema, "description", of.description());
        schema.insert("type".into(), "object".into());
        if !of.fields.is_empty() {
            let properties: Map<String, Value> =
                of.fields.iter().map(|field| (field.name.to_owned(), self.property(field))).collect();
            schema.insert("properties".into(), properties.into());
        }
        let required: Vec<&str> = of.fields.iter().filter(|field| field.required).map(|field| field.name).collect();
        if !required.is_empty() {
            schema.insert("required".into(), required.into());
        }
        if of.atomic {
            schema.insert("x-kubernetes-map-type".into(), "atomic".into());
        }
        let kinds: Vec<Value> = of
            .kinds
            .iter()
            .map(|(group, version, kind)| json!({"group": group, "kind": kind, "version": version}))
            .collect();
        if !kinds.is_empty() {
            schema.insert("x-kubernetes-group-version-kind".into(), kinds.into());
        }
        schema.into()
    }

    fn property(&mut self, field: &Field) -> Value {
        let mut schema = self.value(&field.kind, field.always && !field.pointer);
        insert_text(&mut schema, "description", field.description());
        if let Some(default) = field.default.and_then(|text| serde_json::from_str::<Value>(text).ok()) {
            schema.insert("default".into(), default);
        }
        if let FieldKind::List(_) = field.kind {
            match &field.list {
                ListType::Map(keys) => {
                    schema.insert("x-kubernetes-list-map-keys".into(), keys.as_slice().into());
                    schema.insert("x-kubernetes-list-type".into(), "map".into());
                }
                ListType::Set => {
                    schema.insert("x-kubernetes-list-type".into(), "set".into());
                }
                ListType::Atomic => {
                    schema.insert("x-kubernetes-list-type".into(), "atomic".into());
                }
            }
        } else if field.atomic {
            schema.insert("x-kubernetes-map-type".into(), "atomic".into());
        }
        if let Some(merge) = field.merge {
            let strategy = match (merge.merge, merge.retain_keys) {
                (true, true) => "merge,retainKeys",
                (false, true) => "retainKeys",
                _ => "merge",
            };
            schema.insert("x-kubernetes-patch-strategy".into(), strategy.into());
            if !merge.key.is_empty() {
                schema.insert("x-kubernetes-patch-merge-key".into(), merge.key.into());
            }
        }
        schema.into()
    }

    /// `plain` says that a struct is always there, so that its default is empty.
    fn value(&mut self, kind: &FieldKind, plain: bool) -> Map<String, Value> {
        let simple = |kind: &str, format: &str| {
            let mut schema = Map::new();
            schema.insert("type".into(), kind.into());
            insert_text(&mut schema, "format", format.to_owned());
            schema
        };
        let mut referred = |name: &str, default: bool| {
            let mut schema = Map::new();
            schema.insert("allOf".into(), json!([self.reference(name)]));
            if default {
                schema.insert("default".into(), json!({}));
            }
            schema
        };
        match kind {
            FieldKind::Bool => simple("boolean", ""),
            FieldKind::Int32 => simple("integer", "int32"),
            FieldKind::Int64 => simple("integer", "int64"),
            FieldKind::Double => simple("number", "double"),
            FieldKind::String => simple("string", ""),
            FieldKind::Bytes => simple("string", "byte"),
            FieldKind::Any => simple("object", ""),
            FieldKind::Time => referred(TIME, false),
            FieldKind::MicroTime => referred(MICRO_TIME, false),
            FieldKind::Quantity => referred(QUANTITY, false),
            FieldKind::IntOrString => referred(INT_OR_STRING, false),
            FieldKind::Type(of) => referred(of.get().name, plain),
            FieldKind::List(of) => {
                let mut schema = simple("array", "");
                let mut items = self.value(of, true);
                if matches!(**of, FieldKind::String) {
                    items.insert("default".into(), "".into());
                }
                schema.insert("items".into(), items.into());
                schema
            }
            FieldKind::Map(of) => {
                let mut schema = simple("object", "");
                let mut items = self.value(of, true);
                if matches!(**of, FieldKind::String) {
                    items.insert("default".into(), "".into());
                }
                schema.insert("additionalProperties".into(), items.into());
                schema
            }
        }
    }
}

fn insert_text(schema: &mut Map<String, Value>, name: &str, text: String) {
    if !text.is_empty() {
        schema.insert(name.into(), text.into());
    }
}

/// Types that are no objects.
fn special(name: &str) -> Option<Value> {
    Some(match name {
        TIME => json!({
            "description": "A point in time, to the second, as RFC 3339 writes it.",
            "type": "string",
            "format": "date-time",
        }),
        MICRO_TIME => json!({
            "description": "A point in time, to the microsecond, as RFC 3339 writes it.",
            "type": "string",
            "format": "date-time",
        }),
        QUANTITY => json!({
            "description": "An amount: a number with an optional suffix, decimal (n, u, m, k, M, G, T, P, E), \
                            binary (Ki, Mi, Gi, Ti, Pi, Ei) or a decimal exponent (e3).",
            "oneOf": [{"type": "string"}, {"type": "number"}],
        }),
        INT_OR_STRING => json!({
            "description": "A number or a text: a port by number or name, a count or a percentage.",
            "format": "int-or-string",
            "oneOf": [{"type": "integer"}, {"type": "string"}],
        }),
        PATCH => json!({
            "description": "A change to an object, in the form that the content type names.",
            "type": "object",
        }),
        _ => return None,
    })
}

fn kind_paths(kind: &Kind, schemas: &mut Schemas) -> Vec<(String, Value)> {
    let root = if kind.group.is_empty() {
        format!("/api/{}", kind.version)
    } else {
        format!("/apis/{}/{}", kind.group, kind.version)
    };
    let collection = if kind.namespaced() {
        format!("{root}/namespaces/{{namespace}}/{}", kind.plural)
    } else {
        format!("{root}/{}", kind.plural)
    };
    let mut paths = Vec::new();
    if kind.namespaced() && kind.verbs.contains(&"list") {
        let list = operation(kind, Action::List, None, true, schemas);
        paths.push((format!("{root}/{}", kind.plural), json!({"get": list, "parameters": []})));
    }
    let place = |name: bool| {
        let mut parameters = Vec::new();
        if name {
            parameters.push(path_parameter("name", &format!("name of the {}", kind.kind)));
        }
        if kind.namespaced() {
            parameters.push(path_parameter("namespace", "object name and auth scope, such as for teams and projects"));
        }
        parameters
    };
    let operations = |actions: &[Action], sub: Option<&Subresource>, schemas: &mut Schemas| -> Map<String, Value> {
        let verbs = sub.map_or(kind.verbs, |sub| sub.verbs);
        actions
            .iter()
            .filter(|action| verbs.contains(&action.verb()))
            .map(|action| (action.method().to_owned(), operation(kind, *action, sub, false, schemas)))
            .collect()
    };
    let mut whole = operations(&[Action::List, Action::Post, Action::DeleteCollection], None, schemas);
    whole.insert("parameters".into(), place(false).into());
    paths.push((collection.clone(), whole.into()));
    let mut one = operations(&[Action::Get, Action::Put, Action::Patch, Action::Delete], None, schemas);
    one.insert("parameters".into(), place(true).into());
    paths.push((format!("{collection}/{{name}}"), one.into()));
    for sub in kind.subresources {
        let actions = [Action::Get, Action::Put, Action::Patch, Action::Post];
        let mut part = operations(&actions, Some(sub), schemas);
        part.insert("parameters".into(), place(true).into());
        paths.push((format!("{collection}/{{name}}/{}", sub.name), part.into()));
    }
    paths
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Action {
    List,
    Post,
    DeleteCollection,
    Get,
    Put,
    Patch,
    Delete,
}

impl Action {
    /// The verb of authorization and discovery.
    fn verb(self) -> &'static str {
        match self {
            Self::List => "list",
            Self::Post => "create",
            Self::DeleteCollection => "deletecollection",
            Self::Get => "get",
            Self::Put => "update",
            Self::Patch => "patch",
            Self::Delete => "delete",
        }
    }

    fn method(self) -> &'static str {
        match self {
            Self::List | Self::Get => "get",
            Self::Post => "post",
            Self::DeleteCollection | Self::Delete => "delete",
            Self::Put => "put",
            Self::Patch => "patch",
        }
    }

    /// `x-kubernetes-action`
    fn name(self) -> &'static str {
        match self {
            Self::List => "list",
            Self::Post => "post",
            Self::DeleteCollection => "deletecollection",
            Self::Get => "get",
            Self::Put => "put",
            Self::Patch => "patch",
            Self::Delete => "delete",
        }
    }

    /// The word that begins an operation's identifier.
    fn operation(self) -> &'static str {
        match self {
            Self::List => "list",
            Self::Post => "create",
            Self::DeleteCollection => "deleteCollection",
            Self::Get => "read",
            Self::Put => "replace",
            Self::Patch => "patch",
            Self::Delete => "delete",
        }
    }
}

fn path_parameter(name: &str, description: &str) -> Value {
    json!({
        "name": name,
        "in": "path",
        "description": description,
        "required": true,
        "schema": {"type": "string", "uniqueItems": true},
    })
}

fn query_parameter((name, kind): (&str, &str)) -> Value {
    json!({"name": name, "in": "query", "schema": {"type": kind, "uniqueItems": true}})
}

const PRETTY: (&str, &str) = ("pretty", "string");
const DRY_RUN: (&str, &str) = ("dryRun", "string");
const LIST: &[(&str, &str)] = &[
    ("allowWatchBookmarks", "boolean"),
    ("continue", "string"),
    ("fieldSelector", "string"),
    ("labelSelector", "string"),
    ("limit", "integer"),
    ("resourceVersion", "string"),
    ("resourceVersionMatch", "string"),
    ("sendInitialEvents", "boolean"),
    ("timeoutSeconds", "integer"),
    ("watch", "boolean"),
];
const WRITE: &[(&str, &str)] = &[DRY_RUN, ("fieldManager", "string"), ("fieldValidation", "string")];
const DELETE: &[(&str, &str)] = &[
    DRY_RUN,
    ("gracePeriodSeconds", "integer"),
    ("ignoreStoreReadErrorWithClusterBreakingPotential", "boolean"),
    ("orphanDependents", "boolean"),
    ("propagationPolicy", "string"),
];

fn operation(kind: &Kind, action: Action, sub: Option<&Subresource>, everywhere: bool, schemas: &mut Schemas) -> Value {
    let gvk = sub.and_then(|sub| sub.object).unwrap_or((kind.group, kind.version, kind.kind));
    let body = Schema::get().kind(gvk.0, gvk.1, gvk.2).map_or(kind.schema, |of| of.name);
    let answer = match action {
        Action::List => format!("{}List", kind.schema),
        Action::Delete | Action::DeleteCollection => format!("{META}.Status"),
        _ => body.to_owned(),
    };
    let mut parameters = vec![query_parameter(PRETTY)];
    let more: &[&[(&str, &str)]] = match action {
        Action::List => &[LIST],
        Action::Post | Action::Put => &[WRITE],
        Action::Patch => &[WRITE, &[("force", "boolean")]],
        Action::Delete => &[DELETE],
        Action::DeleteCollection => &[LIST, DELETE],
        Action::Get => &[],
    };
    parameters.extend(more.iter().flat_map(|part| part.iter().map(|p| query_parameter(*p))));
    let request = match action {
        Action::Post | Action::Put => Some((vec!["*/*"], body.to_owned())),
        Action::Delete | Action::DeleteCollection => Some((vec!["*/*"], format!("{META}.DeleteOptions"))),
        Action::Patch => Some((
            vec![
                "application/apply-patch+yaml",
                "application/json-patch+json",
                "application/merge-patch+json",
                "application/strategic-merge-patch+json",
            ],
            PATCH.to_owned(),
        )),
        Action::List | Action::Get => None,
    };
    let content = |types: &[&str], name: &str, schemas: &mut Schemas| -> Map<String, Value> {
        types.iter().map(|media| ((*media).to_owned(), json!({"schema": schemas.reference(name)}))).collect()
    };
    let mut media = vec!["application/json", "application/yaml"];
    if action == Action::List {
        media.push("application/json;stream=watch");
    }
    let mut responses = Map::new();
    let success = |description: &str, schemas: &mut Schemas| json!({"description": description, "content": content(&media, &answer, schemas)});
    responses.insert("200".into(), success("OK", schemas));
    match action {
        Action::Post => {
            responses.insert("201".into(), success("Created", schemas));
            responses.insert("202".into(), success("Accepted", schemas));
        }
        Action::Put | Action::Patch => {
            responses.insert("201".into(), success("Created", schemas));
        }
        Action::Delete => {
            responses.insert("202".into(), success("Accepted", schemas));
        }
        _ => {}
    }
    responses.insert("401".into(), json!({"description": "Unauthorized"}));

    let group = if kind.group.is_empty() { "core" } else { kind.group.split('.').next().unwrap_or(kind.group) };
    let tag = format!("{}_{}", group, kind.version);
    let version = camel(kind.version);
    let scope = if kind.namespaced() && !everywhere { "Namespaced" } else { "" };
    let part = sub.map_or_else(String::new, |sub| camel(sub.name));
    let suffix = if everywhere { "ForAllNamespaces" } else { "" };
    let mut operation = Map::new();
    operation.insert("tags".into(), json!([tag]));
    operation.insert(
        "operationId".into(),
        format!("{}{}{version}{scope}{}{part}{suffix}", action.operation(), camel(group), kind.kind).into(),
    );
    operation.insert("parameters".into(), parameters.into());
    if let Some((types, name)) = request {
        let required = !matches!(action, Action::Delete | Action::DeleteCollection);
        let mut request = Map::new();
        request.insert("content".into(), content(&types, &name, schemas).into());
        if required {
            request.insert("required".into(), true.into());
        }
        operation.insert("requestBody".into(), request.into());
    }
    operation.insert("responses".into(), responses.into());
    operation.insert("x-kubernetes-action".into(), action.name().into());
    operation
        .insert("x-kubernetes-group-version-kind".into(), json!({"group": gvk.0, "version": gvk.1, "kind": gvk.2}));
    operation.into()
}

fn camel(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parsed(group: &str, version: &str) -> Value {
        serde_json::from_slice(&document(group, version).unwrap()).unwrap()
    }

    /// Every `$ref` of a document.
    fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
        match value {
            Value::Object(map) => {
                for (key, value) in map {
                    match value {
                        Value::String(text) if key == "$ref" => found.push(text),
                        value => references(value, found),
                    }
                }
            }
            Value::Array(items) => items.iter().for_each(|item| references(item, found)),
            _ => {}
        }
    }

    #[test]
    fn every_reference_resolves() {
        let mut seen = BTreeSet::new();
        for kind in kinds::ALL {
            if !seen.insert((kind.group, kind.version)) {
                continue;
            }
            let document = parsed(kind.group, kind.version);
            let mut found = Vec::new();
            references(&document, &mut found);
            for reference in found {
                let name = reference.strip_prefix("#/components/schemas/").unwrap();
                assert!(document["components"]["schemas"].get(name).is_some(), "{name}");
                assert!(special(name).is_some() || Schema::get().type_(name).is_some(), "{name}");
            }
        }
        assert!(document("nothing", "v1").is_none());
    }

    #[test]
    fn clients_find_what_they_look_for() {
        let document = parsed("apps", "v1");
        let patch = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
        assert_eq!(
            patch["x-kubernetes-group-version-kind"],
            json!({"group": "apps", "version": "v1", "kind": "Deployment"})
        );
        let parameters = patch["parameters"].as_array().unwrap();
        assert!(parameters.iter().any(|p| p["name"] == "fieldValidation" && p["in"] == "query"));
        let schemas = &document["components"]["schemas"];
        let deployment = &schemas["io.k8s.api.apps.v1.Deployment"];
        assert_eq!(deployment["x-kubernetes-group-version-kind"][0]["kind"], "Deployment");
        let containers = &schemas["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
        assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
        assert_eq!(containers["x-kubernetes-patch-strategy"], "merge");
        assert_eq!(containers["items"]["allOf"][0]["$ref"], "#/components/schemas/io.k8s.api.core.v1.Container");
        let volumes = &schemas["io.k8s.api.core.v1.PodSpec"]["properties"]["volumes"];
        assert_eq!(volumes["x-kubernetes-patch-strategy"], "merge,retainKeys");
        assert!(
            schemas["io.k8s.api.apps.v1.DeploymentSpec"]["required"].as_array().unwrap().contains(&"selector".into())
        );
    }
}
