//! Tells containerd what happened, in order.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use prost::Message;
use prost_types::{Any, Timestamp};
use tokio::sync::{mpsc, oneshot};

use crate::proto::events::{Envelope, ForwardRequest};
use crate::ttrpc::Client;

const SERVICE: &str = "containerd.services.events.ttrpc.v1.Events";
/// containerd may be restarting: an event waits this long, then those behind it have their turn.
const PATIENCE: Duration = Duration::from_secs(60);
const AGAIN: Duration = Duration::from_millis(250);

enum Item {
    Event(Envelope),
    Flush(oneshot::Sender<()>),
}

#[derive(Clone)]
pub struct Events {
    namespace: String,
    queue: mpsc::UnboundedSender<Item>,
}

impl Events {
    /// Events of `namespace` to the containerd that listens at `address`; with none, to nobody.
    pub fn start(namespace: &str, address: Option<PathBuf>) -> Events {
        let (queue, items) = mpsc::unbounded_channel();
        tokio::spawn(forward(address, items));
        Events { namespace: namespace.into(), queue }
    }

    /// Queues an event; never waits.
    pub fn publish(&self, topic: &str, name: &str, event: &impl Message) {
        let event = Any { type_url: format!("containerd.events.{name}"), value: event.encode_to_vec() };
        let envelope = Envelope {
            timestamp: Some(Timestamp::from(SystemTime::now())),
            namespace: self.namespace.clone(),
            topic: topic.into(),
            event: Some(event),
        };
        let _ = self.queue.send(Item::Event(envelope));
    }

    /// Waits until everything before is told, but not for long.
    pub async fn flush(&self) {
        let (done, told) = oneshot::channel();
        if self.queue.send(Item::Flush(done)).is_ok() {
            let _ = tokio::time::timeout(Duration::from_secs(5), told).await;
        }
    }
}

async fn forward(address: Option<PathBuf>, mut items: mpsc::UnboundedReceiver<Item>) {
    let mut client = None;
    while let Some(item) = items.recv().await {
        let envelope = match (item, &address) {
            (Item::Flush(done), _) => {
                let _ = done.send(());
                continue;
            }
            (Item::Event(_), None) => continue,
            (Item::Event(envelope), Some(_)) => envelope,
        };
        let Some(address) = &address else { continue };
        let topic = envelope.topic.clone();
        let payload = ForwardRequest { envelope: Some(envelope) }.encode_to_vec();
        let told = tokio::time::timeout(PATIENCE, async {
            loop {
                match tell(&mut client, address, payload.clone()).await {
                    Ok(()) => return,
                    Err(error) => {
                        tracing::debug!(topic, %error, "event");
                        client = None;
                        tokio::time::sleep(AGAIN).await;
                    }
                }
            }
        });
        if told.await.is_err() {
            client = None;
            tracing::warn!(topic, "containerd did not take an event");
        }
    }
}

async fn tell(client: &mut Option<Client>, address: &std::path::Path, payload: Vec<u8>) -> std::io::Result<()> {
    let open = match client {
        Some(open) => open,
        none => none.insert(Client::connect(address).await?),
    };
    open.call(SERVICE, "Forward", payload).await.map(drop)
}
