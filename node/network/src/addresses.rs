//! Which pod holds which address. Kept in a file, so that a pod keeps its address across restarts
//! of the node and no address is ever held twice.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::files;

/// Of the lines that say what happened; the first of them names it.
const VERSION: u64 = 2;
/// Lines beyond so many times what they come to are put together.
const SLACK: usize = 4;
const FEW: usize = 1000;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Held {
    pub(crate) namespace: String,
    pub(crate) address: Ipv4Addr,
}

/// What is handed out, and what was given back, longest unused first.
#[derive(Debug, Default)]
struct Saved {
    held: BTreeMap<String, Held>,
    released: VecDeque<Ipv4Addr>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Line {
    Version(u64),
    Held { pod: String, namespace: String, address: Ipv4Addr },
    Released(Ipv4Addr),
}

/// The addresses for pods in the lower half of a node's range; the upper half is CNI's.
#[derive(Debug)]
pub(crate) struct Addresses {
    path: PathBuf,
    range: Ipv4Net,
    saved: Saved,
    /// Free addresses, longest unused first; those never used before those given back.
    free: VecDeque<Ipv4Addr>,
    /// Of the file, in this process' life; 0: it is still to be written.
    lines: usize,
}

impl Saved {
    fn read(path: &Path) -> Result<Self> {
        let mut saved = Self::default();
        let mut holder: BTreeMap<Ipv4Addr, String> = BTreeMap::new();
        let Some(text) = files::read_text(path)? else { return Ok(saved) };
        let corrupt = |why: String| Error::Corrupt { path: path.to_owned(), why };
        // A power loss can cut the last line short: nobody was told of it.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        for (at, line) in whole.lines().enumerate() {
            let line: Line = serde_json::from_str(line).map_err(|error| corrupt(error.to_string()))?;
            match line {
                Line::Version(VERSION) if at == 0 => {}
                Line::Version(found) => return Err(Error::Version { path: path.to_owned(), found, known: VERSION }),
                _ if at == 0 => return Err(corrupt("it has no version".to_owned())),
                Line::Held { pod, namespace, address } => {
                    // The one that was free for longest is the first.
                    if let Some(at) = saved.released.iter().position(|free| *free == address) {
                        saved.released.remove(at);
                    }
                    holder.insert(address, pod.clone());
                    saved.held.insert(pod, Held { namespace, address });
                }
                Line::Released(address) => {
                    holder.remove(&address).map(|pod| saved.held.remove(&pod));
                    saved.released.push_back(address);
                }
            }
        }
        Ok(saved)
    }

    fn lines(&self) -> impl Iterator<Item = Line> {
        let released = self.released.iter().copied().map(Line::Released);
        let held = self.held.iter().map(|(pod, held)| Line::Held {
            pod: pod.clone(),
            namespace: held.namespace.clone(),
            address: held.address,
        });
        std::iter::once(Line::Version(VERSION)).chain(released).chain(held)
    }
}

/// The lower half of a range without its first address, the network's own.
fn pool(range: Ipv4Net) -> impl Iterator<Item = Ipv4Addr> {
    let first = u32::from(range.network());
    let half = 1u32.checked_shl(31 - u32::from(range.prefix_len().min(31))).unwrap_or(0);
    (1..half).map(move |offset| Ipv4Addr::from(first + offset))
}

impl Addresses {
    /// Reads what `path` says of an earlier process; what lies outside `range` is forgotten.
    pub(crate) fn open(path: PathBuf, range: Ipv4Net) -> Result<Self> {
        let mut saved = Saved::read(&path)?;
        let all: BTreeSet<Ipv4Addr> = pool(range).collect();
        let mut seen = BTreeSet::new();
        for (pod, held) in &saved.held {
            if !seen.insert(held.address) {
                let why = format!("{} is held twice, once by pod {pod}", held.address);
                return Err(Error::Corrupt { path, why });
            }
        }
        saved.held.retain(|_, held| all.contains(&held.address));
        saved.released.retain(|address| all.contains(address) && seen.insert(*address));
        let free = all.iter().filter(|address| !seen.contains(address)).chain(&saved.released).copied().collect();
        Ok(Self { path, range, saved, free, lines: 0 })
    }

    pub(crate) fn get(&self, pod: &str) -> Option<&Held> {
        self.saved.held.get(pod)
    }

    pub(crate) fn held(&self) -> impl Iterator<Item = (&String, &Held)> {
        self.saved.held.iter()
    }

    pub(crate) fn holds(&self, pod: &str) -> bool {
        self.saved.held.contains_key(pod)
    }

    /// The pod's address; it is on disk before it is told.
    pub(crate) fn assign(&mut self, namespace: &str, pod: &str) -> Result<Ipv4Addr> {
        if let Some(held) = self.saved.held.get(pod) {
            return Ok(held.address);
        }
        let Some(address) = self.free.pop_front() else {
            return Err(Error::Exhausted { range: self.range, taken: self.saved.held.len() });
        };
        let was_released = self.saved.released.front() == Some(&address);
        if was_released {
            self.saved.released.pop_front();
        }
        self.saved.held.insert(pod.to_owned(), Held { namespace: namespace.to_owned(), address });
        let line = Line::Held { pod: pod.to_owned(), namespace: namespace.to_owned(), address };
        if let Err(error) = self.note(&line) {
            self.saved.held.remove(pod);
            self.free.push_front(address);
            if was_released {
                self.saved.released.push_front(address);
            }
            return Err(error);
        }
        Ok(address)
    }

    /// Gives the pod's address back, to be the last that is handed out again.
    pub(crate) fn release(&mut self, pod: &str) -> Result<()> {
        let Some(held) = self.saved.held.remove(pod) else {
            return Ok(());
        };
        self.saved.released.push_back(held.address);
        if let Err(error) = self.note(&Line::Released(held.address)) {
            self.saved.released.pop_back();
            self.saved.held.insert(pod.to_owned(), held);
            return Err(error);
        }
        self.free.push_back(held.address);
        Ok(())
    }

    /// Writes what happened behind what happened before; now and then all anew.
    fn note(&mut self, line: &Line) -> Result<()> {
        let kept = self.saved.held.len() + self.saved.released.len();
        if self.lines == 0 || self.lines > FEW + SLACK * kept {
            files::write_lines(&self.path, self.saved.lines())?;
            self.lines = kept + 1;
        } else {
            files::append_line(&self.path, line)?;
            self.lines += 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn open(dir: &tempfile::TempDir, range: &str) -> Result<Addresses> {
        Addresses::open(dir.path().join("addresses.json"), range.parse().unwrap())
    }

    #[test]
    fn lower_half_without_the_network() {
        let all: Vec<_> = pool("10.1.2.0/29".parse().unwrap()).map(|it| it.to_string()).collect();
        assert_eq!(all, ["10.1.2.1", "10.1.2.2", "10.1.2.3"]);
        assert_eq!(pool("10.1.2.0/24".parse().unwrap()).count(), 127);
        assert_eq!(pool("10.1.2.0/31".parse().unwrap()).count(), 0);
        assert_eq!(pool("10.1.2.0/32".parse().unwrap()).count(), 0);
    }

    #[test]
    fn same_pod_same_address_and_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let mut addresses = open(&dir, "10.0.0.0/28").unwrap();
        let first = addresses.assign("a", "one").unwrap();
        assert_eq!(addresses.assign("a", "one").unwrap(), first);
        let second = addresses.assign("a", "two").unwrap();
        assert_ne!(first, second);
        let mut again = open(&dir, "10.0.0.0/28").unwrap();
        assert_eq!(again.assign("a", "two").unwrap(), second);
        assert_eq!(again.get("one").unwrap().address, first);
    }

    #[test]
    fn longest_unused_first_also_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let mut addresses = open(&dir, "10.0.0.0/29").unwrap();
        let held: Vec<_> = ["a", "b", "c"].iter().map(|pod| addresses.assign("n", pod).unwrap()).collect();
        assert!(matches!(addresses.assign("n", "d"), Err(Error::Exhausted { taken: 3, .. })));
        addresses.release("b").unwrap();
        addresses.release("a").unwrap();
        let mut again = open(&dir, "10.0.0.0/29").unwrap();
        assert_eq!(again.assign("n", "d").unwrap(), held[1]);
        assert_eq!(again.assign("n", "e").unwrap(), held[0]);
    }

    #[test]
    fn another_range_forgets_what_lies_outside() {
        let dir = tempfile::tempdir().unwrap();
        open(&dir, "10.0.0.0/28").unwrap().assign("n", "a").unwrap();
        let addresses = open(&dir, "10.0.1.0/28").unwrap();
        assert!(addresses.get("a").is_none());
    }

    #[test]
    fn refuses_what_it_does_not_know() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("addresses.json");
        std::fs::write(&path, "{\"version\":9}\n").unwrap();
        assert!(matches!(open(&dir, "10.0.0.0/28"), Err(Error::Version { found: 9, .. })));
        let held =
            |pod: &str| format!("{{\"held\":{{\"pod\":{pod:?},\"namespace\":\"n\",\"address\":\"10.0.0.1\"}}}}\n");
        let twice = ["{\"version\":2}\n", &held("a"), &held("b")].concat();
        for text in ["{\n", &held("a"), &twice] {
            std::fs::write(&path, text).unwrap();
            assert!(matches!(open(&dir, "10.0.0.0/28"), Err(Error::Corrupt { .. })), "{text}");
        }
    }

    #[test]
    fn a_line_that_was_cut_short_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("addresses.json");
        let mut addresses = open(&dir, "10.0.0.0/28").unwrap();
        let first = addresses.assign("n", "a").unwrap();
        addresses.assign("n", "b").unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, &text[..text.len() - 3]).unwrap();
        let mut again = open(&dir, "10.0.0.0/28").unwrap();
        assert_eq!(again.get("a").unwrap().address, first);
        assert!(!again.holds("b"));
        again.assign("n", "c").unwrap();
        assert!(open(&dir, "10.0.0.0/28").unwrap().holds("c"));
    }

    #[test]
    fn what_happened_long_ago_is_put_together() {
        let dir = tempfile::tempdir().unwrap();
        let mut addresses = open(&dir, "10.0.0.0/28").unwrap();
        addresses.assign("n", "stays").unwrap();
        for _ in 0..2 * FEW {
            addresses.assign("n", "a").unwrap();
            addresses.release("a").unwrap();
        }
        let lines = std::fs::read_to_string(dir.path().join("addresses.json")).unwrap().lines().count();
        assert!(lines <= FEW + SLACK * 8 + 1, "{lines}");
        assert!(open(&dir, "10.0.0.0/28").unwrap().holds("stays"));
    }

    #[test]
    fn nothing_is_handed_out_that_is_not_on_disk() {
        let dir = tempfile::tempdir().unwrap();
        let mut addresses =
            Addresses::open(dir.path().join("none/addresses.json"), "10.0.0.0/28".parse().unwrap()).unwrap();
        assert!(addresses.assign("n", "a").is_err());
        assert!(addresses.get("a").is_none());
    }

    #[derive(Clone, Debug)]
    enum Step {
        Assign(u8),
        Release(u8),
        Restart,
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

        #[test]
        fn never_held_twice(steps in prop::collection::vec(prop_oneof![
            4 => (0..20u8).prop_map(Step::Assign),
            3 => (0..20u8).prop_map(Step::Release),
            1 => Just(Step::Restart),
        ], 1..80)) {
            let dir = tempfile::tempdir().unwrap();
            let mut addresses = open(&dir, "10.0.0.0/28").unwrap();
            // When each address was last given back; those never used have no entry.
            let mut released: BTreeMap<Ipv4Addr, usize> = BTreeMap::new();
            let mut held: BTreeMap<String, Ipv4Addr> = BTreeMap::new();
            for (now, step) in steps.iter().enumerate() {
                match step {
                    Step::Assign(pod) => {
                        let pod = pod.to_string();
                        let free: BTreeSet<Ipv4Addr> = pool("10.0.0.0/28".parse().unwrap())
                            .filter(|it| !held.values().any(|taken| taken == it))
                            .collect();
                        match addresses.assign("n", &pod) {
                            Ok(address) => match held.get(&pod) {
                                Some(own) => prop_assert_eq!(*own, address),
                                None => {
                                    prop_assert!(free.contains(&address));
                                    let oldest = free.iter().map(|it| released.get(it)).min().unwrap();
                                    prop_assert_eq!(released.get(&address), oldest);
                                    held.insert(pod, address);
                                }
                            },
                            Err(_) => prop_assert!(free.is_empty() && !held.contains_key(&pod)),
                        }
                    }
                    Step::Release(pod) => {
                        addresses.release(&pod.to_string()).unwrap();
                        if let Some(address) = held.remove(&pod.to_string()) {
                            released.insert(address, now);
                        }
                    }
                    Step::Restart => addresses = open(&dir, "10.0.0.0/28").unwrap(),
                }
                let there: BTreeMap<_, _> =
                    addresses.held().map(|(pod, held)| (pod.clone(), held.address)).collect();
                prop_assert_eq!(&there, &held);
            }
        }
    }
}
