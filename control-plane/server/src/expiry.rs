//! Events do not live forever: an hour after the last of its kind an Event goes.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

use crate::app::App;

const LIFE: i64 = 3600;
const PERIOD: Duration = Duration::from_secs(120);

/// Seconds since 1970 at which an event was last told.
fn last(event: &Value) -> i64 {
    ["/lastTimestamp", "/eventTime", "/firstTimestamp", "/series/lastObservedTime", "/metadata/creationTimestamp"]
        .iter()
        .filter_map(|pointer| event.pointer(pointer)?.as_str()?.parse::<Timestamp>().ok())
        .map(Timestamp::as_second)
        .max()
        .unwrap_or_default()
}

/// Removes old events until the server ends.
pub async fn run(app: Arc<App>) {
    loop {
        tokio::select! {
            () = app.shutdown.cancelled() => return,
            () = tokio::time::sleep(PERIOD) => {}
        }
        let Some(events) = app.kind_cache("", "events") else {
            return;
        };
        let (snapshot, _) = events.list("", None, 0, |_| true);
        let now = app.now().as_second();
        let mut gone = 0u32;
        for event in &snapshot.objects {
            if last(&event.value()) + LIFE > now {
                continue;
            }
            // One that was told again meanwhile is at another revision, and stays.
            let key = events.key(&event.namespace, &event.name);
            match app.store.delete(&key, event.revision).await {
                Ok(_) => gone += 1,
                Err(error) => tracing::debug!(%error, key, "an old event stays"),
            }
        }
        if gone > 0 {
            tracing::debug!(gone, "old events removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_latest_time_counts() {
        let event = json!({
            "metadata": {"creationTimestamp": "1970-01-01T00:00:01Z"},
            "firstTimestamp": null, "lastTimestamp": "1970-01-01T00:01:00Z", "eventTime": "1970-01-01T00:00:02.000000Z",
        });
        assert_eq!(last(&event), 60);
        assert_eq!(last(&json!({})), 0);
    }
}
