//! What the kernel says of processes: memory and processor time.

use std::fs;
use std::path::Path;

/// The processes whose names begin so.
pub fn named(names: &[&str]) -> Vec<u32> {
    let name = |pid: u32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    all().into_iter().filter(|pid| names.iter().any(|start| name(*pid).starts_with(start))).collect()
}

fn all() -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

/// The processes that run this program, under whatever arguments.
pub fn running(program: &Path) -> Vec<u32> {
    all().into_iter().filter(|pid| fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == program)).collect()
}

/// Resident memory in KiB; 0 for a process that is gone.
pub fn resident_kib(pid: u32) -> u64 {
    let text = crate::machine::field(&format!("/proc/{pid}/status"), "VmRSS").unwrap_or_default();
    text.split(' ').next().and_then(|kib| kib.parse().ok()).unwrap_or(0)
}

/// Resident memory in KiB where pages that several processes share count once.
pub fn proportional_kib(pids: &[u32]) -> u64 {
    let one = |pid: &u32| {
        let text = crate::machine::field(&format!("/proc/{pid}/smaps_rollup"), "Pss").unwrap_or_default();
        text.split(' ').next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0)
    };
    pids.iter().map(one).sum()
}

/// Processor time taken so far, user and system, in seconds.
pub fn cpu_seconds(pid: &str) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    parse_cpu(&stat, rustix::param::clock_ticks_per_second()).unwrap_or(0.0)
}

fn parse_cpu(stat: &str, ticks: u64) -> Option<f64> {
    // The name, in parentheses, may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let user: u64 = fields.nth(11)?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some((user + system) as f64 / ticks as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_read_behind_any_name() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 100 0 0 0 150 50 3 4 20 0 9 0 100 1 2";
        assert_eq!(parse_cpu(stat, 100), Some(2.0));
        assert_eq!(parse_cpu("7 (a) S 1", 100), None);
        assert!(cpu_seconds("self") >= 0.0);
    }

    #[test]
    fn this_process_is_found_with_its_memory() {
        let own = std::process::id();
        let program = fs::read_link("/proc/self/exe").unwrap_or_default();
        assert!(running(&program).contains(&own));
        assert!(resident_kib(own) > 500);
        assert_eq!(resident_kib(u32::MAX), 0);
    }
}
