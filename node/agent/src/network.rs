//! The node's network, as far as a pod's life needs it.

use std::net::IpAddr;

use async_trait::async_trait;
use sampan_network::Network;

use crate::pod::shared::Addresses;

#[async_trait]
impl Addresses for Network {
    async fn assign(&self, namespace: &str, pod_uid: &str) -> anyhow::Result<IpAddr> {
        Ok(Network::assign(self, namespace, pod_uid).await?)
    }

    async fn release(&self, pod_uid: &str) -> anyhow::Result<()> {
        Ok(Network::release(self, pod_uid).await?)
    }

    async fn remove_namespace(&self, namespace: &str) -> anyhow::Result<()> {
        Ok(self.remove_tenant(namespace).await?)
    }

    async fn is_assigned(&self, pod_uid: &str) -> bool {
        Network::is_assigned(self, pod_uid).await
    }

    async fn assigned(&self) -> Vec<String> {
        Network::assigned(self).await.into_iter().map(|assignment| assignment.pod_uid).collect()
    }
}
