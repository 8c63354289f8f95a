//! The kubeconfig that a cluster writes for its administrator, and finding the one to use.

use std::fs;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kube::client::ClientBuilder;
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use serde_json::json;
use tower::util::MapErrLayer;

use crate::unreachable;

/// The first line of a file that `sampan` wrote and may write again.
const MARK: &str = "# Written by sampan; it writes this file again at every start.";

/// What a kubeconfig says.
pub struct Access<'a> {
    pub server: &'a str,
    pub ca_pem: &'a str,
    pub certificate_pem: &'a str,
    pub key_pem: &'a str,
}

/// Whether [`write`] may: a file of somebody else is an error.
pub fn check(path: &Path) -> Result<()> {
    let show = path.display();
    match fs::read_to_string(path) {
        Ok(text) if text.starts_with(MARK) => Ok(()),
        Ok(_) => bail!("{show} exists and was not written by sampan; give another with --kubeconfig"),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("--kubeconfig {show}")),
    }
}

/// Writes `path` whole or not at all, readable by its owner only; never over a file of somebody else.
pub fn write(path: &Path, access: &Access<'_>) -> Result<()> {
    check(path)?;
    let show = path.display();
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
    let kubeconfig = Kubeconfig::read_from(&path).map_err(|error| wrong(&show, &error))?;
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .map_err(|error| wrong(&show, &error))?;
    let server = config.cluster_url.to_string();
    let server = server.trim_end_matches('/').to_owned();
    let builder = ClientBuilder::try_from(config).map_err(|error| anyhow!("the kubeconfig {show}: {error}"))?;
    let describe = move |error| unreachable::describe(error, &server, &show);
    Ok(builder.with_layer(&MapErrLayer::new(describe)).build())
}

/// In words of its own: kube's repeat what is inside.
fn wrong(show: &str, error: &KubeconfigError) -> anyhow::Error {
    match error {
        KubeconfigError::ReadConfig(error, _) => {
            anyhow!("the kubeconfig {show} cannot be read: {}", unreachable::cause(error))
        }
        KubeconfigError::Parse(error) => anyhow!("the kubeconfig {show} is none: {}", error.without_snippet()),
        KubeconfigError::CurrentContextNotSet => {
            anyhow!("the kubeconfig {show} says no current-context: name in it which of its contexts is meant")
        }
        KubeconfigError::LoadContext(name) => anyhow!("the kubeconfig {show} has no context {name:?}"),
        error => anyhow!("the kubeconfig {show}: {error}"),
    }
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

    #[tokio::test]
    async fn what_is_wrong_with_a_kubeconfig_is_told_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        let missing = client(Some(&path)).await.err().unwrap();
        let show = path.display();
        assert_eq!(format!("{missing:#}"), format!("the kubeconfig {show} cannot be read: no such file or directory"));
        for (text, expected) in [
            ("apiVersion: v1\nkind: Config\n", "says no current-context"),
            ("apiVersion: v1\nkind: Config\ncurrent-context: moon\n", "no context \"moon\""),
            ("clusters: [7\n", "line"),
            ("just text\n", "the kubeconfig"),
        ] {
            fs::write(&path, text).unwrap();
            let error = format!("{:#}", client(Some(&path)).await.err().unwrap());
            assert!(error.contains(expected) && !error.contains('\n'), "{error}");
            assert_eq!(error.matches(&show.to_string()).count(), 1, "{error}");
        }
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
