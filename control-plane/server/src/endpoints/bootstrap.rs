//! How a node comes in: the authorities to trust, and its first certificate.

use axum::response::Response;
use bytes::Bytes;
use http::StatusCode;
use sampan_api::Error;

use crate::app::App;
use crate::identity::{BOOTSTRAPPERS, Identity, MASTERS};
use crate::pki;
use crate::respond;

const PEM: &str = "application/x-pem-file";

/// The CA certificate: anyone may have it, a join token pins its hash.
pub fn authorities(app: &App) -> Response {
    respond::with_body(StatusCode::OK, PEM, app.pki.ca_pem().to_owned())
}

/// Signs the certificate request of a node that has shown a bootstrap token.
pub fn node_certificate(app: &App, identity: &Identity, body: &Bytes) -> Result<Response, Error> {
    if !identity.in_group(BOOTSTRAPPERS) && !identity.in_group(MASTERS) {
        return Err(Error::Forbidden {
            resource: String::new(),
            name: String::new(),
            message: format!("forbidden: User {:?} cannot post path \"/bootstrap/v1/node-certificate\"", identity.user),
        });
    }
    let request = std::str::from_utf8(body)
        .map_err(|_| Error::BadRequest("body: not a PEM certificate request: it is not text".to_owned()))?;
    let (name, chain) = app.pki.sign_node(request).map_err(|error| match error {
        pki::Error::Request(text) => Error::BadRequest(text),
        other => Error::Internal(other.to_string()),
    })?;
    let wrong = sampan_api::validation::names::is_dns_subdomain(&name);
    if let Some(why) = wrong.first() {
        return Err(Error::BadRequest(format!("the request's common name: {name:?}: {why}")));
    }
    tracing::info!(node = name, user = identity.user, "certificate signed for a node");
    Ok(respond::with_body(StatusCode::OK, PEM, chain))
}
