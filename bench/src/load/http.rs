//! The same request over and over, on connections that stay.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;

use super::{Outcome, for_long};
use crate::client::{Api, Connection};

pub async fn api(kubeconfig: &Path, path: &str, connections: usize, length: Duration) -> Result<Outcome> {
    let api = Api::open(kubeconfig)?;
    let mut open = Vec::new();
    for _ in 0..connections {
        open.push(api.connect().await?);
    }
    repeat(open, path, length).await
}

pub async fn plain(authority: &str, connections: usize, length: Duration) -> Result<Outcome> {
    let mut open = Vec::new();
    for _ in 0..connections {
        open.push(Connection::plain(authority).await?);
    }
    repeat(open, "/", length).await
}

async fn repeat(open: Vec<Connection>, path: &str, length: Duration) -> Result<Outcome> {
    let path: Arc<str> = path.into();
    let each = move |mut connection: Connection, _| {
        let path = path.clone();
        async move {
            connection.get_and_forget(&path).await?;
            Ok(connection)
        }
    };
    for_long(open, length, each).await
}
