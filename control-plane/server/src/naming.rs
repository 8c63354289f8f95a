//! Names that the server makes.

use rand::Rng;

/// Letters and digits that make no words and are not mistaken for one another.
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
/// How long a base may be so that base and suffix are a label.
const BASE: usize = 58;
/// How many names are drawn at most where they are taken.
const DRAWS: usize = 8;

/// Five random characters.
pub fn suffix() -> String {
    let mut rng = rand::rng();
    (0..5).map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())])).collect()
}

/// A name out of a `generateName`.
pub fn generate(base: &str) -> String {
    let base: String = base.chars().take(BASE).collect();
    format!("{base}{}", suffix())
}

/// A name out of a `generateName`, drawn again where one is taken, as long as that may help.
pub fn generate_free(base: &str, taken: impl Fn(&str) -> bool) -> String {
    let mut name = generate(base);
    for _ in 1..DRAWS {
        if !taken(&name) {
            break;
        }
        name = generate(base);
    }
    name
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn taken_names_are_drawn_again_but_not_for_ever() {
        for (taken, draws) in [(0, 1), (3, 4), (usize::MAX, DRAWS)] {
            let seen = RefCell::new(Vec::new());
            let name = generate_free("web-", |name| {
                seen.borrow_mut().push(name.to_owned());
                seen.borrow().len() <= taken
            });
            let seen = seen.into_inner();
            assert_eq!(seen.len(), draws.min(DRAWS - 1));
            assert!(name.starts_with("web-") && name.len() == 9);
            // The last draw is not asked about: the write says whether it is taken.
            assert_eq!(seen.contains(&name), draws < DRAWS);
        }
    }
}
