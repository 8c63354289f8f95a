//! Which resources the cluster has, and what users call them.

use anyhow::{Result, bail};
use kube::Client;
use serde::Deserialize;

use super::{escape, get};

const DISCOVERY: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

#[derive(Deserialize)]
struct GroupList {
    #[serde(default)]
    items: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    metadata: GroupMeta,
    #[serde(default)]
    versions: Vec<Version>,
}

#[derive(Deserialize)]
struct GroupMeta {
    #[serde(default)]
    name: String,
}

#[derive(Deserialize)]
struct Version {
    version: String,
    #[serde(default)]
    resources: Vec<ResourceEntry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ResourceEntry {
    resource: String,
    response_kind: ResponseKind,
    scope: String,
    #[serde(default)]
    singular_resource: String,
    #[serde(default)]
    short_names: Vec<String>,
    #[serde(default)]
    categories: Vec<String>,
    #[serde(default)]
    verbs: Vec<String>,
}

#[derive(Deserialize)]
struct ResponseKind {
    kind: String,
}

/// One resource of the API.
#[derive(Clone, Debug)]
pub struct Resource {
    pub group: String,
    pub version: String,
    pub kind: String,
    pub plural: String,
    pub namespaced: bool,
    singular: String,
    short_names: Vec<String>,
    categories: Vec<String>,
    listable: bool,
}

impl Resource {
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    /// `deployment.apps/hello`, as kubectl names what it did.
    pub fn describe(&self, name: &str) -> String {
        let kind = self.kind.to_lowercase();
        if self.group.is_empty() { format!("{kind}/{name}") } else { format!("{kind}.{}/{name}", self.group) }
    }

    /// The collection; `None` is all namespaces.
    pub fn path(&self, namespace: Option<&str>) -> String {
        let root = if self.group.is_empty() { "/api".to_owned() } else { format!("/apis/{}", self.group) };
        match namespace.filter(|_| self.namespaced) {
            Some(namespace) => format!("{root}/{}/namespaces/{}/{}", self.version, escape(namespace), self.plural),
            None => format!("{root}/{}/{}", self.version, self.plural),
        }
    }

    fn is_called(&self, name: &str) -> bool {
        let (name, group) = name.split_once('.').unwrap_or((name, ""));
        (group.is_empty() || group == self.group)
            && (self.plural == name
                || self.singular == name
                || self.kind.to_lowercase() == name
                || self.short_names.iter().any(|short| short == name))
    }
}

/// All resources, in the order in which the server prefers them.
pub struct Resources(Vec<Resource>);

impl Resources {
    pub async fn discover(client: &Client) -> Result<Self> {
        let mut resources = Vec::new();
        for root in ["/api", "/apis"] {
            let list: GroupList = get(client, root, DISCOVERY).await?;
            for group in list.items {
                for version in group.versions {
                    for entry in version.resources {
                        resources.push(Resource {
                            group: group.metadata.name.clone(),
                            version: version.version.clone(),
                            kind: entry.response_kind.kind,
                            plural: entry.resource,
                            namespaced: entry.scope == "Namespaced",
                            singular: entry.singular_resource,
                            short_names: entry.short_names,
                            categories: entry.categories,
                            listable: entry.verbs.iter().any(|verb| verb == "list"),
                        });
                    }
                }
            }
        }
        Ok(Self(resources))
    }

    /// What a user calls `pods`, `po`, `deployments.apps`, or a category such as `all`.
    pub fn called(&self, name: &str) -> Result<Vec<&Resource>> {
        let name = name.to_lowercase();
        if let Some(resource) = self.0.iter().find(|resource| resource.is_called(&name)) {
            return Ok(vec![resource]);
        }
        let category: Vec<_> =
            self.0.iter().filter(|resource| resource.listable && resource.categories.contains(&name)).collect();
        if category.is_empty() {
            bail!("the cluster has no resource called {name:?}");
        }
        Ok(category)
    }

    pub fn of_kind(&self, api_version: &str, kind: &str) -> Result<&Resource> {
        match self.0.iter().find(|resource| resource.kind == kind && resource.api_version() == api_version) {
            Some(resource) => Ok(resource),
            None => bail!("the cluster has no kind {kind:?} in version {api_version:?}"),
        }
    }
}
