//! Nothing is made in a namespace that is not there or is ending, and the cluster's own namespaces
//! stay.

use sampan_api::Error;
use serde_json::json;

use super::Attributes;
use crate::app::App;

const IMMORTAL: &[&str] = &["default", "kube-system", "kube-public"];

pub fn create(app: &App, attributes: &Attributes<'_>) -> Result<(), Error> {
    if !attributes.kind.namespaced() {
        return Ok(());
    }
    let name = attributes.namespace;
    let Some(namespace) = app.find("", "namespaces", "", name) else {
        return Err(Error::NotFound { resource: "namespaces".to_owned(), name: name.to_owned() });
    };
    let bytes = namespace.bytes();
    let may_be_ending = bytes.windows(19).any(|window| window == b"\"deletionTimestamp\"");
    if may_be_ending && namespace.value().pointer("/metadata/deletionTimestamp").is_some() {
        let refusal = attributes
            .forbidden(&format!("unable to create new content in namespace {name} because it is being terminated"));
        let (_, mut status) = refusal.status();
        if let Some(details) = status.get_mut("details").and_then(serde_json::Value::as_object_mut) {
            let cause = json!([{
                "reason": "NamespaceTerminating",
                "message": format!("namespace {name} is being terminated"),
                "field": "metadata.namespace",
            }]);
            details.insert("causes".to_owned(), cause);
        }
        return Err(Error::Status(Box::new(status)));
    }
    Ok(())
}

pub fn delete(attributes: &Attributes<'_>) -> Result<(), Error> {
    if attributes.is("", "namespaces") && IMMORTAL.contains(&attributes.name) {
        return Err(attributes.forbidden("this namespace may not be deleted"));
    }
    Ok(())
}
