//! Which objects a list, watch or delete of a collection is about.

use sampan_api::selector::{FieldSelector, LabelSelector};
use sampan_api::{Error, Kind};
use serde_json::Value;

use super::Context;
use crate::cache::Object;
use crate::registry::shown;

enum Target {
    Name,
    Namespace,
    Field(usize),
    /// Of a kind that is stored as another: read from the object as the kind shows it.
    Shown(&'static Kind, fn(&Value) -> String),
}

/// Label and field selectors, on what the cache keeps beside an object.
pub struct Selection {
    labels: Option<LabelSelector>,
    fields: Vec<(Target, bool, String)>,
}

impl Selection {
    pub fn read(context: &Context, kind: &'static Kind) -> Result<Self, Error> {
        let text = context.query.text("labelSelector");
        let labels = match text {
            "" => None,
            text => Some(LabelSelector::parse(text)?),
        };
        let mut fields = Vec::new();
        let selector = FieldSelector::parse(context.query.text("fieldSelector"))?;
        for requirement in selector.terms() {
            let target = target(kind, &requirement.path)?;
            fields.push((target, requirement.equal, requirement.value.clone()));
        }
        if !context.path.name.is_empty() {
            fields.push((Target::Name, true, context.path.name.clone()));
        }
        Ok(Self { labels, fields })
    }

    pub fn is_everything(&self) -> bool {
        self.labels.is_none() && self.fields.is_empty()
    }

    pub fn matches(&self, object: &Object) -> bool {
        let fields = self.fields.iter().all(|(target, equal, value)| {
            let computed;
            let own = match target {
                Target::Name => &*object.name,
                Target::Namespace => &*object.namespace,
                Target::Field(at) => object.fields.get(*at).map_or("", String::as_str),
                Target::Shown(kind, get) => {
                    computed = get(&shown(kind, object));
                    &computed
                }
            };
            (own == value) == *equal
        });
        fields && self.labels.as_ref().is_none_or(|labels| labels.matches_with(|key| object.label(key)))
    }
}

fn target(kind: &'static Kind, field: &str) -> Result<Target, Error> {
    match field {
        "metadata.name" => return Ok(Target::Name),
        "metadata.namespace" => return Ok(Target::Namespace),
        _ => {}
    }
    if let Some((at, known)) = kind.selectable_fields.iter().enumerate().find(|(_, known)| known.path == field) {
        return Ok(if kind.stored_as.is_some() { Target::Shown(kind, known.get) } else { Target::Field(at) });
    }
    Err(Error::BadRequest(if kind.selectable_fields.is_empty() {
        format!("{field:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"")
    } else {
        format!("field label not supported: {field}")
    }))
}
