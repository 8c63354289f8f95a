//! Ends of containers, as they happen.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use futures::Stream;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tonic::{Status, Streaming};

use crate::client::{Containerd, NAMESPACE, namespaced};
use crate::proto::containerd::events::{TaskExit, TaskOom};
use crate::proto::containerd::services::events::v1::events_client::EventsClient;
use crate::proto::containerd::services::events::v1::{PublishRequest, SubscribeRequest};
use crate::proto::containerd::types::Envelope;

const EXIT: &str = "/tasks/exit";
const OOM: &str = "/tasks/oom";
/// Published by ourselves; nobody else listens.
const MARK: &str = "/sampan/subscribed";
const BUFFER: usize = 1024;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// From here on nothing is missed; before, something may have been: list again. The first event,
    /// and the first after every gap.
    Resync,
    /// A container's process ended (a sandbox's too: then the id is the sandbox's), or with an
    /// `exec_id` a program run in it.
    Exit { id: String, exec_id: Option<String>, exit_code: u32, finished_at: Option<SystemTime> },
    /// The kernel killed something in this container for want of memory.
    Oom { id: String },
}

/// Ends never by itself; connects again when containerd does.
#[derive(Debug)]
pub struct Events {
    receiver: mpsc::Receiver<Event>,
    task: AbortHandle,
}

impl Drop for Events {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Stream for Events {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Event>> {
        self.receiver.poll_recv(context)
    }
}

impl Containerd {
    /// Subscribes in the background. A reader that is slow holds containerd's queue, not our memory.
    pub fn events(&self) -> Events {
        let (sender, receiver) = mpsc::channel(BUFFER);
        let task = tokio::spawn(follow(self.clone(), sender)).abort_handle();
        Events { receiver, task }
    }
}

async fn follow(containerd: Containerd, sender: mpsc::Sender<Event>) {
    let mut pause = FIRST_PAUSE;
    loop {
        match subscribe(&containerd).await {
            Ok(stream) => {
                pause = FIRST_PAUSE;
                if sender.send(Event::Resync).await.is_err() {
                    return;
                }
                if let Err(status) = forward(stream, &sender).await {
                    tracing::debug!(error = status.message(), "containerd's events stopped");
                }
            }
            Err(status) => tracing::debug!(error = status.message(), "no events of containerd"),
        }
        if sender.is_closed() {
            return;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LAST_PAUSE);
    }
}

/// containerd answers a subscription with its first event only, so we publish until we hear ourselves:
/// then nothing after it can be missed.
async fn subscribe(containerd: &Containerd) -> Result<Streaming<Envelope>, Status> {
    let filters = [EXIT, OOM, MARK].map(|topic| format!("namespace=={NAMESPACE},topic==\"{topic}\"")).to_vec();
    let mut client = EventsClient::new(containerd.channel());
    let mut publisher = client.clone();
    let subscribed = client.subscribe(SubscribeRequest { filters });
    tokio::pin!(subscribed);
    loop {
        let mark = async {
            let event = Some(prost_types::Any { type_url: "sampan/Subscribed".into(), value: Vec::new() });
            publisher.publish(namespaced(PublishRequest { topic: MARK.into(), event })).await?;
            tokio::time::sleep(Duration::from_millis(20)).await;
            Ok::<(), Status>(())
        };
        tokio::select! {
            biased;
            answer = &mut subscribed => return Ok(answer?.into_inner()),
            marked = mark => marked?,
        }
    }
}

async fn forward(mut stream: Streaming<Envelope>, sender: &mpsc::Sender<Event>) -> Result<(), Status> {
    while let Some(envelope) = stream.message().await? {
        let Some(event) = decode(&envelope) else { continue };
        if sender.send(event).await.is_err() {
            break;
        }
    }
    Ok(())
}

fn decode(envelope: &Envelope) -> Option<Event> {
    let value = envelope.event.as_ref()?.value.as_slice();
    let event = match envelope.topic.as_str() {
        EXIT => TaskExit::decode(value).map(|exit| Event::Exit {
            // The container's own process bears its name.
            exec_id: Some(exit.id).filter(|id| *id != exit.container_id),
            id: exit.container_id,
            exit_code: exit.exit_status,
            finished_at: exit.exited_at.and_then(|at| SystemTime::try_from(at).ok()),
        }),
        OOM => TaskOom::decode(value).map(|oom| Event::Oom { id: oom.container_id }),
        _ => return None,
    };
    event.inspect_err(|error| tracing::warn!(topic = envelope.topic, %error, "event of containerd")).ok()
}
