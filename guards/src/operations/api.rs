//! What the server does for a request, from the router on: no TLS, no connection.

use std::hint::black_box;
use std::sync::Arc;

use anyhow::Result;
use http::Method;
use http_body_util::BodyExt as _;
use sampan_api::codec::{self, FieldValidation, MediaType};
use sampan_api::kinds;
use sampan_store::Options;
use tokio::sync::Semaphore;

use super::Taken;
use crate::meter::Meter;
use crate::server::{APPLY, DEPLOYMENTS, Running, deployment, pod};

/// Before anything counts: what is made once is made.
const WARM: usize = 10;

/// A body to the stored form, without a server.
pub async fn encode() -> Result<Taken> {
    const TIMES: usize = 100;
    let kind = &kinds::pod::KIND;
    let body = pod(1);
    let once = || -> Result<usize> {
        let mut decoded = codec::decode(kind, black_box(body.as_bytes()), MediaType::Json, FieldValidation::Warn)?;
        (kind.strategy.default)(&mut decoded.object);
        Ok(sampan_server::stored_form(kind, &decoded.object).len())
    };
    for _ in 0..WARM {
        once()?;
    }
    let meter = Meter::start();
    for _ in 0..TIMES {
        black_box(once()?);
    }
    Ok(meter.end(TIMES))
}

pub async fn create() -> Result<Taken> {
    const TIMES: usize = 25;
    let running = Running::start(Options::default()).await?;
    running.create_pods(0..WARM).await?;
    let meter = Meter::start();
    running.create_pods(WARM..WARM + TIMES).await?;
    Ok(meter.end(TIMES))
}

/// A strategic merge patch: the status of pods that had none.
pub async fn patch() -> Result<Taken> {
    const TIMES: usize = 25;
    let running = Running::start(Options::default()).await?;
    running.create_pods(0..WARM + TIMES).await?;
    for number in 0..WARM {
        running.patch_status(number).await?;
    }
    let meter = Meter::start();
    for number in WARM..WARM + TIMES {
        running.patch_status(number).await?;
    }
    Ok(meter.end(TIMES))
}

/// Server-side apply of a Deployment, with another image each time.
pub async fn apply() -> Result<Taken> {
    const TIMES: usize = 25;
    let running = Running::start(Options::default()).await?;
    let path = format!("{DEPLOYMENTS}/web?fieldManager=kubectl");
    let apply = |version| running.send(Method::PATCH, &path, APPLY, deployment(version));
    for version in 0..WARM {
        apply(version).await?;
    }
    let meter = Meter::start();
    for version in WARM..WARM + TIMES {
        apply(version).await?;
    }
    Ok(meter.end(TIMES))
}

/// Events that so many watchers read, each in a task of its own.
pub async fn watch(watchers: usize) -> Result<Taken> {
    const EVENTS: usize = 10;
    let running = Running::start(Options::default()).await?;
    let from = running.create_pods(0..WARM + EVENTS).await?;
    // Ends are drawn by lot where none is given.
    let path = format!("/api/v1/pods?watch=true&allowWatchBookmarks=true&timeoutSeconds=3000&resourceVersion={from}");
    let seen = Arc::new(Semaphore::new(0));
    for _ in 0..watchers {
        let mut lines = running.open(Method::GET, &path, "", String::new()).await?;
        let seen = seen.clone();
        tokio::spawn(async move {
            while let Some(Ok(line)) = lines.frame().await {
                black_box(line);
                seen.add_permits(1);
            }
        });
    }
    let event = async |number| -> Result<()> {
        running.patch_status(number).await?;
        seen.acquire_many(u32::try_from(watchers)?).await?.forget();
        Ok(())
    };
    for number in 0..WARM {
        event(number).await?;
    }
    let meter = Meter::start();
    for number in WARM..WARM + EVENTS {
        event(number).await?;
    }
    Ok(meter.end(EVENTS * watchers))
}
