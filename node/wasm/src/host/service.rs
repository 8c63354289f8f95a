//! The protocol's answers.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::Stream;
use tokio::sync::broadcast;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::container::Container;
use super::{Shared, exec};
use crate::proto::host_server::Host;
use crate::proto::{
    ContainerList, ContainerSpec, ContainerStatus, Empty, HostInfo, InfoRequest, ModuleKind, RemoveRequest,
    ShutdownRequest, StatsList, StopRequest, StreamInput, StreamOutput, stream_input,
};

pub struct Service {
    shared: Arc<Shared>,
    info: HostInfo,
    containers: Arc<Mutex<HashMap<String, Arc<Slot>>>>,
    shutdown: CancellationToken,
}

/// A container, or its start under way: a second call waits for the first one's answer.
type Slot = tokio::sync::OnceCell<Arc<Container>>;

impl Service {
    pub fn new(shared: Arc<Shared>, info: HostInfo, shutdown: CancellationToken) -> Service {
        Service { shared, info, containers: Arc::default(), shutdown }
    }

    fn containers(&self) -> Vec<Arc<Container>> {
        let containers = self.containers.lock().unwrap_or_else(|e| e.into_inner());
        containers.values().filter_map(|slot| slot.get().cloned()).collect()
    }

    fn find(&self, id: &str) -> Result<Arc<Container>, Status> {
        let containers = self.containers.lock().unwrap_or_else(|e| e.into_inner());
        let found = containers.get(id).and_then(|slot| slot.get().cloned());
        found.ok_or_else(|| Status::not_found(format!("no container {id}")))
    }

    /// Ends everything; the grace is for all together.
    pub async fn stop_all(&self, grace: Duration) {
        let all = self.containers();
        futures::future::join_all(all.iter().map(|container| container.stop(grace))).await;
    }
}

/// Paths in a specification stay below the tenant's directory.
fn relative(field: &str, path: &str) -> Result<(), Status> {
    let plain = std::path::Path::new(path).components().all(|part| matches!(part, std::path::Component::Normal(_)));
    match plain && !path.contains('\0') {
        true => Ok(()),
        false => {
            Err(Status::invalid_argument(format!("{field}: {path:?} is not a path relative to the tenant's directory")))
        }
    }
}

fn validate(spec: &ContainerSpec) -> Result<(), Status> {
    let wrong = |message: String| Err(Status::invalid_argument(message));
    if spec.id.is_empty() {
        return wrong("id: required".into());
    }
    if matches!(ModuleKind::try_from(spec.kind), Ok(ModuleKind::Unspecified) | Err(_)) {
        return wrong(format!("kind: {} is no kind of module", spec.kind));
    }
    if spec.module.is_empty() || spec.module.contains('/') || spec.module.starts_with('.') {
        return wrong(format!("module: {:?} is not a file's name", spec.module));
    }
    if u16::try_from(spec.http_port).is_err() {
        return wrong(format!("http_port: {} is no port", spec.http_port));
    }
    relative("log_path", &spec.log_path)?;
    relative("stdout_path", &spec.stdout_path)?;
    relative("stderr_path", &spec.stderr_path)?;
    relative("exit_path", &spec.exit_path)?;
    relative("termination_message_path", &spec.termination_message_path)?;
    for mount in &spec.mounts {
        relative("mounts.source", &mount.source)?;
        if !mount.target.starts_with('/') {
            return wrong(format!("mounts.target: {:?} is not absolute", mount.target));
        }
    }
    Ok(())
}

#[tonic::async_trait]
impl Host for Service {
    async fn info(&self, _: Request<InfoRequest>) -> Result<Response<HostInfo>, Status> {
        Ok(Response::new(self.info.clone()))
    }

    async fn start(&self, request: Request<ContainerSpec>) -> Result<Response<ContainerStatus>, Status> {
        let spec = request.into_inner();
        validate(&spec)?;
        if self.shutdown.is_cancelled() {
            return Err(Status::unavailable("the host is shutting down"));
        }
        let slot = {
            let mut containers = self.containers.lock().unwrap_or_else(|e| e.into_inner());
            containers.entry(spec.id.clone()).or_default().clone()
        };
        let shared = self.shared.clone();
        // On a task of its own: a caller that goes away must not leave half a container.
        let id = spec.id.clone();
        let started =
            tokio::spawn(async move { slot.get_or_try_init(|| Container::start(shared, spec)).await.cloned() })
                .await
                .map_err(|error| Status::internal(error.to_string()))?;
        match started {
            Ok(container) => Ok(Response::new(container.status())),
            Err(message) => {
                let mut containers = self.containers.lock().unwrap_or_else(|e| e.into_inner());
                if containers.get(&id).is_some_and(|slot| slot.get().is_none()) {
                    containers.remove(&id);
                }
                Err(Status::invalid_argument(message))
            }
        }
    }

    async fn stop(&self, request: Request<StopRequest>) -> Result<Response<ContainerStatus>, Status> {
        let StopRequest { id, grace_seconds } = request.into_inner();
        let container = self.find(&id)?;
        // Goes on if the caller does not wait.
        let stopped = tokio::spawn(async move { container.stop(Duration::from_secs(grace_seconds.into())).await });
        Ok(Response::new(stopped.await.map_err(|error| Status::internal(error.to_string()))?))
    }

    async fn remove(&self, request: Request<RemoveRequest>) -> Result<Response<Empty>, Status> {
        let id = request.into_inner().id;
        let container = match self.find(&id) {
            Ok(container) => container,
            // Removing twice is removing.
            Err(_) => return Ok(Response::new(Empty {})),
        };
        if !container.has_ended() {
            return Err(Status::failed_precondition(format!("container {id} runs")));
        }
        let exit = &container.template.spec.exit_path;
        if !exit.is_empty() {
            let _ = std::fs::remove_file(exit);
        }
        let spec = &container.template.spec;
        let last = {
            let mut containers = self.containers.lock().unwrap_or_else(|e| e.into_inner());
            containers.remove(&id);
            // One that is just starting maps the module again if it comes too late.
            !containers.values().any(|slot| slot.get().is_some_and(|other| other.template.spec.module == spec.module))
        };
        if last {
            self.shared.unload(&spec.module, ModuleKind::try_from(spec.kind).unwrap_or_default());
        }
        Ok(Response::new(Empty {}))
    }

    async fn list(&self, _: Request<Empty>) -> Result<Response<ContainerList>, Status> {
        let items = self.containers().iter().map(|container| container.status()).collect();
        Ok(Response::new(ContainerList { items }))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<ContainerStatus, Status>> + Send>>;

    async fn watch(&self, _: Request<Empty>) -> Result<Response<Self::WatchStream>, Status> {
        // Subscribed first: a change between is told twice rather than never.
        let mut changes = self.shared.changes.subscribe();
        let containers = self.containers.clone();
        let all = move || -> Vec<_> {
            let containers = containers.lock().unwrap_or_else(|e| e.into_inner());
            containers.values().filter_map(|slot| Some(slot.get()?.status())).collect()
        };
        let (sender, receiver) = tokio::sync::mpsc::channel(64);
        tokio::spawn(async move {
            let mut due = all();
            loop {
                for status in due.drain(..) {
                    if sender.send(Ok(status)).await.is_err() {
                        return;
                    }
                }
                tokio::select! {
                    () = sender.closed() => return,
                    change = changes.recv() => match change {
                        Ok(status) => due.push(status),
                        Err(broadcast::error::RecvError::Lagged(_)) => due = all(),
                        Err(broadcast::error::RecvError::Closed) => return,
                    }
                }
            }
        });
        let stream = tokio_stream::wrappers::ReceiverStream::new(receiver);
        Ok(Response::new(Box::pin(stream)))
    }

    async fn stats(&self, _: Request<Empty>) -> Result<Response<StatsList>, Status> {
        let running = self.containers();
        let items = running.iter().filter(|c| !c.has_ended()).map(|c| c.stats()).collect();
        Ok(Response::new(StatsList { items }))
    }

    type ExecStream = ReceiverStream<Result<StreamOutput, Status>>;

    async fn exec(&self, request: Request<Streaming<StreamInput>>) -> Result<Response<Self::ExecStream>, Status> {
        let mut input = request.into_inner();
        let first = input.message().await?.and_then(|message| message.input);
        let Some(stream_input::Input::Exec(spec)) = first else {
            return Err(Status::invalid_argument("the first message has to say what to run"));
        };
        let container = self.find(&spec.id)?;
        Ok(Response::new(ReceiverStream::new(exec::exec(container, spec, input).await?)))
    }

    type AttachStream = ReceiverStream<Result<StreamOutput, Status>>;

    async fn attach(&self, request: Request<Streaming<StreamInput>>) -> Result<Response<Self::AttachStream>, Status> {
        let mut input = request.into_inner();
        let first = input.message().await?.and_then(|message| message.input);
        let Some(stream_input::Input::Attach(spec)) = first else {
            return Err(Status::invalid_argument("the first message has to say what to attach to"));
        };
        let container = self.find(&spec.id)?;
        Ok(Response::new(ReceiverStream::new(exec::attach(container, &spec, input)?)))
    }

    async fn shutdown(&self, request: Request<ShutdownRequest>) -> Result<Response<Empty>, Status> {
        let grace = Duration::from_secs(request.into_inner().grace_seconds.into());
        self.stop_all(grace).await;
        self.shutdown.cancel();
        Ok(Response::new(Empty {}))
    }
}
