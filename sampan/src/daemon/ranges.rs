//! Address ranges of a cluster: those told, those kept from an earlier start, or free ones.
//! Clusters on one machine coexist, so a range is held by a lock as long as its cluster runs.

use std::fs::{self, File, OpenOptions};
use std::net::Ipv4Addr;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use ipnet::{IpNet, Ipv4Net};
use rustix::fs::FlockOperation;
use sampan_network::Mode;
use serde::{Deserialize, Serialize};

/// How many pairs of ranges there are to choose from.
const CANDIDATES: u8 = 30;

/// Pod and Service addresses of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ranges {
    pub cluster: IpNet,
    pub service: IpNet,
}

/// Ranges that no other cluster of this machine takes while this lives.
pub struct Held {
    pub ranges: Ranges,
    _locks: Vec<File>,
}

/// Settles the ranges of the cluster in `dir` and keeps them there.
pub fn settle(dir: &Path, mode: Mode, cluster: Option<IpNet>, service: Option<IpNet>) -> Result<Held> {
    let file = dir.join("ranges.json");
    if file.exists() {
        let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        let kept: Ranges = serde_json::from_str(&text).with_context(|| file.display().to_string())?;
        for (flag, asked, kept) in
            [("--cluster-cidr", cluster, kept.cluster), ("--service-cidr", service, kept.service)]
        {
            ensure!(
                asked.is_none_or(|asked| asked == kept),
                "{flag}: this cluster has {kept} since it was made; another range needs a new data dir"
            );
        }
        ensure!(
            kept.cluster.addr().is_loopback() == (mode == Mode::Unprivileged),
            "this data dir holds a cluster made {}; run it the same way, or give a new --data-dir",
            if mode == Mode::Unprivileged { "as root" } else { "by an ordinary user" }
        );
        let locks = lock(kept)?
            .with_context(|| format!("another cluster on this machine uses {} or {}", kept.cluster, kept.service))?;
        return Ok(Held { ranges: kept, _locks: locks });
    }
    let held = choose(mode, cluster, service)?;
    fs::write(&file, serde_json::to_vec(&held.ranges)?).with_context(|| file.display().to_string())?;
    Ok(held)
}

fn choose(mode: Mode, cluster: Option<IpNet>, service: Option<IpNet>) -> Result<Held> {
    for range in cluster.iter().chain(&service) {
        ensure!(
            range.addr().is_loopback() == (mode == Mode::Unprivileged),
            "range {range}: {}",
            if mode == Mode::Unprivileged {
                "without root, pods and Services live in 127.0.0.0/8"
            } else {
                "as root, pods and Services live outside of 127.0.0.0/8"
            }
        );
    }
    let in_use = in_use(mode);
    for number in 0..CANDIDATES {
        let candidate = candidate(mode, number);
        let ranges =
            Ranges { cluster: cluster.unwrap_or(candidate.cluster), service: service.unwrap_or(candidate.service) };
        let told = |range| Some(range) == cluster || Some(range) == service;
        let taken = |range: IpNet| !told(range) && in_use.iter().any(|used| overlap(*used, range));
        if taken(ranges.cluster) || taken(ranges.service) || overlap(ranges.cluster, ranges.service) {
            continue;
        }
        if let Some(locks) = lock(ranges)? {
            return Ok(Held { ranges, _locks: locks });
        }
        if cluster.is_some() && service.is_some() {
            break;
        }
    }
    bail!("no address range is free on this machine; give some with --cluster-cidr and --service-cidr")
}

fn candidate(mode: Mode, number: u8) -> Ranges {
    let range = |first, second| IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(first, second, 0, 0), 16));
    match mode {
        Mode::Privileged => Ranges { cluster: range(10, 244 - number), service: range(10, 96 + number) },
        // Both in the upper half: a pod's own loopback is its address with the top bit of the second
        // byte flipped, and must be neither a pod's address nor one that programs use.
        Mode::Unprivileged => Ranges { cluster: range(127, 160 + number), service: range(127, 192 + number) },
    }
}

fn overlap(one: IpNet, other: IpNet) -> bool {
    one.contains(&other) || other.contains(&one)
}

/// Ranges that the machine routes somewhere, or where something listens.
fn in_use(mode: Mode) -> Vec<IpNet> {
    let table = match mode {
        Mode::Privileged => fs::read_to_string("/proc/net/route").map(|text| routes(&text)),
        Mode::Unprivileged => fs::read_to_string("/proc/net/tcp").map(|text| listeners(&text)),
    };
    table.unwrap_or_default()
}

/// An address as the kernel prints it: hexadecimal, in the machine's byte order.
fn kernel_address(text: &str) -> Option<Ipv4Addr> {
    u32::from_str_radix(text, 16).ok().map(|number| Ipv4Addr::from(number.to_ne_bytes()))
}

fn routes(text: &str) -> Vec<IpNet> {
    let route = |line: &str| {
        let mut fields = line.split_whitespace().skip(1);
        let address = kernel_address(fields.next()?)?;
        let mask = kernel_address(fields.nth(5)?)?;
        let range = Ipv4Net::with_netmask(address, mask).ok()?;
        // The default route says nothing of a range.
        (range.prefix_len() > 0).then_some(IpNet::V4(range))
    };
    text.lines().skip(1).filter_map(route).collect()
}

fn listeners(text: &str) -> Vec<IpNet> {
    const LISTEN: &str = "0A";
    let listener = |line: &str| {
        let mut fields = line.split_whitespace().skip(1);
        let address = kernel_address(fields.next()?.split(':').next()?)?;
        (fields.nth(1)? == LISTEN && address.is_loopback()).then(|| IpNet::from(std::net::IpAddr::V4(address)))
    };
    text.lines().skip(1).filter_map(listener).collect()
}

/// One lock file a range; `None` when another cluster holds one of them.
fn lock(ranges: Ranges) -> Result<Option<Vec<File>>> {
    let dir = lock_dir()?;
    let mut locks = Vec::new();
    for range in [ranges.cluster, ranges.service] {
        let path = dir.join(format!("range-{}", range.to_string().replace('/', "-")));
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .with_context(|| path.display().to_string())?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => locks.push(file),
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        }
    }
    Ok(Some(locks))
}

/// `/run/sampan` as root, else a dir of the user's own.
fn lock_dir() -> Result<PathBuf> {
    let user = rustix::process::geteuid();
    let dir = if user.is_root() {
        PathBuf::from("/run/sampan")
    } else if let Some(runtime) = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| Path::new(dir).is_dir()) {
        PathBuf::from(runtime).join("sampan")
    } else {
        std::env::temp_dir().join(format!("sampan-{}", user.as_raw()))
    };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).with_context(|| dir.display().to_string())?;
    // In a shared place somebody else may have made it first.
    ensure!(
        fs::symlink_metadata(&dir).is_ok_and(|it| it.is_dir() && it.uid() == user.as_raw()),
        "{} is not a dir of this user's own",
        dir.display()
    );
    Ok(dir)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn reads_the_kernels_tables() {
        let text = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
                    eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                    eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        assert_eq!(routes(text), ["192.0.2.0/24".parse::<IpNet>().unwrap()]);
        let text = "  sl  local_address rem_address   st\n   0: 0100BE7F:0050 00000000:0000 0A 00000000\n\
                    1: 0100BE7F:0050 0100007F:1234 01 0\n";
        assert_eq!(listeners(text), ["127.190.0.1/32".parse::<IpNet>().unwrap()]);
    }

    #[test]
    fn two_clusters_get_two_ranges_and_keep_them() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let first = settle(a.path(), Mode::Unprivileged, None, None).unwrap();
        let second = settle(b.path(), Mode::Unprivileged, None, None).unwrap();
        assert_ne!(first.ranges.cluster, second.ranges.cluster);
        assert_ne!(first.ranges.service, second.ranges.service);
        let kept = first.ranges;
        drop(first);
        assert_eq!(settle(a.path(), Mode::Unprivileged, None, None).unwrap().ranges, kept);
        let other = "127.10.0.0/16".parse().unwrap();
        let error = settle(a.path(), Mode::Unprivileged, Some(other), None).err().unwrap().to_string();
        assert!(error.contains("new data dir"), "{error}");
    }

    #[test]
    fn ranges_fit_the_mode() {
        let dir = tempfile::tempdir().unwrap();
        let error = settle(dir.path(), Mode::Unprivileged, Some("10.1.0.0/16".parse().unwrap()), None).err().unwrap();
        assert!(error.to_string().contains("127.0.0.0/8"), "{error}");
    }
}
