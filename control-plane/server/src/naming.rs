//! Names that the server makes.

use rand::Rng;

/// Letters and digits that make no words and are not mistaken for one another.
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
/// How long a base may be so that base and suffix are a label.
const BASE: usize = 58;

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
