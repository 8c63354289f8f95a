//! Tokens of service accounts: signed here, bound to the account and, where asked for, to a pod or
//! secret whose end is theirs.

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::app::App;
use crate::identity::{Identity, SERVICE_ACCOUNTS};
use crate::pki::Pki;

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Reference {
    pub name: String,
    pub uid: String,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Bound {
    pub namespace: String,
    pub serviceaccount: Reference,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Reference>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<Reference>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Reference>,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Claims {
    pub aud: Vec<String>,
    pub exp: i64,
    pub iat: i64,
    pub iss: String,
    pub jti: String,
    #[serde(rename = "kubernetes.io")]
    pub bound: Bound,
    pub nbf: i64,
    pub sub: String,
}

pub struct Tokens {
    issuer: String,
    key_id: String,
    signing: EncodingKey,
    verifying: DecodingKey,
}

impl Tokens {
    pub fn new(pki: &Pki, issuer: String) -> Result<Self, jsonwebtoken::errors::Error> {
        let hash = Sha256::digest(pki.token_public_pem.as_bytes());
        Ok(Self {
            issuer,
            key_id: hash.iter().take(16).map(|byte| format!("{byte:02x}")).collect(),
            signing: EncodingKey::from_ec_pem(pki.token_key_pem.as_bytes())?,
            verifying: DecodingKey::from_ec_pem(pki.token_public_pem.as_bytes())?,
        })
    }

    /// Who issues the tokens, and the audience of those meant for this server.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// Signs a token that holds for `seconds` from `now`.
    pub fn issue(
        &self,
        bound: Bound,
        audiences: Vec<String>,
        now: i64,
        seconds: i64,
    ) -> Result<String, jsonwebtoken::errors::Error> {
        let claims = Claims {
            aud: audiences,
            exp: now.saturating_add(seconds),
            iat: now,
            iss: self.issuer.clone(),
            jti: uuid::Uuid::new_v4().to_string(),
            sub: format!("system:serviceaccount:{}:{}", bound.namespace, bound.serviceaccount.name),
            bound,
            nbf: now,
        };
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(self.key_id.clone());
        header.typ = None;
        jsonwebtoken::encode(&header, &claims, &self.signing)
    }

    /// The identity of a token meant for one of `audiences`, and which of them it is for. All that it
    /// is bound to must still be there.
    pub fn verify(&self, app: &App, token: &str, audiences: &[&str]) -> Result<(Identity, Vec<String>), String> {
        let mut validation = Validation::new(Algorithm::ES256);
        validation.set_issuer(&[&self.issuer]);
        validation.set_required_spec_claims(&["exp", "iss", "sub"]);
        // Time is the server's clock, audience its own rule: both checked below.
        validation.validate_exp = false;
        validation.validate_nbf = false;
        validation.validate_aud = false;
        let claims = jsonwebtoken::decode::<Claims>(token, &self.verifying, &validation)
            .map_err(|error| error.to_string())?
            .claims;
        let now = app.now().as_second();
        if claims.exp <= now {
            return Err("token has expired".to_owned());
        }
        // A node's clock may be a little behind.
        if claims.nbf > now + 60 {
            return Err("token is not valid yet".to_owned());
        }
        let shared: Vec<String> =
            claims.aud.iter().filter(|audience| audiences.contains(&audience.as_str())).cloned().collect();
        if shared.is_empty() {
            return Err(format!("token audiences {:?} is invalid for the target audiences {audiences:?}", claims.aud));
        }
        let Bound { namespace, serviceaccount, pod, secret, node } = &claims.bound;
        let expected = format!("system:serviceaccount:{namespace}:{}", serviceaccount.name);
        if claims.sub != expected {
            return Err("subject and service account differ".to_owned());
        }
        let alive = |resource: &str, reference: &Reference| {
            let object = app.find("", resource, namespace, &reference.name);
            match object {
                Some(object) if *object.uid == *reference.uid => {
                    match deleted_at(&object.value()) {
                        // A pod that is ending may still use its token for a minute.
                        Some(at) if at + 60 < now => Err(format!("{resource} {} has been deleted", reference.name)),
                        _ => Ok(()),
                    }
                }
                Some(_) => Err(format!("{resource} {} is another one now", reference.name)),
                None => Err(format!("{resource} {} has been deleted", reference.name)),
            }
        };
        alive("serviceaccounts", serviceaccount)?;
        if let Some(pod) = pod {
            alive("pods", pod)?;
        }
        if let Some(secret) = secret {
            alive("secrets", secret)?;
        }
        let mut identity =
            Identity::new(claims.sub.clone(), [SERVICE_ACCOUNTS.to_owned(), format!("{SERVICE_ACCOUNTS}:{namespace}")]);
        identity.uid.clone_from(&serviceaccount.uid);
        let mut extra = |key: &str, value: &str| {
            identity.extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value.to_owned()]);
        };
        extra("credential-id", &format!("JTI={}", claims.jti));
        if let Some(pod) = pod {
            extra("pod-name", &pod.name);
            extra("pod-uid", &pod.uid);
        }
        if let Some(node) = node {
            extra("node-name", &node.name);
            extra("node-uid", &node.uid);
        }
        Ok((identity, shared))
    }
}

/// Seconds since 1970 of an object's deletionTimestamp.
fn deleted_at(object: &Value) -> Option<i64> {
    let text = object.pointer("/metadata/deletionTimestamp")?.as_str()?;
    text.parse::<jiff::Timestamp>().ok().map(jiff::Timestamp::as_second)
}
