//! `sampan logs`.

use anyhow::{Context as _, Result, bail};
use futures::{AsyncReadExt as _, io::AsyncRead};
use http::Request;
use std::io::Write as _;

use super::{escape, explain};
use crate::cli::LogsArgs;
use crate::kubeconfig;

pub async fn run(args: LogsArgs) -> Result<()> {
    let client = kubeconfig::client(args.cluster.kubeconfig.as_deref()).await?;
    let mut query = format!("follow={}&previous={}&timestamps={}", args.follow, args.previous, args.timestamps);
    if let Some(container) = &args.container {
        query += &format!("&container={}", escape(container));
    }
    if let Some(tail) = args.tail {
        query += &format!("&tailLines={tail}");
    }
    let pod = pod_name(&args.pod)?;
    let path = format!("/api/v1/namespaces/{}/pods/{}/log?{query}", escape(&args.namespace), escape(pod));
    let stream = client.request_stream(Request::get(path).body(Vec::new())?).await.map_err(explain)?;
    copy(std::pin::pin!(stream)).await
}

/// `NAME`, or `pod/NAME` as `get -o name` prints it.
fn pod_name(named: &str) -> Result<&str> {
    match named.split_once('/') {
        None => Ok(named),
        Some(("pod" | "pods" | "po", name)) if !name.is_empty() && !name.contains('/') => Ok(name),
        Some(_) => bail!("{named:?} is no pod: give NAME or pod/NAME (`sampan get pods` lists them)"),
    }
}

async fn copy(mut stream: std::pin::Pin<&mut impl AsyncRead>) -> Result<()> {
    let mut out = std::io::stdout().lock();
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let read = stream.read(&mut buffer).await.context("the log ended early")?;
        if read == 0 {
            return Ok(());
        }
        match out.write_all(&buffer[..read]).and_then(|()| out.flush()) {
            // `sampan logs … | head`.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
            result => result?,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::pod_name;

    #[test]
    fn pods_by_name_and_by_kind() {
        for named in ["a", "pod/a", "pods/a", "po/a"] {
            assert_eq!(pod_name(named).unwrap(), "a");
        }
        for other in ["deployment/a", "pod/", "pod/a/b"] {
            let error = pod_name(other).unwrap_err().to_string();
            assert!(error.contains(other) && error.contains("pod/NAME"), "{error}");
        }
    }
}
