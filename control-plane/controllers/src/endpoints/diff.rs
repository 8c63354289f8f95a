//! Which slices to write so that they hold what they should: as few writes as can be, and whatever
//! stays stays where it is.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};

/// How many endpoints a slice holds at most.
pub const FULL: usize = 100;

/// What to do with the slices of one Service.
#[derive(Debug, Default)]
pub struct Plan {
    /// Endpoints and ports of new ones.
    pub create: Vec<(Vec<EndpointPort>, Vec<Endpoint>)>,
    pub update: Vec<EndpointSlice>,
    pub delete: Vec<Arc<EndpointSlice>>,
}

/// What makes an endpoint the same one: what it stands for, else its address.
fn identity(endpoint: &Endpoint) -> (String, Vec<String>) {
    let target = endpoint.target_ref.as_ref().map(reference).unwrap_or_default();
    (target, endpoint.addresses.clone())
}

fn reference(target: &ObjectReference) -> String {
    format!(
        "{}/{}/{}/{}",
        target.kind.as_deref().unwrap_or_default(),
        target.namespace.as_deref().unwrap_or_default(),
        target.name.as_deref().unwrap_or_default(),
        target.uid.as_deref().unwrap_or_default(),
    )
}

/// Ports in an order of their own, to compare by.
pub fn port_key(ports: &[EndpointPort]) -> Vec<String> {
    let mut keys: Vec<String> = ports
        .iter()
        .map(|port| {
            format!(
                "{}|{}|{:?}|{}",
                port.name.as_deref().unwrap_or_default(),
                port.protocol.as_deref().unwrap_or("TCP"),
                port.port,
                port.app_protocol.as_deref().unwrap_or_default(),
            )
        })
        .collect();
    keys.sort();
    keys
}

/// Plans for the slices of one address family. `wanted`: endpoints by their ports. `fresh` says
/// whether a slice's metadata is as it should be, and brings it there.
pub fn plan(
    existing: &[Arc<EndpointSlice>],
    wanted: Vec<(Vec<EndpointPort>, Vec<Endpoint>)>,
    refresh: impl Fn(&mut EndpointSlice) -> bool,
) -> Plan {
    let mut by_ports: BTreeMap<Vec<String>, Vec<&Arc<EndpointSlice>>> = BTreeMap::new();
    for slice in existing {
        let key = port_key(slice.ports.as_deref().unwrap_or_default());
        by_ports.entry(key).or_default().push(slice);
    }
    let mut plan = Plan::default();
    // One slice is there even when there are no endpoints: it says that there are none.
    let wanted =
        if wanted.iter().all(|(_, endpoints)| endpoints.is_empty()) { vec![(Vec::new(), Vec::new())] } else { wanted };
    for (ports, endpoints) in wanted {
        let slices = by_ports.remove(&port_key(&ports)).unwrap_or_default();
        of_ports(&mut plan, slices, ports, endpoints, &refresh);
    }
    plan.delete.extend(by_ports.into_values().flatten().cloned());
    plan
}

fn of_ports(
    plan: &mut Plan,
    slices: Vec<&Arc<EndpointSlice>>,
    ports: Vec<EndpointPort>,
    endpoints: Vec<Endpoint>,
    refresh: &impl Fn(&mut EndpointSlice) -> bool,
) {
    let is_placeholder = endpoints.is_empty();
    let mut order: Vec<(String, Vec<String>)> = Vec::with_capacity(endpoints.len());
    let mut missing: HashMap<(String, Vec<String>), Endpoint> = HashMap::with_capacity(endpoints.len());
    for endpoint in endpoints {
        let key = identity(&endpoint);
        if missing.insert(key.clone(), endpoint).is_none() {
            order.push(key);
        }
    }
    // What stays stays where it is; each slice with whether it has to be written.
    let mut kept: Vec<(EndpointSlice, bool, &Arc<EndpointSlice>)> = Vec::new();
    for slice in slices {
        let mut copy = (**slice).clone();
        let mut changed = refresh(&mut copy);
        let before = copy.endpoints.take().unwrap_or_default();
        let mut after = Vec::with_capacity(before.len());
        for endpoint in before {
            match missing.remove(&identity(&endpoint)) {
                Some(now) => {
                    changed |= now != endpoint;
                    after.push(now);
                }
                None => changed = true,
            }
        }
        copy.endpoints = Some(after);
        kept.push((copy, changed, slice));
    }
    let mut new: Vec<Endpoint> = order.iter().filter_map(|key| missing.remove(key)).collect();
    let room = |slice: &EndpointSlice| FULL.saturating_sub(slice.endpoints.as_ref().map_or(0, Vec::len));
    // First where a write is due anyway.
    for (slice, _, _) in kept.iter_mut().filter(|(_, changed, _)| *changed) {
        fill(slice, &mut new, room(slice));
    }
    // What remains goes whole into one slice with room, the fullest, or into new ones.
    if !new.is_empty() {
        let rest = new.len() % FULL;
        let fullest = kept
            .iter_mut()
            .filter(|(slice, changed, _)| !*changed && rest > 0 && room(slice) >= rest)
            .min_by_key(|(slice, _, _)| room(slice));
        if let Some((slice, changed, _)) = fullest {
            fill(slice, &mut new, rest);
            *changed = true;
        }
    }
    while !new.is_empty() {
        let at = new.len().min(FULL);
        let rest = new.split_off(at);
        plan.create.push((ports.clone(), std::mem::replace(&mut new, rest)));
    }
    let mut placeholder = is_placeholder;
    for (slice, changed, original) in kept {
        let empty = slice.endpoints.as_ref().is_none_or(Vec::is_empty);
        if empty && !std::mem::take(&mut placeholder) {
            plan.delete.push(original.clone());
        } else if changed {
            plan.update.push(slice);
        }
    }
    if placeholder {
        plan.create.push((ports, Vec::new()));
    }
}

fn fill(slice: &mut EndpointSlice, new: &mut Vec<Endpoint>, room: usize) {
    let taken = new.drain(..room.min(new.len()));
    slice.endpoints.get_or_insert_default().extend(taken);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::BTreeSet;

    use k8s_openapi::api::discovery::v1::EndpointConditions;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
    use proptest::prelude::*;

    use super::*;

    fn ports(number: i32) -> Vec<EndpointPort> {
        vec![EndpointPort {
            name: Some(String::new()),
            port: Some(number),
            protocol: Some("TCP".into()),
            ..Default::default()
        }]
    }

    fn endpoint(number: u16, ready: bool) -> Endpoint {
        Endpoint {
            addresses: vec![format!("10.0.{}.{}", number / 256, number % 256)],
            conditions: Some(EndpointConditions { ready: Some(ready), ..Default::default() }),
            ..Default::default()
        }
    }

    /// Does what a plan says, as the API would.
    fn apply(existing: &mut Vec<Arc<EndpointSlice>>, plan: Plan, names: &mut u32) -> usize {
        let writes = plan.create.len() + plan.update.len() + plan.delete.len();
        for gone in plan.delete {
            existing.retain(|slice| slice.metadata.name != gone.metadata.name);
        }
        for slice in plan.update {
            let at = existing.iter().position(|it| it.metadata.name == slice.metadata.name).unwrap();
            existing[at] = Arc::new(slice);
        }
        for (ports, endpoints) in plan.create {
            *names += 1;
            existing.push(Arc::new(EndpointSlice {
                metadata: ObjectMeta { name: Some(names.to_string()), ..Default::default() },
                ports: Some(ports),
                endpoints: Some(endpoints),
                ..Default::default()
            }));
        }
        writes
    }

    fn contents(slices: &[Arc<EndpointSlice>]) -> BTreeSet<(i32, String, bool)> {
        let mut all = BTreeSet::new();
        for slice in slices {
            for endpoint in slice.endpoints.iter().flatten() {
                let port = slice.ports.as_ref().unwrap()[0].port.unwrap();
                let ready = endpoint.conditions.as_ref().unwrap().ready.unwrap();
                assert!(all.insert((port, endpoint.addresses[0].clone(), ready)), "an endpoint twice");
            }
        }
        all
    }

    #[test]
    fn a_service_without_endpoints_has_one_empty_slice() {
        let (mut slices, mut names) = (Vec::new(), 0);
        assert_eq!(apply(&mut slices, plan(&[], Vec::new(), |_| false), &mut names), 1);
        assert_eq!(apply(&mut slices.clone(), plan(&slices, Vec::new(), |_| false), &mut names), 0);
        let wanted = || vec![(ports(80), vec![endpoint(1, true)])];
        let plan_now = plan(&slices, wanted(), |_| false);
        apply(&mut slices, plan_now, &mut names);
        assert_eq!((slices.len(), contents(&slices).len()), (1, 1));
        let plan_now = plan(&slices, Vec::new(), |_| false);
        apply(&mut slices, plan_now, &mut names);
        assert_eq!((slices.len(), contents(&slices).len()), (1, 0));
    }

    #[test]
    fn one_change_among_a_thousand_is_one_write() {
        let (mut slices, mut names) = (Vec::new(), 0);
        let wanted = |unready: u16| vec![(ports(80), (0..1000).map(|n| endpoint(n, n != unready)).collect::<Vec<_>>())];
        assert_eq!(apply(&mut slices, plan(&[], wanted(5), |_| false), &mut names), 10);
        let second = plan(&slices, wanted(6), |_| false);
        assert!(apply(&mut slices, second, &mut names) <= 2);
        let more = vec![(ports(80), (0..1003).map(|n| endpoint(n, n != 6)).collect::<Vec<_>>())];
        let third = plan(&slices, more.clone(), |_| false);
        assert_eq!(apply(&mut slices, third, &mut names), 1);
        assert_eq!(slices.len(), 11);
        let fourth = plan(&slices, more, |_| true);
        assert_eq!(fourth.update.len(), 11, "stale metadata is brought up to date");
    }

    proptest! {
        #[test]
        fn slices_always_come_to_hold_what_is_wanted(
            rounds in prop::collection::vec(
                (prop::collection::btree_map(0_u16..700, any::<bool>(), 0..350), any::<bool>()), 1..6),
        ) {
            let (mut slices, mut names) = (Vec::new(), 0);
            for (wanted, split) in rounds {
                let mut groups: BTreeMap<i32, Vec<Endpoint>> = BTreeMap::new();
                for (number, ready) in &wanted {
                    let port = if split && number % 3 == 0 { 81 } else { 80 };
                    groups.entry(port).or_default().push(endpoint(*number, *ready));
                }
                let groups: Vec<_> = groups.into_iter().map(|(port, of)| (ports(port), of)).collect();
                let expected: BTreeSet<_> = groups.iter().flat_map(|(ports, of)| of.iter().map(|it| {
                    (ports[0].port.unwrap(), it.addresses[0].clone(), it.conditions.as_ref().unwrap().ready.unwrap())
                })).collect();
                let now = plan(&slices, groups.clone(), |_| false);
                apply(&mut slices, now, &mut names);
                prop_assert_eq!(contents(&slices), expected);
                prop_assert!(slices.iter().all(|slice| slice.endpoints.as_ref().unwrap().len() <= FULL));
                prop_assert!(!slices.is_empty());
                let again = plan(&slices, groups, |_| false);
                prop_assert_eq!(again.create.len() + again.update.len() + again.delete.len(), 0);
            }
        }
    }
}
