//! Processes that outlive who started them: found again, signalled and waited for by pid, without
//! taking another for them that has got the pid since.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal};

/// A process by its pid and when it began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    pub pid: i32,
    /// Clock ticks since boot.
    pub start_time: u64,
}

impl Identity {
    /// The process that has this pid now; `None` if there is none or it is a zombie.
    pub fn of(pid: i32) -> Option<Identity> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        start_time(&stat).map(|start_time| Identity { pid, start_time })
    }

    pub fn own() -> Option<Identity> {
        Identity::of(i32::try_from(std::process::id()).ok()?)
    }

    pub fn is_alive(&self) -> bool {
        Identity::of(self.pid) == Some(*self)
    }

    /// Holds the process; checking after opening leaves no gap for a reused pid.
    fn open(&self) -> Option<OwnedFd> {
        let fd = rustix::process::pidfd_open(Pid::from_raw(self.pid)?, PidfdFlags::empty()).ok()?;
        self.is_alive().then_some(fd)
    }

    pub fn signal(&self, signal: Signal) {
        if let Some(fd) = self.open() {
            let _ = rustix::process::pidfd_send_signal(&fd, signal);
        }
    }

    /// Waits until the process has ended; false when it has not after `limit`.
    pub async fn gone(&self, limit: Duration) -> bool {
        tokio::time::timeout(limit, self.ended()).await.is_ok()
    }

    /// Waits until the process has ended.
    pub async fn ended(&self) {
        let Some(fd) = self.open() else { return };
        // A descriptor of a process becomes readable when it ends.
        // Safety: it owns the descriptor, and nothing else closes it.
        match unsafe { tokio::io::unix::AsyncFd::register_with_interest(fd, tokio::io::Interest::READABLE) } {
            Ok(fd) => drop(fd.readable().await),
            Err(error) => tracing::warn!(pid = self.pid, %error, "cannot wait for a process"),
        }
    }

    /// The same for those who have no runtime.
    pub fn gone_blocking(&self, limit: Duration) -> bool {
        let Some(fd) = self.open() else { return true };
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = rustix::event::Timespec::try_from(left).ok();
            let mut fds = [rustix::event::PollFd::new(&fd, rustix::event::PollFlags::IN)];
            match rustix::event::poll(&mut fds, timeout.as_ref()) {
                Ok(0) => return false,
                Ok(_) => return true,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return !self.is_alive(),
            }
        }
    }
}

/// Field 22 of `/proc/PID/stat`; the name in field 2 may hold spaces and parentheses.
fn start_time(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_name_cannot_shift_the_fields() {
        let stat = "7 (a) Z (b) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 0 0";
        assert_eq!(start_time(stat), Some(4711));
        assert_eq!(start_time(&stat.replace(") S", ") Z")), None);
        assert_eq!(start_time("garbage"), None);
    }

    #[tokio::test]
    async fn the_end_of_a_process_is_seen() {
        let mut child = std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let identity = Identity::of(child.id() as i32).unwrap();
        assert!(identity.is_alive());
        assert!(!identity.gone(Duration::from_millis(1)).await);
        assert!(!Identity { start_time: identity.start_time + 1, ..identity }.is_alive());
        drop(child.stdin.take());
        assert!(identity.gone(Duration::from_secs(10)).await);
        assert!(identity.gone_blocking(Duration::from_secs(10)));
        child.wait().unwrap();
    }
}
