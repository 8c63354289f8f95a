//! Leases: what is made under one is not collected as garbage while something is being made of it.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;

use crate::client::{Containerd, SHORT, call, namespaced};
use crate::error::{Error, Result};
use crate::proto::containerd::services::leases::v1 as leases;
use leases::leases_client::LeasesClient;

/// After this nobody needs a lease of ours: whoever took it has died.
const LEASE: Duration = Duration::from_secs(24 * 3600);

pub(crate) struct Lease {
    client: LeasesClient<Channel>,
    id: String,
    pub header: MetadataValue<Ascii>,
}

impl Lease {
    /// `purpose` is a word for its name.
    pub async fn take(client: &Containerd, purpose: &str) -> Result<Lease> {
        let mut client = LeasesClient::new(client.channel());
        let id = format!("sampan-{purpose}-{}", uuid::Uuid::new_v4());
        let header = id.parse().map_err(|_| Error::Answer { call: "Leases.Create", missing: "valid id" })?;
        let labels = BTreeMap::from([("containerd.io/gc.expire".into(), rfc3339(SystemTime::now() + LEASE))]);
        let request = namespaced(leases::CreateRequest { id: id.clone(), labels });
        call("Leases.Create", SHORT, client.create(request)).await?;
        Ok(Lease { client, id, header })
    }

    pub async fn give_back(mut self) {
        let request = namespaced(leases::DeleteRequest { id: self.id.clone(), sync: false });
        if let Err(error) = call("Leases.Delete", SHORT, self.client.delete(request)).await {
            tracing::warn!(lease = self.id, %error, "a lease stays until it expires");
        }
    }
}

pub(crate) fn rfc3339(time: SystemTime) -> String {
    // Such a time has this form when it is printed.
    prost_types::Timestamp::from(time).to_string()
}
