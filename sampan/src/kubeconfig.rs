//! The kubeconfig that a cluster writes for its administrator, and finding the one to use.

use std::fs;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::json;

/// The first line of a file that `sampan` wrote and may write again.
const MARK: &str = "# Written by sampan; it writes this file again at every start.";

/// What a kubeconfig says.
pub struct Access<'a> {
    pub server: &'a str,
    pub ca_pem: &'a str,
    pub certificate_pem: &'a str,
    pub key_pem: &'a str,
}

/// Writes `path` whole or not at all, readable by its owner only; never over a file of somebody else.
pub fn write(path: &Path, access: &Access<'_>) -> Result<()> {
    let show = path.display();
    match fs::read_to_string(path) {
        Ok(text) if text.starts_with(MARK) => {}
        Ok(_) => bail!("{show} exists and was not written by sampan; give another with --kubeconfig"),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("--kubeconfig {show}")),
    }
    let encode = |pem: &str| STANDARD.encode(pem);
    // JSON is YAML, and needs no escaping of ours.
    let document = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "sampan",
        "clusters": [{ "name": "sampan", "cluster": {
            "server": access.server,
            "certificate-authority-data": encode(access.ca_pem),
        }}],
        "users": [{ "name": "sampan-admin", "user": {
            "client-certificate-data": encode(access.certificate_pem),
            "client-key-data": encode(access.key_pem),
        }}],
        "contexts": [{ "name": "sampan", "context": { "cluster": "sampan", "user": "sampan-admin" } }],
    });
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(dir).with_context(|| format!("--kubeconfig {show}"))?;
    let name = path.file_name().with_context(|| format!("--kubeconfig {show} names no file"))?;
    let new = dir.join(format!(".{}.{}", name.to_string_lossy(), std::process::id()));
    let mut file = fs::OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&new)
        .with_context(|| format!("--kubeconfig {show}"))?;
    writeln!(file, "{MARK}\n{document:#}")?;
    file.sync_all()?;
    fs::rename(&new, path).with_context(|| format!("--kubeconfig {show}"))
}

/// `--kubeconfig`, else `$KUBECONFIG`, else that of the default data dir.
pub fn find(flag: Option<&Path>) -> Result<PathBuf> {
    if let Some(path) = flag {
        return Ok(path.to_owned());
    }
    if let Some(path) = std::env::var_os("KUBECONFIG").filter(|path| !path.is_empty()) {
        return Ok(path.into());
    }
    let path = crate::config::default_data_dir()?.join("kubeconfig");
    if path.exists() {
        return Ok(path);
    }
    bail!("no cluster is named: give --kubeconfig FILE or set KUBECONFIG (`sampan up` prints where it wrote its own)")
}

/// A client of the cluster that the kubeconfig names.
pub async fn client(flag: Option<&Path>) -> Result<kube::Client> {
    let path = find(flag)?;
    let show = path.display().to_string();
    let kubeconfig = Kubeconfig::read_from(&path).with_context(|| format!("the kubeconfig {show}"))?;
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .with_context(|| format!("the kubeconfig {show}"))?;
    kube::Client::try_from(config).with_context(|| format!("the kubeconfig {show}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const ACCESS: Access<'static> =
        Access { server: "https://127.0.0.1:1", ca_pem: "ca", certificate_pem: "cert", key_pem: "key" };

    #[test]
    fn a_file_of_its_own_is_written_again_and_read_by_clients() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/kubeconfig");
        write(&path, &ACCESS).unwrap();
        write(&path, &Access { server: "https://127.0.0.1:2", ..ACCESS }).unwrap();
        let read = Kubeconfig::read_from(&path).unwrap();
        assert_eq!(read.clusters[0].cluster.as_ref().unwrap().server.as_deref(), Some("https://127.0.0.1:2"));
    }

    #[test]
    fn somebody_elses_file_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        fs::write(&path, "apiVersion: v1\n").unwrap();
        let error = write(&path, &ACCESS).unwrap_err().to_string();
        assert!(error.contains("not written by sampan"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "apiVersion: v1\n");
    }
}
