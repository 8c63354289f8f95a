//! Server-side apply: who owns which field (`metadata.managedFields`), and merging what a manager
//! applies with what the others own.

mod managers;
mod set;
mod typed;

use serde_json::{Map, Value};

use crate::error::{Cause, Error};
use crate::kind::Kind;
use crate::schema::{Schema, TypeDef};
use managers::{Entry, Managers, Operation};
use set::{Set, Step, display};

/// Where `kubectl apply` without the server's help keeps what it applied last.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Who owns what was there before anybody applied.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";

/// Who writes, and when.
#[derive(Clone, Copy, Debug)]
pub struct Writer<'a> {
    pub manager: &'a str,
    /// Empty for the object itself.
    pub subresource: &'a str,
    /// RFC 3339 in whole seconds.
    pub now: &'a str,
}

/// Notes in `new` who wrote what of it, in an update, a patch or (without `live`) a create.
pub fn update(kind: &Kind, live: Option<&Value>, new: &mut Value, writer: Writer<'_>) {
    let Some(of) = Schema::get().type_(kind.schema) else { return };
    let given = take_managed(new);
    let stored = || live.and_then(managed);
    let mut managers = match given {
        // A list of one empty entry asks for forgetting them all.
        Some(list) if list.len() == 1 && is_empty_entry(&list[0]) => Managers::default(),
        Some(list) if live.and_then(managed_list) == Some(&list) => Managers::stored(list).unwrap_or_default(),
        Some(list) if !list.is_empty() => Managers::decode(list).or_else(stored).unwrap_or_default(),
        _ => stored().unwrap_or_default(),
    };
    // Whoever asked that nobody is noted is left alone.
    if live.is_some() && managers.is_empty() {
        return;
    }
    let owned = Owned { of, kind, subresource: writer.subresource };
    match live {
        Some(live) => owned.note(&mut managers, live, new, writer),
        None => owned.note(&mut managers, &typed::empty(of), new, writer),
    }
    put_managed(new, managers);
}

/// What `live` (or nothing) becomes when `writer` applies `config`: merged, with conflicts as errors
/// unless `force`. The answer still needs defaults and validation.
pub fn apply(
    kind: &Kind,
    live: Option<&Value>,
    config: &Value,
    writer: Writer<'_>,
    force: bool,
) -> Result<Value, Error> {
    let of =
        Schema::get().type_(kind.schema).ok_or_else(|| Error::Internal(format!("no schema of {}", kind.schema)))?;
    if config.pointer("/metadata/managedFields").is_some_and(|fields| !fields.is_null()) {
        return Err(Error::BadRequest("metadata.managedFields must be nil".to_owned()));
    }
    let undeclared = typed::undeclared(of, config);
    if !undeclared.is_empty() {
        return Err(untyped(kind, config, &undeclared));
    }
    let owned = Owned { of, kind, subresource: writer.subresource };
    let mut managers = live.and_then(managed).unwrap_or_default();
    let mut base = owned.base(live);
    take_managed(&mut base);
    if let Some(live) = live.filter(|_| managers.is_empty()) {
        let before = Writer { manager: BEFORE_FIRST_APPLY, ..writer };
        owned.note(&mut managers, &typed::empty(of), live, before);
    }
    let mut applied = match owned.apply(managers.clone(), &base, config, writer, force) {
        // kubectl's own earlier applies are its to take over.
        Err(conflicts) if !force && owned.was_last_applied(live, &conflicts, writer) => {
            owned.apply(managers, &base, config, writer, true).map_err(conflict_error)?
        }
        outcome => outcome.map_err(conflict_error)?,
    };
    if writer.manager == "kubectl" {
        renew_last_applied(&mut applied, config);
    }
    Ok(applied)
}

/// Fields that somebody else owns, with the entry that says so.
type Conflicts = Vec<(Entry, Vec<Step>)>;

/// The part of a kind that a request may own fields of.
struct Owned<'a> {
    of: &'static TypeDef,
    kind: &'a Kind,
    subresource: &'a str,
}

impl Owned<'_> {
    fn base(&self, live: Option<&Value>) -> Value {
        live.cloned().unwrap_or_else(|| typed::empty(self.of))
    }

    /// Drops what nobody owns: the object's identity, and the part that another endpoint writes.
    fn strip(&self, set: &mut Set) {
        const IDENTITY: [&str; 9] = [
            "name",
            "namespace",
            "creationTimestamp",
            "selfLink",
            "uid",
            "clusterName",
            "generation",
            "managedFields",
            "resourceVersion",
        ];
        set.drop_fields(&["apiVersion", "kind", "metadata"]);
        set.drop_below("metadata", &IDENTITY);
        let has_status = self.kind.subresources.iter().any(|one| one.name == "status");
        match self.subresource {
            "status" => set.retain_top(|name| matches!(name, "status" | "metadata")),
            "" if has_status => set.retain_top(|name| name != "status"),
            _ => {}
        }
    }

    /// Counts what differs from `old` to `new` as `writer`'s.
    fn note(&self, managers: &mut Managers, old: &Value, new: &Value, writer: Writer<'_>) {
        let mut comparison = typed::compare(self.of, old, new);
        for set in [&mut comparison.added, &mut comparison.modified, &mut comparison.removed] {
            self.strip(set);
        }
        let typed::Comparison { added: mut changed, modified, removed } = comparison;
        changed.extend(modified);
        managers.disown(&removed);
        if changed.is_empty() {
            return;
        }
        managers.give(changed, writer.manager, &self.kind.api_version(), writer.subresource, writer.now);
        managers.cap_updates();
    }

    fn apply(
        &self,
        mut managers: Managers,
        live: &Value,
        config: &Value,
        writer: Writer<'_>,
        force: bool,
    ) -> Result<Value, Conflicts> {
        let mut wanted = typed::fields(self.of, config);
        self.strip(&mut wanted);
        let mut merged = typed::merge(self.of, live, config);
        let api_version = self.kind.api_version();
        let mine = managers.take(writer.manager, Operation::Apply, writer.subresource);
        // What this manager applied before and nobody else holds goes with its wish for it.
        for path in mine.as_ref().map(|entry| entry.set().difference(&wanted).paths()).unwrap_or_default() {
            if !wanted.touches(&path) && !managers.touch(&path) {
                typed::remove(self.of, &mut merged, &path);
            }
        }
        let mut comparison = typed::compare(self.of, live, &merged);
        for set in [&mut comparison.added, &mut comparison.modified, &mut comparison.removed] {
            self.strip(set);
        }
        let unchanged = comparison.is_same();
        let typed::Comparison { added: mut changed, modified, removed } = comparison;
        changed.extend(modified);
        let conflicts = managers.conflicts(&changed);
        if !conflicts.is_empty() && !force {
            return Err(conflicts);
        }
        managers.disown(&changed);
        managers.disown(&removed);
        let same_fields = mine.as_ref().is_some_and(|entry| *entry.set() == wanted);
        let time = mine.and_then(|entry| entry.time);
        if !wanted.is_empty() {
            let entry = managers.entry(writer.manager, Operation::Apply, &api_version, writer.subresource);
            entry.replace(wanted);
            entry.time = if unchanged { time.filter(|_| same_fields) } else { Some(writer.now.to_owned()) };
        }
        put_managed(&mut merged, managers);
        Ok(merged)
    }

    /// Whether all conflicts are about what kubectl noted in its annotation.
    fn was_last_applied(&self, live: Option<&Value>, conflicts: &Conflicts, writer: Writer<'_>) -> bool {
        if writer.manager != "kubectl" {
            return false;
        }
        let Some(last) = live.and_then(last_applied).and_then(|text| serde_json::from_str::<Value>(text).ok()) else {
            return false;
        };
        let last = typed::fields(self.of, &last);
        conflicts.iter().all(|(_, path)| last.touches(path))
    }
}

fn last_applied(object: &Value) -> Option<&str> {
    object.get("metadata")?.get("annotations")?.get(LAST_APPLIED)?.as_str().filter(|text| !text.is_empty())
}

/// An annotation that is there is kept true, for clients that still read it.
fn renew_last_applied(object: &mut Value, config: &Value) {
    if last_applied(object).is_none() {
        return;
    }
    let mut config = config.clone();
    if let Some(annotations) = config.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
        annotations.remove(LAST_APPLIED);
    }
    if let Some(annotations) = object.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
        annotations.insert(LAST_APPLIED.to_owned(), format!("{config}\n").into());
    }
}

fn is_empty_entry(entry: &Value) -> bool {
    entry.as_object().is_some_and(|entry| {
        entry
            .values()
            .all(|value| value.is_null() || value.as_str() == Some("") || value.as_object().is_some_and(Map::is_empty))
    })
}

fn managed_list(object: &Value) -> Option<&Vec<Value>> {
    object.get("metadata")?.get("managedFields")?.as_array()
}

fn managed(object: &Value) -> Option<Managers> {
    Managers::stored(managed_list(object)?.clone())
}

fn take_managed(object: &mut Value) -> Option<Vec<Value>> {
    match object.get_mut("metadata")?.as_object_mut()?.remove("managedFields")? {
        Value::Array(list) => Some(list),
        _ => None,
    }
}

fn put_managed(object: &mut Value, managers: Managers) {
    take_managed(object);
    if managers.is_empty() {
        return;
    }
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.insert("managedFields".to_owned(), managers.encode());
    }
}

fn untyped(kind: &Kind, config: &Value, errors: &[String]) -> Error {
    let text = |pointer: &str| config.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let (namespace, name) = (text("/metadata/namespace"), text("/metadata/name"));
    let errors = match errors {
        [one] => one.clone(),
        several => format!("errors:\n  {}", several.join("\n  ")),
    };
    Error::Unclassified(format!(
        "failed to create typed patch object ({namespace}/{name}; {}/{}, Kind={}): {errors}",
        kind.group, kind.version, kind.kind
    ))
}

fn conflict_error(conflicts: Conflicts) -> Error {
    let causes = conflicts
        .iter()
        .map(|(entry, path)| Cause {
            reason: "FieldManagerConflict".to_owned(),
            message: format!("conflict with {entry}"),
            field: display(path),
        })
        .collect();
    let message = match &conflicts[..] {
        [(entry, path)] => format!("Apply failed with 1 conflict: conflict with {entry}: {}", display(path)),
        several => {
            let mut lines: Vec<String> = Vec::new();
            let mut last = None;
            for (entry, path) in several {
                let name = entry.to_string();
                if last.as_ref() != Some(&name) {
                    lines.push(format!("conflicts with {name}:"));
                    last = Some(name);
                }
                lines.push(format!("- {}", display(path)));
            }
            format!("Apply failed with {} conflicts: {}", several.len(), lines.join("\n"))
        }
    };
    Error::ApplyConflict { message, causes }
}

#[cfg(test)]
mod tests;
