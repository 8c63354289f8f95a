//! `metadata.managedFields`: the entries of an object's managers.

use std::borrow::Cow;
use std::fmt;

use serde_json::{Map, Value};

use super::set::{Set, Step};

/// Most managers that updates may leave on an object; the oldest are put together beyond that.
const MAX_UPDATE_MANAGERS: usize = 10;
const ANCIENT: &str = "ancient-changes";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    Apply,
    Update,
}

impl Operation {
    fn as_str(self) -> &'static str {
        match self {
            Self::Apply => "Apply",
            Self::Update => "Update",
        }
    }
}

/// What one manager owns through one operation, API version and endpoint.
#[derive(Clone, Debug)]
pub struct Entry {
    pub manager: String,
    pub operation: Operation,
    pub api_version: String,
    pub subresource: String,
    pub time: Option<String>,
    fields: Fields,
}

/// The fields of an entry: as they were written until somebody has to look into them, for a write
/// touches those of few managers.
#[derive(Clone, Debug)]
enum Fields {
    Written(Value),
    Read(Set),
}

impl Fields {
    fn is_empty(&self) -> bool {
        match self {
            Self::Written(encoded) => encoded.as_object().is_none_or(Map::is_empty),
            Self::Read(set) => set.is_empty(),
        }
    }
}

impl Entry {
    pub fn set(&self) -> Cow<'_, Set> {
        match &self.fields {
            // What was written was read, or made here.
            Fields::Written(encoded) => Cow::Owned(Set::decode(encoded).unwrap_or_default()),
            Fields::Read(set) => Cow::Borrowed(set),
        }
    }

    pub fn replace(&mut self, set: Set) {
        self.fields = Fields::Read(set);
    }

    pub fn extend(&mut self, set: Set) {
        if let Fields::Written(encoded) = &self.fields
            && set.is_within(encoded)
        {
            return;
        }
        let mut own = self.set().into_owned();
        own.extend(set);
        self.replace(own);
    }

    fn subtract(&mut self, fields: &Set) {
        if let Fields::Written(encoded) = &self.fields
            && !fields.meets(encoded)
        {
            return;
        }
        let mut own = self.set().into_owned();
        own.subtract(fields);
        self.replace(own);
    }
}

impl fmt::Display for Entry {
    /// As conflicts name a manager.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:?}", self.manager)?;
        if !self.subresource.is_empty() {
            write!(out, " with subresource {:?}", self.subresource)?;
        }
        if self.operation == Operation::Update {
            write!(out, " using {}", self.api_version)?;
        }
        Ok(())
    }
}

/// The managers of one object.
#[derive(Clone, Debug, Default)]
pub struct Managers(Vec<Entry>);

impl Managers {
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|entry| entry.fields.is_empty())
    }

    /// `None` where an entry is not what it should be.
    pub fn decode(list: Vec<Value>) -> Option<Self> {
        let read = |fields: Option<Value>| match fields {
            Some(fields) => Set::decode(&fields).map(Fields::Read),
            None => Some(Fields::Read(Set::default())),
        };
        Self::with(list, read)
    }

    /// Takes what is stored: it was decoded when it was written.
    pub fn stored(list: Vec<Value>) -> Option<Self> {
        Self::with(list, |fields| Some(Fields::Written(fields.unwrap_or_default())))
    }

    fn with(list: Vec<Value>, read: impl Fn(Option<Value>) -> Option<Fields>) -> Option<Self> {
        let entry = |mut entry: Value| {
            let fields = entry.get_mut("fieldsV1").map(Value::take);
            let text = |key: &str| entry.get(key).and_then(Value::as_str).map(str::to_owned);
            Some(Entry {
                manager: text("manager").unwrap_or_default(),
                operation: match entry.get("operation")?.as_str()? {
                    "Apply" => Operation::Apply,
                    "Update" => Operation::Update,
                    _ => return None,
                },
                api_version: text("apiVersion").unwrap_or_default(),
                subresource: text("subresource").unwrap_or_default(),
                time: text("time"),
                fields: read(fields)?,
            })
        };
        list.into_iter().map(entry).collect::<Option<Vec<_>>>().map(Self)
    }

    /// In the order of the reference: applies first, then by time.
    pub fn encode(mut self) -> Value {
        self.0.retain(|entry| !entry.fields.is_empty());
        self.0.sort_by(|a, b| {
            (a.operation, &a.time, &a.manager, &a.api_version, &a.subresource).cmp(&(
                b.operation,
                &b.time,
                &b.manager,
                &b.api_version,
                &b.subresource,
            ))
        });
        let encode = |entry: Entry| {
            let fields = match entry.fields {
                Fields::Written(encoded) => encoded,
                Fields::Read(set) => set.encode(),
            };
            // By hand: `json!` copies what it is given, and this is often half of an object.
            let mut members = Map::new();
            let mut member = |name: &str, value: Value| members.insert(name.to_owned(), value);
            member("manager", entry.manager.into());
            member("operation", entry.operation.as_str().into());
            member("apiVersion", entry.api_version.into());
            member("fieldsType", "FieldsV1".into());
            member("fieldsV1", fields);
            if let Some(time) = entry.time {
                member("time", time.into());
            }
            if !entry.subresource.is_empty() {
                member("subresource", entry.subresource.into());
            }
            Value::Object(members)
        };
        self.0.into_iter().map(encode).collect()
    }

    /// The entry of a manager, made where there is none. An apply is one entry whatever its version.
    pub fn entry(&mut self, manager: &str, operation: Operation, api_version: &str, subresource: &str) -> &mut Entry {
        let index = self.index(manager, operation, api_version, subresource);
        &mut self.0[index]
    }

    fn index(&mut self, manager: &str, operation: Operation, api_version: &str, subresource: &str) -> usize {
        let found = self.0.iter().position(|entry| {
            entry.manager == manager
                && entry.operation == operation
                && entry.subresource == subresource
                && (operation == Operation::Apply || entry.api_version == api_version)
        });
        found.unwrap_or_else(|| {
            self.0.push(Entry {
                manager: manager.to_owned(),
                operation,
                api_version: api_version.to_owned(),
                subresource: subresource.to_owned(),
                time: None,
                fields: Fields::Read(Set::default()),
            });
            self.0.len() - 1
        })
    }

    /// These fields are one updater's from now on, and nobody else's.
    pub fn give(&mut self, fields: Set, manager: &str, api_version: &str, subresource: &str, now: &str) {
        let index = self.index(manager, Operation::Update, api_version, subresource);
        for (at, entry) in self.0.iter_mut().enumerate() {
            if at != index {
                entry.subtract(&fields);
            }
        }
        let own = &mut self.0[index];
        own.extend(fields);
        own.time = Some(now.to_owned());
        self.0.retain(|entry| !entry.fields.is_empty());
    }

    /// Takes a manager's entry out.
    pub fn take(&mut self, manager: &str, operation: Operation, subresource: &str) -> Option<Entry> {
        let index = self.0.iter().position(|entry| {
            entry.manager == manager && entry.operation == operation && entry.subresource == subresource
        })?;
        Some(self.0.remove(index))
    }

    /// Nobody owns these any longer.
    pub fn disown(&mut self, fields: &Set) {
        if !fields.is_empty() {
            self.0.iter_mut().for_each(|entry| entry.subtract(fields));
            self.0.retain(|entry| !entry.fields.is_empty());
        }
    }

    /// Whether somebody owns the path or something below it.
    pub fn touch(&self, path: &[Step]) -> bool {
        self.0.iter().any(|entry| entry.set().touches(path))
    }

    /// Which of these fields are owned, and by whom.
    pub fn conflicts(&self, fields: &Set) -> Vec<(Entry, Vec<Step>)> {
        let mut conflicts = Vec::new();
        for entry in &self.0 {
            conflicts.extend(entry.set().intersection(fields).paths().into_iter().map(|path| (entry.clone(), path)));
        }
        conflicts.sort_by_key(|(entry, _)| entry.to_string());
        conflicts
    }

    /// Puts the oldest updates together when there are too many.
    pub fn cap_updates(&mut self) {
        loop {
            let updates = self.0.iter().filter(|entry| entry.operation == Operation::Update);
            if updates.count() <= MAX_UPDATE_MANAGERS {
                return;
            }
            let oldest = self
                .0
                .iter()
                .enumerate()
                .filter(|(_, entry)| entry.operation == Operation::Update && entry.manager != ANCIENT)
                .min_by(|(_, a), (_, b)| a.time.cmp(&b.time))
                .map(|(index, _)| index);
            let Some(index) = oldest else { return };
            let entry = self.0.remove(index);
            let ancient = self.entry(ANCIENT, Operation::Update, &entry.api_version, &entry.subresource);
            ancient.extend(entry.set().into_owned());
            ancient.time = ancient.time.take().max(entry.time);
        }
    }
}
