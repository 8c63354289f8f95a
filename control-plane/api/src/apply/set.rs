//! Sets of field paths: what a manager owns, and its form in `metadata.managedFields` (FieldsV1).

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde_json::{Map, Value};

/// One step of a path, as FieldsV1 has it: `f:NAME` for a field, `k:JSON` for the item of a list with these
/// key fields, `v:JSON` for the item of a set, `i:NUMBER`. The JSON is canonical.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Step(String);

impl Step {
    pub fn field(name: &str) -> Self {
        let mut step = String::with_capacity(2 + name.len());
        step.push_str("f:");
        step.push_str(name);
        Self(step)
    }

    /// The item of a list that has these key fields.
    pub fn key(fields: Map<String, Value>) -> Self {
        Self(format!("k:{}", Value::Object(fields)))
    }

    pub fn value(value: &Value) -> Self {
        Self(format!("v:{value}"))
    }

    pub fn as_field(&self) -> Option<&str> {
        self.0.strip_prefix("f:")
    }

    fn is_one_of(&self, fields: &[&str]) -> bool {
        self.as_field().is_some_and(|name| fields.contains(&name))
    }

    fn decode(text: &str) -> Option<Self> {
        let (kind, rest) = text.split_once(':')?;
        // Read and written again: clients may put spaces in.
        let canonical = || serde_json::from_str::<Value>(rest).ok().map(|value| Self(format!("{kind}:{value}")));
        match kind {
            "f" => Some(Self(text.to_owned())),
            "k" | "v" => canonical(),
            "i" => rest.parse::<u64>().ok().map(|index| Self(format!("i:{index}"))),
            _ => None,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.split_once(':') {
            Some(("f", name)) => write!(out, ".{name}"),
            Some(("k", json)) => {
                let fields: Map<String, Value> = serde_json::from_str(json).unwrap_or_default();
                let fields: Vec<String> = fields.iter().map(|(name, value)| format!("{name}={value}")).collect();
                write!(out, "[{}]", fields.join(","))
            }
            Some(("v", json)) => write!(out, "[={json}]"),
            Some((_, index)) => write!(out, "[{index}]"),
            None => Ok(()),
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

    /// A member right here.
    pub fn add(&mut self, step: Step) {
        self.members.insert(step);
    }

    /// What lies below a step that has nothing there yet.
    pub fn put(&mut self, step: &Step, below: Self) {
        if !below.is_empty() {
            self.children.insert(step.clone(), below);
        }
    }

    /// Drops fields as members; what lies below them stays.
    pub fn drop_fields(&mut self, names: &[&str]) {
        self.members.retain(|step| !step.is_one_of(names));
    }

    /// Drops fields of a field, with all below them.
    pub fn drop_below(&mut self, of: &str, names: &[&str]) {
        let of = Step::field(of);
        let Some(child) = self.children.get_mut(&of) else { return };
        child.drop_fields(names);
        child.children.retain(|step, _| !step.is_one_of(names));
        if child.is_empty() {
            self.children.remove(&of);
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

    pub fn extend(&mut self, mut other: Self) {
        self.members.append(&mut other.members);
        for (step, child) in other.children {
            match self.children.entry(step) {
                Entry::Occupied(mut own) => own.get_mut().extend(child),
                Entry::Vacant(free) => {
                    free.insert(child);
                }
            }
        }
    }

    pub fn subtract(&mut self, other: &Self) {
        if !self.members.is_empty() {
            other.members.iter().for_each(|step| {
                self.members.remove(step);
            });
        }
        for (step, others) in &other.children {
            if let Some(child) = self.children.get_mut(step) {
                child.subtract(others);
                if child.is_empty() {
                    self.children.remove(step);
                }
            }
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

    /// Whether this and a set in the form of [`Self::encode`] have a member in common.
    pub fn meets(&self, encoded: &Value) -> bool {
        self.members.iter().any(|step| below(encoded, step).is_some_and(is_member))
            || self.children.iter().any(|(step, child)| below(encoded, step).is_some_and(|below| child.meets(below)))
    }

    /// Whether all members are in a set in the form of [`Self::encode`].
    pub fn is_within(&self, encoded: &Value) -> bool {
        self.members.iter().all(|step| below(encoded, step).is_some_and(is_member))
            && self.children.iter().all(|(step, child)| {
                child.is_empty() || below(encoded, step).is_some_and(|below| child.is_within(below))
            })
    }

    /// Only what lies at or below the top-level fields that `keep` names.
    pub fn retain_top(&mut self, keep: impl Fn(&str) -> bool) {
        let kept = |step: &Step| step.as_field().is_some_and(&keep);
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
    pub fn encode(self) -> Value {
        let mut out = Map::new();
        for (step, child) in self.children {
            if !child.is_empty() {
                out.insert(step.0, child.encode());
            }
        }
        for member in self.members {
            match out.entry(member.0).or_insert_with(|| Value::Object(Map::new())) {
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
            if is_member(below) {
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

fn below<'a>(encoded: &'a Value, step: &Step) -> Option<&'a Value> {
    encoded.as_object()?.get(&step.0)
}

fn is_member(encoded: &Value) -> bool {
    encoded.as_object().is_some_and(|map| map.is_empty() || map.contains_key("."))
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
            "[a-c]".prop_map(|name| Step::field(&name)),
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
            prop_assert_eq!(Set::decode(&set.clone().encode()).unwrap(), set);
        }

        #[test]
        fn laws_of_sets(a in set(), b in set()) {
            let union = |a: &Set, b: &Set| {
                let mut union = a.clone();
                union.extend(b.clone());
                union
            };
            prop_assert_eq!(union(&a, &b), union(&b, &a));
            prop_assert_eq!(a.intersection(&b), b.intersection(&a));
            prop_assert_eq!(union(&a.difference(&b), &a.intersection(&b)), a.clone());
            prop_assert!(a.difference(&a).is_empty());
            for path in a.paths() {
                prop_assert!(union(&a, &b).touches(&path));
            }
            let mut rest = a.clone();
            rest.subtract(&b);
            prop_assert_eq!(rest, a.difference(&b));
        }

        #[test]
        fn what_is_encoded_answers_as_what_is_read(a in set(), b in set()) {
            let encoded = b.clone().encode();
            prop_assert_eq!(a.meets(&encoded), !a.intersection(&b).is_empty());
            prop_assert_eq!(a.is_within(&encoded), a.difference(&b).is_empty());
            prop_assert!(a.intersection(&b).is_within(&encoded) && a.is_within(&a.clone().encode()));
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
