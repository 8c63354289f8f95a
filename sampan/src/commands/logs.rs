//! `sampan logs`.

use anyhow::{Context as _, Result};
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
    let path = format!("/api/v1/namespaces/{}/pods/{}/log?{query}", escape(&args.namespace), escape(&args.pod));
    let stream = client.request_stream(Request::get(path).body(Vec::new())?).await.map_err(explain)?;
    copy(std::pin::pin!(stream)).await
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
