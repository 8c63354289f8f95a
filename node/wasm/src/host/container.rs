//! One container, from its start to its exit record.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde::Serialize;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::state::{Loaded, Template};
use super::{Shared, command, proxy};
use crate::limits::{Cpu, Memory};
use crate::logs::{Log, write_whole};
use crate::net::PodNet;
use crate::proto::{ContainerSpec, ContainerStatus, ModuleKind, State as Phase, Stats};
use crate::raw::Raw;
use crate::stdio::Input;

/// As much of a termination message as the kubelet takes.
const MESSAGE: usize = 4096;

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    pub code: i32,
    pub reason: &'static str,
    pub message: String,
}

impl Exit {
    pub fn code(code: i32) -> Exit {
        let reason = if code == 0 { "Completed" } else { "Error" };
        Exit { code, reason, message: String::new() }
    }

    /// As a process that a signal ended.
    pub fn signal(number: i32, message: impl Into<String>) -> Exit {
        Exit { code: 128 + number, reason: "Error", message: message.into() }
    }

    pub fn out_of_memory(limit: u64) -> Exit {
        let message = format!("wanted more memory than its limit of {limit} bytes");
        Exit { code: 137, reason: "OOMKilled", message }
    }

    pub fn cannot_run(message: impl Into<String>) -> Exit {
        Exit { code: 128, reason: "ContainerCannotRun", message: message.into() }
    }
}

/// What adoption finds on disk when the host is gone too.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ExitRecord<'a> {
    id: &'a str,
    started_at_ms: i64,
    finished_at_ms: i64,
    exit_code: i32,
    reason: &'a str,
    message: &'a str,
}

pub struct Container {
    pub template: Arc<Template>,
    status: Mutex<ContainerStatus>,
    /// Ask to end: a proxy drains.
    pub drain: CancellationToken,
    /// End now.
    pub kill: CancellationToken,
    ended: watch::Sender<bool>,
    /// Where who is attached writes to; none if it has no input, or that has ended.
    stdin: Mutex<Option<mpsc::Sender<Bytes>>>,
    shared: Arc<Shared>,
}

pub fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

impl Container {
    /// Starts a container; whatever keeps it from running is in its status.
    pub async fn start(shared: Arc<Shared>, spec: ContainerSpec) -> Result<Arc<Container>, String> {
        let kind = ModuleKind::try_from(spec.kind).unwrap_or_default();
        let net = Arc::new(PodNet::new(&spec, shared.rules.clone())?);
        let log = Log::new(&spec.log_path, spec.log_max_bytes, spec.log_max_files);
        shared.sweeper.add(&log);
        let raw = {
            // A pipe belongs to the runtime it is opened in.
            let _inside = shared.guests.enter();
            Raw::open(&spec.stdout_path, &spec.stderr_path)?
        };
        let (stdin, input) = match spec.stdin {
            true => {
                // What feeds a guest runs where guests do.
                let _inside = shared.guests.enter();
                let (sender, input) = Input::pipe(spec.tty);
                (Some(sender), Some(input))
            }
            false => (None, None),
        };
        let template = Arc::new(Template {
            engine: shared.engine.clone(),
            net,
            cpu: Arc::new(Cpu::new(spec.cpu_millicores)),
            memory: Arc::new(Memory::new(spec.memory_bytes)),
            log,
            raw,
            stdin: Mutex::new(input),
            spec,
        });
        let status = ContainerStatus {
            id: template.spec.id.clone(),
            state: Phase::Running as i32,
            started_at_ms: now_ms(),
            ..ContainerStatus::default()
        };
        let container = Arc::new(Container {
            template,
            status: Mutex::new(status),
            drain: CancellationToken::new(),
            kill: CancellationToken::new(),
            ended: watch::Sender::new(false),
            stdin: Mutex::new(stdin),
            shared: shared.clone(),
        });
        if let Err(error) = container.clone().run(kind).await {
            container.finish(Exit::cannot_run(format!("{error:#}")));
        }
        Ok(container)
    }

    async fn run(self: Arc<Self>, kind: ModuleKind) -> anyhow::Result<()> {
        let spec = &self.template.spec;
        let loaded = self.shared.load(&spec.module, kind).await?;
        self.template.check_mounts()?;
        let guests = self.shared.guests.clone();
        match loaded {
            Loaded::Proxy(pre) => {
                let port = u16::try_from(spec.http_port).unwrap_or_default();
                let address = self.template.net.listen(port).map_err(anyhow::Error::msg)?;
                let listener = {
                    // A listener belongs to the runtime it is made in.
                    let _inside = guests.enter();
                    proxy::bind(address).map_err(|error| anyhow::anyhow!("listening on {address}: {error}"))?
                };
                let port = listener.local_addr()?.port();
                self.status.lock().unwrap_or_else(|e| e.into_inner()).http_port = port.into();
                self.shared.tell(self.status());
                guests.spawn(async move {
                    let exit = proxy::serve(&self, pre, listener).await;
                    self.finish(exit);
                });
            }
            loaded => {
                self.shared.tell(self.status());
                guests.spawn(async move {
                    let exit = command::run(&self, loaded).await;
                    self.finish(exit);
                });
            }
        }
        Ok(())
    }

    pub fn status(&self) -> ContainerStatus {
        self.status.lock().unwrap_or_else(|e| e.into_inner()).clone()
    }

    pub fn ticker(&self) -> crate::engine::Ticker {
        self.shared.ticker.clone()
    }

    pub fn has_ended(&self) -> bool {
        *self.ended.borrow()
    }

    /// Until it has ended.
    pub async fn ended(&self) {
        let _ = self.ended.subscribe().wait_for(|ended| *ended).await;
    }

    pub fn stdin(&self) -> Option<mpsc::Sender<Bytes>> {
        self.stdin.lock().unwrap_or_else(|e| e.into_inner()).clone()
    }

    /// The guest reads an end once nobody else holds its input.
    pub fn close_stdin(&self) {
        self.stdin.lock().unwrap_or_else(|e| e.into_inner()).take();
    }

    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub fn stats(&self) -> Stats {
        Stats {
            id: self.template.spec.id.clone(),
            cpu_nanoseconds: self.template.cpu.total(),
            memory_bytes: self.template.memory.used(),
        }
    }

    /// Asks it to end, insists after the grace, and answers when it has. Without a grace it is not
    /// asked.
    pub async fn stop(&self, grace: Duration) -> ContainerStatus {
        let mut ended = self.ended.subscribe();
        if !grace.is_zero() {
            self.drain.cancel();
        }
        if grace.is_zero() || tokio::time::timeout(grace, ended.wait_for(|ended| *ended)).await.is_err() {
            self.kill.cancel();
            let _ = ended.wait_for(|ended| *ended).await;
        }
        self.status()
    }

    fn finish(&self, mut exit: Exit) {
        let template = self.template.clone();
        self.shared.guests.spawn(async move {
            if let Some(raw) = &template.raw {
                raw.close().await;
            }
        });
        let spec = &self.template.spec;
        if let Some(message) = termination_message(&spec.termination_message_path) {
            exit.message = message;
        }
        let mut status = self.status.lock().unwrap_or_else(|e| e.into_inner()).clone();
        status.state = Phase::Exited as i32;
        status.finished_at_ms = now_ms();
        status.exit_code = exit.code;
        status.reason = exit.reason.into();
        status.message = exit.message;
        if !spec.exit_path.is_empty() {
            let record = serde_json::to_vec(&ExitRecord {
                id: &status.id,
                started_at_ms: status.started_at_ms,
                finished_at_ms: status.finished_at_ms,
                exit_code: status.exit_code,
                reason: &status.reason,
                message: &status.message,
            })
            .unwrap_or_default();
            if let Err(error) = write_whole(Path::new(&spec.exit_path), &record) {
                tracing::error!(id = status.id, %error, "exit record");
            }
        }
        // Nobody hears of the end before its record is there, whoever asks in between.
        *self.status.lock().unwrap_or_else(|e| e.into_inner()) = status.clone();
        self.close_stdin();
        // Who hears of it may remove it at once.
        self.ended.send_replace(true);
        self.shared.tell(status);
    }
}

fn termination_message(path: &str) -> Option<String> {
    use std::io::Read as _;
    if path.is_empty() {
        return None;
    }
    let mut bytes = Vec::new();
    std::fs::File::open(path).ok()?.take(MESSAGE as u64).read_to_end(&mut bytes).ok()?;
    (!bytes.is_empty()).then(|| String::from_utf8_lossy(&bytes).into_owned())
}
