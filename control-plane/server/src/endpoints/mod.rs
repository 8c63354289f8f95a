//! From a request to its endpoint: parse the path, authorize, dispatch, answer.

mod bootstrap;
mod create;
pub mod delete;
mod discovery;
mod get;
mod health;
mod list;
mod log;
mod patch;
mod pods;
mod proxy;
mod reviews;
mod scale;
mod selection;
mod streams;
mod token;
mod update;
mod watch;

pub use health::git_version;

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::response::Response;
use axum::{Extension, Router};
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, Method};
use http_body_util::BodyExt;
use sampan_api::codec::{FieldValidation, MediaType};
use sampan_api::kind::Subresource;
use sampan_api::validation::requests::WriteOptions;
use sampan_api::{Error, Kind, kinds};
use tower_http::catch_panic::CatchPanicLayer;

use crate::app::App;
use crate::authorization::{self, Attributes};
use crate::identity::Identity;
use crate::registry::Write;
use crate::request::{self, ApiPath, Query, ResourcePath};
use crate::respond;

/// The largest body that is read.
pub const BODY_LIMIT: usize = 3 << 20;
const BODY_PATIENCE: Duration = Duration::from_secs(60);

/// One request on the API, while it is answered.
pub struct Context {
    pub app: Arc<App>,
    pub identity: Identity,
    pub method: Method,
    pub path: ResourcePath,
    pub query: Query,
    pub headers: HeaderMap,
    pub verb: &'static str,
    /// Texts for `Warning` headers.
    pub warnings: Vec<String>,
}

impl Context {
    pub fn write<'a>(
        &'a self,
        kind: &'static Kind,
        subresource: &'a str,
        manager: Option<&'a str>,
        dry_run: bool,
    ) -> Write<'a> {
        Write {
            app: &self.app,
            identity: &self.identity,
            kind,
            namespace: &self.path.namespace,
            subresource,
            manager,
            dry_run,
            trusted: false,
        }
    }

    fn write_options<'a>(&'a self, dry_run: &'a [String]) -> WriteOptions<'a> {
        WriteOptions {
            field_manager: self.query.text("fieldManager"),
            dry_run,
            field_validation: self.query.text("fieldValidation"),
        }
    }

    /// Checks the options of a create or update; says whether it is a dry run.
    fn check_options(&self, kind: &str) -> Result<bool, Error> {
        let dry_run: Vec<String> = self.query.all("dryRun").map(str::to_owned).collect();
        self.write_options(&dry_run).validate(kind)?;
        Ok(!dry_run.is_empty())
    }

    /// As [`Self::check_options`], of a patch.
    fn check_patch_options(&self, apply: bool) -> Result<bool, Error> {
        let dry_run: Vec<String> = self.query.all("dryRun").map(str::to_owned).collect();
        self.write_options(&dry_run).validate_patch(apply, self.query.flag("force"))?;
        Ok(!dry_run.is_empty())
    }

    fn field_validation(&self) -> FieldValidation {
        match self.query.text("fieldValidation") {
            "Ignore" => FieldValidation::Ignore,
            "Strict" => FieldValidation::Strict,
            _ => FieldValidation::Warn,
        }
    }

    /// Writing what is not there takes the right to create it, besides that to write it.
    fn require_create(&self, kind: &Kind) -> Result<(), Error> {
        let attributes = Attributes {
            verb: "create",
            group: kind.group,
            resource: kind.plural,
            namespace: &self.path.namespace,
            name: &self.path.name,
            ..Attributes::default()
        };
        authorization::require(&self.app, &self.identity, &attributes)
    }

    fn field_manager(&self) -> String {
        request::field_manager(&self.query, &self.headers)
    }
}

/// How a body is encoded, by its `Content-Type`.
pub fn body_media(headers: &HeaderMap) -> Result<MediaType, Error> {
    let text = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    match text.split(';').next().unwrap_or_default().trim() {
        "" | "application/json" => Ok(MediaType::Json),
        "application/yaml" => Ok(MediaType::Yaml),
        "application/vnd.kubernetes.protobuf" => Ok(MediaType::Protobuf),
        _ => Err(Error::UnsupportedMediaType(
            "the body of the request was in an unknown format - accepted media types include: application/json, \
             application/yaml, application/vnd.kubernetes.protobuf"
                .to_owned(),
        )),
    }
}

/// All endpoints, for requests that carry their [`Identity`] as an extension.
pub fn router(app: Arc<App>) -> Router {
    // The last resort: nothing that a client sends may end in a panic.
    let panics = CatchPanicLayer::custom(|_: Box<dyn std::any::Any + Send>| {
        let error = Error::Internal("the server failed while it answered; its log says more".to_owned());
        respond::error(&HeaderMap::new(), &Query::default(), &error)
    });
    Router::new().fallback(serve).with_state(app).layer(panics)
}

async fn serve(State(app): State<Arc<App>>, identity: Option<Extension<Identity>>, request: Request) -> Response {
    let begun = Instant::now();
    let identity = identity.map_or_else(Identity::anonymous, |Extension(identity)| identity);
    let query = Query::parse(request.uri());
    let headers = request.headers().clone();
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let user = identity.user.clone();
    let mut label = Label::default();
    let mut warnings = Vec::new();
    let result = dispatch(&app, identity, &query, request, &mut warnings, &mut label).await;
    let mut response = result.unwrap_or_else(|error| respond::error(&headers, &query, &error));
    respond::warn(&mut response, &warnings);
    response.headers_mut().insert(http::header::CACHE_CONTROL, http::HeaderValue::from_static("no-cache, private"));
    let code = response.status().as_u16();
    let elapsed = begun.elapsed();
    tracing::debug!(
        user, %method, path, verb = label.verb, resource = label.resource, subresource = label.subresource,
        code, latency_us = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX), "request"
    );
    app.metrics.request(&label, code, elapsed);
    response
}

/// What a request was about, for metrics and the log.
#[derive(Clone, Debug, Default)]
pub struct Label {
    pub verb: &'static str,
    pub group: &'static str,
    pub resource: &'static str,
    pub subresource: &'static str,
}

async fn read_body(request: Request) -> Result<Bytes, Error> {
    let limited = http_body_util::Limited::new(request.into_body(), BODY_LIMIT);
    let Ok(collected) = tokio::time::timeout(BODY_PATIENCE, limited.collect()).await else {
        return Err(Error::Timeout("the body of the request did not come in time".to_owned()));
    };
    match collected {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            Err(Error::RequestTooLarge(format!("limit is {BODY_LIMIT}")))
        }
        Err(error) => Err(Error::BadRequest(format!("unable to read the body: {error}"))),
    }
}

async fn dispatch(
    app: &Arc<App>,
    identity: Identity,
    query: &Query,
    request: Request,
    warnings: &mut Vec<String>,
    label: &mut Label,
) -> Result<Response, Error> {
    let path = request.uri().path().to_owned();
    let lower = request.method().as_str().to_ascii_lowercase();
    let identity = crate::authentication::impersonate(app, identity, request.headers())?;
    let resource = match ApiPath::parse(&path) {
        Some(ApiPath::Resource(resource)) => resource,
        other => {
            let attributes = Attributes { verb: &lower, path: Some(&path), ..Attributes::default() };
            authorization::require(app, &identity, &attributes)?;
            return match other {
                Some(found) => discovery::serve(app, request.method(), request.headers(), query, &found),
                None => special(app, identity, query, request, &path).await,
            };
        }
    };
    let verb = request::verb(request.method(), &resource, query);
    let attributes = Attributes {
        verb,
        group: &resource.group,
        resource: &resource.resource,
        subresource: &resource.subresource,
        // A namespace is in itself.
        namespace: if resource.resource == "namespaces" && resource.group.is_empty() {
            &resource.name
        } else {
            &resource.namespace
        },
        name: match verb {
            "list" | "watch" | "deletecollection" => selected_name(query).unwrap_or(&resource.name),
            _ => &resource.name,
        },
        path: None,
        field_selector: query.text("fieldSelector"),
    };
    authorization::require(app, &identity, &attributes)?;
    let kind = kinds::find(&resource.group, &resource.version, &resource.resource);
    label.verb = verb;
    if let Some(kind) = kind {
        label.group = kind.group;
        label.resource = kind.plural;
        if let Some(found) = kind.subresources.iter().find(|known| known.name == resource.subresource) {
            label.subresource = found.name;
        }
    }
    let mut context = Context {
        app: app.clone(),
        identity,
        method: request.method().clone(),
        path: resource,
        query: query.clone(),
        headers: request.headers().clone(),
        verb,
        warnings: Vec::new(),
    };
    let result = match kind {
        Some(kind) => {
            if let Some(text) = kind.deprecated {
                context.warnings.push(text.to_owned());
            }
            resource_request(&mut context, kind, request).await
        }
        None => virtual_request(&mut context, request).await,
    };
    warnings.append(&mut context.warnings);
    result
}

/// The name that a field selector confines a list to.
fn selected_name(query: &Query) -> Option<&str> {
    query.text("fieldSelector").split(',').find_map(|one| {
        let name = one.strip_prefix("metadata.name=")?;
        Some(name.strip_prefix('=').unwrap_or(name))
    })
}

/// What is no API: health, version, metrics, documents, the way in for nodes.
async fn special(
    app: &Arc<App>,
    identity: Identity,
    query: &Query,
    request: Request,
    path: &str,
) -> Result<Response, Error> {
    let get = matches!(*request.method(), Method::GET | Method::HEAD);
    match path {
        "/" if get => Ok(discovery::paths(request.headers(), query)),
        "/version" | "/version/" if get => Ok(health::version(app, request.headers(), query)),
        "/metrics" if get => Ok(health::metrics(app)),
        "/cacerts" if get => Ok(bootstrap::authorities(app)),
        "/bootstrap/v1/node-certificate" if request.method() == Method::POST => {
            let body = read_body(request).await?;
            bootstrap::node_certificate(app, &identity, &body)
        }
        _ if get && path.starts_with("/openapi/") => discovery::openapi(path, request.headers(), query),
        _ if get => Ok(health::check(app, path, query).unwrap_or_else(respond::not_found_page)),
        _ => Ok(respond::not_found_page()),
    }
}

/// Requests on resources that are no stored objects.
async fn virtual_request(context: &mut Context, request: Request) -> Result<Response, Error> {
    let ResourcePath { group, version, resource, .. } = &context.path;
    if let Some(review) = reviews::find(group, version, resource) {
        if context.method != Method::POST || !context.path.name.is_empty() {
            return Err(Error::MethodNotAllowed);
        }
        let body = read_body(request).await?;
        return reviews::create(context, review, &body);
    }
    if group.is_empty() && version == "v1" && resource == "bindings" && context.method == Method::POST {
        let body = read_body(request).await?;
        return pods::bind(context, &body).await;
    }
    if discovery::serves(group, version) { Err(Error::UnknownPath) } else { Ok(respond::not_found_page()) }
}

async fn resource_request(context: &mut Context, kind: &'static Kind, request: Request) -> Result<Response, Error> {
    // A path with a namespace for what has none, and the other way round for what is written.
    if !kind.namespaced() && !context.path.namespace.is_empty() {
        return Err(Error::UnknownPath);
    }
    let path = &context.path;
    if !path.subresource.is_empty() {
        let found = kind.subresources.iter().find(|known| known.name == path.subresource);
        let subresource = found.ok_or(Error::UnknownPath)?;
        if path.name.is_empty() || (kind.namespaced() && path.namespace.is_empty()) {
            return Err(Error::UnknownPath);
        }
        return subresource_request(context, kind, subresource, request).await;
    }
    let single = !path.name.is_empty();
    if single && kind.namespaced() && path.namespace.is_empty() && !path.watch {
        return Err(Error::UnknownPath);
    }
    let may = |verb: &str| {
        if kind.verbs.contains(&verb) { Ok(()) } else { Err(Error::MethodNotAllowed) }
    };
    match (context.method.clone(), single) {
        (Method::GET | Method::HEAD, _) if context.verb == "watch" => {
            may("watch")?;
            watch::serve(context, kind).await
        }
        (Method::GET | Method::HEAD, true) => {
            may("get")?;
            get::serve(context, kind).await
        }
        (Method::GET | Method::HEAD, false) => {
            may("list")?;
            list::serve(context, kind).await
        }
        (Method::POST, false) => {
            may("create")?;
            if kind.namespaced() && path.namespace.is_empty() {
                return Err(Error::MethodNotAllowed);
            }
            let body = read_body(request).await?;
            create::serve(context, kind, &body).await
        }
        (Method::PUT, true) => {
            may("update")?;
            let body = read_body(request).await?;
            update::serve(context, kind, "", &body).await
        }
        (Method::PATCH, true) => {
            may("patch")?;
            patch::serve(context, kind, "", request).await
        }
        (Method::DELETE, true) => {
            may("delete")?;
            let body = read_body(request).await?;
            delete::one(context, kind, body).await
        }
        (Method::DELETE, false) => {
            may("deletecollection")?;
            let body = read_body(request).await?;
            delete::collection(context, kind, body).await
        }
        _ => Err(Error::MethodNotAllowed),
    }
}

async fn subresource_request(
    context: &mut Context,
    kind: &'static Kind,
    subresource: &'static Subresource,
    request: Request,
) -> Result<Response, Error> {
    // What is proxied has methods of its own.
    if subresource.name == "proxy" {
        return proxy::serve(context, kind, request).await;
    }
    if !subresource.verbs.contains(&context.verb) {
        return Err(Error::MethodNotAllowed);
    }
    let name = subresource.name;
    match (name, context.method.clone()) {
        ("log", _) => log::serve(context).await,
        ("scale", Method::GET | Method::HEAD) => scale::get(context, kind),
        ("scale", Method::PUT) => {
            let body = read_body(request).await?;
            scale::update(context, kind, &body).await
        }
        ("scale", Method::PATCH) => scale::patch(context, kind, request).await,
        ("binding", Method::POST) => {
            let body = read_body(request).await?;
            pods::bind(context, &body).await
        }
        ("eviction", Method::POST) => {
            let body = read_body(request).await?;
            pods::evict(context, kind, &body).await
        }
        ("token", Method::POST) => {
            let body = read_body(request).await?;
            token::create(context, &body)
        }
        ("status" | "ephemeralcontainers", Method::GET | Method::HEAD) => get::serve(context, kind).await,
        ("status" | "finalize" | "ephemeralcontainers", Method::PUT) => {
            let body = read_body(request).await?;
            update::serve(context, kind, name, &body).await
        }
        ("status" | "ephemeralcontainers", Method::PATCH) => patch::serve(context, kind, name, request).await,
        ("exec" | "attach" | "portforward", _) => streams::serve(context, name, request).await,
        // Declared, so that discovery says what the reference does.
        _ => Err(Error::Status(Box::new(serde_json::json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": 501,
            "reason": "NotImplemented", "message": format!("{}/{name} is not served yet", kind.plural),
        })))),
    }
}
