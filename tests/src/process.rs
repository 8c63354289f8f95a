//! Programs that tests start: their output gathered, their end certain.

use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::{PATIENCE, Place};

/// How a program ended, and what it wrote.
#[derive(Debug)]
pub struct Finished {
    pub ok: bool,
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
    pub took: Duration,
}

impl Finished {
    /// Fails the test unless the program failed; answers with what it said.
    pub fn refused(self) -> String {
        assert!(!self.ok, "should have failed, but said: {}", self.out);
        self.err
    }
}

/// Runs a program to its end.
pub fn run(program: &Path, arguments: &[&str]) -> Finished {
    run_with_input(program, arguments, "")
}

pub fn run_with_input(program: &Path, arguments: &[&str], input: &str) -> Finished {
    let start = Instant::now();
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{}: {error}", program.display()));
    // A program that reads nothing may have closed it already.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    Finished {
        ok: output.status.success(),
        code: output.status.code(),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
        took: start.elapsed(),
    }
}

/// A program in the background. Killed when dropped.
pub struct Process {
    child: Child,
    lines: Receiver<String>,
    out: Arc<Mutex<String>>,
    log: Arc<Mutex<String>>,
}

impl Process {
    pub fn spawn(program: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        Self::spawn_in(&Place::default(), program, arguments, environment)
    }

    pub fn spawn_in(place: &Place, program: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let (program, arguments) = place.command(program, arguments);
        let mut child = Command::new(&program)
            .args(arguments)
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        let (sender, lines) = channel();
        let out = gather(child.stdout.take().unwrap(), move |line| drop(sender.send(line.to_owned())));
        let log = gather(child.stderr.take().unwrap(), |_| ());
        Self { child, lines, out, log }
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// What it wrote to standard error so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// What it wrote to standard output so far.
    pub fn out(&self) -> String {
        self.out.lock().unwrap().clone()
    }

    /// Waits for a line of standard output that begins so; answers with it.
    pub fn wait_for_line(&mut self, prefix: &str) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) if line.starts_with(prefix) => return line,
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => panic!("no line {prefix:?} in time; the log:\n{}", self.log()),
                Err(RecvTimeoutError::Disconnected) => {
                    let status = self.child.wait();
                    panic!("ended ({status:?}) before a line {prefix:?}; the log:\n{}", self.log())
                }
            }
        }
    }

    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM, and SIGKILL when that was not enough.
    pub fn terminate(mut self) -> Finished {
        let start = Instant::now();
        let _ = kill_process(self.pid(), Signal::TERM);
        let status = self.wait(PATIENCE);
        Finished {
            ok: status.is_some_and(|status| status.success()),
            code: status.and_then(|status| status.code()),
            out: self.out(),
            err: self.log(),
            took: start.elapsed(),
        }
    }

    /// Waits for its end; `None` when it did not come in time.
    pub fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return Some(status);
            }
            if Instant::now() > end {
                return None;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn gather(from: impl Read + Send + 'static, mut each: impl FnMut(&str) + Send + 'static) -> Arc<Mutex<String>> {
    let gathered = Arc::new(Mutex::new(String::new()));
    let into = gathered.clone();
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines() {
            let Ok(line) = line else { return };
            into.lock().unwrap().push_str(&format!("{line}\n"));
            each(&line);
        }
    });
    gathered
}
