//! Endpoints.

use super::prelude::*;
use crate::kinds::edit;
use crate::kinds::pod::containers::one_of;
use crate::validation::common::PROTOCOLS;
use crate::validation::field::Field;
use crate::validation::net;

pub static KIND: Kind = Kind {
    group: "",
    version: "v1",
    kind: "Endpoints",
    plural: "endpoints",
    singular: "endpoints",
    short_names: &["ep"],
    categories: &[],
    scope: Scope::Namespaced,
    verbs: ALL_VERBS,
    subresources: &[],
    schema: "io.k8s.api.core.v1.Endpoints",
    selectable_fields: &[],
    columns: &[
        Column {
            name: "Name",
            kind: "string",
            format: "name",
            description: "Name must be unique within its scope. It cannot be changed.",
            priority: 0,
        },
        Column { name: "Endpoints", kind: "string", format: "", description: "", priority: 0 },
        Column { name: "Age", kind: "string", format: "", description: "Time since the object was made.", priority: 0 },
    ],
    cells,
    name: names::dns_subdomain,
    strategy: STRATEGY,
    stored_as: None,
    deprecated: Some("v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice"),
};

const STRATEGY: Strategy = Strategy {
    default,
    prepare_create: repack,
    prepare_update: |new, _| repack(new),
    validate,
    validate_update: |new, _, errors| validate(new, errors),
    create_on_update: true,
    ..Strategy::PLAIN
};

fn default(object: &mut Value) {
    let Some(map) = object.as_object_mut() else {
        return;
    };
    for subset in edit::objects(map, "subsets") {
        for port in edit::objects(subset, "ports") {
            edit::default_zero(port, "protocol", "TCP");
        }
    }
}

fn validate(object: &Value, errors: &mut FieldErrors) {
    for subset in Field::root(object).child("subsets").items() {
        let (ready, not_ready) = (subset.child("addresses"), subset.child("notReadyAddresses"));
        if ready.is_empty() && not_ready.is_empty() {
            errors.required(subset.path(), "must specify `addresses` or `notReadyAddresses`");
        }
        for one in ready.items().chain(not_ready.items()) {
            address(&one, errors);
        }
        let ports = subset.child("ports");
        for one in ports.items() {
            port(&one, ports.len() > 1, errors);
        }
    }
}

fn address(address: &Field<'_>, errors: &mut FieldErrors) {
    let (ip, hostname, node) = (address.child("ip"), address.child("hostname"), address.child("nodeName"));
    net::valid_ip(ip.path(), ip.str(), errors);
    if !hostname.is_empty() {
        errors.invalid_all(hostname.path(), hostname.str(), names::is_dns_label(hostname.str()));
    }
    if node.is_set() {
        errors.invalid_all(node.path(), node.str(), names::is_dns_subdomain(node.str()));
    }
    net::not_special(ip.path(), ip.str(), errors);
}

fn port(port: &Field<'_>, needs_name: bool, errors: &mut FieldErrors) {
    let (name, number, protocol) = (port.child("name"), port.child("port"), port.child("appProtocol"));
    if needs_name && name.is_empty() {
        errors.required(name.path(), "");
    } else if !name.is_empty() {
        errors.invalid_all(name.path(), name.str(), names::is_dns_label(name.str()));
    }
    net::port_number(number.path(), number.int(), errors);
    one_of(&port.child("protocol"), PROTOCOLS, errors);
    if protocol.is_set() {
        errors.invalid_all(protocol.path(), protocol.str(), names::is_qualified_name(protocol.str()));
    }
}

/// Addresses, each with whether it is ready.
type Addresses = Vec<(Value, bool)>;

/// Subsets with the same addresses become one; an address that is ready somewhere is not told as not
/// ready for the same ports. Left alone where something is wrong.
fn repack(object: &mut Value) {
    let mut errors = FieldErrors::default();
    validate(object, &mut errors);
    if !errors.is_empty() {
        return;
    }
    let Some(subsets) = object.get_mut("subsets").and_then(Value::as_array_mut) else {
        return;
    };
    let list = |subset: &Value, key: &str| subset.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
    // By port: the addresses, and whether each is ready.
    let mut by_port: Vec<(Option<Value>, Addresses)> = Vec::new();
    for subset in subsets.iter() {
        let mut ports: Vec<Option<Value>> = list(subset, "ports").into_iter().map(Some).collect();
        if ports.is_empty() {
            ports.push(None);
        }
        for port in ports {
            if !by_port.iter().any(|(known, _)| *known == port) {
                by_port.push((port.clone(), Vec::new()));
            }
            let Some((_, addresses)) = by_port.iter_mut().find(|(known, _)| *known == port) else {
                continue;
            };
            for (key, ready) in [("addresses", true), ("notReadyAddresses", false)] {
                for address in list(subset, key) {
                    match addresses.iter_mut().find(|(known, _)| same(known, &address)) {
                        Some(entry) => entry.1 |= ready,
                        None => addresses.push((address, ready)),
                    }
                }
            }
        }
    }
    let mut packed: Vec<(Vec<Value>, Addresses)> = Vec::new();
    for (port, mut addresses) in by_port {
        addresses.sort_by(|a, b| print::text(&a.0, "/ip").cmp(print::text(&b.0, "/ip")));
        match packed.iter_mut().find(|(_, known)| *known == addresses) {
            Some((ports, _)) => ports.extend(port),
            None => packed.push((port.into_iter().collect(), addresses)),
        }
    }
    *subsets = packed
        .into_iter()
        .map(|(ports, addresses)| {
            let mut subset = edit::Object::new();
            for (key, wanted) in [("addresses", true), ("notReadyAddresses", false)] {
                let list: Vec<Value> = addresses
                    .iter()
                    .filter(|(_, ready)| *ready == wanted)
                    .map(|(address, _)| address.clone())
                    .collect();
                if !list.is_empty() {
                    subset.insert(key.to_owned(), list.into());
                }
            }
            if !ports.is_empty() {
                subset.insert("ports".to_owned(), ports.into());
            }
            Value::Object(subset)
        })
        .collect();
}

/// Whether two entries are of the same endpoint.
fn same(a: &Value, b: &Value) -> bool {
    ["/ip", "/targetRef/uid"].iter().all(|path| print::text(a, path) == print::text(b, path))
}

fn cells(object: &Value, now: i64) -> Vec<Value> {
    let subsets = Field::root(object).child("subsets");
    let mut all = Vec::new();
    for subset in subsets.items() {
        let (addresses, ports) = (subset.child("addresses"), subset.child("ports"));
        if ports.is_empty() {
            all.extend(addresses.items().map(|address| address.child("ip").str().to_owned()));
        }
        for port in ports.items() {
            all.extend(addresses.items().map(|address| {
                let (ip, port) = (address.child("ip").str(), port.child("port").int());
                if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
            }));
        }
    }
    let shown = if subsets.is_empty() { "<none>".to_owned() } else { print::first_three(&all) };
    vec![print::name(object), json!(shown), print::age(object, now)]
}
