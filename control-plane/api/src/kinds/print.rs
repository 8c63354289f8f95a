//! Pieces of table cells.

use serde_json::{Value, json};

/// The cells of a kind without columns of its own.
pub fn name_and_age(object: &Value, now: i64) -> Vec<Value> {
    vec![name(object), age(object, now)]
}

pub fn name(object: &Value) -> Value {
    object.pointer("/metadata/name").cloned().unwrap_or_else(|| json!(""))
}

pub fn age(object: &Value, now: i64) -> Value {
    since(object.pointer("/metadata/creationTimestamp"), now).into()
}

/// Seconds since 1970 of an RFC 3339 time.
pub fn seconds(time: &Value) -> Option<i64> {
    time.as_str()?.parse::<jiff::Timestamp>().ok().map(jiff::Timestamp::as_second)
}

/// How long ago a time was, or `<unknown>`.
pub fn since(time: Option<&Value>, now: i64) -> String {
    time.and_then(seconds).map_or_else(|| "<unknown>".to_owned(), |then| duration(now - then))
}

/// A duration in two units at most, the way people read it: `3m20s`, `47h`, `2y11d`.
pub fn duration(seconds: i64) -> String {
    if seconds < -1 {
        return "<invalid>".to_owned();
    }
    let seconds = seconds.max(0);
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let (days, years) = (hours / 24, hours / 24 / 365);
    let pair = |big: i64, unit: &str, small: i64, small_unit: &str| {
        if small == 0 { format!("{big}{unit}") } else { format!("{big}{unit}{small}{small_unit}") }
    };
    if seconds < 120 {
        format!("{seconds}s")
    } else if minutes < 10 {
        pair(minutes, "m", seconds % 60, "s")
    } else if minutes < 180 {
        format!("{minutes}m")
    } else if hours < 8 {
        pair(hours, "h", minutes % 60, "m")
    } else if hours < 48 {
        format!("{hours}h")
    } else if hours < 24 * 8 {
        pair(days, "d", hours % 24, "h")
    } else if hours < 24 * 365 * 2 {
        format!("{days}d")
    } else if hours < 24 * 365 * 8 {
        pair(years, "y", days % 365, "d")
    } else {
        format!("{years}y")
    }
}
