//! Sets of field paths: what a manager owns, and its form in `metadata.managedFields` (FieldsV1).

use std::cmp::Ordering;
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

/// A set of paths, as a tree: what is at this level and below, sorted by step. Every node says something.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Set(Vec<Node>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Node {
    step: Step,
    /// Whether the path that ends here is in the set, besides those that go on.
    member: bool,
    below: Set,
}

impl Node {
    fn says_something(&self) -> bool {
        self.member || !self.below.is_empty()
    }
}

impl Set {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn find(&self, step: &Step) -> Result<usize, usize> {
        match self.0.last() {
            // Paths mostly come in their order.
            Some(last) if last.step < *step => Err(self.0.len()),
            _ => self.0.binary_search_by(|node| node.step.cmp(step)),
        }
    }

    fn get(&self, step: &Step) -> Option<&Node> {
        self.0.get(self.find(step).ok()?)
    }

    /// The node of a step, which the caller gives something to say.
    fn node(&mut self, step: Step) -> &mut Node {
        let at = self.find(&step).unwrap_or_else(|free| {
            self.0.insert(free, Node { step, member: false, below: Self::default() });
            free
        });
        &mut self.0[at]
    }

    /// The whole object itself is no member of any set.
    pub fn insert(&mut self, path: &[Step]) {
        match path {
            [] => {}
            [last] => self.add(last.clone()),
            [first, rest @ ..] => self.node(first.clone()).below.insert(rest),
        }
    }

    /// A member right here.
    pub fn add(&mut self, step: Step) {
        self.node(step).member = true;
    }

    /// What lies below a step that has nothing there yet.
    pub fn put(&mut self, step: &Step, below: Self) {
        if !below.is_empty() {
            self.node(step.clone()).below = below;
        }
    }

    /// A member right here that has nothing below it yet, and what lies there.
    pub fn put_whole(&mut self, step: Step, below: Self) {
        let node = self.node(step);
        (node.member, node.below) = (true, below);
    }

    /// Drops fields as members; what lies below them stays.
    pub fn drop_fields(&mut self, names: &[&str]) {
        self.0.iter_mut().filter(|node| node.step.is_one_of(names)).for_each(|node| node.member = false);
        self.0.retain(Node::says_something);
    }

    /// Drops fields of a field, with all below them.
    pub fn drop_below(&mut self, of: &str, names: &[&str]) {
        if let Some(node) = self.0.iter_mut().find(|node| node.step.as_field() == Some(of)) {
            node.below.0.retain(|node| !node.step.is_one_of(names));
            self.0.retain(Node::says_something);
        }
    }

    /// Whether the path or something below it is in the set.
    pub fn touches(&self, path: &[Step]) -> bool {
        match path {
            [] => !self.is_empty(),
            [first, rest @ ..] => self.get(first).is_some_and(|node| rest.is_empty() || node.below.touches(rest)),
        }
    }

    pub fn extend(&mut self, other: Self) {
        if self.is_empty() {
            *self = other;
            return;
        }
        // Both are sorted: each node is looked at once, however many there are.
        let mut merged: Vec<Node> = Vec::with_capacity(self.0.len() + other.0.len());
        let mut own = std::mem::take(&mut self.0).into_iter().peekable();
        let mut others = other.0.into_iter().peekable();
        while let (Some(mine), Some(theirs)) = (own.peek(), others.peek()) {
            match mine.step.cmp(&theirs.step) {
                Ordering::Less => merged.extend(own.next()),
                Ordering::Greater => merged.extend(others.next()),
                Ordering::Equal => {
                    let (mine, theirs) = (own.next(), others.next());
                    merged.extend(mine.zip(theirs).map(|(mut node, theirs)| {
                        node.member |= theirs.member;
                        node.below.extend(theirs.below);
                        node
                    }));
                }
            }
        }
        merged.extend(own);
        merged.extend(others);
        self.0 = merged;
    }

    pub fn subtract(&mut self, other: &Self) {
        for node in &mut self.0 {
            if let Some(others) = other.get(&node.step) {
                node.member &= !others.member;
                node.below.subtract(&others.below);
            }
        }
        self.0.retain(Node::says_something);
    }

    pub fn difference(&self, other: &Self) -> Self {
        let mut difference = self.clone();
        difference.subtract(other);
        difference
    }

    pub fn intersection(&self, other: &Self) -> Self {
        let shared = |node: &Node| {
            let others = other.get(&node.step)?;
            let below = node.below.intersection(&others.below);
            Some(Node { step: node.step.clone(), member: node.member && others.member, below })
        };
        Self(self.0.iter().filter_map(shared).filter(Node::says_something).collect())
    }

    /// Whether this and a set in the form of [`Self::encode`] have a member in common.
    pub fn meets(&self, encoded: &Value) -> bool {
        self.0.iter().any(|node| {
            below(encoded, &node.step).is_some_and(|below| (node.member && is_member(below)) || node.below.meets(below))
        })
    }

    /// Whether all members are in a set in the form of [`Self::encode`].
    pub fn is_within(&self, encoded: &Value) -> bool {
        self.0.iter().all(|node| {
            below(encoded, &node.step)
                .is_some_and(|below| (!node.member || is_member(below)) && node.below.is_within(below))
        })
    }

    /// Only what lies at or below the top-level fields that `keep` names.
    pub fn retain_top(&mut self, keep: impl Fn(&str) -> bool) {
        self.0.retain(|node| node.step.as_field().is_some_and(&keep));
    }

    /// All paths: those that end at a level before those that go deeper.
    pub fn paths(&self) -> Vec<Vec<Step>> {
        let mut paths = Vec::new();
        self.gather(&mut Vec::new(), &mut paths);
        paths
    }

    fn gather(&self, prefix: &mut Vec<Step>, paths: &mut Vec<Vec<Step>>) {
        for node in self.0.iter().filter(|node| node.member) {
            prefix.push(node.step.clone());
            paths.push(prefix.clone());
            prefix.pop();
        }
        for node in &self.0 {
            prefix.push(node.step.clone());
            node.below.gather(prefix, paths);
            prefix.pop();
        }
    }

    /// FieldsV1.
    pub fn encode(self) -> Value {
        let encode = |Node { step, member, below }: Node| {
            // A path that goes on is owned itself by a dot.
            let itself = member && !below.is_empty();
            let mut encoded = below.encode();
            if let Value::Object(fields) = &mut encoded
                && itself
            {
                fields.insert(".".to_owned(), Value::Object(Map::new()));
            }
            (step.0, encoded)
        };
        Value::Object(self.0.into_iter().map(encode).collect())
    }

    /// Reads FieldsV1; `None` where it is none.
    pub fn decode(fields: &Value) -> Option<Self> {
        Self::decode_level(fields, 0)
    }

    fn decode_level(encoded: &Value, depth: usize) -> Option<Self> {
        /// Deeper than any type of the API.
        const DEEPEST: usize = 64;
        if depth > DEEPEST {
            return None;
        }
        let mut fields: Vec<(Step, &Value)> = Vec::new();
        for (text, below) in encoded.as_object()?.iter().filter(|(text, _)| *text != ".") {
            fields.push((Step::decode(text)?, below));
        }
        // Steps that were not canonical may be in another order now.
        fields.sort_by(|(a, _), (b, _)| a.cmp(b));
        let mut set = Self::default();
        for (step, below) in fields {
            let (member, below) = (is_member(below), Self::decode_level(below, depth + 1)?);
            if member || !below.is_empty() {
                let node = set.node(step);
                node.member |= member;
                node.below.extend(below);
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
        fn nodes_are_in_order_and_say_something(a in set(), b in set()) {
            fn check(set: &Set) {
                assert!(set.0.is_sorted_by(|a, b| a.step < b.step), "{set:?}");
                assert!(set.0.iter().all(Node::says_something), "{set:?}");
                set.0.iter().for_each(|node| check(&node.below));
            }
            let mut union = a.clone();
            union.extend(b.clone());
            for set in [&union, &a.difference(&b), &a.intersection(&b)] {
                check(set);
            }
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
        // Spaces that clients put in change the order.
        let spaced = json!({ "k:{  \"port\":80}": {}, "k:{ \"port\":79}": {}, "k:{\"port\":79}": { "f:port": {} } });
        let canonical = json!({ "k:{\"port\":79}": { ".": {}, "f:port": {} }, "k:{\"port\":80}": {} });
        assert_eq!(Set::decode(&spaced).unwrap().encode(), canonical);
    }
}
