//! What every controller is given.

use std::sync::Arc;

use kube::Client;
use sampan_client::{Clock, EventRecorder, Informers};
use tokio_util::sync::CancellationToken;

use crate::Config;

#[derive(Clone)]
pub struct Context {
    pub informers: Informers,
    pub client: Client,
    pub config: Arc<Config>,
    pub clock: Clock,
    pub shutdown: CancellationToken,
}

impl Context {
    /// Tells events in the name of one controller.
    pub fn recorder(&self, component: &str) -> EventRecorder {
        EventRecorder::with_clock(self.client.clone(), component, None, self.clock.clone())
    }
}
