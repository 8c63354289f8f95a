//! PodTemplate.

use super::prelude::*;
use crate::kinds::edit;
use crate::kinds::pod::{defaults, spec, warnings};
use crate::validation::field::Field;

pub static KIND: Kind = Kind {
    group: "",
    version: "v1",
    kind: "PodTemplate",
    plural: "podtemplates",
    singular: "podtemplate",
    short_names: &[],
    categories: &[],
    scope: Scope::Namespaced,
    verbs: ALL_VERBS,
    subresources: &[],
    schema: "io.k8s.api.core.v1.PodTemplate",
    selectable_fields: &[],
    columns: &[
        Column {
            name: "Name",
            kind: "string",
            format: "name",
            description: "Name must be unique within its scope. It cannot be changed.",
            priority: 0,
        },
        Column {
            name: "Containers",
            kind: "string",
            format: "",
            description: "Names of the containers in the template.",
            priority: 0,
        },
        Column {
            name: "Images",
            kind: "string",
            format: "",
            description: "Images of the containers in the template.",
            priority: 0,
        },
        Column { name: "Pod Labels", kind: "string", format: "", description: "", priority: 0 },
    ],
    cells,
    name: names::dns_subdomain,
    strategy: STRATEGY,
    stored_as: None,
    deprecated: None,
};

const STRATEGY: Strategy = Strategy {
    default: |object| {
        if let Some(map) = object.as_object_mut() {
            defaults::template(edit::ensure(map, "template"));
        }
    },
    prepare_create: |object| edit::set_generation(object, 1),
    prepare_update: |new, old| {
        let changed = new.get("template") != old.get("template");
        edit::count_generation(new, old, changed);
    },
    validate,
    validate_update: |new, _, errors| validate(new, errors),
    warnings: |new, old| {
        let unchanged = old.is_some_and(|old| edit::generation(old) == edit::generation(new));
        if unchanged { Vec::new() } else { warnings::warnings(&Field::root(new).child("template")) }
    },
    ..Strategy::PLAIN
};

fn validate(object: &Value, errors: &mut FieldErrors) {
    spec::template(&Field::root(object).child("template"), errors);
}

fn cells(object: &Value, _: i64) -> Vec<Value> {
    let (names, images) = print::containers(object.get("template"));
    let labels = print::labels(object.pointer("/template/metadata/labels"));
    vec![print::name(object), json!(names), json!(images), json!(labels)]
}
