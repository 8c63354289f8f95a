//! EndpointSlice.

use super::prelude::*;
use crate::kinds::edit;
use crate::validation::common::{PROTOCOLS, immutable};
use crate::validation::field::Field;
use crate::validation::{metadata, net};

pub static KIND: Kind = Kind {
    group: "discovery.k8s.io",
    version: "v1",
    kind: "EndpointSlice",
    plural: "endpointslices",
    singular: "endpointslice",
    short_names: &[],
    categories: &[],
    scope: Scope::Namespaced,
    verbs: ALL_VERBS,
    subresources: &[],
    schema: "io.k8s.api.discovery.v1.EndpointSlice",
    selectable_fields: &[],
    columns: &[
        Column {
            name: "Name",
            kind: "string",
            format: "name",
            description: "Name must be unique within its scope. It cannot be changed.",
            priority: 0,
        },
        Column { name: "AddressType", kind: "string", format: "", description: "", priority: 0 },
        Column { name: "Ports", kind: "string", format: "", description: "", priority: 0 },
        Column { name: "Endpoints", kind: "string", format: "", description: "", priority: 0 },
        Column { name: "Age", kind: "string", format: "", description: "Time since the object was made.", priority: 0 },
    ],
    cells,
    name: names::dns_subdomain,
    strategy: STRATEGY,
    stored_as: None,
    deprecated: None,
};

const STRATEGY: Strategy = Strategy {
    default,
    prepare_create: |object| edit::set_generation(object, 1),
    prepare_update,
    validate: |object, errors| validate(object, &["FQDN", "IPv4", "IPv6"], errors),
    validate_update: |new, old, errors| {
        validate(new, &["FQDN", "IP", "IPv4", "IPv6"], errors);
        immutable(&Field::root(new).child("addressType"), &Field::root(old).child("addressType"), errors);
    },
    ..Strategy::PLAIN
};

const MAX_ENDPOINTS: usize = 1000;
const MAX_ADDRESSES: usize = 100;
const MAX_PORTS: usize = 20000;
const MAX_TOPOLOGY: usize = 16;
const MAX_HINTS: usize = 8;

fn default(object: &mut Value) {
    let Some(map) = object.as_object_mut() else {
        return;
    };
    for port in edit::objects(map, "ports") {
        edit::default(port, "name", "");
        edit::default_zero(port, "protocol", "TCP");
    }
    for endpoint in edit::objects(map, "endpoints") {
        edit::default(endpoint, "conditions", json!({}));
    }
}

/// The generation counts what is not metadata, and labels.
fn prepare_update(new: &mut Value, old: &Value) {
    let rest = |object: &Value| {
        let mut copy = object.clone();
        if let Some(map) = copy.as_object_mut() {
            map.remove("metadata");
        }
        copy
    };
    let labels = |object: &Value| object.pointer("/metadata/labels").cloned();
    let changed = rest(new) != rest(old) || labels(new) != labels(old);
    edit::count_generation(new, old, changed);
}

fn validate(object: &Value, types: &[&str], errors: &mut FieldErrors) {
    let root = Field::root(object);
    let kind = root.child("addressType");
    if kind.is_empty() {
        errors.required(kind.path(), "");
    } else if !types.contains(&kind.str()) {
        errors.not_supported(kind.path(), kind.str(), types);
    }
    let endpoints = root.child("endpoints");
    if endpoints.len() > MAX_ENDPOINTS {
        errors.too_many(endpoints.path(), endpoints.len(), MAX_ENDPOINTS);
    } else {
        for one in endpoints.items() {
            endpoint(&one, kind.str(), errors);
        }
    }
    ports(&root.child("ports"), errors);
}

fn endpoint(endpoint: &Field<'_>, kind: &str, errors: &mut FieldErrors) {
    let addresses = endpoint.child("addresses");
    if addresses.is_empty() {
        errors.required(addresses.path(), "must contain at least 1 address");
    } else if addresses.len() > MAX_ADDRESSES {
        errors.too_many(addresses.path(), addresses.len(), MAX_ADDRESSES);
    }
    for address in addresses.items() {
        let (path, text) = (address.path(), address.str());
        let family = net::parse_ip(text);
        match kind {
            "IPv4" => {
                if !family.is_some_and(|ip| ip.is_ipv4()) {
                    errors.invalid_str(path, text, "must be a valid IPv4 address");
                }
                net::not_special(path, text, errors);
            }
            "IPv6" => {
                if !family.is_some_and(|ip| ip.is_ipv6()) {
                    errors.invalid_str(path, text, "must be a valid IPv6 address");
                }
                net::not_special(path, text, errors);
            }
            "IP" => {
                net::valid_ip(path, text, errors);
            }
            "FQDN" => net::is_fully_qualified(path, text, errors),
            _ => {}
        }
    }
    let node = endpoint.child("nodeName");
    if node.is_set() {
        errors.invalid_all(node.path(), node.str(), names::is_dns_subdomain(node.str()));
    }
    let topology = endpoint.child("deprecatedTopology");
    if topology.len() > MAX_TOPOLOGY {
        errors.too_many(topology.path(), topology.len(), MAX_TOPOLOGY);
    }
    metadata::labels(&topology, errors);
    let hostname = endpoint.child("hostname");
    if hostname.is_set() {
        errors.invalid_all(hostname.path(), hostname.str(), names::is_dns_label(hostname.str()));
    }
    for (list, form) in [("forZones", names::is_label_value as fn(&str) -> _), ("forNodes", names::is_dns_subdomain)] {
        hints(&endpoint.below(&["hints", list]), form, errors);
    }
}

fn hints(list: &Field<'_>, form: fn(&str) -> Vec<String>, errors: &mut FieldErrors) {
    if list.len() > MAX_HINTS {
        errors.too_many(list.path(), list.len(), MAX_HINTS);
        return;
    }
    let mut seen: Vec<&str> = Vec::new();
    for hint in list.items() {
        let name = hint.child("name");
        if seen.contains(&name.str()) {
            errors.duplicate(name.path(), name.str());
        } else {
            seen.push(name.str());
        }
        errors.invalid_all(name.path(), name.str(), form(name.str()));
    }
}

fn ports(list: &Field<'_>, errors: &mut FieldErrors) {
    if list.len() > MAX_PORTS {
        errors.too_many(list.path(), list.len(), MAX_PORTS);
        return;
    }
    let mut seen: Vec<&str> = Vec::new();
    for port in list.items() {
        let (name, protocol, app) = (port.child("name"), port.child("protocol"), port.child("appProtocol"));
        if !name.is_empty() {
            errors.invalid_all(name.path(), name.str(), names::is_dns_label(name.str()));
        }
        if seen.contains(&name.str()) {
            errors.duplicate(name.path(), name.str());
        } else {
            seen.push(name.str());
        }
        if !protocol.is_set() {
            errors.required(protocol.path(), "");
        } else if !PROTOCOLS.contains(&protocol.str()) {
            errors.not_supported(protocol.path(), protocol.str(), PROTOCOLS);
        }
        if app.is_set() {
            errors.invalid_all(app.path(), app.str(), names::is_qualified_name(app.str()));
        }
    }
}

fn cells(object: &Value, now: i64) -> Vec<Value> {
    let root = Field::root(object);
    let ports: Vec<String> = root
        .child("ports")
        .items()
        .map(|port| match (port.child("port").opt_int(), port.child("name").opt_str()) {
            (Some(number), _) => number.to_string(),
            (None, Some(name)) => name.to_owned(),
            (None, None) => "*".to_owned(),
        })
        .collect();
    let endpoints = root.child("endpoints");
    let addresses: Vec<String> = endpoints
        .items()
        .flat_map(|endpoint| endpoint.child("addresses").strings().map(str::to_owned).collect::<Vec<_>>())
        .collect();
    let shown = |all: &[String]| {
        if all.is_empty() { "<unset>".to_owned() } else { print::first_three(all) }
    };
    vec![
        print::name(object),
        json!(root.child("addressType").str()),
        json!(shown(&ports)),
        json!(shown(&addresses)),
        print::age(object, now),
    ]
}
