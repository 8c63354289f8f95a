//! Watches: what is there, where asked for, then every change, as lines of JSON.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::StatusCode;
use rand::Rng;
use sampan_api::table::Include;
use sampan_api::validation::requests::ListOptions;
use sampan_api::{Error, Kind, table};
use sampan_store::{Change, Revision};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::Context;
use super::list::{await_version, parse_version};
use super::selection::Selection;
use crate::app::App;
use crate::cache::{Event, Lagged, Object, Watcher, event_type, set_version};
use crate::metrics::Watching;
use crate::registry::shown;
use crate::respond::{self, Form, Shape};

const BOOKMARKS: Duration = Duration::from_secs(60);
/// A watch without a time of its own ends between this and twice this.
const SECONDS: u64 = 1800;
/// Events taken from the history at once.
const BATCH: usize = 64;
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

struct Watch {
    app: Arc<App>,
    kind: &'static Kind,
    namespace: String,
    selection: Selection,
    form: Form,
    include: Include,
    /// The next table begins with its columns.
    columns: bool,
    bookmarks: bool,
    next_bookmark: Instant,
    ends: Instant,
    pending: VecDeque<Bytes>,
    watcher: Option<Watcher>,
    from: Revision,
    shown: Revision,
    _watching: Watching,
}

pub async fn serve(context: &mut Context, kind: &'static Kind) -> Result<Response, Error> {
    let form = respond::negotiate(&context.headers, &context.query, true)?;
    let query = &context.query;
    let version = query.text("resourceVersion");
    let initial = query.flag("sendInitialEvents");
    ListOptions {
        watch: true,
        resource_version: version,
        resource_version_match: query.text("resourceVersionMatch"),
        continue_token: query.text("continue"),
        send_initial_events: initial,
    }
    .validate()?;
    let selection = Selection::read(context, kind)?;
    let from = parse_version(version)?;
    let seconds = match query.int("timeoutSeconds")? {
        Some(seconds) if seconds > 0 => seconds.unsigned_abs(),
        _ => rand::rng().random_range(SECONDS..SECONDS * 2),
    };
    let bookmarks = query.flag("allowWatchBookmarks") == Some(true);
    let cache = context.app.cache.of(kind).ok_or(Error::UnknownPath)?;
    let now = Instant::now();
    let mut watch = Watch {
        app: context.app.clone(),
        kind,
        namespace: context.path.namespace.clone(),
        selection,
        form,
        include: respond::include(query),
        columns: true,
        bookmarks,
        next_bookmark: now + BOOKMARKS,
        ends: now + Duration::from_secs(seconds),
        pending: VecDeque::new(),
        watcher: None,
        from,
        shown: from,
        _watching: context.app.metrics.watching(kind),
    };
    if initial == Some(true) || (initial.is_none() && from == 0) {
        await_version(context, version).await?;
        let (snapshot, _) = cache.list(&watch.namespace, None, 0, |object| watch.selection.matches(object));
        for object in &snapshot.objects {
            watch.push(Change::Created, object);
        }
        watch.shown = snapshot.revision;
        watch.watcher = Some(snapshot.watcher);
        if initial == Some(true) && bookmarks {
            watch.push_bookmark(true);
        }
    } else {
        // With a version of 0 and no initial events: from now on.
        let from = if from == 0 { context.app.cache.revision() } else { from };
        watch.shown = from;
        match cache.watch(from) {
            Ok(watcher) => watch.watcher = Some(watcher),
            Err(old) => watch
                .push_error(&Error::Expired(format!("too old resource version: {} ({})", old.requested, old.oldest))),
        }
    }
    let stream = futures::stream::unfold(watch, |mut watch| async move {
        watch.next().await.map(|line| (Ok::<_, std::convert::Infallible>(line), watch))
    });
    Ok(respond::with_body(StatusCode::OK, respond::JSON, Body::from_stream(stream)))
}

impl Watch {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(chunk) = respond::joined(&mut self.pending) {
                return Some(chunk);
            }
            let watcher = self.watcher.as_mut()?;
            match watcher.poll(BATCH) {
                Ok((events, upto)) if events.is_empty() => self.shown = self.shown.max(upto),
                Ok((events, _)) => {
                    for event in &events {
                        self.push_event(event);
                        self.shown = self.shown.max(event.revision);
                    }
                    continue;
                }
                Err(Lagged) => {
                    let message = format!("too old resource version: {} ({})", self.shown, self.app.cache.revision());
                    self.push_error(&Error::Expired(message));
                    continue;
                }
            }
            tokio::select! {
                changed = watcher.changed() => if !changed { return None; },
                () = tokio::time::sleep_until(self.next_bookmark), if self.bookmarks => {
                    self.next_bookmark = Instant::now() + BOOKMARKS;
                    // What came meanwhile goes first.
                    let upto = self.app.cache.revision();
                    match self.watcher.as_mut().map(|watcher| watcher.poll(usize::MAX)) {
                        Some(Ok((events, _))) => {
                            for event in &events {
                                self.push_event(event);
                                self.shown = self.shown.max(event.revision);
                            }
                        }
                        _ => continue,
                    }
                    self.shown = self.shown.max(upto);
                    self.push_bookmark(false);
                }
                () = tokio::time::sleep_until(self.ends) => return None,
                () = self.app.shutdown.cancelled() => return None,
            }
        }
    }

    fn push_event(&mut self, event: &Event) {
        // A watch from a version that was still to come.
        if event.revision <= self.from {
            return;
        }
        let within = |object: &Object| {
            (self.namespace.is_empty() || *object.namespace == *self.namespace) && self.selection.matches(object)
        };
        let was = event.previous.as_ref().is_some_and(|object| within(object));
        match event.change {
            Change::Deleted => {
                if within(&event.object) {
                    self.push(Change::Deleted, &event.object);
                }
            }
            Change::Created | Change::Updated => match (was, within(&event.object)) {
                (true, true) => self.push(Change::Updated, &event.object),
                (false, true) => self.push(Change::Created, &event.object),
                (true, false) => {
                    if let Some(previous) = &event.previous {
                        self.push_left(previous, event.revision);
                    }
                }
                (false, false) => {}
            },
        }
    }

    fn is_plain(&self) -> bool {
        self.form.shape == Shape::Object && self.kind.stored_as.is_none()
    }

    fn push(&mut self, change: Change, object: &Object) {
        if self.is_plain() {
            self.pending.push_back(object.frame(change));
        } else {
            self.push_value(event_type(change), shown(self.kind, object));
        }
    }

    /// An object that no longer matches is deleted, for this watcher: as it was, at the new revision.
    fn push_left(&mut self, previous: &Object, revision: Revision) {
        if self.is_plain() {
            self.pending.push_back(previous.frame_at(Change::Deleted, revision));
        } else {
            let mut value = shown(self.kind, previous);
            set_version(&mut value, revision);
            self.push_value(event_type(Change::Deleted), value);
        }
    }

    fn push_value(&mut self, word: &str, value: Value) {
        let object = match self.form.shape {
            Shape::Object => value,
            Shape::Metadata => table::partial(&value),
            Shape::Table => {
                let version = value.pointer("/metadata/resourceVersion").cloned().unwrap_or_default();
                let metadata = json!({"resourceVersion": version});
                let now = self.app.now().as_second();
                let columns = std::mem::take(&mut self.columns);
                table::table(self.kind, &[value], metadata, self.include, columns, now)
            }
        };
        self.push_line(word, &object);
    }

    fn push_line(&mut self, word: &str, object: &Value) {
        self.pending.push_back(Bytes::from(format!("{{\"type\":\"{word}\",\"object\":{object}}}\n")));
    }

    fn push_bookmark(&mut self, initial: bool) {
        let mut metadata = json!({"resourceVersion": self.shown.to_string()});
        if initial && let Some(map) = metadata.as_object_mut() {
            map.insert("annotations".to_owned(), json!({INITIAL_EVENTS_END: "true"}));
        }
        let object = match self.form.shape {
            Shape::Object => {
                json!({"kind": self.kind.kind, "apiVersion": self.kind.api_version(), "metadata": metadata})
            }
            Shape::Metadata => {
                json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata})
            }
            Shape::Table => {
                let object =
                    json!({"kind": self.kind.kind, "apiVersion": self.kind.api_version(), "metadata": metadata});
                let row = json!({"cells": [], "object": table::partial(&object)});
                json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1",
                    "metadata": {"resourceVersion": self.shown.to_string()}, "columnDefinitions": null, "rows": [row]})
            }
        };
        self.push_line("BOOKMARK", &object);
    }

    /// Tells what is wrong; nothing comes after it.
    fn push_error(&mut self, error: &Error) {
        let (_, status) = error.status();
        self.push_line("ERROR", &status);
        self.watcher = None;
    }
}
