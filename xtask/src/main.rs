//! Chores of the project: `cargo xtask <task>`.

mod schema;

use anyhow::{Result, bail};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["schema"] => schema::generate(),
        _ => bail!("usage: cargo xtask schema    writes the API's schema table anew"),
    }
}
