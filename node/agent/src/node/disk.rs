//! Room on the node's disk.

use std::path::Path;

use super::facts;

/// In bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disk {
    pub total: u64,
    pub free: u64,
}

/// The file system below a path.
pub fn of(path: &Path) -> Option<Disk> {
    facts::disk(path).map(|(total, free)| Disk { total, free })
}

impl Disk {
    /// What is to stay free: a tenth, as the kubelet has it; but of a large disk less is room enough for
    /// a long time.
    pub fn threshold(&self) -> u64 {
        const ENOUGH: u64 = 1 << 30;
        (self.total / 10).min(ENOUGH)
    }

    pub fn is_full(&self) -> bool {
        self.free < self.threshold()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_disk_is_not_full_at_nine_tenths() {
        let is_full = |total: u64, free: u64| Disk { total, free }.is_full();
        assert!(!is_full(250 << 30, 20 << 30));
        assert!(is_full(250 << 30, 1 << 29));
        assert!(is_full(4 << 30, 1 << 28));
        assert!(!is_full(4 << 30, 1 << 29));
    }
}
