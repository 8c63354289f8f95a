//! Reading containers' logs: files in CRI's format (`TIME STREAM TAG CONTENT`), rotated by their
//! writer to `NAME.1`, `NAME.2`, …. Following waits for the kernel to tell of changes.

use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use jiff::Timestamp;
use rustix::fs::inotify;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::beneath::{self, Links};

/// What part of a log is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    pub follow: bool,
    pub timestamps: bool,
    pub tail: Option<u64>,
    pub since: Option<Timestamp>,
    pub limit: Option<u64>,
    /// stdout or stderr; both if not given.
    pub stream: Option<String>,
}

/// One log: a file below a directory that its writer may change, hence no links are followed.
#[derive(Clone, Debug)]
pub struct Log {
    dir: PathBuf,
    path: PathBuf,
}

/// Files that rotation may have made.
const ROTATED: u32 = 100;
const CHUNK: usize = 64 << 10;

impl Log {
    /// `path` is below `dir`.
    pub fn new(dir: &Path, path: &Path) -> Self {
        Self { dir: dir.to_owned(), path: path.to_owned() }
    }

    fn open(&self, path: &Path) -> io::Result<std::fs::File> {
        beneath::file(&self.dir, path, Links::None)
    }

    fn rotated(&self, number: u32) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{number}"));
        name.into()
    }

    /// All files that there are, oldest first.
    fn files(&self) -> Vec<std::fs::File> {
        let mut files = Vec::new();
        for number in 1..ROTATED {
            match self.open(&self.rotated(number)) {
                Ok(file) => files.push(file),
                Err(_) => break,
            }
        }
        files.reverse();
        files.extend(self.open(&self.path));
        files
    }

    /// Sends what is wanted, in pieces; returns when all is sent, nobody listens, or `ended` says
    /// that nothing will follow.
    pub async fn read(&self, options: Options, out: mpsc::Sender<io::Result<Bytes>>, ended: CancellationToken) {
        if let Err(error) = self.send(&options, &out, &ended).await {
            let _ = out.send(Err(error)).await;
        }
    }

    async fn send(
        &self,
        options: &Options,
        out: &mpsc::Sender<io::Result<Bytes>>,
        ended: &CancellationToken,
    ) -> io::Result<()> {
        // Watched before it is read: what is written in between is told.
        let watch = if options.follow { Some(Watch::new(&self.dir.join(&self.path))?) } else { None };
        let (this, wanted) = (self.clone(), options.clone());
        let (sender, mut pieces) = mpsc::channel(4);
        let first = tokio::task::spawn_blocking(move || this.read_present(&wanted, &sender));
        let mut filter = Limit(options.limit);
        while let Some(piece) = pieces.recv().await {
            if !filter.send(out, piece).await {
                return Ok(());
            }
        }
        let current = first.await.map_err(io::Error::other)??;
        let Some(watch) = watch else { return Ok(()) };
        self.follow(options, current, watch, filter, out, ended).await
    }

    /// What is there now; gives the newest file with where reading stopped.
    fn read_present(&self, options: &Options, out: &mpsc::Sender<Vec<u8>>) -> io::Result<Option<std::fs::File>> {
        let mut files = self.files();
        let starts = match options.tail {
            Some(lines) => tail(&mut files, lines, options)?,
            None => vec![0; files.len()],
        };
        let mut writer = Writer::new(options);
        let mut last = None;
        for (mut file, start) in files.into_iter().zip(starts) {
            file.seek(SeekFrom::Start(start))?;
            let mut reader = BufReader::with_capacity(CHUNK, file);
            let mut position = start;
            let mut line = Vec::new();
            loop {
                line.clear();
                let read = reader.read_until(b'\n', &mut line)?;
                if read == 0 || line.last() != Some(&b'\n') {
                    // A line being written is read when it is whole.
                    break;
                }
                position += read as u64;
                writer.line(&line);
                if writer.out.len() >= CHUNK && out.blocking_send(std::mem::take(&mut writer.out)).is_err() {
                    return Ok(None);
                }
            }
            let mut file = reader.into_inner();
            file.seek(SeekFrom::Start(position))?;
            last = Some(file);
        }
        if !writer.out.is_empty() {
            let _ = out.blocking_send(writer.out);
        }
        Ok(last)
    }

    async fn follow(
        &self,
        options: &Options,
        mut current: Option<std::fs::File>,
        watch: Watch,
        mut limit: Limit,
        out: &mpsc::Sender<io::Result<Bytes>>,
        ended: &CancellationToken,
    ) -> io::Result<()> {
        let mut writer = Writer::new(options);
        loop {
            // Once more after the end was told: the last lines came before it.
            let over = ended.is_cancelled();
            loop {
                let Some(file) = &mut current else {
                    current = self.open(&self.path).ok();
                    if current.is_none() {
                        break;
                    }
                    continue;
                };
                drain(file, &mut writer)?;
                if !writer.out.is_empty() && !limit.send(out, std::mem::take(&mut writer.out)).await {
                    return Ok(());
                }
                // Rotated: the rest of the old file is read, on to the new one.
                match self.open(&self.path) {
                    Ok(newest) if newest.metadata()?.ino() != file.metadata()?.ino() => {
                        drain(file, &mut writer)?;
                        current = Some(newest);
                    }
                    _ => break,
                }
            }
            if over {
                return Ok(());
            }
            tokio::select! {
                () = ended.cancelled() => {}
                () = out.closed() => return Ok(()),
                changed = watch.changed() => changed?,
            }
        }
    }
}

/// Reads the whole lines that are there.
fn drain(file: &mut std::fs::File, writer: &mut Writer) -> io::Result<()> {
    let start = file.stream_position()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    for line in bytes.get(..whole).unwrap_or_default().split_inclusive(|byte| *byte == b'\n') {
        writer.line(line);
    }
    file.seek(SeekFrom::Start(start + whole as u64))?;
    Ok(())
}

/// Where in each file the last `lines` begin. A line in parts counts once.
fn tail(files: &mut [std::fs::File], lines: u64, options: &Options) -> io::Result<Vec<u64>> {
    let mut starts = Vec::with_capacity(files.len());
    for file in files.iter() {
        starts.push(file.metadata()?.len());
    }
    let mut left = lines;
    for (file, start) in files.iter_mut().zip(starts.iter_mut()).rev() {
        if left == 0 {
            break;
        }
        // From the end in chunks, until enough line ends were seen.
        let mut position = *start;
        let mut buffer: Vec<u8> = Vec::new();
        loop {
            let found = count_back(&buffer, left, position == 0, options);
            if let Some(offset) = found.start {
                *start = position + offset as u64;
                left = 0;
                break;
            }
            if position == 0 {
                *start = 0;
                left -= found.lines.min(left);
                break;
            }
            let step = position.min(CHUNK as u64);
            position -= step;
            file.seek(SeekFrom::Start(position))?;
            let mut chunk = vec![0; usize::try_from(step).unwrap_or(CHUNK)];
            file.read_exact(&mut chunk)?;
            chunk.extend_from_slice(&buffer);
            buffer = chunk;
        }
    }
    Ok(starts)
}

struct Found {
    /// Where the wanted lines begin, if all of them are here.
    start: Option<usize>,
    lines: u64,
}

/// Counts whole lines from the end of `buffer`; its first line is whole only at a file's begin.
fn count_back(buffer: &[u8], wanted: u64, from_begin: bool, options: &Options) -> Found {
    let whole = buffer.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let mut lines = 0;
    let mut end = whole;
    let mut start_of_counted = whole;
    while end > 0 {
        let begin = buffer[..end - 1].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        if begin == 0 && !from_begin {
            break;
        }
        let parsed = parse(&buffer[begin..end]);
        let counts = parsed.as_ref().is_none_or(|line| line.whole && options.takes_stream(line.stream));
        if counts {
            if lines == wanted {
                return Found { start: Some(start_of_counted), lines };
            }
            lines += 1;
        }
        start_of_counted = begin;
        end = begin;
    }
    // At the begin of a file there is nothing before the first line.
    let start = (from_begin && lines == wanted).then_some(start_of_counted);
    Found { start, lines }
}

struct Line<'a> {
    time: &'a [u8],
    stream: &'a [u8],
    whole: bool,
    /// With its line end.
    content: &'a [u8],
}

fn parse(line: &[u8]) -> Option<Line<'_>> {
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let (time, stream, tag, content) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    if !matches!(stream, b"stdout" | b"stderr") {
        return None;
    }
    let whole = !tag.split(|byte| *byte == b':').any(|tag| tag == b"P");
    Some(Line { time, stream, whole, content })
}

impl Options {
    fn takes_stream(&self, stream: &[u8]) -> bool {
        self.stream.as_ref().is_none_or(|wanted| wanted.as_bytes() == stream)
    }
}

/// Turns CRI's lines into what a reader asked for.
struct Writer<'a> {
    options: &'a Options,
    /// The line so far came in parts: no new timestamp within it.
    within: bool,
    out: Vec<u8>,
}

impl<'a> Writer<'a> {
    fn new(options: &'a Options) -> Self {
        Self { options, within: false, out: Vec::new() }
    }

    fn line(&mut self, line: &[u8]) {
        let Some(parsed) = parse(line) else {
            self.out.extend_from_slice(line);
            return;
        };
        if !self.options.takes_stream(parsed.stream) {
            return;
        }
        if let Some(since) = self.options.since {
            let time = std::str::from_utf8(parsed.time).ok().and_then(|time| time.parse::<Timestamp>().ok());
            if time.is_some_and(|time| time < since) {
                return;
            }
        }
        if self.options.timestamps && !self.within {
            self.out.extend_from_slice(parsed.time);
            self.out.push(b' ');
        }
        self.within = !parsed.whole;
        let content =
            if parsed.whole { parsed.content } else { parsed.content.strip_suffix(b"\n").unwrap_or(parsed.content) };
        self.out.extend_from_slice(content);
    }
}

/// Cuts the output where its limit is.
struct Limit(Option<u64>);

impl Limit {
    /// False when nothing more is wanted.
    async fn send(&mut self, out: &mpsc::Sender<io::Result<Bytes>>, mut piece: Vec<u8>) -> bool {
        let mut more = true;
        if let Some(left) = &mut self.0 {
            if (piece.len() as u64) >= *left {
                piece.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
                more = false;
            }
            *left -= piece.len() as u64;
        }
        out.send(Ok(piece.into())).await.is_ok() && more
    }
}

/// Tells when a log's directory changes: writes to the file, and new files after a rotation.
struct Watch {
    fd: AsyncFd<OwnedFd>,
}

impl Watch {
    fn new(path: &Path) -> io::Result<Self> {
        let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        let dir = path.parent().unwrap_or(Path::new("."));
        let flags = inotify::WatchFlags::MODIFY
            | inotify::WatchFlags::CREATE
            | inotify::WatchFlags::MOVED_TO
            | inotify::WatchFlags::DELETE_SELF
            | inotify::WatchFlags::ONLYDIR;
        inotify::add_watch(&fd, dir, flags)?;
        // SAFETY: the descriptor is owned here and stays open for as long as it is registered.
        let fd = unsafe { AsyncFd::register(fd)? };
        Ok(Self { fd })
    }

    async fn changed(&self) -> io::Result<()> {
        let mut ready = self.fd.readable().await?;
        let mut buffer = [0; 4096];
        // All that is there: which file it was is found by looking.
        while rustix::io::read(self.fd.get_ref(), &mut buffer).is_ok_and(|read| read > 0) {}
        ready.clear_ready();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    fn cri(second: u32, tag: &str, content: &str) -> String {
        format!("2026-01-01T00:00:{second:02}.000000000Z stdout {tag} {content}\n")
    }

    fn log(dir: &Path) -> Log {
        Log::new(dir, Path::new("0.log"))
    }

    async fn read(log: &Log, options: Options) -> String {
        let (sender, mut receiver) = mpsc::channel(8);
        let task = {
            let log = log.clone();
            tokio::spawn(async move { log.read(options, sender, CancellationToken::new()).await })
        };
        let mut out = Vec::new();
        while let Some(piece) = receiver.recv().await {
            out.extend_from_slice(&piece.unwrap());
        }
        task.await.unwrap();
        String::from_utf8(out).unwrap()
    }

    #[tokio::test]
    async fn parts_of_the_log() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("0.log.1"), cri(1, "F", "one") + &cri(2, "P", "tw") + &cri(2, "F", "o"))
            .unwrap();
        std::fs::write(dir.path().join("0.log"), cri(3, "F", "three") + "2026-01-01T00:00:04Z stderr F four\nhalf")
            .unwrap();
        let log = log(dir.path());
        let all = Options::default();
        assert_eq!(read(&log, all.clone()).await, "one\ntwo\nthree\nfour\n");
        for (lines, expected) in
            [(0, ""), (1, "four\n"), (2, "three\nfour\n"), (3, "two\nthree\nfour\n"), (9, "one\ntwo\nthree\nfour\n")]
        {
            assert_eq!(read(&log, Options { tail: Some(lines), ..all.clone() }).await, expected, "{lines}");
        }
        assert_eq!(read(&log, Options { limit: Some(5), ..all.clone() }).await, "one\nt");
        let since = Some("2026-01-01T00:00:03Z".parse().unwrap());
        assert_eq!(read(&log, Options { since, ..all.clone() }).await, "three\nfour\n");
        assert_eq!(read(&log, Options { stream: Some("stderr".into()), ..all.clone() }).await, "four\n");
        assert_eq!(
            read(&log, Options { timestamps: true, tail: Some(3), ..all }).await,
            "2026-01-01T00:00:02.000000000Z two\n2026-01-01T00:00:03.000000000Z three\n2026-01-01T00:00:04Z four\n"
        );
    }

    #[tokio::test]
    async fn following_passes_a_rotation() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(&path, cri(1, "F", "one")).unwrap();
        let (sender, mut receiver) = mpsc::channel(8);
        let ended = CancellationToken::new();
        let (reader, end) = (log(dir.path()), ended.clone());
        let task = tokio::spawn(async move {
            reader.read(Options { follow: true, ..Options::default() }, sender, end).await;
        });
        let mut next = async || receiver.recv().await.map(|piece| String::from_utf8(piece.unwrap().to_vec()).unwrap());
        assert_eq!(next().await.unwrap(), "one\n");
        let append = |text: &str| {
            let mut file = std::fs::File::options().create(true).append(true).open(&path).unwrap();
            file.write_all(text.as_bytes()).unwrap();
        };
        append(&cri(2, "F", "two"));
        assert_eq!(next().await.unwrap(), "two\n");
        std::fs::rename(&path, dir.path().join("0.log.1")).unwrap();
        append(&cri(3, "F", "three"));
        assert_eq!(next().await.unwrap(), "three\n");
        append(&cri(4, "F", "four"));
        ended.cancel();
        assert_eq!(next().await.unwrap(), "four\n");
        assert_eq!(next().await, None);
        task.await.unwrap();
    }

    #[tokio::test]
    async fn links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let secret = dir.path().join("secret");
        std::fs::write(&secret, "hush\n").unwrap();
        let inside = dir.path().join("tenant");
        std::fs::create_dir(&inside).unwrap();
        std::os::unix::fs::symlink(&secret, inside.join("0.log")).unwrap();
        assert_eq!(read(&log(&inside), Options::default()).await, "");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        /// The last lines are the last lines, however the log is cut into files.
        #[test]
        fn tail_is_the_end(lines in proptest::collection::vec("[a-z]{0,12}", 0..30), cuts in proptest::collection::vec(0_usize..30, 0..3), wanted in 0_u64..35) {
            let dir = tempfile::tempdir().unwrap();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(lines.len())).collect();
            cuts.sort_unstable();
            cuts.push(lines.len());
            let mut from = 0;
            let count = cuts.len();
            for (i, to) in cuts.into_iter().enumerate() {
                let text: String = lines[from..to].iter().map(|line| cri(1, "F", line)).collect();
                let name = match count - 1 - i { 0 => "0.log".to_owned(), n => format!("0.log.{n}") };
                std::fs::write(dir.path().join(name), text).unwrap();
                from = to;
            }
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let got = runtime.block_on(read(&log(dir.path()), Options { tail: Some(wanted), ..Options::default() }));
            let skip = lines.len().saturating_sub(usize::try_from(wanted).unwrap());
            let expected: String = lines[skip..].iter().map(|line| format!("{line}\n")).collect();
            prop_assert_eq!(got, expected);
        }
    }
}
