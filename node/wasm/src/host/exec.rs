//! A container's module run again beside it, and attaching to a container.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use super::command::{self, SIGABRT, SIGKILL, exit_code, explain};
use super::container::{Container, Exit};
use super::state::{Loaded, Stdio};
use crate::limits::{Metered, Share};
use crate::logs::Stream;
use crate::proto::{AttachSpec, ExecSpec, ModuleKind, StreamInput, StreamOutput, stream_input, stream_output};
use crate::stdio::{Input, Outputs, Pipe};
use crate::tty::Terminal;

const SIGINT: i32 = 2;
/// Messages that wait for the caller.
const QUEUE: usize = 8;

pub type Answers = mpsc::Receiver<Result<StreamOutput, Status>>;

fn ended(code: i32) -> Result<StreamOutput, Status> {
    Ok(StreamOutput { output: Some(stream_output::Output::ExitCode(code)) })
}

/// Starts a command in a running container.
pub async fn exec(container: Arc<Container>, spec: ExecSpec, input: Streaming<StreamInput>) -> Result<Answers, Status> {
    let own = &container.template.spec;
    let kind = ModuleKind::try_from(own.kind).unwrap_or_default();
    if kind == ModuleKind::Proxy {
        return Err(Status::failed_precondition(
            "this WebAssembly container serves HTTP (wasi:http/incoming-handler) and has no command to run",
        ));
    }
    let program = |args: &[String]| -> String {
        let name = args.first().map(String::as_str).unwrap_or_default();
        name.rsplit('/').next().unwrap_or_default().to_owned()
    };
    if program(&spec.args) == "tar" && program(&own.args) != "tar" {
        return Err(Status::failed_precondition(
            "a WebAssembly container has no other program than its own, so no tar, which \"kubectl cp\" needs; \
             bring files in a configMap, a secret or a volume",
        ));
    }
    if container.has_ended() {
        return Err(Status::failed_precondition("the container has ended"));
    }
    let loaded = container.shared().load(&own.module, kind).await;
    let loaded = loaded.map_err(|error| Status::internal(format!("{error:#}")))?;
    let (outputs, answers) = mpsc::channel(QUEUE);
    let guests = container.shared().guests.clone();
    guests.spawn(run(container, loaded, spec, input, outputs));
    Ok(answers)
}

async fn run(
    container: Arc<Container>,
    loaded: Loaded,
    spec: ExecSpec,
    messages: Streaming<StreamInput>,
    outputs: Outputs,
) {
    let template = &container.template;
    let (hold, input) = match spec.stdin {
        true => {
            let (sender, input) = Input::pipe(spec.tty);
            (Some(Hold { sender, once: None }), Some(input))
        }
        false => (None, None),
    };
    let pipe = |stderr| Pipe { outputs: outputs.clone(), stderr, terminal: spec.tty };
    let refused = Arc::new(AtomicBool::new(false));
    let stdio = Stdio {
        args: spec.args,
        stdin: input,
        stdout: Box::new(pipe(false)),
        stderr: Box::new(pipe(true)),
        share: Share::beside(template.memory.clone(), refused.clone()),
    };
    let guest = command::call(template.clone(), loaded, stdio);
    let guest = Metered::new(guest, template.cpu.clone(), container.ticker());
    let killed = Exit::signal(SIGKILL, "").code;
    let code = tokio::select! {
        biased;
        () = container.kill.cancelled() => killed,
        () = container.drain.cancelled() => killed,
        () = container.ended() => killed,
        // Nobody is there to see what it does.
        () = outputs.closed() => return,
        () = feed(messages, hold, spec.tty.then(|| pipe(false))) => Exit::signal(SIGINT, "").code,
        result = guest => match result {
            Ok(code) => code,
            Err(error) => match exit_code(&error) {
                Some(code) => code,
                None => {
                    let words = format!("{}\n", explain(&error).trim_end());
                    let _ = outputs.send(Ok(pipe(true).message(words.as_bytes()))).await;
                    Exit::signal(SIGABRT, "").code
                }
            },
        },
    };
    let code = match code != 0 && refused.load(Ordering::Relaxed) {
        true => Exit::out_of_memory(template.memory.limit()).code,
        false => code,
    };
    let _ = outputs.send(ended(code)).await;
}

/// Hands input on until it ends, and then waits; returns when a terminal's user interrupts.
async fn feed(mut messages: Streaming<StreamInput>, mut stdin: Option<Hold>, terminal: Option<Pipe>) {
    let mut typing = Terminal::default();
    while let Ok(Some(message)) = messages.message().await {
        let bytes = match message.input {
            Some(stream_input::Input::Stdin(bytes)) => bytes,
            Some(stream_input::Input::StdinEnd(_)) => break,
            _ => continue,
        };
        let (bytes, end) = match &terminal {
            None => (bytes, false),
            Some(pipe) => {
                let typed = typing.input(&bytes);
                let echo = stream_output::Output::Stdout(typed.echo);
                let _ = pipe.outputs.send(Ok(StreamOutput { output: Some(echo) })).await;
                if typed.interrupt {
                    return;
                }
                (typed.lines, typed.end)
            }
        };
        if let Some(hold) = &stdin
            && !bytes.is_empty()
            && hold.sender.send(bytes.into()).await.is_err()
        {
            stdin = None;
        }
        if end {
            stdin = None;
        }
    }
    drop(stdin);
    std::future::pending().await
}

/// Follows a container's output, and gives it input if it takes any.
pub fn attach(
    container: Arc<Container>,
    spec: &AttachSpec,
    messages: Streaming<StreamInput>,
) -> Result<Answers, Status> {
    let mut output = container.template.log.tap();
    if container.has_ended() {
        return Err(Status::failed_precondition("the container has ended"));
    }
    let (outputs, answers) = mpsc::channel(QUEUE);
    let once = container.template.spec.stdin_once.then(|| container.clone());
    let stdin = container.stdin().filter(|_| spec.stdin).map(|sender| Hold { sender, once });
    let terminal = container.template.spec.tty;
    tokio::spawn(async move {
        let pipe = |stderr| Pipe { outputs: outputs.clone(), stderr, terminal };
        let (stdout, stderr) = (pipe(false), pipe(true));
        let typing = async {
            feed(messages, stdin, terminal.then(|| stdout.clone())).await;
            container.drain.cancel();
            container.ended().await;
        };
        let following = async {
            loop {
                let next = tokio::select! {
                    biased;
                    next = output.next() => next,
                    () = container.ended() => output.ready(),
                };
                let Some((stream, bytes)) = next else { return };
                let pipe = if stream == Stream::Stdout { &stdout } else { &stderr };
                if outputs.send(Ok(pipe.message(&bytes))).await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            () = outputs.closed() => return,
            () = typing => {}
            () = following => {}
        }
        let _ = outputs.send(ended(container.status().exit_code)).await;
    });
    Ok(answers)
}

/// Somebody's hold on a guest's input. A container's ends with the first who is attached, if it is
/// for once.
struct Hold {
    sender: mpsc::Sender<Bytes>,
    once: Option<Arc<Container>>,
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Some(container) = self.once.take() {
            container.close_stdin();
        }
    }
}
