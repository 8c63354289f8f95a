//! Commands in Wasm containers, and attaching to them: the host's calls as streams.

use futures::FutureExt as _;
use sampan_streaming::{Outcome, Streams, Wanted};
use sampan_wasm::Host;
use sampan_wasm::proto::stream_input::Input;
use sampan_wasm::proto::stream_output::Output;
use sampan_wasm::proto::{AttachSpec, Empty, ExecSpec, StreamInput, StreamOutput};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;

use crate::runtime::ContainerId;

/// Bytes of one stream under way.
const BUFFER: usize = 64 << 10;

fn message(input: Input) -> StreamInput {
    StreamInput { input: Some(input) }
}

fn said(status: &tonic::Status) -> anyhow::Error {
    anyhow::anyhow!("{}", status.message())
}

pub async fn exec(host: &Host, id: &ContainerId, command: Vec<String>, wanted: Wanted) -> anyhow::Result<Streams> {
    let spec = ExecSpec { id: id.id(), args: command.clone(), stdin: wanted.stdin, tty: wanted.tty };
    let (sender, input) = mpsc::channel(4);
    sender.send(message(Input::Exec(spec))).await?;
    let answer = host.client().exec(ReceiverStream::new(input)).await.map_err(|status| said(&status))?;
    Ok(streams(sender, answer.into_inner(), wanted, move |code| Outcome::exit(&command, code)))
}

pub async fn attach(host: &Host, id: &ContainerId, wanted: Wanted) -> anyhow::Result<Streams> {
    let (sender, input) = mpsc::channel(4);
    sender.send(message(Input::Attach(AttachSpec { id: id.id(), stdin: wanted.stdin }))).await?;
    let answer = host.client().attach(ReceiverStream::new(input)).await.map_err(|status| said(&status))?;
    // How the container ended is in its pod's status.
    Ok(streams(sender, answer.into_inner(), wanted, |_| Outcome::Success))
}

fn streams(
    sender: mpsc::Sender<StreamInput>,
    output: Streaming<StreamOutput>,
    wanted: Wanted,
    outcome: impl FnOnce(i32) -> Outcome + Send + 'static,
) -> Streams {
    let pipe = |wanted: bool| match wanted {
        true => {
            let (ours, theirs) = tokio::io::duplex(BUFFER);
            (Some(ours), Some(theirs))
        }
        false => (None, None),
    };
    let (stdin, fed) = pipe(wanted.stdin);
    let (stdout, to_stdout) = pipe(wanted.stdout);
    let (stderr, to_stderr) = pipe(wanted.has_stderr());
    let over = CancellationToken::new();
    let (ended, end) = oneshot::channel();
    let token = over.clone();
    tokio::spawn(async move {
        let feeding = async {
            if let Some(fed) = fed {
                feed(fed, &sender).await;
            }
            // The host would take a call's end for the input's.
            std::future::pending::<()>().await;
        };
        tokio::select! {
            // The call goes with this task, and what it runs with the call.
            () = token.cancelled() => {}
            () = feeding => {}
            code = hand_on(output, to_stdout, to_stderr) => drop(ended.send(code)),
        }
    });
    let guard = over.drop_guard();
    let outcome = async move {
        let code = end.await;
        drop(guard);
        match code {
            Ok(Ok(code)) => outcome(code),
            Ok(Err(error)) => Outcome::Failed(error),
            Err(_) => Outcome::Failed("the Wasm host is gone".to_owned()),
        }
    };
    Streams {
        stdin: stdin.map(|stream| Box::pin(stream) as _),
        stdout: stdout.map(|stream| Box::pin(stream) as _),
        stderr: stderr.map(|stream| Box::pin(stream) as _),
        resize: None,
        outcome: outcome.boxed(),
    }
}

async fn feed(mut from: DuplexStream, sender: &mpsc::Sender<StreamInput>) {
    let mut buffer = vec![0; BUFFER / 2];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        let bytes = buffer.get(..length).unwrap_or_default().to_vec();
        if sender.send(message(Input::Stdin(bytes))).await.is_err() {
            return;
        }
    }
    let _ = sender.send(message(Input::StdinEnd(Empty {}))).await;
}

/// Writes output where it goes; answers with the exit code.
async fn hand_on(
    mut output: Streaming<StreamOutput>,
    mut stdout: Option<DuplexStream>,
    mut stderr: Option<DuplexStream>,
) -> Result<i32, String> {
    loop {
        let next = output.message().await.map_err(|status| status.message().to_owned())?;
        let (to, bytes) = match next.and_then(|message| message.output) {
            Some(Output::Stdout(bytes)) => (&mut stdout, bytes),
            Some(Output::Stderr(bytes)) => (&mut stderr, bytes),
            Some(Output::ExitCode(code)) => return Ok(code),
            None => return Err("the Wasm host is gone".to_owned()),
        };
        // Who reads no more gets no more, as with a pipe.
        if let Some(stream) = to
            && stream.write_all(&bytes).await.is_err()
        {
            *to = None;
        }
    }
}
