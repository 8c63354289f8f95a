//! containerd's task API, version 2, in terms of the pod. Version 3 differs in the service's name.

use std::sync::Arc;

use prost::Message;
use prost_types::{Any, Timestamp};
use tokio_util::sync::CancellationToken;

use crate::container::Phase;
use crate::mount::Mount;
use crate::pod::{Create, Error, Pod, Usage};
use crate::proto::metrics::{CpuStat, CpuUsage, MemoryEntry, MemoryStat, Metrics, PidsStat};
use crate::proto::task::{
    ConnectResponse, CreateTaskRequest, CreateTaskResponse, DeleteResponse, KillRequest, PidsResponse, ProcessInfo,
    ProcessRequest, ShutdownRequest, StartResponse, StateResponse, StatsResponse, Status, WaitResponse,
};
use crate::stdio::Stdio;
use crate::ttrpc::{Code, Failure, Service};

const SERVICE: &str = "containerd.task.v2.Task";
const NO_EXEC: &str = "a Wasm container has no programs to exec: it is one module, and that runs";

pub struct Task {
    pub pod: Arc<Pod>,
    pub shutdown: CancellationToken,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        let code = match error {
            Error::NoContainer(_) | Error::Ended(_) => Code::NotFound,
            Error::Exists(_) => Code::AlreadyExists,
            Error::Precondition(_) => Code::FailedPrecondition,
            Error::Invalid(_) => Code::InvalidArgument,
            Error::Failed(_) => Code::Unknown,
        };
        Failure { code, message: error.to_string() }
    }
}

fn decode<T: Message + Default>(payload: &[u8]) -> Result<T, Failure> {
    T::decode(payload).map_err(|error| Failure { code: Code::InvalidArgument, message: error.to_string() })
}

fn refused(message: &str) -> Failure {
    Failure { code: Code::Unimplemented, message: message.into() }
}

/// A container's own process; others there are none.
fn process(payload: &[u8]) -> Result<String, Failure> {
    let request: ProcessRequest = decode(payload)?;
    match request.exec_id.is_empty() {
        true => Ok(request.id),
        false => Err(Failure { code: Code::NotFound, message: format!("exec {:?}: {NO_EXEC}", request.exec_id) }),
    }
}

impl Service for Task {
    async fn call(&self, service: &str, method: &str, payload: &[u8]) -> Result<Vec<u8>, Failure> {
        if service != SERVICE {
            return Err(refused(&format!("service {service} is not spoken here, {SERVICE} is")));
        }
        let result = self.answer(method, payload).await;
        if let Err(failure) = &result {
            tracing::warn!(method, code = ?failure.code, message = failure.message, "refused");
        }
        result
    }
}

impl Task {
    async fn answer(&self, method: &str, payload: &[u8]) -> Result<Vec<u8>, Failure> {
        let pod = &self.pod;
        Ok(match method {
            "Create" => self.create(decode(payload)?).await?.encode_to_vec(),
            "Start" => StartResponse { pid: pod.start(&process(payload)?).await? }.encode_to_vec(),
            "State" => self.state(&process(payload)?)?.encode_to_vec(),
            "Kill" => {
                let request: KillRequest = decode(payload)?;
                process(&ProcessRequest { id: request.id.clone(), exec_id: request.exec_id }.encode_to_vec())?;
                pod.kill(&request.id, request.signal).await?;
                Vec::new()
            }
            "Wait" => {
                let exit = pod.find(&process(payload)?)?.wait().await;
                WaitResponse { exit_status: exit.code, exited_at: Some(Timestamp::from(exit.at)) }.encode_to_vec()
            }
            "Delete" => {
                let (pid, exit) = pod.delete(&process(payload)?).await?;
                DeleteResponse { pid, exit_status: exit.code, exited_at: Some(Timestamp::from(exit.at)) }
                    .encode_to_vec()
            }
            "Pids" => {
                let pid = pod.find(&process(payload)?)?.pid;
                PidsResponse { processes: vec![ProcessInfo { pid }] }.encode_to_vec()
            }
            "Stats" => metrics(pod.usage(&process(payload)?).await?).encode_to_vec(),
            "Connect" => {
                let container = pod.find(&process(payload)?);
                ConnectResponse {
                    shim_pid: std::process::id(),
                    task_pid: container.map_or(0, |container| container.pid),
                    version: env!("CARGO_PKG_VERSION").into(),
                }
                .encode_to_vec()
            }
            "Shutdown" => {
                let request: ShutdownRequest = decode(payload)?;
                // Other containers of the pod go on.
                if request.now || pod.is_empty() {
                    // Before the answer: the next container may have the same name.
                    pod.end().await;
                    self.shutdown.cancel();
                }
                Vec::new()
            }
            "CloseIO" | "ResizePty" => Vec::new(),
            "Exec" => return Err(refused(NO_EXEC)),
            "Pause" | "Resume" => return Err(refused("a Wasm container cannot be paused")),
            "Checkpoint" => return Err(refused("a Wasm container cannot be checkpointed")),
            "Update" => return Err(refused("limits of a Wasm container are set when it is created")),
            _ => return Err(refused(&format!("{SERVICE} has no method {method}"))),
        })
    }

    async fn create(&self, request: CreateTaskRequest) -> Result<CreateTaskResponse, Failure> {
        if !request.checkpoint.is_empty() {
            return Err(refused("a Wasm container cannot be restored from a checkpoint"));
        }
        let mount = |mount: crate::proto::task::Mount| Mount {
            kind: mount.r#type,
            source: mount.source,
            options: mount.options,
        };
        let create = Create {
            id: request.id,
            bundle: request.bundle,
            rootfs: request.rootfs.into_iter().map(mount).collect(),
            stdio: Stdio {
                stdin: request.stdin,
                stdout: request.stdout,
                stderr: request.stderr,
                terminal: request.terminal,
            },
        };
        Ok(CreateTaskResponse { pid: self.pod.create(create).await? })
    }

    fn state(&self, id: &str) -> Result<StateResponse, Failure> {
        let container = self.pod.find(id)?;
        let status = match container.phase() {
            Phase::Created => Status::Created,
            Phase::Running => Status::Running,
            Phase::Stopped => Status::Stopped,
        };
        let exit = container.exit();
        let stdio = container.stdio.clone();
        Ok(StateResponse {
            id: id.into(),
            bundle: container.bundle.clone(),
            pid: container.pid,
            status: status as i32,
            stdin: stdio.stdin,
            stdout: stdio.stdout,
            stderr: stdio.stderr,
            terminal: stdio.terminal,
            exit_status: exit.as_ref().map_or(0, |exit| exit.code),
            exited_at: exit.map(|exit| Timestamp::from(exit.at)),
            exec_id: String::new(),
        })
    }
}

/// In the shape of version 1 of control groups, which containerd takes on every machine.
fn metrics(usage: Usage) -> StatsResponse {
    let metrics = Metrics {
        pids: Some(PidsStat { current: 1 }),
        cpu: Some(CpuStat {
            usage: Some(CpuUsage { total: usage.cpu_nanoseconds, kernel: 0, user: usage.cpu_nanoseconds }),
        }),
        memory: Some(MemoryStat {
            rss: usage.memory_bytes,
            total_rss: usage.memory_bytes,
            usage: Some(MemoryEntry { limit: usage.memory_limit, usage: usage.memory_bytes }),
        }),
    };
    let value = metrics.encode_to_vec();
    StatsResponse { stats: Some(Any { type_url: "io.containerd.cgroups.v1.Metrics".into(), value }) }
}
