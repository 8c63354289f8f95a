//! What CNI's plugins left on the machine for sandboxes that were killed: rules of host ports, which
//! only the plugin itself takes back, and libcni's notes.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Deserialize;
use serde_json::{Value, json};

use crate::cni::FILE;
use crate::config::Paths;
use crate::error::{Error, Result};
use crate::installed::Installed;

/// Where libcni, inside of containerd, notes what it had the plugins do.
const NOTES: &str = "/var/lib/cni/results";
const PLUGIN: &str = "portmap";
const CAPABILITY: &str = "portMappings";

/// One of libcni's notes.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Note {
    if_name: String,
    #[serde(default)]
    capability_args: Value,
}

impl Note {
    /// The host ports, as the plugin was told of them.
    fn ports(&self) -> Option<&Value> {
        let ports = self.capability_args.get(CAPABILITY)?;
        ports.as_array().is_some_and(|ports| !ports.is_empty()).then_some(ports)
    }
}

/// Takes back what was made for the sandboxes of a containerd that is gone.
pub(crate) fn take_back(paths: &Paths) -> Result<()> {
    let file = paths.cni_conf().join(FILE);
    let Ok(text) = std::fs::read_to_string(&file) else { return Ok(()) };
    let Some(list) = serde_json::from_str::<Value>(&text).ok().filter(|list| list["name"].is_string()) else {
        let reason = "not a CNI configuration: rules of host ports may have stayed".to_owned();
        return Err(Error::Network { file, reason });
    };
    let name = list["name"].as_str().unwrap_or_default();
    for id in sandboxes(&paths.cni_state().join(name)) {
        let path = PathBuf::from(format!("{NOTES}/{name}-{id}-eth0"));
        let note = std::fs::read(&path).ok().and_then(|text| serde_json::from_slice::<Note>(&text).ok());
        if let Some((note, ports)) = note.as_ref().and_then(|note| Some((note, note.ports()?))) {
            delete(&list, &id, &note.if_name, ports)?;
        }
        let _ = std::fs::remove_file(path);
        let _ = std::fs::remove_file(format!("{NOTES}/cni-loopback-{id}-lo"));
    }
    Ok(())
}

/// Who holds an address by host-local's books: one file an address, with the sandbox's id in its first line.
fn sandboxes(books: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(books).into_iter().flatten().flatten();
    let leases =
        entries.filter(|entry| entry.file_name().to_str().is_some_and(|name| name.parse::<std::net::IpAddr>().is_ok()));
    leases
        .filter_map(|entry| {
            let text = std::fs::read_to_string(entry.path()).ok()?;
            let id = text.lines().next()?.trim().to_owned();
            // It becomes part of a path.
            (!id.is_empty() && id.chars().all(|c| c.is_ascii_alphanumeric())).then_some(id)
        })
        .collect()
}

/// Asks the plugin to take the rules of a sandbox away, whose network namespace is gone.
fn delete(list: &Value, id: &str, interface: &str, ports: &Value) -> Result<()> {
    let Some(plugin) = list["plugins"].as_array().into_iter().flatten().find(|plugin| plugin["type"] == PLUGIN) else {
        return Ok(());
    };
    let dir = Installed::find()?.cni_plugins;
    let program = dir.join(PLUGIN);
    let mut config = plugin.clone();
    config["cniVersion"] = list["cniVersion"].clone();
    config["name"] = list["name"].clone();
    // Without them it does nothing.
    config["runtimeConfig"] = json!({ CAPABILITY: ports });
    let mut child = Command::new(&program)
        .env("CNI_COMMAND", "DEL")
        .env("CNI_CONTAINERID", id)
        .env("CNI_IFNAME", interface)
        .env("CNI_NETNS", "")
        .env("CNI_PATH", &dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(Error::io(&program))?;
    if let Some(mut input) = child.stdin.take() {
        // It may end before it has read all: what it says then is what matters.
        let _ = input.write_all(config.to_string().as_bytes());
    }
    let output = child.wait_with_output().map_err(Error::io(&program))?;
    if output.status.success() {
        return Ok(());
    }
    let reason = format!("host ports of sandbox {id}: {}", String::from_utf8_lossy(&output.stdout).trim());
    Err(Error::Network { file: program, reason })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn reads_the_books() {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("10.1.0.2", "abc\r\neth0"),
            ("10.1.0.3", "def"),
            ("10.1.0.4", "../../etc\neth0"),
            ("last_reserved_ip.0", "10.1.0.3"),
            ("lock", ""),
        ] {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        assert_eq!(sandboxes(dir.path()), ["abc".to_owned(), "def".to_owned()].into());
        assert_eq!(sandboxes(&dir.path().join("none")), BTreeSet::new());
    }

    #[test]
    fn knows_who_has_ports() {
        let has = |text: &str| serde_json::from_str::<Note>(text).unwrap().ports().is_some();
        assert!(has(r#"{"ifName":"eth0","capabilityArgs":{"portMappings":[{"hostPort":80}]}}"#));
        assert!(!has(r#"{"ifName":"eth0","capabilityArgs":{"portMappings":[]}}"#));
        assert!(!has(r#"{"ifName":"eth0"}"#));
    }
}
