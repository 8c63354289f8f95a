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

/// `a=b,c=d`, or `<none>`.
pub fn labels(map: Option<&Value>) -> String {
    let pairs: Vec<String> = map
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    if pairs.is_empty() { "<none>".to_owned() } else { pairs.join(",") }
}

/// A label selector as `-l` would take it; empty where it selects everything.
pub fn selector(selector: Option<&Value>) -> String {
    let mut parts: Vec<(String, String)> = Vec::new();
    let field = |name| selector.and_then(|selector| selector.get(name));
    for (key, value) in field("matchLabels").and_then(Value::as_object).into_iter().flatten() {
        parts.push((key.clone(), format!("{key}={}", value.as_str().unwrap_or_default())));
    }
    for one in field("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
        let text = |name| one.get(name).and_then(Value::as_str).unwrap_or_default();
        let key = text("key");
        let values = one.get("values").and_then(Value::as_array).into_iter().flatten();
        let mut values: Vec<&str> = values.filter_map(Value::as_str).collect();
        values.sort_unstable();
        let values = values.join(",");
        let part = match text("operator") {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "DoesNotExist" => format!("!{key}"),
            _ => key.to_owned(),
        };
        parts.push((key.to_owned(), part));
    }
    parts.sort_by(|a, b| a.0.cmp(&b.0));
    let parts: Vec<String> = parts.into_iter().map(|(_, part)| part).collect();
    parts.join(",")
}

/// Names and images of a template's containers.
pub fn containers(template: Option<&Value>) -> (String, String) {
    let list = template.and_then(|template| template.pointer("/spec/containers")).and_then(Value::as_array);
    let column = |key: &str| {
        let list: Vec<&str> =
            list.into_iter().flatten().map(|one| one.get(key).and_then(Value::as_str).unwrap_or_default()).collect();
        list.join(",")
    };
    (column("name"), column("image"))
}

/// A number at a path, 0 where absent.
pub fn number(object: &Value, path: &str) -> i64 {
    object.pointer(path).and_then(Value::as_i64).unwrap_or_default()
}

/// A text at a path, empty where absent.
pub fn text<'a>(object: &'a Value, path: &str) -> &'a str {
    object.pointer(path).and_then(Value::as_str).unwrap_or_default()
}

/// How many entries a list or map at a path has.
pub fn count(object: &Value, path: &str) -> usize {
    match object.pointer(path) {
        Some(Value::Array(list)) => list.len(),
        Some(Value::Object(map)) => map.len(),
        _ => 0,
    }
}

/// The first three, and how many more there are.
pub fn first_three(all: &[String]) -> String {
    let list = all.get(..3).unwrap_or(all).join(",");
    if all.len() > 3 { format!("{list} + {} more...", all.len() - 3) } else { list }
}

#[cfg(test)]
mod tests {
    use super::duration;

    #[test]
    fn durations() {
        let cases = [
            (-5, "<invalid>"),
            (-1, "0s"),
            (119, "119s"),
            (120, "2m"),
            (200, "3m20s"),
            (600, "10m"),
            (3 * 3600 + 60, "3h1m"),
            (8 * 3600, "8h"),
            (47 * 3600, "47h"),
            (48 * 3600, "2d"),
            (49 * 3600, "2d1h"),
            (9 * 86400, "9d"),
            (800 * 86400, "2y70d"),
            (9 * 365 * 86400, "9y"),
        ];
        for (seconds, shown) in cases {
            assert_eq!(duration(seconds), shown);
        }
    }
}
