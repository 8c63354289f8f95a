//! The cluster's keys: its certificate authority, the server's certificate and the key that signs
//! service account tokens. Made once, kept in `DIR/pki`, private keys readable by the owner only.

use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType, DnValue,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SerialNumber,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::identity::{Identity, MASTERS, NODES};

/// How long a certificate lives.
const CA_DAYS: i64 = 3650;
const LEAF_DAYS: i64 = 365;
/// Tolerated difference of clocks.
const BACKDATED: i64 = 3600;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path}: {source}")]
    File { path: PathBuf, source: std::io::Error },
    #[error("{path} is damaged ({reason}); restore it, or remove the whole pki directory to begin anew")]
    Damaged { path: PathBuf, reason: String },
    #[error("certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    #[error("TLS: {0}")]
    Tls(String),
    #[error("{0}")]
    Request(String),
}

/// A certificate (with its chain) and key, both PEM.
pub type CertificateAndKey = (String, String);

pub struct Pki {
    ca_pem: String,
    ca_der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    /// PKCS#8 PEM of the key that signs service account tokens (P-256).
    pub token_key_pem: String,
    pub token_public_pem: String,
}

impl Pki {
    /// Reads the keys in `dir`, making what is not there yet.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        fs::create_dir_all(dir).map_err(|source| Error::File { path: dir.to_owned(), source })?;
        let _ = fs::set_permissions(dir, fs::Permissions::from_mode(0o700));
        let key_path = dir.join("ca.key");
        let cert_path = dir.join("ca.crt");
        let (key, ca_pem) = match (read(&key_path)?, read(&cert_path)?) {
            (Some(key), Some(cert)) => {
                let key = KeyPair::from_pem(&key)
                    .map_err(|e| Error::Damaged { path: key_path.clone(), reason: e.to_string() })?;
                (key, cert)
            }
            // A key alone has signed nothing yet: the certificate is written last.
            (_, None) => {
                let key = KeyPair::generate()?;
                let params = ca_params()?;
                let cert = params.self_signed(&key)?.pem();
                write(&key_path, &key.serialize_pem(), 0o600)?;
                write(&cert_path, &cert, 0o644)?;
                (key, cert)
            }
            (None, Some(_)) => {
                return Err(Error::Damaged { path: key_path, reason: "missing beside ca.crt".to_owned() });
            }
        };
        let damaged = |reason: String| Error::Damaged { path: cert_path.clone(), reason };
        let ca_der = CertificateDer::from_pem_slice(ca_pem.as_bytes()).map_err(|e| damaged(e.to_string()))?;
        {
            let (_, parsed) = X509Certificate::from_der(&ca_der).map_err(|e| damaged(e.to_string()))?;
            if parsed.public_key().subject_public_key.data.as_ref() != key.der_bytes() {
                return Err(damaged("its key is not that of ca.key".to_owned()));
            }
        }
        let issuer = Issuer::from_ca_cert_pem(&ca_pem, key).map_err(|e| damaged(e.to_string()))?;
        let token_path = dir.join("service-account.key");
        let token_key = match read(&token_path)? {
            Some(pem) => KeyPair::from_pem(&pem)
                .map_err(|e| Error::Damaged { path: token_path.clone(), reason: e.to_string() })?,
            None => {
                let key = KeyPair::generate()?;
                write(&token_path, &key.serialize_pem(), 0o600)?;
                key
            }
        };
        Ok(Self {
            ca_pem,
            ca_der,
            issuer,
            token_key_pem: token_key.serialize_pem(),
            token_public_pem: token_key.public_key_pem(),
        })
    }

    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// SHA-256 of the CA, in hex: what a join token pins.
    pub fn ca_hash(&self) -> String {
        Sha256::digest(&self.ca_der).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The server's own certificate, for these names and addresses.
    fn server_certificate(&self, names: &[String], addresses: &[IpAddr]) -> Result<CertificateAndKey, Error> {
        let all: Vec<String> = names.iter().cloned().chain(addresses.iter().map(IpAddr::to_string)).collect();
        let mut params = CertificateParams::new(all)?;
        params.distinguished_name = subject("kube-apiserver", &[]);
        self.leaf(params, &[ExtendedKeyUsagePurpose::ServerAuth])
    }

    /// A client certificate for a user in at most one group: a name holds one organisation here.
    pub fn client_certificate(&self, user: &str, groups: &[&str]) -> Result<CertificateAndKey, Error> {
        if groups.len() > 1 {
            return Err(Error::Request(format!("a client certificate names one group at most, not {groups:?}")));
        }
        let mut params = CertificateParams::default();
        params.distinguished_name = subject(user, groups);
        self.leaf(params, &[ExtendedKeyUsagePurpose::ClientAuth])
    }

    fn leaf(
        &self,
        mut params: CertificateParams,
        usages: &[ExtendedKeyUsagePurpose],
    ) -> Result<CertificateAndKey, Error> {
        let key = KeyPair::generate()?;
        limit(&mut params, usages)?;
        let cert = params.signed_by(&key, &self.issuer)?;
        Ok((cert.pem(), key.serialize_pem()))
    }

    /// Signs a node's request. Only the key and the addresses of the request are taken: what the
    /// certificate says of its holder is decided here.
    pub fn sign_node(&self, request_pem: &str) -> Result<(String, String), Error> {
        let request = CertificateSigningRequestParams::from_pem(request_pem)
            .map_err(|e| Error::Request(format!("body: not a PEM certificate request: {e}")))?;
        let text = |kind: DnType| match request.params.distinguished_name.get(&kind) {
            Some(DnValue::Utf8String(text)) => Some(text.clone()),
            Some(DnValue::PrintableString(text)) => Some(text.as_str().to_owned()),
            _ => None,
        };
        let user = text(DnType::CommonName).unwrap_or_default();
        let name = user.strip_prefix("system:node:").unwrap_or_default().to_owned();
        if name.is_empty() || text(DnType::OrganizationName).as_deref() != Some(NODES) {
            return Err(Error::Request(format!(
                "the request's subject must be CN=system:node:NAME, O={NODES}; its common name is {user:?}"
            )));
        }
        let mut params = CertificateParams::default();
        params.distinguished_name = subject(&user, &[NODES]);
        params.subject_alt_names = request.params.subject_alt_names;
        limit(&mut params, &[ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth])?;
        let cert = params.signed_by(&request.public_key, &self.issuer)?;
        Ok((name, format!("{}{}", cert.pem(), self.ca_pem)))
    }

    fn roots(&self) -> Result<Arc<RootCertStore>, Error> {
        let mut roots = RootCertStore::empty();
        roots.add(self.ca_der.clone()).map_err(|e| Error::Tls(e.to_string()))?;
        Ok(Arc::new(roots))
    }

    /// TLS for the listener: client certificates are taken, not demanded.
    pub fn server_tls(&self, names: &[String], addresses: &[IpAddr]) -> Result<ServerConfig, Error> {
        let (chain, key) = parse(&self.server_certificate(names, addresses)?)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = |e: rustls::Error| Error::Tls(e.to_string());
        let verifier = WebPkiClientVerifier::builder_with_provider(self.roots()?, provider.clone())
            .allow_unauthenticated()
            .build()
            .map_err(|e| Error::Tls(e.to_string()))?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(tls)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .map_err(tls)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }

    /// TLS for calls to nodes: only this CA is trusted, and the server shows who it is.
    pub fn node_tls(&self) -> Result<ClientConfig, Error> {
        let (chain, key) = parse(&self.client_certificate("system:kube-apiserver", &[MASTERS])?)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = |e: rustls::Error| Error::Tls(e.to_string());
        ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(tls)?
            .with_root_certificates(self.roots()?)
            .with_client_auth_cert(chain, key)
            .map_err(tls)
    }
}

/// Who a verified client certificate says it is.
pub fn identity_of(certificate: &CertificateDer<'_>) -> Option<Identity> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let subject = parsed.subject();
    let user = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    let groups: Vec<String> =
        subject.iter_organization().filter_map(|it| it.as_str().ok()).map(str::to_owned).collect();
    (!user.is_empty()).then(|| Identity::new(user, groups))
}

fn parse((cert, key): &CertificateAndKey) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), Error> {
    let chain = CertificateDer::pem_slice_iter(cert.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|e| Error::Tls(e.to_string()))?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|e| Error::Tls(e.to_string()))?;
    Ok((chain, key))
}

fn subject(user: &str, groups: &[&str]) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    for group in groups {
        name.push(DnType::OrganizationName, *group);
    }
    name.push(DnType::CommonName, user);
    name
}

fn ca_params() -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = subject("sampan-ca", &[]);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    validity(&mut params, CA_DAYS)?;
    Ok(params)
}

fn limit(params: &mut CertificateParams, usages: &[ExtendedKeyUsagePurpose]) -> Result<(), Error> {
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = usages.to_vec();
    params.use_authority_key_identifier_extension = true;
    validity(params, LEAF_DAYS)
}

fn validity(params: &mut CertificateParams, days: i64) -> Result<(), Error> {
    let now = std::time::SystemTime::now();
    let second = |seconds: i64| std::time::Duration::from_secs(seconds.unsigned_abs());
    params.not_before = (now - second(BACKDATED)).into();
    params.not_after = (now + second(days * 86400)).into();
    let serial: [u8; 16] = rand::random();
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(())
}

fn read(path: &Path) -> Result<Option<String>, Error> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::File { path: path.to_owned(), source }),
    }
}

/// Writes a file so that it is there whole or not at all.
pub fn write(path: &Path, text: &str, mode: u32) -> Result<(), Error> {
    let file_error = |source| Error::File { path: path.to_owned(), source };
    let temporary = path.with_extension(format!("tmp-{}", std::process::id()));
    let _ = fs::remove_file(&temporary);
    let mut file =
        fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary).map_err(file_error)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(file_error)?;
    fs::rename(&temporary, path).map_err(file_error)?;
    if let Some(parent) = path.parent()
        && let Ok(dir) = fs::File::open(parent)
    {
        dir.sync_all().map_err(file_error)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn keys_are_made_once_and_kept_from_others() {
        let dir = tempfile::tempdir().unwrap();
        let first = Pki::open(dir.path()).unwrap();
        let again = Pki::open(dir.path()).unwrap();
        assert_eq!(first.ca_pem(), again.ca_pem());
        assert_eq!(first.token_public_pem, again.token_public_pem);
        for name in ["ca.key", "service-account.key"] {
            let mode = fs::metadata(dir.path().join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
    }

    #[test]
    fn a_key_that_is_not_the_certificates_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        drop(Pki::open(dir.path()).unwrap());
        write(&dir.path().join("ca.key"), &KeyPair::generate().unwrap().serialize_pem(), 0o600).unwrap();
        assert!(matches!(Pki::open(dir.path()), Err(Error::Damaged { .. })));
        fs::write(dir.path().join("ca.crt"), "rubbish").unwrap();
        assert!(matches!(Pki::open(dir.path()), Err(Error::Damaged { .. })));
        fs::remove_file(dir.path().join("ca.crt")).unwrap();
        fs::remove_file(dir.path().join("ca.key")).unwrap();
        assert!(Pki::open(dir.path()).is_ok());
    }

    #[test]
    fn a_certificate_says_who_its_holder_is() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::open(dir.path()).unwrap();
        let (cert, _) = pki.client_certificate("system:node:a", &[NODES]).unwrap();
        let der = CertificateDer::from_pem_slice(cert.as_bytes()).unwrap();
        let identity = identity_of(&der).unwrap();
        assert_eq!(identity.node_name(), Some("a"));
        assert!(pki.client_certificate("x", &["a", "b"]).is_err());
        assert_eq!(pki.ca_hash().len(), 64);
    }
}
