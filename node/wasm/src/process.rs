//! Naming processes for good, and starting ourselves again.

use std::ffi::OsString;

/// Our own executable by descriptor: works where its path cannot be reached (a 0700 directory
/// after dropping the user) or names another file by now (an upgrade).
pub fn own(subcommand: &str) -> Vec<OsString> {
    vec!["/proc/self/exe".into(), subcommand.into()]
}

/// A process, named so that a reused pid is not taken for it.
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
        parse(&stat).map(|start_time| Identity { pid, start_time })
    }

    pub fn own() -> Option<Identity> {
        Identity::of(i32::try_from(std::process::id()).ok()?)
    }

    pub fn is_alive(&self) -> bool {
        Identity::of(self.pid) == Some(*self)
    }

    /// Sends a signal if the process is still this one.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let Some(pid) = rustix::process::Pid::from_raw(self.pid) else {
            return;
        };
        // The descriptor holds the process; checking after opening leaves no gap for reuse.
        let Ok(fd) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) else {
            return;
        };
        if self.is_alive() {
            let _ = rustix::process::pidfd_send_signal(&fd, signal);
        }
    }

    /// Waits until the process is gone; false when it is still there after `limit`.
    pub async fn gone(&self, limit: std::time::Duration) -> bool {
        let deadline = tokio::time::Instant::now() + limit;
        while self.is_alive() {
            if tokio::time::Instant::now() >= deadline {
                return false;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        true
    }
}

/// Field 22 of `/proc/PID/stat`; the name in field 2 may hold spaces and parentheses.
fn parse(stat: &str) -> Option<u64> {
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
        assert_eq!(parse(stat), Some(4711));
        assert_eq!(parse(&stat.replace(") S", ") Z")), None);
        assert_eq!(parse("garbage"), None);
    }

    #[test]
    fn own_process_is_alive_and_a_reused_pid_is_not() {
        let own = Identity::own().unwrap();
        assert!(own.is_alive());
        assert!(!Identity { start_time: own.start_time + 1, ..own }.is_alive());
    }
}
