//! The long-running commands: build the parts, spawn them, wait, drain.

mod control_plane;
mod node;
mod ranges;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::cli::{ControlPlaneArgs, DownArgs, NodeArgs, NodeFlags, ServerArgs, UpArgs};
use crate::config::Config;
use crate::data_dir::DataDir;
use crate::logging;

/// How long pods may take to end; with the server's own drain it stays within 15 s.
const NODE_DRAIN: Duration = Duration::from_secs(10);
const PART_DRAIN: Duration = Duration::from_secs(2);

/// A part that runs until its token is cancelled.
struct Part {
    name: &'static str,
    stop: CancellationToken,
    drain: Duration,
}

/// The running parts, in the order in which they are drained.
#[derive(Default)]
struct Parts {
    parts: Vec<Part>,
    tasks: Vec<JoinSet<Result<()>>>,
}

impl Parts {
    fn spawn<F>(&mut self, name: &'static str, drain: Duration, run: impl FnOnce(CancellationToken) -> F)
    where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        let stop = CancellationToken::new();
        let mut task = JoinSet::new();
        task.spawn(run(stop.clone()));
        self.parts.push(Part { name, stop, drain });
        self.tasks.push(task);
    }

    /// Ends with the first part that ends by itself, which none should.
    async fn failed(&mut self) -> anyhow::Error {
        let ends = self.tasks.iter_mut().zip(&self.parts).map(|(task, part)| {
            Box::pin(async {
                match task.join_next().await {
                    Some(Ok(Err(error))) => error.context(part.name),
                    Some(Ok(Ok(()))) | None => anyhow::anyhow!("{} ended", part.name),
                    Some(Err(error)) => anyhow::Error::new(error).context(part.name),
                }
            })
        });
        futures::future::select_all(ends).await.0
    }

    /// Ends the parts one after the other.
    async fn drain(mut self) {
        for (part, task) in self.parts.iter().zip(&mut self.tasks) {
            part.stop.cancel();
            match tokio::time::timeout(part.drain, task.join_next()).await {
                Ok(Some(Ok(Err(error)))) => {
                    tracing::warn!(part = part.name, error = format!("{error:#}"), "ended with an error")
                }
                Ok(_) => tracing::debug!(part = part.name, "ended"),
                Err(_) => tracing::warn!(part = part.name, seconds = part.drain.as_secs(), "did not end in time"),
            }
        }
    }
}

/// Waits for SIGTERM or ctrl-c.
struct Signals {
    /// When the program began, for the line that says it is ready.
    started: Instant,
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn listen() -> Result<Self> {
        Ok(Self {
            started: Instant::now(),
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn received(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Runs what was started until a signal, a failure, or `until_ready` failing.
async fn supervise(
    mut parts: Parts,
    mut signals: Signals,
    until_ready: impl Future<Output = Result<String>>,
) -> Result<()> {
    let outcome = tokio::select! {
        () = signals.received() => Ok(()),
        error = parts.failed() => Err(error),
        ready = until_ready => match ready {
            Err(error) => Err(error),
            Ok(line) => {
                println!("ready: {line} ({:.2} s)", signals.started.elapsed().as_secs_f64());
                tokio::select! {
                    () = signals.received() => Ok(()),
                    error = parts.failed() => Err(error),
                }
            }
        },
    };
    tracing::info!("stopping");
    parts.drain().await;
    outcome
}

pub async fn up(args: UpArgs) -> Result<()> {
    let config = Config::new(args.daemon, args.control_plane, args.node, None)?;
    logging::start(config.log_format);
    let signals = Signals::listen()?;
    let data_dir = DataDir::open(&config.data_dir)?;
    let mut parts = Parts::default();
    let control_plane = control_plane::start(&config, &data_dir, true).await?;
    let agent = node::beside(&control_plane, &config, &data_dir).await?;
    parts.spawn("node", NODE_DRAIN, |stop| node::run(agent, stop));
    let ready = control_plane.ready(Some(&config.node_name));
    control_plane.spawn(&mut parts);
    let outcome = supervise(parts, signals, ready).await;
    // The pods have ended; what carried them goes too.
    let cleaned = node::clean(&data_dir).await;
    outcome.and(cleaned.map(drop))
}

pub async fn server(args: ServerArgs) -> Result<()> {
    let config = Config::new(args.daemon, args.control_plane, NodeFlags::default(), None)?;
    logging::start(config.log_format);
    let signals = Signals::listen()?;
    let data_dir = DataDir::open(&config.data_dir)?;
    let mut parts = Parts::default();
    let control_plane = control_plane::start(&config, &data_dir, false).await?;
    let ready = control_plane.ready(None);
    control_plane.spawn(&mut parts);
    supervise(parts, signals, ready).await
}

pub async fn node(args: NodeArgs) -> Result<()> {
    let config = Config::new(args.daemon, ControlPlaneArgs::default(), args.node, args.server)?;
    logging::start(config.log_format);
    let signals = Signals::listen()?;
    let data_dir = DataDir::open(&config.data_dir)?;
    let server = config.server.clone().context("which control plane? give --server https://ADDR:PORT")?;
    let mut parts = Parts::default();
    let agent = node::join(&server, args.token.as_deref(), &config, &data_dir).await?;
    let ready = node::ready(agent.1.clone(), config.node_name.clone(), server);
    parts.spawn("node", NODE_DRAIN, |stop| node::run(agent, stop));
    supervise(parts, signals, ready).await
}

pub async fn down(args: DownArgs) -> Result<()> {
    anyhow::ensure!(
        args.data_dir.join("format").is_file(),
        "{} is no data dir of sampan: nothing was touched",
        args.data_dir.display()
    );
    logging::start(crate::cli::LogFormat::Text);
    // A cluster that runs still holds the lock: it is stopped by a signal, not from behind its back.
    let data_dir = DataDir::open(&args.data_dir)?;
    println!("removed {}", node::clean(&data_dir).await?);
    Ok(())
}
