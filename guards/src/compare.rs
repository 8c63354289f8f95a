//! The counts of now beside those that were committed.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

/// How much a count may rise, in percent: two machines differ by what libc picks for their CPU, two
/// runs by the seeds of hash maps.
const TOLERANCE: u128 = 10;
const REMEDY: &str = "make guards";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    pub count: u64,
    pub unit: String,
}

/// By name, `create.instructions`.
pub type Counts = BTreeMap<String, Count>;

/// What `counts.json` holds.
#[derive(Debug, Serialize, Deserialize)]
pub struct Record {
    /// The compiler that it was counted with.
    pub rustc: String,
    pub counts: Counts,
}

/// What differs, a line for each name.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    pub risen: Vec<String>,
    pub fallen: Vec<String>,
    /// Counted, but nothing is committed to compare with.
    pub unknown: Vec<String>,
    /// Committed, but no longer counted.
    pub missing: Vec<String>,
}

pub fn compare(committed: &Counts, counted: &Counts) -> Comparison {
    let mut comparison = Comparison::default();
    for (name, new) in counted {
        let Some(old) = committed.get(name) else {
            comparison.unknown.push(format!("{name:24} {} {}", grouped(new.count), new.unit));
            continue;
        };
        let (before, now) = (u128::from(old.count), u128::from(new.count));
        if now * 100 > before * (100 + TOLERANCE) {
            comparison.risen.push(change(name, old, new));
        } else if now * 100 < before * (100 - TOLERANCE) {
            comparison.fallen.push(change(name, old, new));
        }
    }
    let gone = committed.iter().filter(|(name, _)| !counted.contains_key(*name));
    comparison.missing = gone.map(|(name, old)| format!("{name:24} {} {}", grouped(old.count), old.unit)).collect();
    comparison
}

fn change(name: &str, old: &Count, new: &Count) -> String {
    let percent = match old.count {
        0 => f64::INFINITY,
        // Counts are far below what a float holds exactly.
        before => (new.count as f64 / before as f64 - 1.0) * 100.0,
    };
    format!("{name:24} {} -> {} ({percent:+.1} %) {}", grouped(old.count), grouped(new.count), new.unit)
}

/// 1234567 as 1,234,567.
fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

impl Comparison {
    /// Why the test must fail, if it must: all of it at once.
    pub fn failure(&self) -> Option<String> {
        let mut text = String::new();
        for (what, lines) in [
            ("rose by more than a tenth", &self.risen),
            ("not in guards/counts.json", &self.unknown),
            ("in guards/counts.json, but no longer counted", &self.missing),
        ] {
            section(&mut text, what, lines);
        }
        if text.is_empty() {
            return None;
        }
        if !self.risen.is_empty() {
            text.push_str("Make it cheaper again. If it is worth its price, or a name is new or gone: ");
        }
        let _ = writeln!(text, "`{REMEDY}` takes the counts of now over into guards/counts.json; commit that.");
        Some(text)
    }

    /// What is better than committed, if anything is: from there on it may be guarded.
    pub fn improvement(&self) -> Option<String> {
        let mut text = String::new();
        section(&mut text, "fell by more than a tenth", &self.fallen);
        (!text.is_empty()).then(|| format!("{text}`{REMEDY}` keeps it so: it takes the counts of now over.\n"))
    }
}

fn section(text: &mut String, what: &str, lines: &[String]) {
    if lines.is_empty() {
        return;
    }
    let _ = writeln!(text, "{what}:");
    for line in lines {
        let _ = writeln!(text, "  {line}");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn counts(all: &[(&str, u64)]) -> Counts {
        all.iter().map(|(name, count)| ((*name).to_owned(), Count { count: *count, unit: "times".into() })).collect()
    }

    fn failure(committed: &[(&str, u64)], counted: &[(&str, u64)]) -> Option<String> {
        compare(&counts(committed), &counts(counted)).failure()
    }

    #[test]
    fn a_rise_of_eleven_percent_fails_and_names_all_that_rose() {
        let text = failure(&[("a", 1_000), ("b", 2_000), ("c", 10)], &[("a", 1_110), ("b", 2_220_000), ("c", 10)]);
        let text = text.unwrap();
        assert!(text.contains("1,000 -> 1,110 (+11.0 %)"), "{text}");
        assert!(text.contains("2,000 -> 2,220,000"), "{text}");
        assert!(text.contains(REMEDY), "{text}");
        assert!(!text.contains("  c"), "{text}");
    }

    #[test]
    fn a_tenth_passes() {
        assert_eq!(failure(&[("a", 1_000), ("b", 1_000)], &[("a", 1_090), ("b", 1_100)]), None);
    }

    #[test]
    fn one_fsync_more_than_one_or_none_fails() {
        assert!(failure(&[("a", 1)], &[("a", 2)]).is_some());
        assert!(failure(&[("a", 0)], &[("a", 1)]).is_some());
        assert_eq!(failure(&[("a", 0)], &[("a", 0)]), None);
    }

    #[test]
    fn a_fall_passes_and_is_told() {
        let comparison = compare(&counts(&[("a", 100), ("b", 100)]), &counts(&[("a", 89), ("b", 91)]));
        assert_eq!(comparison.failure(), None);
        let text = comparison.improvement().unwrap();
        assert!(text.contains("100 -> 89 (-11.0 %)") && text.contains(REMEDY), "{text}");
        assert!(!text.contains("91"), "{text}");
    }

    #[test]
    fn a_name_that_is_new_or_gone_fails_with_the_remedy() {
        for text in [failure(&[], &[("new", 7)]), failure(&[("gone", 7)], &[])] {
            let text = text.unwrap();
            assert!(text.contains("new ") || text.contains("gone "), "{text}");
            assert!(text.contains(REMEDY), "{text}");
        }
    }
}
