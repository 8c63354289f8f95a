//! Who asks: a client certificate, a service account's token, a bootstrap token, or nobody.

pub mod bootstrap;
pub mod service_account;

use http::HeaderMap;
use http::header::AUTHORIZATION;
use sampan_api::Error;

use crate::app::App;
use crate::authorization::{self, Attributes};
use crate::identity::Identity;

/// The token of an `Authorization: Bearer` header.
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim()).filter(|token| !token.is_empty())
}

/// The identity behind a request that came over the socket. A token that is not good is refused,
/// never taken for an anonymous request.
pub fn authenticate(app: &App, certificate: Option<Identity>, headers: &HeaderMap) -> Result<Identity, Error> {
    if let Some(identity) = certificate {
        return Ok(identity);
    }
    match bearer(headers) {
        Some(token) => of_token(app, token).ok_or(Error::Unauthorized),
        None if headers.contains_key(AUTHORIZATION) => Err(Error::Unauthorized),
        None => Ok(Identity::anonymous()),
    }
}

/// The identity of a bearer token, for the server's own audience.
pub fn of_token(app: &App, token: &str) -> Option<Identity> {
    if bootstrap::has_form(token) {
        return bootstrap::authenticate(app, token);
    }
    match app.tokens.verify(app, token, &[app.tokens.issuer()]) {
        Ok((identity, _)) => Some(identity),
        Err(reason) => {
            tracing::debug!(%reason, "token refused");
            None
        }
    }
}

/// Applies `Impersonate-User` and its companions, which only those may use who may do everything.
pub fn impersonate(app: &App, identity: Identity, headers: &HeaderMap) -> Result<Identity, Error> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let groups: Vec<&str> =
        headers.get_all("impersonate-group").iter().filter_map(|value| value.to_str().ok()).collect();
    let Some(user) = text("impersonate-user") else {
        if groups.is_empty() && text("impersonate-uid").is_none() {
            return Ok(identity);
        }
        return Err(Error::Internal("requested impersonation without naming a user: set Impersonate-User".to_owned()));
    };
    let needed = std::iter::once(("users", user)).chain(groups.iter().map(|group| ("groups", *group)));
    for (resource, name) in needed {
        let attributes = Attributes { verb: "impersonate", resource, name, ..Attributes::default() };
        authorization::require(app, &identity, &attributes)?;
    }
    let mut acting = Identity::new(user, groups);
    if let Some(rest) = user.strip_prefix("system:serviceaccount:")
        && let Some((namespace, _)) = rest.split_once(':')
        && acting.groups.len() == 1
    {
        acting.groups.push(crate::identity::SERVICE_ACCOUNTS.to_owned());
        acting.groups.push(format!("{}:{namespace}", crate::identity::SERVICE_ACCOUNTS));
    }
    acting.uid = text("impersonate-uid").unwrap_or_default().to_owned();
    Ok(acting)
}
