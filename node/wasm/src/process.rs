//! Starting ourselves again.

use std::ffi::OsString;

/// Our own executable by descriptor: works where its path cannot be reached (a 0700 directory
/// after dropping the user) or names another file by now (an upgrade).
pub fn own(subcommand: &str) -> Vec<OsString> {
    vec!["/proc/self/exe".into(), subcommand.into()]
}
