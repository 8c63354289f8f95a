//! Bootstrap tokens: Secrets `kube-system/bootstrap-token-<id>` with which a node asks for its
//! first certificate.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::app::App;
use crate::identity::{BOOTSTRAPPERS, Identity};

const SECRET_TYPE: &str = "bootstrap.kubernetes.io/token";

/// `<id>.<secret>`: six and sixteen of `[a-z0-9]`.
pub fn has_form(token: &str) -> bool {
    let part = |text: &str, length: usize| {
        text.len() == length && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    };
    token.split_once('.').is_some_and(|(id, secret)| part(id, 6) && part(secret, 16))
}

/// Whether two secrets are equal, in a time that does not tell where they differ.
fn equal(a: &[u8], b: &[u8]) -> bool {
    let mut difference = a.len() ^ b.len();
    for (x, y) in a.iter().zip(b) {
        difference |= usize::from(x ^ y);
    }
    std::hint::black_box(difference) == 0
}

pub fn authenticate(app: &App, token: &str) -> Option<Identity> {
    let (id, secret) = token.split_once('.')?;
    let object = app.find("", "secrets", "kube-system", &format!("bootstrap-token-{id}"))?.value();
    let data = |key: &str| -> Option<String> {
        let encoded = object.get("data")?.get(key)?.as_str()?;
        String::from_utf8(STANDARD.decode(encoded).ok()?).ok()
    };
    let refused = |reason: &str| {
        tracing::debug!(id, reason, "bootstrap token refused");
        None
    };
    if object.get("type").and_then(Value::as_str) != Some(SECRET_TYPE) {
        return refused("the secret is of another type");
    }
    if object.pointer("/metadata/deletionTimestamp").is_some() {
        return refused("the secret is being deleted");
    }
    if !equal(data("token-secret")?.as_bytes(), secret.as_bytes()) || data("token-id")? != id {
        return refused("it does not match");
    }
    if let Some(expiration) = data("expiration") {
        match expiration.parse::<jiff::Timestamp>() {
            Ok(at) if at > app.now() => {}
            Ok(_) => return refused("it has expired"),
            Err(_) => return refused("its expiration is not a time"),
        }
    }
    if data("usage-bootstrap-authentication").as_deref() != Some("true") {
        return refused("it is not meant for authentication");
    }
    let extra = data("auth-extra-groups").unwrap_or_default();
    let extra = extra.split(',').map(str::trim).filter(|group| group.starts_with("system:bootstrappers:"));
    let groups = std::iter::once(BOOTSTRAPPERS).chain(extra).map(str::to_owned).collect::<Vec<_>>();
    Some(Identity::new(format!("system:bootstrap:{id}"), groups))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn form_of_a_token() {
        assert!(has_form("abcdef.0123456789abcdef"));
        for wrong in ["abcdef", "abcde.0123456789abcdef", "ABCDEF.0123456789abcdef", "abcdef.0123456789abcde", "a.b.c"]
        {
            assert!(!has_form(wrong), "{wrong}");
        }
    }

    #[test]
    fn equality() {
        assert!(equal(b"abc", b"abc"));
        assert!(!equal(b"abc", b"abd"));
        assert!(!equal(b"abc", b"abcd"));
        assert!(!equal(b"", b"a"));
    }
}
