//! Guests' output in CRI's log format, with rotation. A file is open only while it is written.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

use crate::taps::{Tapped, Taps};

/// Longest content of one line; the rest follows marked as continued.
const LINE: usize = 16 << 10;
/// Most that a guest may hand over at once.
const PERMIT: usize = 64 << 10;
const DEFAULT_BYTES: u64 = 10 << 20;
const DEFAULT_FILES: u32 = 5;
/// How long an unused file stays open.
pub const LINGER: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// The log of one container.
#[derive(Debug)]
pub struct Log {
    /// Empty: output goes nowhere.
    path: PathBuf,
    max_bytes: u64,
    max_files: u32,
    state: Mutex<State>,
    taps: Taps,
}

#[derive(Debug, Default)]
struct State {
    file: Option<(File, u64)>,
    used: bool,
    failed: bool,
}

impl Log {
    pub fn new(path: &str, max_bytes: u64, max_files: u32) -> Arc<Log> {
        Arc::new(Log {
            path: path.into(),
            max_bytes: if max_bytes == 0 { DEFAULT_BYTES } else { max_bytes },
            max_files: if max_files == 0 { DEFAULT_FILES } else { max_files },
            state: Mutex::default(),
            taps: Taps::default(),
        })
    }

    /// Writes whole lines or parts of them, each marked as such.
    fn write(&self, stream: Stream, parts: &[(&[u8], bool)]) {
        if self.path.as_os_str().is_empty() || parts.is_empty() {
            return;
        }
        let mut text = Vec::new();
        let time = timestamp(SystemTime::now());
        for (content, whole) in parts {
            text.extend_from_slice(time.as_bytes());
            text.extend_from_slice(match stream {
                Stream::Stdout => b" stdout ",
                Stream::Stderr => b" stderr ",
            });
            text.extend_from_slice(if *whole { b"F " } else { b"P " });
            text.extend_from_slice(content);
            text.push(b'\n');
        }
        let mut state = self.state.lock().unwrap_or_else(|e| e.into_inner());
        state.used = true;
        match self.append(&mut state, &text) {
            Ok(()) => state.failed = false,
            // A full disk must not end the guest; said once, not per line.
            Err(error) if !state.failed => {
                state.failed = true;
                state.file = None;
                tracing::warn!(path = %self.path.display(), %error, "container log");
            }
            Err(_) => state.file = None,
        }
    }

    fn append(&self, state: &mut State, text: &[u8]) -> io::Result<()> {
        if state.file.as_ref().is_some_and(|(_, size)| *size > 0 && size + text.len() as u64 > self.max_bytes) {
            state.file = None;
            self.rotate()?;
        }
        let (file, size) = match &mut state.file {
            Some(open) => open,
            none => {
                if let Some(dir) = self.path.parent() {
                    std::fs::create_dir_all(dir)?;
                }
                let file = File::options().create(true).append(true).open(&self.path)?;
                let size = file.metadata()?.len();
                none.insert((file, size))
            }
        };
        file.write_all(text)?;
        *size += text.len() as u64;
        Ok(())
    }

    /// `LOG` becomes `LOG.1`, and so on; the oldest goes.
    fn rotate(&self) -> io::Result<()> {
        let name = |n: u32| match n {
            0 => self.path.clone(),
            n => {
                let mut name = self.path.clone().into_os_string();
                name.push(format!(".{n}"));
                name.into()
            }
        };
        let last = self.max_files.saturating_sub(1);
        if last == 0 {
            return std::fs::remove_file(&self.path);
        }
        for n in (0..last).rev() {
            match std::fs::rename(name(n), name(n + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// What is written from now on, as it is written.
    pub fn tap(&self) -> Tapped {
        self.taps.add()
    }

    /// A line of the host's own about the guest, where a program's own last words would be.
    pub fn say(&self, text: &str) {
        self.taps.feed(Stream::Stderr, format!("{}\n", text.trim_end()).as_bytes());
        let lines: Vec<_> = text.lines().map(|line| (line.as_bytes(), true)).collect();
        self.write(Stream::Stderr, &lines);
    }

    /// Closes the file if nothing was written since the last call.
    fn close_idle(&self) {
        let mut state = self.state.lock().unwrap_or_else(|e| e.into_inner());
        if !std::mem::take(&mut state.used) {
            state.file = None;
        }
    }
}

/// Closes idle files of all logs.
#[derive(Clone, Default)]
pub struct Sweeper(Arc<Mutex<Vec<Weak<Log>>>>);

impl Sweeper {
    pub fn add(&self, log: &Arc<Log>) {
        self.0.lock().unwrap_or_else(|e| e.into_inner()).push(Arc::downgrade(log));
    }

    pub fn sweep(&self) {
        self.0.lock().unwrap_or_else(|e| e.into_inner()).retain(|log| match log.upgrade() {
            Some(log) => {
                log.close_idle();
                true
            }
            None => false,
        });
    }
}

/// One instance's output: its lines are not mixed with those of others.
#[derive(Clone)]
pub struct Output(Arc<Lines>);

struct Lines {
    log: Arc<Log>,
    stream: Stream,
    terminal: bool,
    buffer: Mutex<Vec<u8>>,
}

impl Output {
    pub fn new(log: Arc<Log>, stream: Stream, terminal: bool) -> Output {
        Output(Arc::new(Lines { log, stream, terminal, buffer: Mutex::default() }))
    }

    fn feed(&self, bytes: &[u8]) {
        self.0.log.taps.feed(self.0.stream, bytes);
        let mut buffer = self.0.buffer.lock().unwrap_or_else(|e| e.into_inner());
        let joined;
        let mut rest = match buffer.is_empty() {
            true => bytes,
            false => {
                buffer.extend_from_slice(bytes);
                joined = std::mem::take(&mut *buffer);
                &joined
            }
        };
        let mut parts = Vec::new();
        loop {
            let end = rest.iter().take(LINE + 1).position(|b| *b == b'\n');
            let (part, next) = match end {
                Some(end) => ((&rest[..end], true), end + 1),
                None if rest.len() > LINE => ((&rest[..LINE], false), LINE),
                None => break,
            };
            parts.push(part);
            rest = &rest[next..];
        }
        self.0.log.write(self.0.stream, &parts);
        *buffer = rest.to_vec();
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        let buffer = self.buffer.get_mut().unwrap_or_else(|e| e.into_inner());
        if !buffer.is_empty() {
            // Ends without a newline: a part that nothing follows.
            self.log.write(self.stream, &[(buffer.as_slice(), false)]);
        }
    }
}

impl IsTerminal for Output {
    fn is_terminal(&self) -> bool {
        self.0.terminal
    }
}

impl StdoutStream for Output {
    fn async_stream(&self) -> Box<dyn tokio::io::AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

impl OutputStream for Output {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.feed(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        // Who is attached and slow holds the guest up, as a terminal does.
        Ok(if self.0.log.taps.are_full() { 0 } else { PERMIT })
    }
}

#[async_trait::async_trait]
impl Pollable for Output {
    async fn ready(&mut self) {
        self.0.log.taps.room().await;
    }
}

impl tokio::io::AsyncWrite for Output {
    fn poll_write(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        bytes: &[u8],
    ) -> std::task::Poll<io::Result<usize>> {
        self.feed(bytes);
        std::task::Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: std::pin::Pin<&mut Self>, _: &mut std::task::Context<'_>) -> std::task::Poll<io::Result<()>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn poll_shutdown(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::task::Poll::Ready(Ok(()))
    }
}

/// RFC 3339 with nanoseconds, in UTC.
fn timestamp(time: SystemTime) -> String {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (seconds, nanoseconds) = (since.as_secs(), since.subsec_nanos());
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanoseconds:09}Z")
}

/// Date of a day since 1970, in the calendar's cycles of 400 years that begin in March.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let era = days / 146_097;
    let of_era = days % 146_097;
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day)
}

/// Writes a file that is either there whole or not at all.
pub fn write_whole(path: &Path, content: &[u8]) -> io::Result<()> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let mut temporary = path.to_path_buf().into_os_string();
    temporary.push(".tmp");
    std::fs::write(&temporary, content)?;
    std::fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn read(path: &Path) -> Vec<(String, bool, Vec<u8>)> {
        let text = std::fs::read(path).unwrap();
        text.split(|b| *b == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| {
                let mut fields = line.splitn(4, |b| *b == b' ');
                let time = std::str::from_utf8(fields.next().unwrap()).unwrap();
                assert!(time.ends_with('Z') && time.len() == 30, "{time}");
                let stream = String::from_utf8(fields.next().unwrap().to_vec()).unwrap();
                let whole = fields.next().unwrap() == b"F";
                (stream, whole, fields.next().unwrap().to_vec())
            })
            .collect()
    }

    #[test]
    fn times() {
        let at = |s, n| timestamp(SystemTime::UNIX_EPOCH + Duration::new(s, n));
        assert_eq!(at(0, 1), "1970-01-01T00:00:00.000000001Z");
        assert_eq!(at(1_709_164_800, 0), "2024-02-29T00:00:00.000000000Z");
        assert_eq!(at(1_795_262_399, 999_999_999), "2026-11-21T11:59:59.999999999Z");
    }

    #[test]
    fn files_are_rotated_and_the_oldest_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/0.log");
        let log = Log::new(path.to_str().unwrap(), 200, 3);
        for n in 0..20 {
            log.say(&format!("line {n:02} {}", "x".repeat(60)));
        }
        let mut names: Vec<_> = std::fs::read_dir(path.parent().unwrap())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["0.log", "0.log.1", "0.log.2"]);
        assert!(read(&path).last().unwrap().2.starts_with(b"line 19"));
    }

    #[test]
    fn idle_files_are_closed() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::new(dir.path().join("0.log").to_str().unwrap(), 0, 0);
        let sweeper = Sweeper::default();
        sweeper.add(&log);
        log.say("one");
        sweeper.sweep();
        assert!(log.state.lock().unwrap().file.is_some());
        sweeper.sweep();
        assert!(log.state.lock().unwrap().file.is_none());
        log.say("two");
        assert_eq!(read(&dir.path().join("0.log")).len(), 2);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// However output is cut into writes, the lines' content is what was written.
        #[test]
        fn content_survives(chunks in prop::collection::vec(
            prop_oneof![
                prop::collection::vec(prop_oneof![Just(b'\n'), Just(b'a'), Just(0xff)], 0..20),
                (LINE - 3..LINE * 2 + 3).prop_map(|n| vec![b'x'; n]),
            ], 0..8)
        ) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("0.log");
            let log = Log::new(path.to_str().unwrap(), 1 << 30, 2);
            let output = Output::new(log, Stream::Stdout, false);
            chunks.iter().for_each(|chunk| output.feed(chunk));
            drop(output);
            let wrote = chunks.concat();
            let mut got = Vec::new();
            if !wrote.is_empty() {
                for (stream, whole, content) in read(&path) {
                    prop_assert_eq!(stream, "stdout");
                    prop_assert!(content.len() <= LINE);
                    got.extend_from_slice(&content);
                    if whole {
                        got.push(b'\n');
                    }
                }
            }
            prop_assert_eq!(got, wrote);
        }
    }
}
