//! Placed pods, those that are alike together: a selector is asked once a group, not once a pod.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::PodSpec;

use super::terms::{Asks, Identity, Labels, Namespaces, Who};

/// Never used again for another group.
pub type GroupId = u64;

/// How many pods of a group are on a node, and how many of those are on their way out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Here {
    pub all: usize,
    pub ending: usize,
}

#[derive(Debug)]
pub struct Group {
    pub identity: Arc<Identity>,
    pub asks: Arc<Asks>,
    /// By the name of the node.
    pub members: HashMap<String, Here>,
    audiences: Audiences,
    /// How many pods are in it, placed or considered.
    pods: usize,
}

/// Which groups those are that a group's terms mean, in the order of its `Asks`.
#[derive(Debug, Default)]
struct Audiences {
    /// All terms of the required affinity at once.
    affinity: Audience,
    anti_affinity: Vec<Audience>,
    preferred: Vec<Audience>,
    spread: Vec<Audience>,
    preferred_spread: Vec<Audience>,
}

#[derive(Debug, Default)]
struct Audience {
    /// Groups from this one on were not asked yet.
    next: GroupId,
    members: Vec<GroupId>,
}

impl Audience {
    fn refresh(&mut self, groups: &BTreeMap<GroupId, Group>, next: GroupId, is_meant: impl Fn(&Identity) -> bool) {
        self.members.retain(|id| groups.contains_key(id));
        let new = groups.range(self.next..).filter(|(_, group)| is_meant(&group.identity));
        self.members.extend(new.map(|(id, _)| *id));
        self.next = next;
    }
}

#[derive(Debug, Default)]
pub struct Groups {
    ids: HashMap<Arc<Identity>, GroupId>,
    groups: BTreeMap<GroupId, Group>,
    next: GroupId,
    /// Those whose pods others are to heed.
    heeded: BTreeSet<GroupId>,
    namespaces: Namespaces,
}

impl Groups {
    pub fn get(&self, id: GroupId) -> Option<&Group> {
        self.groups.get(&id)
    }

    /// Whether other pods mean anything to those of this group.
    pub fn are_asked_about(&self, id: GroupId) -> bool {
        let asks = self.get(id).is_some_and(|group| group.asks.concerns_others() || group.asks.spreads());
        asks || !self.heeded.is_empty()
    }

    /// Whether pods of this group say themselves how they are to be spread.
    pub fn spread_themselves(&self, id: GroupId) -> bool {
        self.get(id).is_some_and(|group| group.asks.spreads())
    }

    /// The group of a pod, which is one more in it until it leaves.
    pub fn enter(&mut self, identity: Identity, spec: &PodSpec) -> GroupId {
        if let Some(id) = self.ids.get(&identity) {
            if let Some(group) = self.groups.get_mut(id) {
                group.pods += 1;
            }
            return *id;
        }
        let (id, asks) = (self.next, Arc::new(Asks::of(&identity.namespace, spec)));
        let identity = Arc::new(identity);
        self.next += 1;
        if asks.concerns_others() {
            self.heeded.insert(id);
        }
        self.ids.insert(identity.clone(), id);
        let (members, audiences) = Default::default();
        self.groups.insert(id, Group { identity, asks, members, audiences, pods: 1 });
        id
    }

    pub fn leave(&mut self, id: GroupId) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        group.pods -= 1;
        if group.pods == 0 {
            self.ids.remove(&group.identity);
            self.groups.remove(&id);
            self.heeded.remove(&id);
        }
    }

    /// Counts a pod of the group on a node.
    pub fn place(&mut self, id: GroupId, node: &str, ending: bool) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        let here = match group.members.get_mut(node) {
            Some(here) => here,
            None => group.members.entry(node.to_owned()).or_default(),
        };
        here.all += 1;
        here.ending += usize::from(ending);
    }

    pub fn take_away(&mut self, id: GroupId, node: &str, ending: bool) {
        let Some(members) = self.groups.get_mut(&id).map(|group| &mut group.members) else { return };
        if let Some(here) = members.get_mut(node) {
            here.all -= 1;
            here.ending -= usize::from(ending);
            if here.all == 0 {
                members.remove(node);
            }
        }
    }

    pub fn set_namespace(&mut self, name: String, labels: Labels) {
        if self.namespaces.get(&name) == Some(&labels) {
            return;
        }
        self.namespaces.insert(name, labels);
        // What a term means by a namespace's labels is another thing now.
        self.groups.values_mut().for_each(|group| group.audiences = Audiences::default());
    }

    pub fn remove_namespace(&mut self, name: &str) {
        self.namespaces.remove(name);
    }

    /// Brings up to date which groups the terms of one mean.
    pub fn refresh(&mut self, id: GroupId) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        let (asks, mut audiences) = (group.asks.clone(), std::mem::take(&mut group.audiences));
        let (groups, next, namespaces) = (&self.groups, self.next, &self.namespaces);
        let meant = |who: &Who, it: &Identity| who.matches(namespaces, &it.namespace, &it.labels);
        if !asks.affinity.is_empty() {
            audiences.affinity.refresh(groups, next, |it| asks.affinity.iter().all(|term| meant(&term.who, it)));
        }
        let each = |audiences: &mut Vec<Audience>, all: Vec<&Who>| {
            audiences.resize_with(all.len(), Audience::default);
            for (audience, who) in audiences.iter_mut().zip(all) {
                audience.refresh(groups, next, |it| meant(who, it));
            }
        };
        each(&mut audiences.anti_affinity, asks.anti_affinity.iter().map(|it| &it.who).collect());
        each(&mut audiences.preferred, asks.preferred.iter().map(|it| &it.1.who).collect());
        each(&mut audiences.spread, asks.spread.iter().map(|it| &it.who).collect());
        each(&mut audiences.preferred_spread, asks.preferred_spread.iter().map(|it| &it.who).collect());
        if let Some(group) = self.groups.get_mut(&id) {
            group.audiences = audiences;
        }
    }

    fn members<'a>(&'a self, audience: Option<&'a Audience>) -> Members<'a> {
        Box::new(
            audience
                .into_iter()
                .flat_map(|it| &it.members)
                .filter_map(|id| self.groups.get(id))
                .flat_map(|group| group.members.iter().map(|(node, here)| (node.as_str(), *here))),
        )
    }

    /// The pods that all terms of the group's affinity mean.
    pub fn with<'a>(&'a self, group: &'a Group) -> Members<'a> {
        self.members(Some(&group.audiences.affinity))
    }

    pub fn without<'a>(&'a self, group: &'a Group, term: usize) -> Members<'a> {
        self.members(group.audiences.anti_affinity.get(term))
    }

    pub fn preferred<'a>(&'a self, group: &'a Group, term: usize) -> Members<'a> {
        self.members(group.audiences.preferred.get(term))
    }

    pub fn spread<'a>(&'a self, group: &'a Group, constraint: usize) -> Members<'a> {
        self.members(group.audiences.spread.get(constraint))
    }

    pub fn preferred_spread<'a>(&'a self, group: &'a Group, constraint: usize) -> Members<'a> {
        self.members(group.audiences.preferred_spread.get(constraint))
    }

    /// Those with pods that are placed and whose terms others are to heed.
    pub fn heeded(&self) -> impl Iterator<Item = &Group> {
        self.heeded.iter().filter_map(|id| self.groups.get(id)).filter(|group| !group.members.is_empty())
    }

    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty() && self.groups.is_empty() && self.heeded.is_empty()
    }

    pub fn is_meant(&self, who: &Who, identity: &Identity) -> bool {
        who.matches(&self.namespaces, &identity.namespace, &identity.labels)
    }
}

/// Nodes by name, and how many are there; a node may come more than once.
pub type Members<'a> = Box<dyn Iterator<Item = (&'a str, Here)> + 'a>;
