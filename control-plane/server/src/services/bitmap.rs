//! Which numbers of a small range are taken.

use rand::Rng;

#[derive(Debug)]
pub struct Bitmap {
    words: Vec<u64>,
    size: usize,
    /// Numbers below this are left to those who ask for one, until the rest is taken.
    reserved: usize,
}

impl Bitmap {
    /// A sixteenth of the range, at least 16 and at most 256 numbers, is kept for those who choose.
    pub fn new(size: usize) -> Self {
        let reserved = if size < 16 { 0 } else { (size / 16).clamp(16, 256).min(size / 2) };
        Self { words: vec![0; size.div_ceil(64)], size, reserved }
    }

    pub fn contains(&self, at: usize) -> bool {
        self.words.get(at / 64).is_some_and(|word| word & (1 << (at % 64)) != 0)
    }

    /// False: it was taken, or is not in the range.
    pub fn take(&mut self, at: usize) -> bool {
        if at >= self.size || self.contains(at) {
            return false;
        }
        if let Some(word) = self.words.get_mut(at / 64) {
            *word |= 1 << (at % 64);
        }
        true
    }

    pub fn release(&mut self, at: usize) {
        if let Some(word) = self.words.get_mut(at / 64) {
            *word &= !(1 << (at % 64));
        }
    }

    /// Takes a free number that `usable` allows, by chance.
    pub fn take_any(&mut self, usable: impl Fn(usize) -> bool) -> Option<usize> {
        for (from, to) in [(self.reserved, self.size), (0, self.reserved)] {
            if from >= to {
                continue;
            }
            let start = rand::rng().random_range(from..to);
            let found = (start..to).chain(from..start).find(|at| !self.contains(*at) && usable(*at));
            if let Some(at) = found {
                self.take(at);
                return Some(at);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_number_is_given_once(size in 1usize..600) {
            let mut bitmap = Bitmap::new(size);
            let mut given = std::collections::BTreeSet::new();
            for _ in 0..size {
                prop_assert!(given.insert(bitmap.take_any(|_| true).expect("not full")));
            }
            prop_assert_eq!(bitmap.take_any(|_| true), None);
            prop_assert_eq!(given.len(), size);
            bitmap.release(size / 2);
            prop_assert_eq!(bitmap.take_any(|_| true), Some(size / 2));
        }
    }

    #[test]
    fn chosen_numbers_come_from_below() {
        let mut bitmap = Bitmap::new(256);
        for _ in 0..240 {
            assert!(bitmap.take_any(|_| true).expect("not full") >= 16);
        }
        assert!(bitmap.take(5));
        assert!(!bitmap.take(5));
        assert!(!bitmap.take(256));
    }
}
