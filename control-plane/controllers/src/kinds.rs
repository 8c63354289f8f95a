//! Which kinds the server has: what is not known beforehand has to be asked.

use kube::Client;
use kube::core::ApiResource;
use kube::discovery::{Discovery, Scope, verbs};

use crate::error::Error;

#[derive(Clone, Debug)]
pub struct Kind {
    pub resource: ApiResource,
    pub namespaced: bool,
}

/// All kinds whose objects can be listed, watched and deleted, each in its preferred version.
pub async fn deletable(client: &Client) -> Result<Vec<Kind>, Error> {
    let discovery = match Discovery::new(client.clone()).run_aggregated().await {
        Ok(discovery) => discovery,
        Err(error) => {
            tracing::debug!(%error, "no aggregated discovery; asking group by group");
            Discovery::new(client.clone()).run().await?
        }
    };
    let mut kinds = Vec::new();
    for group in discovery.groups_alphabetical() {
        for (resource, capabilities) in group.recommended_resources() {
            let can = |verb| capabilities.supports_operation(verb);
            if can(verbs::LIST) && can(verbs::WATCH) && can(verbs::DELETE) {
                kinds.push(Kind { resource, namespaced: capabilities.scope == Scope::Namespaced });
            }
        }
    }
    kinds.sort_by(|a, b| name(&a.resource).cmp(&name(&b.resource)));
    Ok(kinds)
}

fn name(resource: &ApiResource) -> (&str, &str) {
    (&resource.group, &resource.plural)
}
