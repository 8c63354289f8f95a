//! Admission: what the cluster adds to an object, or holds against it, before it is validated.

mod namespace_lifecycle;
mod node_restriction;
mod node_taint;
mod priority;
mod runtime_class;
mod service_account;
mod tolerations;

use sampan_api::{Error, Kind};
use serde_json::Value;

use crate::app::App;
use crate::identity::Identity;

/// A write that wants in.
pub struct Attributes<'a> {
    pub kind: &'static Kind,
    pub namespace: &'a str,
    pub name: &'a str,
    pub subresource: &'a str,
    pub identity: &'a Identity,
}

impl Attributes<'_> {
    fn is(&self, group: &str, plural: &str) -> bool {
        self.kind.group == group && self.kind.plural == plural && self.subresource.is_empty()
    }

    /// A refusal, as the reference words them.
    fn forbidden(&self, reason: &str) -> Error {
        let resource = self.kind.qualified_plural();
        Error::Forbidden {
            message: format!("{resource} {:?} is forbidden: {reason}", self.name),
            resource,
            name: self.name.to_owned(),
        }
    }
}

/// Runs on a new object; may change it.
pub async fn create(app: &App, attributes: &Attributes<'_>, object: &mut Value) -> Result<(), Error> {
    namespace_lifecycle::create(app, attributes)?;
    node_restriction::create(attributes, object)?;
    if attributes.is("", "nodes") {
        node_taint::create(object);
    }
    if attributes.is("", "pods") {
        service_account::create(app, attributes, object).await?;
        priority::create(attributes, object)?;
        runtime_class::create(app, attributes, object)?;
        tolerations::create(object);
    }
    Ok(())
}

/// Runs on a changed object; may change it.
pub fn update(attributes: &Attributes<'_>, object: &mut Value, old: &Value) -> Result<(), Error> {
    node_restriction::update(attributes, object, old)?;
    if attributes.is("", "pods") {
        priority::update(object, old);
    }
    Ok(())
}

pub fn delete(attributes: &Attributes<'_>) -> Result<(), Error> {
    namespace_lifecycle::delete(attributes)
}

/// The `spec` of an object, made where there is none.
fn spec(object: &mut Value) -> Option<&mut serde_json::Map<String, Value>> {
    let object = object.as_object_mut()?;
    object.entry("spec").or_insert_with(|| Value::Object(serde_json::Map::new())).as_object_mut()
}

/// A list within a map, made where there is none.
fn list<'a>(map: &'a mut serde_json::Map<String, Value>, key: &str) -> Option<&'a mut Vec<Value>> {
    let entry = map.entry(key).or_insert_with(|| Value::Array(Vec::new()));
    if entry.is_null() {
        *entry = Value::Array(Vec::new());
    }
    entry.as_array_mut()
}
