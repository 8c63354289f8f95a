//! Reviews: questions about access and identity, answered and not kept.

use axum::response::Response;
use bytes::Bytes;
use http::StatusCode;
use sampan_api::{Error, FieldErrors, FieldReason, codec};
use serde_json::{Map, Value, json};

use super::{Context, body_media};
use crate::authentication;
use crate::authorization::{self, Attributes};
use crate::identity::Identity;
use crate::respond;

/// A kind that can only be created, and whose answer is its status.
pub struct Review {
    pub group: &'static str,
    pub plural: &'static str,
    pub kind: &'static str,
    pub namespaced: bool,
}

const fn review(group: &'static str, plural: &'static str, kind: &'static str, namespaced: bool) -> Review {
    Review { group, plural, kind, namespaced }
}

const AUTHENTICATION: &str = "authentication.k8s.io";
const AUTHORIZATION: &str = "authorization.k8s.io";

/// In the order of discovery.
pub const ALL: &[Review] = &[
    review(AUTHENTICATION, "selfsubjectreviews", "SelfSubjectReview", false),
    review(AUTHENTICATION, "tokenreviews", "TokenReview", false),
    review(AUTHORIZATION, "localsubjectaccessreviews", "LocalSubjectAccessReview", true),
    review(AUTHORIZATION, "selfsubjectaccessreviews", "SelfSubjectAccessReview", false),
    review(AUTHORIZATION, "selfsubjectrulesreviews", "SelfSubjectRulesReview", false),
    review(AUTHORIZATION, "subjectaccessreviews", "SubjectAccessReview", false),
];

pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static Review> {
    ALL.iter().find(|review| review.group == group && review.plural == plural && version == "v1")
}

pub fn create(context: &mut Context, review: &'static Review, body: &Bytes) -> Result<Response, Error> {
    let form = respond::negotiate(&context.headers, &context.query, false)?;
    context.check_options("CreateOptions")?;
    let media = body_media(&context.headers)?;
    let group = review.group.split('.').next().unwrap_or_default();
    let schema = format!("io.k8s.api.{group}.v1.{}", review.kind);
    let gvk = (review.group, "v1", review.kind);
    let decoded = codec::decode_type(&schema, gvk, body, media, context.field_validation())?;
    context.warnings.extend(decoded.warnings);
    let mut object = decoded.object;
    let status = match review.kind {
        "TokenReview" => token(context, &object),
        "SelfSubjectReview" => json!({"userInfo": user_info(&context.identity)}),
        "SelfSubjectRulesReview" => rules(context),
        "SelfSubjectAccessReview" => access(context, &object, &context.identity)?,
        _ => {
            let asked = subject(&object)?;
            if review.namespaced {
                let given =
                    object.pointer("/spec/resourceAttributes/namespace").and_then(Value::as_str).unwrap_or_default();
                if given != context.path.namespace {
                    return Err(Error::BadRequest("spec.resourceAttributes.namespace must match namespace".to_owned()));
                }
            }
            access(context, &object, &asked)?
        }
    };
    if let Some(map) = object.as_object_mut() {
        map.entry("metadata").or_insert_with(|| json!({}));
        map.insert("status".to_owned(), status);
    }
    Ok(respond::value(form, StatusCode::CREATED, &object))
}

fn user_info(identity: &Identity) -> Value {
    let mut info = json!({"username": identity.user, "groups": identity.groups});
    if let Some(map) = info.as_object_mut() {
        if !identity.uid.is_empty() {
            map.insert("uid".to_owned(), identity.uid.clone().into());
        }
        if !identity.extra.is_empty() {
            map.insert("extra".to_owned(), json!(identity.extra));
        }
    }
    info
}

fn strings(value: &Value, pointer: &str) -> Vec<String> {
    let list = value.pointer(pointer).and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn token(context: &Context, review: &Value) -> Value {
    let token = review.pointer("/spec/token").and_then(Value::as_str).unwrap_or_default();
    let wanted = strings(review, "/spec/audiences");
    let tokens = &context.app.tokens;
    let refused = |why: &str| json!({"user": {}, "error": why});
    if authentication::bootstrap::has_form(token) {
        return match authentication::of_token(&context.app, token) {
            Some(identity) => json!({"authenticated": true, "user": user_info(&identity)}),
            None => refused("invalid bearer token"),
        };
    }
    let audiences: Vec<&str> =
        if wanted.is_empty() { vec![tokens.issuer()] } else { wanted.iter().map(String::as_str).collect() };
    match tokens.verify(&context.app, token, &audiences) {
        Ok((identity, shared)) => {
            json!({"authenticated": true, "user": user_info(&identity), "audiences": shared})
        }
        Err(why) => refused(&format!("[invalid bearer token, {why}]")),
    }
}

fn subject(review: &Value) -> Result<Identity, Error> {
    let user = review.pointer("/spec/user").and_then(Value::as_str).unwrap_or_default();
    let groups = strings(review, "/spec/groups");
    if user.is_empty() && groups.is_empty() {
        return Err(invalid(
            FieldReason::Invalid,
            "spec.user",
            "Invalid value: \"\": at least one of user or group must be specified",
        ));
    }
    // The question names all groups: none is added.
    Ok(Identity { user: user.to_owned(), groups, ..Identity::default() })
}

fn invalid(reason: FieldReason, field: &str, message: &str) -> Error {
    let mut errors = FieldErrors::default();
    errors.push(reason, field, message);
    // The reference leaves the kind out here.
    Error::Invalid { kind: format!(".{AUTHORIZATION}"), name: String::new(), errors }
}

fn access(context: &Context, review: &Value, who: &Identity) -> Result<Value, Error> {
    let spec = review.get("spec").cloned().unwrap_or_default();
    let resource = spec.get("resourceAttributes").filter(|value| !value.is_null());
    let path = spec.get("nonResourceAttributes").filter(|value| !value.is_null());
    let text = |of: &Value, key: &str| of.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let allowed = match (resource, path) {
        (Some(_), Some(_)) => {
            return Err(invalid(
                FieldReason::Invalid,
                "spec.nonResourceAttributes",
                "Invalid value: cannot be specified in combination with resourceAttributes",
            ));
        }
        (None, None) => {
            return Err(invalid(
                FieldReason::Invalid,
                "spec.resourceAttributes",
                "Invalid value: null: exactly one of nonResourceAttributes or resourceAttributes must be specified",
            ));
        }
        (None, Some(of)) => {
            let (verb, path) = (text(of, "verb"), text(of, "path"));
            let attributes = Attributes { verb: &verb, path: Some(&path), ..Attributes::default() };
            authorization::allows(&context.app, who, &attributes)
        }
        (Some(of), None) => {
            let [verb, group, resource, subresource, namespace, name] =
                ["verb", "group", "resource", "subresource", "namespace", "name"].map(|key| text(of, key));
            let attributes = Attributes {
                verb: &verb,
                group: &group,
                resource: &resource,
                subresource: &subresource,
                namespace: &namespace,
                name: &name,
                path: None,
                field_selector: "",
            };
            authorization::allows(&context.app, who, &attributes)
        }
    };
    let mut status = Map::new();
    status.insert("allowed".to_owned(), allowed.into());
    Ok(Value::Object(status))
}

/// What the asker may do, as far as it can be listed.
fn rules(context: &Context) -> Value {
    let (resources, paths, complete) = authorization::rules(&context.identity);
    json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": !complete})
}
