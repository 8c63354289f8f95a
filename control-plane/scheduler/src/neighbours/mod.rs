//! Pods that want to be near others or far from them: what the pods that are placed mean for one that is not.

mod domains;
mod groups;
mod terms;

use std::sync::Arc;

use k8s_openapi::api::core::v1::PodSpec;

use crate::filter::Reason;
use crate::snapshot::Snapshot;
use domains::Domains;
pub use domains::{OfAll, OfKind};
use groups::{Group, Members};
pub use groups::{GroupId, Groups};
pub use terms::{Identity, Labels};
use terms::{Spread, Term};

/// What a placed pod's required affinity to the one that is placed weighs as a wish: kube-scheduler's default.
const HARD_AFFINITY: i64 = 1;

/// What neighbours mean for one pod, node by node. Without any: nothing.
#[derive(Default)]
pub struct Neighbours {
    spread: Vec<Even>,
    preferred_spread: Vec<Even>,
    /// Where the pods are that it must be with.
    with: Vec<Tally>,
    /// Where those are that it must not be with, and those that must not be with it.
    without: Vec<Tally>,
    shunned: Vec<Tally>,
    /// Summed weights of what is wished.
    wishes: Vec<Tally>,
}

/// A number for each domain.
struct Tally {
    domains: Arc<Domains>,
    numbers: Vec<i64>,
}

impl Tally {
    fn new(domains: Arc<Domains>) -> Self {
        Self { numbers: vec![0; domains.numbers()], domains }
    }

    fn add(&mut self, snapshot: &Snapshot, members: Members, number: impl Fn(groups::Here) -> i64) {
        for (node, here) in members {
            let domain = snapshot.nodes().get_index_of(node).and_then(|index| self.domains.on(index));
            if let Some(sum) = domain.and_then(|domain| self.numbers.get_mut(domain)) {
                *sum += number(here);
            }
        }
    }

    /// None where the node is in no domain.
    fn on(&self, node: usize) -> Option<i64> {
        self.numbers.get(self.domains.on(node)?).copied()
    }
}

/// Counts that are to be even.
struct Even {
    tally: Tally,
    max_skew: i64,
    /// 1 where the pod itself counts.
    own: i64,
    least: i64,
    weight: f64,
}

fn count(here: groups::Here) -> i64 {
    here.all.try_into().unwrap_or(i64::MAX)
}

impl Neighbours {
    /// Of a pod of this group; `kinds` are the domains of the pod's kind.
    pub fn of(snapshot: &mut Snapshot, id: GroupId, spec: &PodSpec, all: &mut OfAll, kinds: &mut OfKind) -> Self {
        if !snapshot.groups().are_asked_about(id) {
            return Self::default();
        }
        snapshot.groups_mut().refresh(id);
        let snapshot = &*snapshot;
        let groups = snapshot.groups();
        let Some(group) = groups.get(id) else { return Self::default() };
        let asks = &group.asks;
        let mut even = |constraints: &[Spread], constraint: &Spread, members: Members| {
            let mut tally = Tally::new(kinds.of(snapshot, spec, constraint, constraints));
            tally.add(snapshot, members, |here| count(here) - i64::try_from(here.ending).unwrap_or(0));
            Even::new(tally, constraint, groups.is_meant(&constraint.who, &group.identity))
        };
        let spread = asks.spread.iter().enumerate();
        let spread = spread.map(|(at, it)| even(&asks.spread, it, groups.spread(group, at))).collect();
        let preferred = asks.preferred_spread.iter().enumerate();
        let preferred_spread =
            preferred.map(|(at, it)| even(&asks.preferred_spread, it, groups.preferred_spread(group, at))).collect();
        let mut tally = |term: &Term, members: Members, number: i64| {
            let mut tally = Tally::new(all.of(snapshot, &term.key));
            tally.add(snapshot, members, |here| number * count(here));
            tally
        };
        let with: Vec<_> = asks.affinity.iter().map(|term| tally(term, groups.with(group), 1)).collect();
        let without = asks.anti_affinity.iter().enumerate();
        let without = without.map(|(at, term)| tally(term, groups.without(group, at), 1)).collect();
        let preferred = asks.preferred.iter().enumerate();
        let mut wishes: Vec<_> =
            preferred.map(|(at, (weight, term))| tally(term, groups.preferred(group, at), *weight)).collect();
        let mut shunned = Vec::new();
        for other in groups.heeded() {
            let means = |term: &Term| groups.is_meant(&term.who, &group.identity);
            for term in other.asks.anti_affinity.iter().filter(|term| means(term)) {
                shunned.push(tally(term, other.placed(), 1));
            }
            for (weight, term) in other.asks.preferred.iter().filter(|(_, term)| means(term)) {
                wishes.push(tally(term, other.placed(), *weight));
            }
            for term in other.asks.affinity.iter().filter(|term| means(term)) {
                wishes.push(tally(term, other.placed(), HARD_AFFINITY));
            }
        }
        let mut neighbours = Self { spread, preferred_spread, with, without, shunned, wishes };
        // The first of pods that want to be together may be anywhere.
        let alone = neighbours.with.iter().all(|tally| tally.numbers.iter().all(|number| *number == 0));
        if alone && asks.affinity.iter().all(|term| groups.is_meant(&term.who, &group.identity)) {
            neighbours.with.iter_mut().for_each(|tally| tally.numbers.fill(1));
        }
        neighbours
    }

    /// Why the pod must not be on this node.
    pub fn objection(&self, node: usize) -> Option<Reason> {
        for even in &self.spread {
            match even.tally.on(node) {
                None => return Some(Reason::SpreadLabel),
                Some(there) if there + even.own - even.least > even.max_skew => return Some(Reason::Spread),
                Some(_) => {}
            }
        }
        if self.with.iter().any(|tally| tally.on(node).unwrap_or(0) == 0) {
            return Some(Reason::PodAffinity);
        }
        let any = |tallies: &[Tally]| tallies.iter().any(|tally| tally.on(node).unwrap_or(0) > 0);
        if any(&self.without) {
            return Some(Reason::PodAntiAffinity);
        }
        any(&self.shunned).then_some(Reason::OthersAntiAffinity)
    }

    /// How well the nodes' neighbours are wished for, 0 to 100; none where nothing is wished.
    pub fn wished(&self, nodes: impl Iterator<Item = usize>) -> Option<Vec<i64>> {
        if self.wishes.is_empty() {
            return None;
        }
        let sums = nodes.map(|node| self.wishes.iter().filter_map(|tally| tally.on(node)).sum::<i64>());
        let mut sums: Vec<i64> = sums.collect();
        let (least, most) = (sums.iter().min().copied().unwrap_or(0), sums.iter().max().copied().unwrap_or(0));
        for sum in &mut sums {
            *sum = if most > least { (*sum - least) * 100 / (most - least) } else { 0 };
        }
        Some(sums)
    }

    /// How even pods would be, 0 to 100; none where it is not asked for.
    pub fn evenness(&self, nodes: impl Iterator<Item = usize>) -> Option<Vec<i64>> {
        if self.preferred_spread.is_empty() {
            return None;
        }
        let crowd = |node: usize| self.preferred_spread.iter().map(|even| even.crowd(node)).sum::<Option<f64>>();
        let crowds: Vec<Option<i64>> = nodes.map(|node| crowd(node).map(|sum| sum.round() as i64)).collect();
        let least = crowds.iter().flatten().min().copied().unwrap_or(0);
        let most = crowds.iter().flatten().max().copied().unwrap_or(0);
        let score = |crowd: &Option<i64>| match crowd {
            None => 0,
            Some(_) if most == 0 => 100,
            Some(crowd) => (most + least - crowd) * 100 / most,
        };
        Some(crowds.iter().map(score).collect())
    }
}

impl Even {
    fn new(tally: Tally, constraint: &Spread, counts_itself: bool) -> Self {
        let domains = tally.domains.there().count();
        let counts = tally.domains.there().filter_map(|domain| tally.numbers.get(domain));
        let least = counts.min().copied().filter(|_| domains >= constraint.min_domains).unwrap_or(0);
        // Few domains would otherwise weigh more: each has more pods.
        let weight = (domains as f64 + 2.0).ln();
        Self { tally, max_skew: constraint.max_skew, own: i64::from(counts_itself), least, weight }
    }

    fn crowd(&self, node: usize) -> Option<f64> {
        Some(self.tally.on(node)? as f64 * self.weight + (self.max_skew - 1) as f64)
    }
}

impl Group {
    /// Where its pods are.
    fn placed(&self) -> Members<'_> {
        Box::new(self.members.iter().map(|(node, here)| (node.as_str(), *here)))
    }
}

#[cfg(test)]
mod tests;
