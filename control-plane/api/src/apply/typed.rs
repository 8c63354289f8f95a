//! Values seen with their schema: which fields they have, how two differ, what one merged into the
//! other is. Lists that have keys are taken item by item, atomic ones as one value.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::set::{Set, Step, display};
use crate::schema::{Field, FieldKind, ListType, TypeDef};

/// How a value is taken apart.
#[derive(Clone, Copy)]
pub enum Shape<'a> {
    /// As one.
    Leaf,
    Struct(&'a TypeDef),
    Map(&'a FieldKind),
    /// A list of different scalars.
    Set,
    /// A list of items with key fields.
    Items {
        keys: &'a [&'static str],
        of: &'a FieldKind,
    },
}

impl<'a> Shape<'a> {
    fn of_field(field: &'a Field) -> Self {
        if field.atomic {
            return Self::Leaf;
        }
        match (&field.kind, &field.list) {
            (FieldKind::List(_), ListType::Set) => Self::Set,
            (FieldKind::List(of), ListType::Map(keys)) => Self::Items { keys, of },
            (kind, _) => Self::of_kind(kind),
        }
    }

    fn of_kind(kind: &'a FieldKind) -> Self {
        match kind {
            FieldKind::Type(id) if !id.get().atomic => Self::Struct(id.get()),
            FieldKind::Map(of) => Self::Map(of),
            _ => Self::Leaf,
        }
    }

    fn child(self, name: &str) -> Self {
        match self {
            Self::Struct(of) => of.field(name).map_or(Self::Leaf, Self::of_field),
            Self::Map(of) => Self::of_kind(of),
            _ => Self::Leaf,
        }
    }

    fn item(self) -> Self {
        match self {
            Self::Items { of, .. } => Self::of_kind(of),
            _ => Self::Leaf,
        }
    }
}

/// Null, `{}` and `[]` have nothing inside: each is taken as one value.
fn is_hollow(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(map) => map.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

fn items(value: Option<&Value>) -> &[Value] {
    value.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// The steps to the items of a list, in its order.
fn steps(shape: Shape<'_>, items: &[Value]) -> Vec<Step> {
    items.iter().map(|item| step(shape, item)).collect()
}

/// Where each step is first: lists may be as long as a body is.
fn places(steps: &[Step]) -> BTreeMap<&Step, usize> {
    steps.iter().enumerate().rev().map(|(index, step)| (step, index)).collect()
}

fn step(shape: Shape<'_>, item: &Value) -> Step {
    let Shape::Items { keys, of } = shape else { return Step::value(item) };
    let mut fields = Map::new();
    for key in keys {
        let default = || of.item_type()?.field(key)?.default.and_then(|json| serde_json::from_str(json).ok());
        if let Some(value) = item.get(key).filter(|value| !value.is_null()).cloned().or_else(default) {
            fields.insert((*key).to_owned(), value);
        }
    }
    Step::key(fields)
}

/// How two values differ.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    pub added: Set,
    pub modified: Set,
    pub removed: Set,
}

impl Comparison {
    pub fn is_same(&self) -> bool {
        self.added.is_empty() && self.modified.is_empty() && self.removed.is_empty()
    }

    /// Adds how the values at one step differ. Most are the same, and cost no more than that.
    fn child(&mut self, shape: Shape<'_>, step: impl FnOnce() -> Step, old: Option<&Value>, new: Option<&Value>) {
        if old == new {
            return;
        }
        if let (Some(old), Some(new)) = (old, new)
            && (matches!(shape, Shape::Leaf) || (is_hollow(old) && is_hollow(new)))
        {
            self.modified.add(step());
            return;
        }
        let (step, below) = (step(), compare_at(shape, old, new));
        match (old, new) {
            (None, _) => self.added.put_whole(step, below.added),
            (_, None) => self.removed.put_whole(step, below.removed),
            _ => {
                self.added.put(&step, below.added);
                self.modified.put(&step, below.modified);
                self.removed.put(&step, below.removed);
            }
        }
    }
}

/// From `old` to `new`, both of one type.
pub fn compare(of: &TypeDef, old: &Value, new: &Value) -> Comparison {
    compare_at(Shape::Struct(of), Some(old), Some(new))
}

/// How what lies below two values differs.
fn compare_at(shape: Shape<'_>, old: Option<&Value>, new: Option<&Value>) -> Comparison {
    let mut out = Comparison::default();
    match shape {
        Shape::Leaf => {}
        Shape::Struct(_) | Shape::Map(_) => {
            let (old, new) = (old.and_then(Value::as_object), new.and_then(Value::as_object));
            for (name, old) in old.into_iter().flatten() {
                let new = new.and_then(|map| map.get(name));
                out.child(shape.child(name), || Step::field(name), Some(old), new);
            }
            for (name, new) in new.into_iter().flatten() {
                if old.is_none_or(|map| !map.contains_key(name)) {
                    out.child(shape.child(name), || Step::field(name), None, Some(new));
                }
            }
        }
        Shape::Set | Shape::Items { .. } => {
            let (old, new) = (items(old), items(new));
            let (old_steps, new_steps) = (steps(shape, old), steps(shape, new));
            let old = old_steps.iter().zip(old).map(|(step, item)| (step, false, item));
            let new = new_steps.iter().zip(new).map(|(step, item)| (step, true, item));
            let mut all: Vec<_> = old.chain(new).collect();
            // Lists may be as long as a body is: sorted, and of equals the first one counts.
            all.sort_by_key(|(step, ..)| *step);
            for same in all.chunk_by(|(a, ..), (b, ..)| a == b) {
                let first = |wanted: bool| same.iter().find(|(_, is_new, _)| *is_new == wanted).map(|(.., item)| *item);
                out.child(shape.item(), || same[0].0.clone(), first(false), first(true));
            }
        }
    }
    out
}

/// The fields that a configuration names: its leaves, and the items of its lists.
pub fn fields(of: &TypeDef, value: &Value) -> Set {
    let mut set = Set::default();
    fields_at(Shape::Struct(of), value, &mut Vec::new(), &mut set);
    set
}

fn fields_at(shape: Shape<'_>, value: &Value, path: &mut Vec<Step>, set: &mut Set) {
    if matches!(shape, Shape::Leaf) || is_hollow(value) {
        set.insert(path);
        return;
    }
    match (shape, value) {
        (Shape::Struct(_) | Shape::Map(_), Value::Object(map)) => {
            for (name, value) in map {
                path.push(Step::field(name));
                fields_at(shape.child(name), value, path, set);
                path.pop();
            }
        }
        (Shape::Set | Shape::Items { .. }, Value::Array(items)) => {
            let mut items: Vec<(Step, &Value)> = items.iter().map(|item| (step(shape, item), item)).collect();
            // In the order of the set, which takes them without moving others.
            items.sort_by(|(a, _), (b, _)| a.cmp(b));
            for (step, item) in items {
                path.push(step);
                set.insert(path);
                if matches!(shape, Shape::Items { .. }) {
                    fields_at(shape.item(), item, path, set);
                }
                path.pop();
            }
        }
        _ => set.insert(path),
    }
}

/// `config` laid over `live`: its values win, what it does not name stays.
pub fn merge(of: &TypeDef, live: &Value, config: &Value) -> Value {
    merge_at(Shape::Struct(of), live, config)
}

fn merge_at(shape: Shape<'_>, live: &Value, config: &Value) -> Value {
    match (shape, live, config) {
        (Shape::Struct(_) | Shape::Map(_), Value::Object(live), Value::Object(config)) => {
            let mut merged = live.clone();
            for (name, value) in config {
                let value = match live.get(name) {
                    Some(live) => merge_at(shape.child(name), live, value),
                    None => value.clone(),
                };
                merged.insert(name.clone(), value);
            }
            Value::Object(merged)
        }
        (Shape::Set | Shape::Items { .. }, Value::Array(live), Value::Array(config)) => {
            Value::Array(merge_items(shape, live, config))
        }
        _ => config.clone(),
    }
}

/// Shared items in the configuration's order, each side's own where they stand between them.
fn merge_items(shape: Shape<'_>, live: &[Value], config: &[Value]) -> Vec<Value> {
    let (live_steps, config_steps) = (steps(shape, live), steps(shape, config));
    let (live_places, config_places) = (places(&live_steps), places(&config_steps));
    let mut merged = Vec::with_capacity(live.len() + config.len());
    let (mut left, mut right) = (0, 0);
    let mut done = BTreeSet::new();
    loop {
        match (live_steps.get(left), config_steps.get(right)) {
            (None, None) => return merged,
            (Some(step), _) if done.contains(step) => left += 1,
            (Some(step), _) if !config_places.contains_key(step) => {
                merged.push(live[left].clone());
                left += 1;
            }
            (_, Some(step)) => {
                let value = match live_places.get(step) {
                    Some(index) => merge_at(shape.item(), &live[*index], &config[right]),
                    None => config[right].clone(),
                };
                merged.push(value);
                done.insert(step.clone());
                right += 1;
            }
            // Shared, so the configuration still has it to come.
            (Some(_), None) => left += 1,
        }
    }
}

/// Takes a path out of a value. What held nothing else goes with it.
pub fn remove(of: &TypeDef, value: &mut Value, path: &[Step]) {
    remove_at(Shape::Struct(of), value, path);
}

fn remove_at(shape: Shape<'_>, value: &mut Value, path: &[Step]) {
    let [first, rest @ ..] = path else { return };
    match (value, first) {
        (Value::Object(map), step) => {
            let Some(name) = step.as_field() else { return };
            if rest.is_empty() {
                map.remove(name);
            } else if let Some(below) = map.get_mut(name) {
                remove_at(shape.child(name), below, rest);
                if is_hollow(below) {
                    map.remove(name);
                }
            }
        }
        (Value::Array(items), step) => {
            let Some(index) = steps(shape, items).iter().position(|one| one == step) else { return };
            if rest.is_empty() {
                items.remove(index);
            } else {
                remove_at(shape.item(), &mut items[index], rest);
            }
        }
        _ => {}
    }
}

/// What in a configuration the type does not have: `.spec.nope: field not declared in schema`.
pub fn undeclared(of: &TypeDef, value: &Value) -> Vec<String> {
    let mut found = Vec::new();
    undeclared_at(Shape::Struct(of), value, &mut Vec::new(), &mut found);
    found
}

fn undeclared_at(shape: Shape<'_>, value: &Value, path: &mut Vec<Step>, found: &mut Vec<String>) {
    match (shape, value) {
        (Shape::Struct(of), Value::Object(map)) => {
            for (name, value) in map {
                path.push(Step::field(name));
                if of.field(name).is_none() && !(path.len() == 1 && matches!(name.as_str(), "apiVersion" | "kind")) {
                    found.push(format!("{}: field not declared in schema", display(path)));
                } else {
                    undeclared_at(shape.child(name), value, path, found);
                }
                path.pop();
            }
        }
        (Shape::Map(_), Value::Object(map)) => {
            for (name, value) in map {
                path.push(Step::field(name));
                undeclared_at(shape.child(name), value, path, found);
                path.pop();
            }
        }
        (Shape::Set | Shape::Items { .. }, Value::Array(items)) => {
            let mut seen = BTreeSet::new();
            for item in items {
                let step = step(shape, item);
                if !seen.insert(step.clone()) {
                    found.push(format!("{}: duplicate entries for key {step}", display(path)));
                }
                path.push(step);
                undeclared_at(shape.item(), item, path, found);
                path.pop();
            }
        }
        _ => {}
    }
}

/// What an object of a type has before anybody set anything: the fields that are always written.
pub fn empty(of: &TypeDef) -> Value {
    let mut map = Map::new();
    for field in of.fields.iter().filter(|field| field.always) {
        let value = match &field.kind {
            _ if field.pointer => Value::Null,
            FieldKind::Type(id) => empty(id.get()),
            FieldKind::String => "".into(),
            FieldKind::Bool => false.into(),
            FieldKind::Int32 | FieldKind::Int64 | FieldKind::Double => 0.into(),
            _ => Value::Null,
        };
        map.insert(field.name.to_owned(), value);
    }
    Value::Object(map)
}
