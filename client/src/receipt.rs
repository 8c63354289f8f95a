//! Writes whose answer is read only as far as a writer asks: to decode the whole object again costs
//! more than to encode it did.

use kube::api::{Patch, PatchParams, PostParams};
use kube::core::Request;
use kube::{Client, Resource};
use serde::{Deserialize, Serialize};

/// The name and version that a write gave an object.
#[derive(Clone, Debug, Deserialize)]
pub struct Receipt {
    metadata: Metadata,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    name: String,
    resource_version: String,
}

impl Receipt {
    pub fn name(&self) -> &str {
        &self.metadata.name
    }

    /// As text, as the API has it.
    pub fn resource_version(&self) -> &str {
        &self.metadata.resource_version
    }
}

/// Creates an object in a namespace.
pub async fn create<K>(client: &Client, namespace: &str, object: &K) -> kube::Result<Receipt>
where
    K: Resource<DynamicType = ()> + Serialize,
{
    let body = serde_json::to_vec(object).map_err(kube::Error::SerdeError)?;
    let request = Request::new(K::url_path(&(), Some(namespace))).create(&PostParams::default(), body);
    client.request(request.map_err(kube::Error::BuildRequest)?).await
}

/// Patches the status of an object in a namespace.
pub async fn patch_status<K, P>(client: &Client, namespace: &str, name: &str, patch: &Patch<P>) -> kube::Result<Receipt>
where
    K: Resource<DynamicType = ()>,
    P: Serialize + std::fmt::Debug,
{
    let request = Request::new(K::url_path(&(), Some(namespace)));
    let request = request.patch_subresource("status", name, &PatchParams::default(), patch);
    client.request(request.map_err(kube::Error::BuildRequest)?).await
}
