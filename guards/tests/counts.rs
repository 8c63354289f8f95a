//! The guard itself: counts, and compares with what is committed.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use guards::{INSTRUCTIONS, RUSTC, Record, compare};

#[test]
fn no_count_has_risen_by_more_than_a_tenth() {
    let mut committed: Record = serde_json::from_str(include_str!("../counts.json")).unwrap();
    let counted = guards::count(Path::new(env!("CARGO_BIN_EXE_guards"))).unwrap();
    if let Some(why) = &counted.skipped {
        println!("skipped: {why}");
        committed.counts.retain(|name, _| !name.ends_with(INSTRUCTIONS));
    }
    let comparison = compare(&committed.counts, &counted.counts);
    if let Some(text) = comparison.improvement() {
        println!("{text}");
    }
    if let Some(text) = comparison.failure() {
        let other = match committed.rustc == RUSTC {
            true => String::new(),
            false => {
                format!("(The committed counts are of {}, these of {RUSTC}: that alone may be it.)\n", committed.rustc)
            }
        };
        panic!("{text}{other}");
    }
    println!("{} counts compared, none rose by more than a tenth", counted.counts.len());
}
