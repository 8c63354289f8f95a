//! What a pod wants done after a container's start and before its end.

use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1 as core;

use super::prober::{self, Ask, Asker, Target};

/// How long a postStart hook may take: there is no field for it.
const POST_START: Duration = Duration::from_secs(60);

/// Runs one hook; the error says what went wrong.
pub async fn run(
    container: &core::Container,
    handler: &core::LifecycleHandler,
    address: Option<IpAddr>,
    asker: &Asker<'_>,
    timeout: Duration,
) -> Result<(), String> {
    if let Some(sleep) = &handler.sleep {
        let seconds = u64::try_from(sleep.seconds).unwrap_or(0);
        tokio::time::sleep(Duration::from_secs(seconds).min(timeout)).await;
        return Ok(());
    }
    if let Some(action) = &handler.exec {
        let action = Ask::Exec(action.command.clone().unwrap_or_default());
        return asker.ask(&Target { action, timeout }).await;
    }
    if let Some(action) = &handler.http_get {
        let address = address.ok_or("the pod has no address")?;
        let target = Target { action: prober::http(container, action, address)?, timeout };
        // It is told, not asked: whatever it answers, as with the kubelet.
        return asker.answer(&target).await.map(drop);
    }
    if let Some(action) = &handler.tcp_socket {
        let address = address.ok_or("the pod has no address")?;
        let host = action.host.clone().unwrap_or_else(|| address.to_string());
        let action = Ask::Tcp { host, port: prober::port(container, &action.port)? };
        return asker.ask(&Target { action, timeout }).await;
    }
    Ok(())
}

/// The hook after the start of a container, if it has one.
pub async fn post_start(container: &core::Container, address: Option<IpAddr>, asker: &Asker<'_>) -> Result<(), String> {
    match container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.post_start.as_ref()) {
        Some(handler) => run(container, handler, address, asker, POST_START)
            .await
            .map_err(|error| format!("PostStartHook failed: {error}")),
        None => Ok(()),
    }
}

/// The hook before the end of a container: it has the grace and no more.
pub async fn pre_stop(
    container: &core::Container,
    address: Option<IpAddr>,
    asker: &Asker<'_>,
    grace: Duration,
) -> Result<(), String> {
    match container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.pre_stop.as_ref()) {
        Some(handler) => {
            run(container, handler, address, asker, grace).await.map_err(|error| format!("PreStopHook failed: {error}"))
        }
        None => Ok(()),
    }
}
