//! Services: what is to be served, computed from the cluster's objects, and the two ways to serve
//! it.

pub(crate) mod catalog;
pub(crate) mod conntrack;
pub(crate) mod model;
mod netfilter;
pub(crate) mod nft;
pub(crate) mod proxy;

use std::net::Ipv4Addr;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use catalog::Catalog;
use model::{Key, Port};
use proxy::Proxy;

/// Changes that come together are applied together: a change at once, the next ones no earlier than so long after it.
const TOGETHER: Duration = Duration::from_millis(2);
const AGAIN: Duration = Duration::from_secs(5);

/// Serves the catalog's Services on this node.
pub(crate) struct Services {
    pub(crate) catalog: Catalog,
    pub(crate) node_name: String,
    pub(crate) table: Option<nft::Table>,
    pub(crate) proxy: Proxy,
    pub(crate) flows: conntrack::Flows,
    pub(crate) node_addresses: Vec<Ipv4Addr>,
}

impl Services {
    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        // What one begins to do is done before another one may take it away.
        while !shutdown.is_cancelled() {
            let complete = self.sync().await;
            let next = Instant::now() + TOGETHER;
            let again = async { if complete { std::future::pending().await } else { sleep(AGAIN).await } };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.catalog.changed() => sleep_until(next).await,
                () = again => {}
            }
        }
    }

    /// Applies what changed; false if some of it is to be tried again.
    pub(crate) async fn sync(&mut self) -> bool {
        let changes = self.changes();
        let mut complete = true;
        if let Some(table) = &mut self.table {
            if let Err(error) = table.apply(&changes).await {
                // What was there stays in force, and the guards hold for the rest.
                tracing::error!(%error, "Services are not up to date; trying again");
                complete = false;
            }
            let stale = self.flows.stale(&changes, &self.node_addresses);
            if !stale.is_empty()
                && let Err(error) = conntrack::end(stale).await
            {
                tracing::warn!(%error, "datagrams may still go to endpoints that are gone");
            }
        }
        self.proxy.apply(&changes);
        complete && !self.proxy.incomplete()
    }

    fn changes(&self) -> Vec<(Key, Vec<Port>)> {
        let changed = self.catalog.take_changed();
        self.catalog.read(|state| {
            changed
                .into_iter()
                .map(|key| {
                    let ports = state
                        .service(&key.0, &key.1)
                        .map(|service| model::ports(service, state.slices(&key), &self.node_name))
                        .unwrap_or_default();
                    (key, ports)
                })
                .collect()
        })
    }
}
