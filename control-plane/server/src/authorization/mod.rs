//! What an identity may do. Until roles are objects of the API the rules are fixed: masters may do
//! everything, nodes what their pods need, the components what their work needs.

mod node;
mod roles;

use sampan_api::Error;

use crate::app::App;
use crate::identity::{AUTHENTICATED, BOOTSTRAPPERS, Identity, MASTERS};

/// One action, as authorization sees it. `path` is set for what is no resource.
#[derive(Clone, Copy, Debug, Default)]
pub struct Attributes<'a> {
    pub verb: &'a str,
    pub group: &'a str,
    pub resource: &'a str,
    pub subresource: &'a str,
    pub namespace: &'a str,
    pub name: &'a str,
    pub path: Option<&'a str>,
    pub field_selector: &'a str,
}

/// Paths that everyone may read, and those that need a name.
const PUBLIC: &[&str] = &["/healthz", "/livez", "/readyz", "/version", "/version/", "/cacerts"];
const DISCOVERY: &[&str] = &["/api", "/apis", "/openapi"];
const NODE_CERTIFICATE: &str = "/bootstrap/v1/node-certificate";

fn below(path: &str, root: &str) -> bool {
    path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Whether the identity may do it.
pub fn allows(app: &App, identity: &Identity, attributes: &Attributes<'_>) -> bool {
    if identity.in_group(MASTERS) {
        return true;
    }
    if let Some(path) = attributes.path {
        let known = identity.in_group(AUTHENTICATED);
        return match attributes.verb {
            "get" | "head" => {
                PUBLIC.iter().any(|public| below(path, public))
                    || (known && DISCOVERY.iter().any(|root| below(path, root)))
            }
            "post" => path == NODE_CERTIFICATE && identity.in_group(BOOTSTRAPPERS),
            _ => false,
        };
    }
    if identity.in_group(AUTHENTICATED) && roles::covered(roles::EVERYONE, attributes) {
        return true;
    }
    if let Some(name) = identity.node_name()
        && node::allows(app, name, attributes)
    {
        return true;
    }
    roles::of(&identity.user).is_some_and(|rules| roles::covered(rules, attributes))
}

/// As [`allows`], with the refusal in the reference's words.
pub fn require(app: &App, identity: &Identity, attributes: &Attributes<'_>) -> Result<(), Error> {
    if allows(app, identity, attributes) {
        return Ok(());
    }
    Err(refusal(identity, attributes))
}

/// The rules that hold for an identity, as a `SelfSubjectRulesReview` lists them, and whether these
/// are all: a node's depend on its pods.
pub fn rules(identity: &Identity) -> (Vec<serde_json::Value>, Vec<serde_json::Value>, bool) {
    use serde_json::json;
    if identity.in_group(MASTERS) {
        return (
            vec![json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]})],
            vec![json!({"verbs": ["*"], "nonResourceURLs": ["*"]})],
            true,
        );
    }
    let known = identity.in_group(AUTHENTICATED);
    let node = identity.node_name().is_some();
    let tables = [known.then_some(roles::EVERYONE), node.then_some(roles::NODE), roles::of(&identity.user)];
    let resources = tables
        .into_iter()
        .flatten()
        .flatten()
        .map(|rule| json!({"verbs": rule.verbs, "apiGroups": rule.groups, "resources": rule.resources}))
        .collect();
    let mut paths: Vec<String> = PUBLIC.iter().map(|path| (*path).to_owned()).collect();
    if known {
        paths.extend(DISCOVERY.iter().flat_map(|root| [(*root).to_owned(), format!("{root}/*")]));
    }
    (resources, vec![json!({"verbs": ["get"], "nonResourceURLs": paths})], !node)
}

fn refusal(identity: &Identity, attributes: &Attributes<'_>) -> Error {
    let Attributes { verb, group, resource, subresource, namespace, name, path, .. } = *attributes;
    let user = &identity.user;
    if let Some(path) = path {
        return Error::Forbidden {
            resource: String::new(),
            name: String::new(),
            message: format!("forbidden: User {user:?} cannot {verb} path {path:?}"),
        };
    }
    let qualified = if group.is_empty() { resource.to_owned() } else { format!("{resource}.{group}") };
    let what = if subresource.is_empty() { resource.to_owned() } else { format!("{resource}/{subresource}") };
    let object = if name.is_empty() { String::new() } else { format!(" {name:?}") };
    let place = if namespace.is_empty() {
        "at the cluster scope".to_owned()
    } else {
        format!("in the namespace {namespace:?}")
    };
    Error::Forbidden {
        message: format!(
            "{qualified}{object} is forbidden: User {user:?} cannot {verb} resource {what:?} in API group {group:?} {place}"
        ),
        resource: qualified,
        name: name.to_owned(),
    }
}
