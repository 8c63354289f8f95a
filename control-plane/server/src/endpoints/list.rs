//! `GET` of a list: from the cache, or at a revision in the past from the store; whole or in chunks.

use std::sync::Arc;
use std::time::Duration;

use axum::response::Response;
use base64::Engine;
use base64::alphabet::URL_SAFE;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use http::StatusCode;
use sampan_api::validation::requests::ListOptions;
use sampan_api::{Error, Kind, table};
use sampan_store::{Change, Range, Revision};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::Context;
pub use super::selection::Selection;
use crate::cache::{KindCache, Object};
use crate::registry::{shown, store_error};
use crate::respond::{self, Form, Shape};

/// How long a read waits for a revision that is still to come.
const PATIENCE: Duration = Duration::from_secs(3);
const TOKEN_VERSION: &str = "meta.k8s.io/v1";
const TOO_OLD: &str = "The provided continue parameter is too old to display a consistent list result. You can start a \
    new list without the continue parameter, or use the continue token in this response to retrieve the remainder of \
    the results. Continuing with the provided token results in an inconsistent list - objects that were created, \
    modified, or deleted between the time the first chunk was returned and now may show up in the list.";

/// As Go reads it: no padding, and bits left over at the end are nobody's business.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new()
        .with_encode_padding(false)
        .with_decode_padding_mode(DecodePaddingMode::RequireNone)
        .with_decode_allow_trailing_bits(true),
);

/// Where a list in chunks goes on.
#[derive(Debug, Serialize, Deserialize, PartialEq, Eq)]
struct Token {
    v: String,
    rv: i64,
    start: String,
}

impl Token {
    fn encode(revision: i64, after: &str) -> String {
        let token = Self { v: TOKEN_VERSION.to_owned(), rv: revision, start: format!("{after}\0") };
        BASE64.encode(serde_json::to_vec(&token).unwrap_or_default())
    }

    /// The revision to list at (none: now) and the key to go on behind.
    fn decode(text: &str) -> Result<(Option<Revision>, String), Error> {
        let invalid =
            |why: String| Error::BadRequest(format!("invalid continue token: continue key is not valid: {why}"));
        let bytes = BASE64.decode(text.trim_end_matches('=')).map_err(|error| {
            let at = match error {
                base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _) => at,
                _ => text.len(),
            };
            invalid(format!("illegal base64 data at input byte {at}"))
        })?;
        let token: Self = serde_json::from_slice(&bytes).map_err(|error| match bytes.first() {
            Some(first) if *first != b'{' => {
                let shown =
                    if first.is_ascii_graphic() { char::from(*first).to_string() } else { format!("\\x{first:02x}") };
                invalid(format!("invalid character '{shown}' looking for beginning of value"))
            }
            _ => invalid(error.to_string()),
        })?;
        if token.v != TOKEN_VERSION {
            return Err(invalid(format!("server does not recognize this encoded version {:?}", token.v)));
        }
        if token.rv == 0 {
            return Err(invalid("incorrect encoded start resourceVersion (version meta.k8s.io/v1)".to_owned()));
        }
        let after = token.start.strip_suffix('\0').ok_or_else(|| invalid("incorrect start key".to_owned()))?;
        Ok((u64::try_from(token.rv).ok(), after.to_owned()))
    }
}

/// A `resourceVersion` of a query; empty and `0` say: whatever is there.
pub fn parse_version(text: &str) -> Result<Revision, Error> {
    if text.is_empty() {
        return Ok(0);
    }
    text.parse().map_err(|_| {
        Error::Unclassified(format!(
            "resourceVersion: Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: invalid syntax"
        ))
    })
}

/// Waits until the cache is at a version that a read asks for at least.
pub async fn await_version(context: &Context, text: &str) -> Result<(), Error> {
    let requested = parse_version(text)?;
    if context.app.cache.wait(requested, PATIENCE).await {
        return Ok(());
    }
    Err(Error::FutureVersion { requested, current: context.app.cache.revision() })
}

struct Listed {
    objects: Vec<Arc<Object>>,
    revision: Revision,
    /// Key of the last object, where more follow.
    more: Option<String>,
    remaining: usize,
}

pub async fn serve(context: &mut Context, kind: &'static Kind) -> Result<Response, Error> {
    let form = respond::negotiate(&context.headers, &context.query, true)?;
    let query = &context.query;
    let version = query.text("resourceVersion");
    let matching = query.text("resourceVersionMatch");
    let token = query.text("continue");
    ListOptions {
        watch: false,
        resource_version: version,
        resource_version_match: matching,
        continue_token: token,
        send_initial_events: query.flag("sendInitialEvents"),
    }
    .validate()?;
    let selection = Selection::read(context, kind)?;
    let limit = usize::try_from(query.int("limit")?.unwrap_or_default()).unwrap_or_default();
    let cache = context.app.cache.of(kind).ok_or(Error::UnknownPath)?.clone();
    let listed = if token.is_empty() {
        let at = parse_version(version)?;
        let exact = matching == "Exact" || (matching.is_empty() && limit > 0 && at > 0);
        if exact {
            at_revision(context, &cache, &selection, at, None, limit).await?
        } else {
            await_version(context, version).await?;
            now(context, &cache, &selection, None, limit)
        }
    } else {
        if !version.is_empty() && version != "0" {
            return Err(Error::BadRequest("specifying resource version is not allowed when using continue".to_owned()));
        }
        let (at, after) = Token::decode(token)?;
        match at {
            None => now(context, &cache, &selection, Some(&after), limit),
            Some(at) => {
                let listed = at_revision(context, &cache, &selection, at, Some(&after), limit).await;
                listed.map_err(|error| match error {
                    Error::Expired(_) => expired(&after),
                    other => other,
                })?
            }
        }
    };
    let mut metadata = json!({"resourceVersion": listed.revision.to_string()});
    if let (Some(after), Some(map)) = (&listed.more, metadata.as_object_mut()) {
        let revision = i64::try_from(listed.revision).unwrap_or(-1);
        map.insert("continue".to_owned(), Token::encode(revision, after).into());
        if selection.is_everything() {
            map.insert("remainingItemCount".to_owned(), listed.remaining.into());
        }
    }
    respond_objects(context, kind, form, &listed.objects, metadata)
}

/// 410, with a token by which the rest can be had all the same.
fn expired(after: &str) -> Error {
    let (_, mut status) = Error::Expired(TOO_OLD.to_owned()).status();
    if let Some(metadata) = status.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.insert("continue".to_owned(), Token::encode(-1, after).into());
    }
    Error::Status(Box::new(status))
}

fn now(context: &Context, cache: &Arc<KindCache>, selection: &Selection, after: Option<&str>, limit: usize) -> Listed {
    let namespace = &context.path.namespace;
    let (snapshot, remaining) = cache.list(namespace, after, limit, |object| selection.matches(object));
    Listed {
        objects: snapshot.objects,
        revision: snapshot.revision,
        more: remaining.last.filter(|_| remaining.more).map(String::from),
        remaining: remaining.count,
    }
}

async fn at_revision(
    context: &Context,
    cache: &Arc<KindCache>,
    selection: &Selection,
    at: Revision,
    after: Option<&str>,
    limit: usize,
) -> Result<Listed, Error> {
    let current = context.app.cache.revision();
    if at > current {
        return Err(Error::FutureVersion { requested: at, current });
    }
    // What has not changed since is as it was.
    let listed = now(context, cache, selection, after, limit);
    if cache.unchanged_since(at) {
        return Ok(Listed { revision: at, ..listed });
    }
    const PAGE: usize = 500;
    let namespace = &context.path.namespace;
    let root = cache.key("", "");
    let prefix = if namespace.is_empty() { root.clone() } else { format!("{root}{namespace}/") };
    let mut range = Range::prefix(prefix);
    if let Some(after) = after {
        range = range.after(format!("{root}{after}"));
    }
    let mut objects: Vec<Arc<Object>> = Vec::new();
    let mut last = None;
    loop {
        let page = context.app.store.list(range.clone(), Some(at), PAGE).await.map_err(store_error)?;
        let following = page.remaining;
        let count = page.entries.len();
        for (position, entry) in page.entries.iter().enumerate() {
            let change = if entry.created == entry.revision { Change::Created } else { Change::Updated };
            let object = Object::new(cache.kind, &entry.key, &entry.value, change, entry.created, entry.revision)
                .map_err(|error| Error::Internal(error.to_string()))?;
            if !selection.matches(&object) {
                continue;
            }
            if limit > 0 && objects.len() == limit {
                let remaining = count - position + usize::try_from(following).unwrap_or_default();
                return Ok(Listed { objects, revision: at, more: last, remaining });
            }
            last = entry.key.strip_prefix(&root).map(str::to_owned);
            objects.push(Arc::new(object));
        }
        match page.entries.last() {
            Some(entry) if following > 0 => range = range.after(entry.key.as_ref()),
            _ => {
                return Ok(Listed { objects, revision: at, more: None, remaining: 0 });
            }
        }
    }
}

fn respond_objects(
    context: &Context,
    kind: &'static Kind,
    form: Form,
    objects: &[Arc<Object>],
    metadata: Value,
) -> Result<Response, Error> {
    if form.shape != Shape::Object || kind.stored_as.is_some() {
        let items = objects.iter().map(|object| shown(kind, object)).collect();
        return respond_with(context, kind, form, items, metadata);
    }
    let mut pieces = Vec::with_capacity(objects.len() * 2 + 2);
    pieces.push(Bytes::from(format!(
        "{{\"kind\":\"{}List\",\"apiVersion\":\"{}\",\"metadata\":{metadata},\"items\":[",
        kind.kind,
        kind.api_version()
    )));
    for (position, object) in objects.iter().enumerate() {
        pieces.push(Bytes::from_static(if position == 0 { b"{" } else { b",{" }));
        pieces.push(object.list_item());
    }
    pieces.push(Bytes::from_static(b"]}\n"));
    Ok(respond::encoded(form, StatusCode::OK, pieces))
}

/// A list of decoded objects, in the shape asked for.
pub fn respond_with(
    context: &Context,
    kind: &'static Kind,
    form: Form,
    items: Vec<Value>,
    metadata: Value,
) -> Result<Response, Error> {
    let now = context.app.now().as_second();
    let body = match form.shape {
        Shape::Table => table::table(kind, &items, metadata, respond::include(&context.query), true, now),
        Shape::Metadata => {
            let items: Vec<Value> = items.iter().map(table::partial).collect();
            json!({
                "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1",
                "metadata": metadata, "items": items,
            })
        }
        Shape::Object => {
            let items: Vec<Value> = items
                .into_iter()
                .map(|item| match item {
                    Value::Object(map) => Value::Object(
                        map.into_iter().filter(|(key, _)| key != "kind" && key != "apiVersion").collect::<Map<_, _>>(),
                    ),
                    other => other,
                })
                .collect();
            json!({
                "kind": format!("{}List", kind.kind), "apiVersion": kind.api_version(),
                "metadata": metadata, "items": items,
            })
        }
    };
    Ok(respond::value(form, StatusCode::OK, &body))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn tokens() {
        let text = Token::encode(7, "ns/name");
        assert_eq!(Token::decode(&text).unwrap(), (Some(7), "ns/name".to_owned()));
        assert_eq!(Token::decode(&Token::encode(-1, "a")).unwrap(), (None, "a".to_owned()));
        let message = |text: &str| Token::decode(text).unwrap_err().to_string();
        assert_eq!(
            message("garbage"),
            "invalid continue token: continue key is not valid: invalid character '\\x81' looking for beginning of value"
        );
        assert!(message("###").contains("illegal base64 data at input byte 0"));
    }
}
