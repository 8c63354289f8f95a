//! Discovery: which groups, versions and resources there are, in the old and the aggregated form,
//! and their OpenAPI documents.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::OnceLock;

use axum::response::Response;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use sampan_api::{Error, Kind, kinds, openapi};
use serde_json::{Map, Value, json};

use super::reviews;
use crate::app::App;
use crate::request::{ApiPath, Query};
use crate::respond::{self, Form, Shape};

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// The groups in the order of discovery, each with its versions; the core group is left out.
fn groups() -> Vec<(&'static str, Vec<&'static str>)> {
    let mut all: Vec<(&'static str, Vec<&'static str>)> = Vec::new();
    let of_kinds = kinds::ALL.iter().map(|kind| (kind.group, kind.version));
    let of_reviews = reviews::ALL.iter().map(|review| (review.group, "v1"));
    for (group, version) in of_kinds.chain(of_reviews).filter(|(group, _)| !group.is_empty()) {
        match all.iter_mut().find(|(known, _)| *known == group) {
            Some((_, versions)) if versions.contains(&version) => {}
            Some((_, versions)) => versions.push(version),
            None => all.push((group, vec![version])),
        }
    }
    all.sort_by_key(|(group, _)| order(group));
    all
}

/// Where the reference has a group in its list; unknown ones come last.
fn order(group: &str) -> usize {
    const ORDER: &[&str] = &[
        "apiregistration.k8s.io",
        "apps",
        "events.k8s.io",
        "authentication.k8s.io",
        "authorization.k8s.io",
        "autoscaling",
        "batch",
        "certificates.k8s.io",
        "networking.k8s.io",
        "policy",
        "rbac.authorization.k8s.io",
        "storage.k8s.io",
        "admissionregistration.k8s.io",
        "apiextensions.k8s.io",
        "scheduling.k8s.io",
        "coordination.k8s.io",
        "node.k8s.io",
        "discovery.k8s.io",
        "resource.k8s.io",
        "flowcontrol.apiserver.k8s.io",
    ];
    ORDER.iter().position(|known| *known == group).unwrap_or(ORDER.len())
}

/// Whether anything is served under a group and version.
pub fn serves(group: &str, version: &str) -> bool {
    if group.is_empty() {
        return version == "v1";
    }
    groups().iter().any(|(known, versions)| *known == group && versions.contains(&version))
}

fn group_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

fn group_value(group: &str, versions: &[&str]) -> Value {
    let entry = |version: &str| json!({"groupVersion": group_version(group, version), "version": version});
    json!({
        "name": group,
        "versions": versions.iter().map(|version| entry(version)).collect::<Vec<_>>(),
        "preferredVersion": versions.first().map(|version| entry(version)),
    })
}

fn insert_list(map: &mut Map<String, Value>, key: &str, list: &[&str]) {
    if !list.is_empty() {
        map.insert(key.to_owned(), json!(list));
    }
}

/// One entry of `APIResourceList` a resource and subresource.
fn resources(group: &str, version: &str) -> Vec<Value> {
    let mut all: Vec<(String, Value)> = Vec::new();
    let of_group = |kind: &&&Kind| kind.group == group && kind.version == version;
    for kind in kinds::ALL.iter().filter(of_group) {
        let mut entry = Map::new();
        entry.insert("name".to_owned(), kind.plural.into());
        entry.insert("singularName".to_owned(), kind.singular.into());
        entry.insert("namespaced".to_owned(), kind.namespaced().into());
        entry.insert("kind".to_owned(), kind.kind.into());
        entry.insert("verbs".to_owned(), json!(kind.verbs));
        insert_list(&mut entry, "shortNames", kind.short_names);
        insert_list(&mut entry, "categories", kind.categories);
        all.push((kind.plural.to_owned(), Value::Object(entry)));
        for subresource in kind.subresources {
            let name = format!("{}/{}", kind.plural, subresource.name);
            let mut entry = Map::new();
            entry.insert("name".to_owned(), name.clone().into());
            entry.insert("singularName".to_owned(), "".into());
            entry.insert("namespaced".to_owned(), kind.namespaced().into());
            entry.insert("kind".to_owned(), subresource.object.map_or(kind.kind, |(_, _, kind)| kind).into());
            entry.insert("verbs".to_owned(), json!(subresource.verbs));
            // Said only where they are not those of the list.
            if let Some((of_group, of_version, _)) = subresource.object
                && (of_group, of_version) != (group, version)
            {
                entry.insert("group".to_owned(), of_group.into());
                entry.insert("version".to_owned(), of_version.into());
            }
            all.push((name, Value::Object(entry)));
        }
    }
    let simple = |plural: &str, kind: &str, namespaced: bool| {
        json!({
            "name": plural, "singularName": kind.to_ascii_lowercase(), "namespaced": namespaced,
            "kind": kind, "verbs": ["create"],
        })
    };
    if version == "v1" {
        for review in reviews::ALL.iter().filter(|review| review.group == group) {
            all.push((review.plural.to_owned(), simple(review.plural, review.kind, review.namespaced)));
        }
        if group.is_empty() {
            all.push(("bindings".to_owned(), simple("bindings", "Binding", true)));
        }
    }
    all.sort_by(|(a, _), (b, _)| a.cmp(b));
    all.into_iter().map(|(_, entry)| entry).collect()
}

/// The aggregated form of one version.
fn aggregated_version(group: &str, version: &str) -> Value {
    let of = |entry: &Value| {
        let text = |key: &str| entry.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let response = |entry: &Value| {
            let part = |key: &str, own: &str| {
                entry.get(key).and_then(Value::as_str).map_or_else(|| own.to_owned(), str::to_owned)
            };
            json!({"group": part("group", group), "version": part("version", version), "kind": entry.get("kind")})
        };
        let mut out = Map::new();
        out.insert("responseKind".to_owned(), response(entry));
        out.insert("verbs".to_owned(), entry.get("verbs").cloned().unwrap_or_default());
        (text("name"), out)
    };
    let mut list: Vec<Map<String, Value>> = Vec::new();
    for entry in resources(group, version) {
        let (name, mut out) = of(&entry);
        match name.split_once('/') {
            Some((parent, subresource)) => {
                out.insert("subresource".to_owned(), subresource.into());
                let parent =
                    list.iter_mut().find(|known| known.get("resource").and_then(Value::as_str) == Some(parent));
                let subresources = parent.map(|parent| parent.entry("subresources").or_insert_with(|| json!([])));
                if let Some(Value::Array(subresources)) = subresources {
                    subresources.push(Value::Object(out));
                }
            }
            None => {
                let namespaced = entry.get("namespaced").and_then(Value::as_bool) == Some(true);
                out.insert("resource".to_owned(), name.into());
                out.insert("scope".to_owned(), if namespaced { "Namespaced" } else { "Cluster" }.into());
                for (from, to) in
                    [("singularName", "singularResource"), ("shortNames", "shortNames"), ("categories", "categories")]
                {
                    if let Some(value) = entry.get(from) {
                        out.insert(to.to_owned(), value.clone());
                    }
                }
                list.push(out);
            }
        }
    }
    json!({"version": version, "resources": list, "freshness": "Current"})
}

fn aggregated(legacy: bool) -> Value {
    let items: Vec<Value> = if legacy {
        vec![json!({"metadata": {"creationTimestamp": null}, "versions": [aggregated_version("", "v1")]})]
    } else {
        groups()
            .iter()
            .map(|(group, versions)| {
                let versions: Vec<Value> = versions.iter().map(|version| aggregated_version(group, version)).collect();
                json!({"metadata": {"name": group, "creationTimestamp": null}, "versions": versions})
            })
            .collect()
    };
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items})
}

fn wants_aggregated(headers: &HeaderMap) -> bool {
    for range in respond::ranges(headers) {
        match (range.media, range.parameter("as")) {
            ("application/json", "APIGroupDiscoveryList")
                if range.parameter("g") == "apidiscovery.k8s.io" && range.parameter("v") == "v2" =>
            {
                return true;
            }
            ("application/json" | "*/*" | "application/*" | "application/yaml", "") => {
                return false;
            }
            _ => {}
        }
    }
    false
}

fn etag(body: &Value) -> String {
    let mut hasher = DefaultHasher::new();
    body.to_string().hash(&mut hasher);
    format!("\"{:016X}\"", hasher.finish())
}

pub fn serve(
    app: &App,
    method: &Method,
    headers: &HeaderMap,
    query: &Query,
    path: &ApiPath,
) -> Result<Response, Error> {
    if !matches!(*method, Method::GET | Method::HEAD) {
        return Err(Error::MethodNotAllowed);
    }
    // What is asked for besides JSON falls back to it here.
    let form =
        respond::negotiate(headers, query, false).unwrap_or(Form { shape: Shape::Object, yaml: false, pretty: false });
    let form = Form { shape: Shape::Object, ..form };
    let body = match path {
        ApiPath::Root { legacy } if wants_aggregated(headers) => {
            let body = aggregated(*legacy);
            let tag = etag(&body);
            let mut response =
                if headers.get(http::header::IF_NONE_MATCH).is_some_and(|known| known.as_bytes() == tag.as_bytes()) {
                    respond::with_body(StatusCode::NOT_MODIFIED, AGGREGATED, "")
                } else {
                    let mut response = respond::value(form, StatusCode::OK, &body);
                    response.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static(AGGREGATED));
                    response
                };
            if let Ok(tag) = HeaderValue::from_str(&tag) {
                response.headers_mut().insert(http::header::ETAG, tag);
            }
            response.headers_mut().insert(http::header::VARY, HeaderValue::from_static("Accept"));
            return Ok(response);
        }
        ApiPath::Root { legacy: true } => json!({
            "kind": "APIVersions",
            "versions": ["v1"],
            "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": app.config.endpoint().to_string()}],
        }),
        ApiPath::Root { legacy: false } => json!({
            "kind": "APIGroupList",
            "apiVersion": "v1",
            "groups": groups().iter().map(|(group, versions)| group_value(group, versions)).collect::<Vec<_>>(),
        }),
        ApiPath::Group(name) => match groups().iter().find(|(group, _)| group == name) {
            Some((group, versions)) => {
                let mut value = group_value(group, versions);
                if let Some(map) = value.as_object_mut() {
                    map.insert("kind".to_owned(), "APIGroup".into());
                    map.insert("apiVersion".to_owned(), "v1".into());
                }
                value
            }
            None => return Ok(respond::not_found_page()),
        },
        ApiPath::Version { group, version } => {
            if !serves(group, version) {
                return Ok(respond::not_found_page());
            }
            json!({
                "kind": "APIResourceList",
                "apiVersion": "v1",
                "groupVersion": group_version(group, version),
                "resources": resources(group, version),
            })
        }
        ApiPath::Resource(_) => return Err(Error::UnknownPath),
    };
    Ok(respond::value(form, StatusCode::OK, &body))
}

/// Everything else that can be asked for.
pub fn paths(headers: &HeaderMap, query: &Query) -> Response {
    let mut all: Vec<String> = [
        "/api",
        "/api/v1",
        "/apis",
        "/apis/",
        "/cacerts",
        "/healthz",
        "/healthz/ping",
        "/livez",
        "/livez/ping",
        "/metrics",
        "/openapi/v3",
        "/openapi/v3/",
        "/readyz",
        "/readyz/ping",
        "/version",
    ]
    .map(str::to_owned)
    .into();
    for (group, versions) in groups() {
        all.push(format!("/apis/{group}"));
        all.extend(versions.iter().map(|version| format!("/apis/{group}/{version}")));
    }
    all.sort();
    let form =
        respond::negotiate(headers, query, false).unwrap_or(Form { shape: Shape::Object, yaml: false, pretty: true });
    respond::value(Form { shape: Shape::Object, ..form }, StatusCode::OK, &json!({"paths": all}))
}

/// A document and the hash that names it.
struct Document {
    path: String,
    bytes: Bytes,
    hash: String,
}

/// Built when first asked for, then kept.
fn documents() -> &'static [Document] {
    static ALL: OnceLock<Vec<Document>> = OnceLock::new();
    ALL.get_or_init(|| {
        let mut versions = vec![(String::new(), "v1".to_owned())];
        versions.extend(
            groups()
                .iter()
                .flat_map(|(group, all)| all.iter().map(|version| ((*group).to_owned(), (*version).to_owned()))),
        );
        versions
            .into_iter()
            .filter_map(|(group, version)| {
                let bytes = openapi::document(&group, &version)?;
                let mut hasher = DefaultHasher::new();
                bytes.hash(&mut hasher);
                let hash = format!("{:016X}", hasher.finish());
                let path = if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") };
                Some(Document { path, bytes, hash })
            })
            .collect()
    })
}

/// `/openapi/v3` and the documents below it.
pub fn openapi(path: &str, headers: &HeaderMap, query: &Query) -> Result<Response, Error> {
    let form =
        respond::negotiate(headers, query, false).unwrap_or(Form { shape: Shape::Object, yaml: false, pretty: false });
    let Some(rest) = path.strip_prefix("/openapi/v3") else {
        return Ok(respond::not_found_page());
    };
    let rest = rest.trim_matches('/');
    if rest.is_empty() {
        let all: Map<String, Value> = documents()
            .iter()
            .map(|document| {
                let url = format!("/openapi/v3/{}?hash={}", document.path, document.hash);
                (document.path.clone(), json!({"serverRelativeURL": url}))
            })
            .collect();
        return Ok(respond::value(form, StatusCode::OK, &json!({"paths": all})));
    }
    let Some(document) = documents().iter().find(|document| document.path == rest) else {
        return Ok(respond::not_found_page());
    };
    let mut response = respond::with_body(StatusCode::OK, respond::JSON, document.bytes.clone());
    if let Ok(tag) = HeaderValue::from_str(&format!("\"{}\"", document.hash)) {
        response.headers_mut().insert(http::header::ETAG, tag);
    }
    Ok(response)
}
