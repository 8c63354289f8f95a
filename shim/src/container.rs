//! One container of a pod, from created to stopped.

use std::fs::File;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};
use std::time::SystemTime;

use prost_types::Timestamp;
use sampan_wasm::proto::ContainerSpec;
use tokio::sync::watch;

use crate::events::Events;
use crate::oci::User;
use crate::proto::events::{TaskExit, TaskOom, TaskStart};
use crate::stdio::Stdio;

pub const OOM_KILLED: &str = "OOMKilled";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Created,
    Running,
    Stopped,
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    pub code: u32,
    pub at: SystemTime,
    pub out_of_memory: bool,
}

impl Exit {
    pub fn now(code: u32) -> Exit {
        Exit { code, at: SystemTime::now(), out_of_memory: false }
    }
}

/// What a guest is made of; a sandbox has none.
#[derive(Debug)]
pub struct Guest {
    pub user: User,
    pub spec: ContainerSpec,
    pub dir: PathBuf,
}

pub struct Container {
    pub id: String,
    pub bundle: String,
    pub stdio: Stdio,
    pub pid: u32,
    pub guest: Option<Guest>,
    state: Mutex<State>,
    exit: watch::Sender<Option<Exit>>,
}

#[derive(Default)]
struct State {
    started: bool,
    exit: Option<Exit>,
    held: Vec<File>,
}

impl Container {
    pub fn new(id: &str, bundle: &str, stdio: Stdio, pid: u32, guest: Option<Guest>, held: Vec<File>) -> Container {
        let state = Mutex::new(State { held, ..State::default() });
        let exit = watch::Sender::new(None);
        Container { id: id.into(), bundle: bundle.into(), stdio, pid, guest, state, exit }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    pub fn phase(&self) -> Phase {
        let state = self.state();
        match (&*self.exit.borrow(), state.started) {
            (Some(_), _) => Phase::Stopped,
            (None, true) => Phase::Running,
            (None, false) => Phase::Created,
        }
    }

    pub fn exit(&self) -> Option<Exit> {
        self.exit.borrow().clone()
    }

    pub async fn wait(&self) -> Exit {
        let mut exit = self.exit.subscribe();
        let ended = exit.wait_for(Option::is_some).await.ok().and_then(|exit| exit.clone());
        // The sender lives as long as we do.
        ended.unwrap_or_else(|| Exit::now(255))
    }

    /// It runs: told before its end is, however soon that came.
    pub fn started(&self, events: &Events) {
        let mut state = self.state();
        state.started = true;
        events.publish("/tasks/start", "TaskStart", &TaskStart { container_id: self.id.clone(), pid: self.pid });
        if let Some(exit) = state.exit.take() {
            self.tell(&mut state, exit, events);
        }
    }

    /// It has ended; also before it was said to run. Only the first end counts.
    pub fn ended(&self, exit: Exit, events: &Events) {
        let mut state = self.state();
        if state.started {
            self.tell(&mut state, exit, events);
        } else {
            state.exit.get_or_insert(exit);
        }
    }

    /// It will never run.
    pub fn abandoned(&self, exit: Exit, events: &Events) {
        self.tell(&mut self.state(), exit, events);
    }

    fn tell(&self, state: &mut State, exit: Exit, events: &Events) {
        if self.exit.borrow().is_some() {
            return;
        }
        // Readers of the output see its end from here on.
        state.held.clear();
        if exit.out_of_memory {
            events.publish("/tasks/oom", "TaskOOM", &TaskOom { container_id: self.id.clone() });
        }
        let event = TaskExit {
            container_id: self.id.clone(),
            id: self.id.clone(),
            pid: self.pid,
            exit_status: exit.code,
            exited_at: Some(Timestamp::from(exit.at)),
        };
        events.publish("/tasks/exit", "TaskExit", &event);
        self.exit.send_replace(Some(exit));
    }
}
