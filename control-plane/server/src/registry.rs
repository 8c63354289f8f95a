//! Writes: from an object that a client sent to one that the store and the cache have. A write
//! answers only after the cache shows it.

use std::sync::Arc;
use std::time::Duration;

use sampan_api::{Error, Kind};
use sampan_store::{Change, Error as StoreError, Revision};
use serde_json::{Map, Value};

use crate::admission;
use crate::app::App;
use crate::cache::{self, KindCache, Object};
use crate::identity::Identity;
use crate::managed;
use crate::naming;
use crate::services::Taken;

/// How often a write is tried against a moving object.
const ATTEMPTS: usize = 64;
/// How long a write waits for the cache. It has failed when that passes.
const PATIENCE: Duration = Duration::from_secs(30);

pub const MODIFIED: &str =
    "the object has been modified; please apply your changes to the latest version and try again";

/// How a write is made.
pub struct Write<'a> {
    pub app: &'a App,
    pub identity: &'a Identity,
    pub kind: &'static Kind,
    pub namespace: &'a str,
    pub subresource: &'a str,
    /// Owner of the changed fields; `None` where the object comes with its managed fields done.
    pub manager: Option<&'a str>,
    pub dry_run: bool,
    /// The server's own writes: not validated, since its own address may be one that is refused to
    /// others (a loopback one).
    pub trusted: bool,
}

/// What a write left behind.
pub enum Written {
    Stored(Arc<Object>),
    /// Not stored as it is: a dry run, or an object that is gone.
    Value(Value),
}

impl Written {
    /// The object as `kind` shows it.
    pub fn value(&self, kind: &Kind) -> Value {
        match self {
            Self::Stored(object) => shown(kind, object),
            Self::Value(value) => value.clone(),
        }
    }
}

/// An object as a kind shows it, which may not be the one it is stored as.
pub fn shown(kind: &Kind, object: &Object) -> Value {
    match kind.stored_as {
        Some(stored) => (stored.from_stored)(object.value()),
        None => object.value(),
    }
}

pub fn not_found(kind: &Kind, name: &str) -> Error {
    Error::NotFound { resource: kind.qualified_plural(), name: name.to_owned() }
}

pub fn conflict(kind: &Kind, name: &str, message: impl Into<String>) -> Error {
    Error::Conflict { resource: kind.qualified_plural(), name: name.to_owned(), message: message.into() }
}

pub fn meta<'a>(object: &'a Value, key: &str) -> &'a str {
    object.get("metadata").and_then(|metadata| metadata.get(key)).and_then(Value::as_str).unwrap_or_default()
}

/// A body names the object that the path names.
pub fn check_name(object: &Value, name: &str) -> Result<(), Error> {
    match meta(object, "name") {
        "" => Err(Error::BadRequest(format!(
            "the name of the object ({name} based on URL) was undeterminable: name must be provided"
        ))),
        given if given != name => Err(Error::BadRequest(format!(
            "the name of the object ({given}) does not match the name on the URL ({name})"
        ))),
        _ => Ok(()),
    }
}

/// The metadata of an object, made where there is none.
pub fn metadata(object: &mut Value) -> Result<&mut Map<String, Value>, Error> {
    let map = object.as_object_mut().ok_or_else(|| Error::BadRequest("object: must be a map".to_owned()))?;
    let metadata = map.entry("metadata").or_insert_with(|| Value::Object(Map::new()));
    if metadata.is_null() {
        *metadata = Value::Object(Map::new());
    }
    metadata.as_object_mut().ok_or_else(|| Error::BadRequest("metadata: must be a map".to_owned()))
}

/// A failure of the store that says nothing of the object.
pub fn store_error(error: StoreError) -> Error {
    match error {
        StoreError::TooLarge { size, limit, .. } => {
            Error::RequestTooLarge(format!("the object takes {size} bytes; at most {limit} are kept"))
        }
        StoreError::Closed => Error::ServiceUnavailable("the server is shutting down".to_owned()),
        StoreError::Compacted { .. } => Error::Expired("The provided resource version is too old.".to_owned()),
        StoreError::Future { requested, current } => Error::FutureVersion { requested, current },
        other => {
            tracing::error!(error = %other, "store");
            Error::Internal("the store failed; the server's log says why".to_owned())
        }
    }
}

/// How an update's object is checked beside what its strategy says.
#[derive(Clone, Copy, Default)]
pub struct Preconditions<'a> {
    pub uid: &'a str,
}

impl<'a> Write<'a> {
    fn cache(&self) -> Result<&'a Arc<KindCache>, Error> {
        self.app.cache.of(self.kind).ok_or(Error::UnknownPath)
    }

    fn stored_kind(&self) -> &'static Kind {
        self.kind.stored_as.map_or(self.kind, |stored| (stored.kind)())
    }

    fn encode(&self, object: &Value) -> bytes::Bytes {
        match self.kind.stored_as {
            Some(stored) => cache::encode(self.stored_kind(), &(stored.to_stored)(object.clone())),
            None => cache::encode(self.kind, object),
        }
    }

    fn attributes<'b>(&'b self, name: &'b str) -> admission::Attributes<'b> {
        admission::Attributes {
            kind: self.kind,
            namespace: self.namespace,
            name,
            subresource: self.subresource,
            identity: self.identity,
        }
    }

    fn invalid(&self, name: &str, errors: sampan_api::FieldErrors) -> Result<(), Error> {
        if errors.is_empty() || self.trusted {
            return Ok(());
        }
        Err(Error::Invalid { kind: self.kind.qualified_kind(), name: name.to_owned(), errors })
    }

    fn is_service(&self) -> bool {
        self.kind.group.is_empty() && self.kind.plural == "services"
    }

    /// The namespace of the path is the object's.
    fn place(&self, object: &mut Value) -> Result<(), Error> {
        let wanted = if self.kind.namespaced() { self.namespace } else { "" };
        let metadata = metadata(object)?;
        let given = metadata.get("namespace").and_then(Value::as_str).unwrap_or_default();
        if given == wanted {
            if wanted.is_empty() {
                metadata.remove("namespace");
            }
            return Ok(());
        }
        if wanted.is_empty() {
            metadata.remove("namespace");
        } else if given.is_empty() {
            metadata.insert("namespace".to_owned(), wanted.into());
        } else {
            return Err(Error::BadRequest(
                "the namespace of the provided object does not match the namespace sent on the request".to_owned(),
            ));
        }
        Ok(())
    }

    /// Waits until the cache shows a revision, then takes the object from there.
    async fn settle(
        &self,
        cache: &KindCache,
        name: &str,
        bytes: &[u8],
        change: Change,
        created: Revision,
        revision: Revision,
    ) -> Result<Arc<Object>, Error> {
        if !self.app.cache.wait(revision, PATIENCE).await {
            return Err(Error::Internal("written, but the watch cache does not follow".to_owned()));
        }
        if change != Change::Deleted
            && let Some(object) = cache.get(self.namespace, name).filter(|object| object.revision == revision)
        {
            return Ok(object);
        }
        // Overtaken by another write already.
        let created = if created == 0 { revision } else { created };
        Object::new(self.stored_kind(), name, bytes, change, created, revision)
            .map(Arc::new)
            .map_err(|error| Error::Internal(error.to_string()))
    }

    /// Creates an object that a client sent; it has been decoded and defaulted. Texts for warnings
    /// go to `warnings`.
    pub async fn create(&self, mut object: Value, warnings: &mut Vec<String>) -> Result<Written, Error> {
        self.place(&mut object)?;
        let strategy = &self.kind.strategy;
        if let Some(manager) = self.manager {
            managed::update(self.kind, None, &mut object, manager, self.subresource, &self.app.now_text());
        }
        let given_version = !meta(&object, "resourceVersion").is_empty();
        let generated = meta(&object, "name").is_empty() && !meta(&object, "generateName").is_empty();
        let name = meta(&object, "name").to_owned();
        admission::create(self.app, &self.attributes(&name), &mut object).await?;
        let fields = metadata(&mut object)?;
        for key in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "resourceVersion"] {
            fields.remove(key);
        }
        fields.insert("uid".to_owned(), uuid::Uuid::new_v4().to_string().into());
        fields.insert("creationTimestamp".to_owned(), self.app.now_text().into());
        let name = match generated {
            true => {
                let cache = self.cache()?;
                let base = meta(&object, "generateName");
                let name = naming::generate_free(base, |name| cache.get(self.namespace, name).is_some());
                metadata(&mut object)?.insert("name".to_owned(), name.clone().into());
                name
            }
            false => name,
        };
        let taken = match self.is_service() {
            true => Some(self.app.services.allocate(&mut object, None)?),
            false => None,
        };
        (strategy.prepare_create)(&mut object);
        self.invalid(&name, self.kind.validate_create(&object))?;
        if given_version {
            return Err(Error::Unclassified("resourceVersion should not be set on objects to be created".to_owned()));
        }
        warnings.extend((strategy.warnings)(&object, None));
        self.insert(&name, object, taken).await
    }

    async fn insert(&self, name: &str, object: Value, taken: Option<Taken<'_>>) -> Result<Written, Error> {
        let cache = self.cache()?;
        let exists = || {
            let error = Error::AlreadyExists { resource: self.kind.qualified_plural(), name: name.to_owned() };
            let ending = cache
                .get(self.namespace, name)
                .is_some_and(|object| !meta(&object.value(), "deletionTimestamp").is_empty());
            if !ending {
                return error;
            }
            let (_, mut status) = error.status();
            if let Some(map) = status.as_object_mut() {
                map.insert("message".to_owned(), format!("object is being deleted: {error}").into());
            }
            Error::Status(Box::new(status))
        };
        if self.dry_run {
            return match cache.get(self.namespace, name) {
                Some(_) => Err(exists()),
                None => Ok(Written::Value(object)),
            };
        }
        let bytes = self.encode(&object);
        // Before the wait: what is decoded is ten times the text, and many wait together.
        drop(object);
        match self.app.store.create(&cache.key(self.namespace, name), bytes.clone()).await {
            Ok(revision) => {
                if let Some(taken) = taken {
                    taken.keep();
                }
                let object = self.settle(cache, name, &bytes, Change::Created, 0, revision).await?;
                Ok(Written::Stored(object))
            }
            Err(StoreError::AlreadyExists { .. }) => Err(exists()),
            Err(error) => Err(store_error(error)),
        }
    }

    /// Changes an object as a client asked: `change` makes the new one out of the old and is asked again when
    /// another write came between.
    pub async fn update(
        &self,
        name: &str,
        preconditions: Preconditions<'_>,
        warnings: &mut Vec<String>,
        mut change: impl FnMut(&Value, &mut Vec<String>) -> Result<Value, Error>,
    ) -> Result<Written, Error> {
        self.replace(name, preconditions, warnings, |old, told| {
            let new = change(old, told)?;
            self.prepare_update(name, new, old, told)
        })
        .await
    }

    /// A change of the server's own, which leaves the object valid: what was checked and defaulted before is not
    /// again, and it is no field manager's.
    pub async fn alter(
        &self,
        name: &str,
        preconditions: Preconditions<'_>,
        mut change: impl FnMut(&mut Value) -> Result<(), Error>,
    ) -> Result<Written, Error> {
        self.replace(name, preconditions, &mut Vec::new(), |old, _| {
            // Not copied: nothing is compared with it.
            let mut new = std::mem::take(old);
            change(&mut new)?;
            metadata(&mut new)?.remove("resourceVersion");
            Ok((new, None))
        })
        .await
    }

    /// `change` may take the old object if what it makes of it is never the same.
    async fn replace(
        &self,
        name: &str,
        preconditions: Preconditions<'_>,
        warnings: &mut Vec<String>,
        mut change: impl FnMut(&mut Value, &mut Vec<String>) -> Result<(Value, Option<Taken<'a>>), Error>,
    ) -> Result<Written, Error> {
        let cache = self.cache()?;
        for _ in 0..ATTEMPTS {
            let stored = cache.get(self.namespace, name).ok_or_else(|| not_found(self.kind, name))?;
            let mut old = shown(self.kind, &stored);
            if !preconditions.uid.is_empty() && preconditions.uid != meta(&old, "uid") {
                return Err(self.uid_conflict(name, preconditions.uid, meta(&old, "uid")));
            }
            let mut told = Vec::new();
            let (mut new, taken) = change(&mut old, &mut told)?;
            // Nothing but times of managers: not a write.
            if managed::same_but_times(&new, &old) {
                warnings.append(&mut told);
                return Ok(Written::Stored(stored));
            }
            if self.dry_run {
                warnings.append(&mut told);
                cache::set_version(&mut new, stored.revision);
                return Ok(Written::Value(new));
            }
            let key = cache.key(self.namespace, name);
            let bytes = self.encode(&new);
            let ends = ends(self.kind, &new, &old);
            // As for a create: nothing decoded is kept over the wait that is not needed after it.
            let services = self.is_service().then_some((old, new));
            let result = if ends {
                self.app.store.delete(&key, stored.revision).await
            } else {
                self.app.store.update(&key, bytes.clone(), stored.revision).await
            };
            match result {
                Ok(revision) => {
                    warnings.append(&mut told);
                    if let Some(taken) = taken {
                        taken.keep();
                    }
                    if let Some((old, new)) = &services {
                        self.app.services.release(old, (!ends).then_some(new));
                    }
                    let change = if ends { Change::Deleted } else { Change::Updated };
                    return self
                        .settle(cache, name, &bytes, change, stored.created, revision)
                        .await
                        .map(Written::Stored);
                }
                Err(StoreError::Conflict { current, .. }) => self.catch_up(current).await?,
                Err(StoreError::NotFound { .. }) => self.vanished(cache, name, stored.revision).await?,
                Err(error) => return Err(store_error(error)),
            }
        }
        Err(conflict(self.kind, name, MODIFIED))
    }

    /// Waits for the write that came between.
    pub async fn catch_up(&self, revision: Revision) -> Result<(), Error> {
        if self.app.cache.wait(revision, PATIENCE).await {
            return Ok(());
        }
        Err(Error::Internal("the watch cache does not follow the store".to_owned()))
    }

    /// The store no longer has what the cache showed: waits until the cache knows.
    pub async fn vanished(&self, cache: &Arc<KindCache>, name: &str, seen: Revision) -> Result<(), Error> {
        let (snapshot, _) = cache.list(self.namespace, None, 1, |_| true);
        let mut watcher = snapshot.watcher;
        let gone = async {
            while cache.get(self.namespace, name).is_some_and(|object| object.revision == seen) {
                if !watcher.changed().await {
                    break;
                }
            }
        };
        tokio::time::timeout(PATIENCE, gone)
            .await
            .map_err(|_| Error::Internal("the watch cache does not follow the store".to_owned()))
    }

    fn uid_conflict(&self, name: &str, wanted: &str, found: &str) -> Error {
        let path = cache::suffix(self.namespace, name);
        conflict(
            self.kind,
            name,
            format!(
                "StorageError: invalid object, Code: 4, Key: /registry/{}/{path}, ResourceVersion: 0, \
                 AdditionalErrorMsg: Precondition failed: UID in precondition: {wanted}, UID in object meta: {found}",
                self.kind.plural
            ),
        )
    }

    /// All that happens to a changed object before it is stored.
    fn prepare_update(
        &self,
        name: &str,
        mut new: Value,
        old: &Value,
        warnings: &mut Vec<String>,
    ) -> Result<(Value, Option<Taken<'a>>), Error> {
        let strategy = &self.kind.strategy;
        self.place(&mut new)?;
        check_name(&new, name)?;
        let version = meta(&new, "resourceVersion").to_owned();
        let current = meta(old, "resourceVersion");
        if version.is_empty() {
            if !strategy.unconditional_update {
                let mut errors = sampan_api::FieldErrors::default();
                errors.push(
                    sampan_api::FieldReason::Invalid,
                    "metadata.resourceVersion",
                    "Invalid value: 0: must be specified for an update",
                );
                self.invalid(name, errors)?;
            }
        } else if version != current && version != "0" {
            return Err(conflict(self.kind, name, MODIFIED));
        }
        (strategy.default)(&mut new);
        if let Some(manager) = self.manager {
            managed::update(self.kind, Some(old), &mut new, manager, self.subresource, &self.app.now_text());
        }
        admission::update(&self.attributes(name), &mut new, old)?;
        self.keep_system_fields(&mut new, old)?;
        let taken = match self.is_service() && self.subresource.is_empty() {
            true => Some(self.app.services.allocate(&mut new, Some(old))?),
            false => None,
        };
        self.kind.prepare_write(self.subresource, &mut new, old);
        let errors = self.kind.validate_write(self.subresource, &new, old);
        self.invalid(name, errors)?;
        warnings.extend((strategy.warnings)(&new, Some(old)));
        metadata(&mut new)?.remove("resourceVersion");
        Ok((new, taken))
    }

    /// What only the server writes stays as it was.
    fn keep_system_fields(&self, new: &mut Value, old: &Value) -> Result<(), Error> {
        let was = old.get("metadata").and_then(Value::as_object).cloned().unwrap_or_default();
        let metadata = metadata(new)?;
        metadata.remove("selfLink");
        for key in ["generation", "creationTimestamp", "deletionTimestamp"] {
            match was.get(key) {
                Some(value) => metadata.insert(key.to_owned(), value.clone()),
                None => metadata.remove(key),
            };
        }
        for key in ["uid", "deletionGracePeriodSeconds"] {
            let empty = metadata.get(key).is_none_or(|value| value.is_null() || value.as_str() == Some(""));
            if let Some(value) = was.get(key).filter(|_| empty) {
                metadata.insert(key.to_owned(), value.clone());
            }
        }
        if !was.contains_key("deletionGracePeriodSeconds") {
            metadata.remove("deletionGracePeriodSeconds");
        }
        Ok(())
    }
}

/// Whether an update takes away the last that kept a deleted object: then it ends.
fn ends(kind: &Kind, new: &Value, old: &Value) -> bool {
    let none = |pointer: &str| new.pointer(pointer).and_then(Value::as_array).is_none_or(Vec::is_empty);
    let waiting = old.pointer("/metadata/deletionGracePeriodSeconds").and_then(Value::as_i64).unwrap_or_default();
    !meta(old, "deletionTimestamp").is_empty()
        && none("/metadata/finalizers")
        && waiting == 0
        && (kind.plural != "namespaces" || !kind.group.is_empty() || none("/spec/finalizers"))
}
