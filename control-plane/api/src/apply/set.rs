//! Sets of field paths: what a manager owns, and its form in `metadata.managedFields` (FieldsV1).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde_json::{Map, Value};

/// One step of a path, in the order in which paths are listed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    Field(String),
    /// An item of a list by its key fields: their canonical JSON.
    Key(String),
    /// An item of a set: its canonical JSON.
    Value(String),
    Index(u64),
}

impl Step {
    /// The item of a list that has these key fields.
    pub fn key(fields: Map<String, Value>) -> Self {
        Self::Key(Value::Object(fields).to_string())
    }

    pub fn value(value: &Value) -> Self {
        Self::Value(value.to_string())
    }

    fn encode(&self) -> String {
        match self {
            Self::Field(name) => format!("f:{name}"),
            Self::Key(json) => format!("k:{json}"),
            Self::Value(json) => format!("v:{json}"),
            Self::Index(index) => format!("i:{index}"),
        }
    }

    fn decode(text: &str) -> Option<Self> {
        let (kind, rest) = text.split_once(':')?;
        // Read and written again: clients may put spaces in.
        let canonical = || serde_json::from_str::<Value>(rest).ok().map(|value| value.to_string());
        match kind {
            "f" => Some(Self::Field(rest.to_owned())),
            "k" => canonical().map(Self::Key),
            "v" => canonical().map(Self::Value),
            "i" => rest.parse().ok().map(Self::Index),
            _ => None,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Field(name) => write!(out, ".{name}"),
            Self::Key(json) => {
                let fields: Map<String, Value> = serde_json::from_str(json).unwrap_or_default();
                let fields: Vec<String> = fields.iter().map(|(name, value)| format!("{name}={value}")).collect();
                write!(out, "[{}]", fields.join(","))
            }
            Self::Value(json) => write!(out, "[={json}]"),
            Self::Index(index) => write!(out, "[{index}]"),
        }
    }
}

/// A set of paths, as a tree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Set {
    members: BTreeSet<Step>,
    children: BTreeMap<Step, Set>,
}

impl Set {
    pub fn is_empty(&self) -> bool {
        self.members.is_empty() && self.children.values().all(Self::is_empty)
    }

    /// The whole object itself is no member of any set.
    pub fn insert(&mut self, path: &[Step]) {
        match path {
            [] => {}
            [last] => {
                self.members.insert(last.clone());
            }
            [first, rest @ ..] => self.children.entry(first.clone()).or_default().insert(rest),
        }
    }

    pub fn remove(&mut self, path: &[Step]) {
        match path {
            [] => {}
            [last] => {
                self.members.remove(last);
            }
            [first, rest @ ..] => {
                if let Some(child) = self.children.get_mut(first) {
                    child.remove(rest);
                    if child.is_empty() {
                        self.children.remove(first);
                    }
                }
            }
        }
    }

    /// Drops a path and all below it.
    pub fn remove_below(&mut self, path: &[Step]) {
        self.remove(path);
        match path {
            [] => {}
            [last] => {
                self.children.remove(last);
            }
            [first, rest @ ..] => {
                if let Some(child) = self.children.get_mut(first) {
                    child.remove_below(rest);
                    if child.is_empty() {
                        self.children.remove(first);
                    }
                }
            }
        }
    }

    /// Whether the path or something below it is in the set.
    pub fn touches(&self, path: &[Step]) -> bool {
        match path {
            [] => !self.is_empty(),
            [last] => self.members.contains(last) || self.children.get(last).is_some_and(|child| !child.is_empty()),
            [first, rest @ ..] => self.children.get(first).is_some_and(|child| child.touches(rest)),
        }
    }

    pub fn union(&self, other: &Self) -> Self {
        let mut union = self.clone();
        union.extend(other);
        union
    }

    pub fn extend(&mut self, other: &Self) {
        self.members.extend(other.members.iter().cloned());
        for (step, child) in &other.children {
            self.children.entry(step.clone()).or_default().extend(child);
        }
    }

    pub fn difference(&self, other: &Self) -> Self {
        let mut difference =
            Self { members: self.members.difference(&other.members).cloned().collect(), ..Self::default() };
        for (step, child) in &self.children {
            let left = other.children.get(step).map_or_else(|| child.clone(), |others| child.difference(others));
            if !left.is_empty() {
                difference.children.insert(step.clone(), left);
            }
        }
        difference
    }

    pub fn intersection(&self, other: &Self) -> Self {
        let mut both =
            Self { members: self.members.intersection(&other.members).cloned().collect(), ..Self::default() };
        for (step, child) in &self.children {
            let shared = other.children.get(step).map(|others| child.intersection(others)).unwrap_or_default();
            if !shared.is_empty() {
                both.children.insert(step.clone(), shared);
            }
        }
        both
    }

    /// Only what lies at or below the top-level fields that `keep` names.
    pub fn retain_top(&mut self, keep: impl Fn(&str) -> bool) {
        let kept = |step: &Step| matches!(step, Step::Field(name) if keep(name));
        self.members.retain(kept);
        self.children.retain(|step, _| kept(step));
    }

    /// All paths: those that end at a level before those that go deeper.
    pub fn paths(&self) -> Vec<Vec<Step>> {
        let mut paths = Vec::new();
        self.gather(&mut Vec::new(), &mut paths);
        paths
    }

    fn gather(&self, prefix: &mut Vec<Step>, paths: &mut Vec<Vec<Step>>) {
        for member in &self.members {
            prefix.push(member.clone());
            paths.push(prefix.clone());
            prefix.pop();
        }
        for (step, child) in &self.children {
            prefix.push(step.clone());
            child.gather(prefix, paths);
            prefix.pop();
        }
    }

    /// FieldsV1.
    pub fn encode(&self) -> Value {
        let mut out = Map::new();
        for (step, child) in &self.children {
            if !child.is_empty() {
                out.insert(step.encode(), child.encode());
            }
        }
        for member in &self.members {
            match out.entry(member.encode()).or_insert_with(|| Value::Object(Map::new())) {
                // It is owned itself besides what lies below it.
                Value::Object(below) if !below.is_empty() => {
                    below.insert(".".to_owned(), Value::Object(Map::new()));
                }
                _ => {}
            }
        }
        Value::Object(out)
    }

    /// Reads FieldsV1; `None` where it is none.
    pub fn decode(fields: &Value) -> Option<Self> {
        Self::decode_level(fields, 0)
    }

    fn decode_level(fields: &Value, depth: usize) -> Option<Self> {
        /// Deeper than any type of the API.
        const DEEPEST: usize = 64;
        if depth > DEEPEST {
            return None;
        }
        let mut set = Self::default();
        for (text, below) in fields.as_object()? {
            if text == "." {
                continue;
            }
            let step = Step::decode(text)?;
            let map = below.as_object()?;
            if map.is_empty() || map.contains_key(".") {
                set.members.insert(step.clone());
            }
            let child = Self::decode_level(below, depth + 1)?;
            if !child.is_empty() {
                set.children.insert(step, child);
            }
        }
        Some(set)
    }
}

/// A path as messages show it: `.spec.containers[name="a"].image`.
pub fn display(path: &[Step]) -> String {
    path.iter().map(Step::to_string).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn set() -> impl Strategy<Value = Set> {
        let step = prop_oneof![
            "[a-c]".prop_map(Step::Field),
            "[a-c]".prop_map(|name| Step::key(Map::from_iter([("name".to_owned(), name.into())]))),
            (0..3_i64).prop_map(|value| Step::value(&value.into())),
        ];
        prop::collection::vec(prop::collection::vec(step, 1..4), 0..12).prop_map(|paths| {
            let mut set = Set::default();
            paths.iter().for_each(|path| set.insert(path));
            set
        })
    }

    proptest! {
        #[test]
        fn encoding_loses_nothing(set in set()) {
            prop_assert_eq!(Set::decode(&set.encode()).unwrap(), set);
        }

        #[test]
        fn laws_of_sets(a in set(), b in set()) {
            prop_assert_eq!(a.union(&b), b.union(&a));
            prop_assert_eq!(a.intersection(&b), b.intersection(&a));
            prop_assert_eq!(a.difference(&b).union(&a.intersection(&b)), a.clone());
            prop_assert!(a.difference(&a).is_empty());
            for path in a.paths() {
                prop_assert!(a.union(&b).touches(&path));
            }
        }
    }

    #[test]
    fn reads_and_writes_the_references_form() {
        let fields = json!({ "f:spec": { "f:ports": { ".": {}, "k:{\"port\":80,\"protocol\":\"TCP\"}": { ".": {}, "f:port": {} } } } });
        let set = Set::decode(&fields).unwrap();
        let paths: Vec<String> = set.paths().iter().map(|path| display(path)).collect();
        assert_eq!(
            paths,
            [".spec.ports", ".spec.ports[port=80,protocol=\"TCP\"]", ".spec.ports[port=80,protocol=\"TCP\"].port"]
        );
        assert_eq!(set.encode(), fields);
        assert_eq!(Set::decode(&json!({ "x": {} })), None);
    }
}
