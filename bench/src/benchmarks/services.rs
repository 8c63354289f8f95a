//! Very many Services on one node.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use hyper::Method;
use serde_json::Value;
use tokio::process::Command;

use super::{Context, hello};
use crate::cluster::Cluster;
use crate::load::{self, Load};
use crate::row::{Reach, Row};

const COUNT: usize = 10_000;
const RUNS: usize = 3;
const NAMESPACE: &str = "bench";
const PATIENCE: Duration = Duration::from_secs(60);

/// A node joins a server that has the Services already: from the start of its process until the kernel
/// has them all. Then one more, until it answers. Only root programs the kernel.
pub async fn run(context: &Context) -> Result<Vec<Row>> {
    if !rustix::process::geteuid().is_root() || nft(&["list", "tables"]).await.is_err() {
        eprintln!("  left out: only root programs nftables, and with nft only");
        return Ok(Vec::new());
    }
    let server = Cluster::start(&context.program, "server", &[]).await?;
    super::api::namespace(&server, NAMESPACE).await?;
    let kubeconfig = server.kubeconfig();
    let made = load::run(&Load::Services { kubeconfig, namespace: NAMESPACE.to_owned(), count: COUNT }).await?;
    let mut api = server.api()?.connect().await?;
    let (mut loads, mut starts, mut adds) = (Vec::new(), Vec::new(), Vec::new());
    for run in 0..RUNS {
        let token = server.sampan(&["token", "create"]).await?;
        let url = server.url()?;
        let name = format!("bench-{run}");
        let arguments = ["--server", &url, "--token", token.trim(), "--node-name", &name];
        let before = tables().await?;
        let start = Instant::now();
        let (node, loaded) =
            tokio::join!(Cluster::start(&context.program, "node", &arguments), programmed(&before, start));
        let node = node?;
        loads.push(loaded?.as_secs_f64());
        starts.push(node.ready.as_secs_f64());
        if run + 1 == RUNS {
            hello::import(context, &server).await?;
            hello::deploy(&mut api, 1, false, "500m").await?;
            hello::addresses(&server, 1).await?;
            // The first one also learns the way.
            for number in 0..=RUNS {
                let start = Instant::now();
                let address = hello::expose(&mut api, &format!("hello-{number}")).await?;
                hello::answers(&address).await?;
                if number > 0 {
                    adds.push(start.elapsed().as_secs_f64() * 1e3);
                }
            }
        }
        drop(node);
        // Nobody is to wait for one that is gone.
        api.call(Method::DELETE, &format!("/api/v1/nodes/{name}"), "", "").await?;
    }
    let starts: Vec<String> = starts.iter().map(|seconds| format!("{seconds:.2}")).collect();
    Ok(vec![
        Row::new("services_10k_s", "s", loads, Reach::AtMost(0.5))
            .note(format!("from the start of a node that joins; it said ready after {} s", starts.join(", ")))
            .note(format!("made through the API at {:.0} Services/s, each with an EndpointSlice", made.rate())),
        Row::new("services_10k_add_ms", "ms", adds, Reach::AtMost(20.0))
            .note("one more: from its create to an answer through its address"),
    ])
}

async fn nft(arguments: &[&str]) -> Result<String> {
    let output = Command::new("nft").args(arguments).kill_on_drop(true).output().await.context("nft")?;
    ensure!(output.status.success(), "nft {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Asked of the kernel itself: `nft` reads all elements of all tables before it lists their names.
async fn tables() -> Result<BTreeSet<String>> {
    Ok(sampan_network::tables_in_force().await?.into_iter().collect())
}

/// Waits until a table that was not there before is in force. It holds all Services then.
async fn programmed(before: &BTreeSet<String>, start: Instant) -> Result<Duration> {
    let in_force = async {
        loop {
            if let Some(table) = tables().await?.difference(before).next() {
                return anyhow::Ok((table.clone(), start.elapsed()));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let in_time = tokio::time::timeout(PATIENCE, in_force).await;
    let (table, seen) = in_time.context("the Services are not programmed in time")??;
    let count = elements(&nft(&["-j", "list", "map", "ip", &table, "services"]).await?)?;
    ensure!(count >= COUNT, "{count} of {COUNT} Services are in the table");
    Ok(seen)
}

fn elements(text: &str) -> Result<usize> {
    let listing: Value = serde_json::from_str(text)?;
    let maps = listing["nftables"].as_array().into_iter().flatten();
    Ok(maps.filter_map(|entry| entry["map"]["elem"].as_array()).map(Vec::len).sum())
}

#[cfg(test)]
mod tests {
    #[test]
    fn elements_of_a_listing_are_counted() -> anyhow::Result<()> {
        let map =
            r#"{"nftables":[{"metainfo":{"version":"1"}},{"map":{"name":"services","elem":[["a","b"],["c","d"]]}}]}"#;
        assert_eq!(super::elements(map)?, 2);
        assert_eq!(super::elements(r#"{"nftables":[{"map":{"name":"services"}}]}"#)?, 0);
        Ok(())
    }
}
