use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::{IpNet, Ipv4Net};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{what} {range} is not an IPv4 range")]
    NotIpv4 { what: &'static str, range: String },
    #[error("{what} {range} is not within {within}: {why}")]
    RangeOutside { what: &'static str, range: IpNet, within: String, why: &'static str },
    #[error("the cluster range {cluster} and the Service range {service} overlap: choose ranges that do not")]
    RangesOverlap { cluster: Ipv4Net, service: Ipv4Net },
    #[error("{what} {range} overlaps with {other}, which this machine already routes {how}: choose another range")]
    RangeInUse { what: &'static str, range: Ipv4Net, other: Ipv4Net, how: String },
    #[error("no pod address is left in {range}: {taken} are held")]
    Exhausted { range: Ipv4Net, taken: usize },
    #[error("{0:?} cannot be a tenant: a namespace's name is 1 to 63 characters of a-z, 0-9 and -")]
    TenantName(String),
    #[error("cannot {doing} {}: {error}", path.display())]
    File { doing: &'static str, path: PathBuf, error: io::Error },
    #[error("{} is not what it should be: {why}", path.display())]
    Corrupt { path: PathBuf, why: String },
    #[error("{} has format {found}; this version knows {known}", path.display())]
    Version { path: PathBuf, found: u64, known: u64 },
    #[error("{} tells of things made in another network namespace; only there can they be removed", path.display())]
    Elsewhere { path: PathBuf },
    #[error("cannot {doing}: {error}")]
    Netlink { doing: String, error: rtnetlink::Error },
    #[error("cannot {doing}: {error}")]
    System { doing: String, error: io::Error },
    #[error("nft refused {doing}: {message}")]
    Nft { doing: &'static str, message: String },
    #[error("cluster DNS cannot listen at {address}: {error}")]
    Dns { address: IpAddr, error: io::Error },
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn file(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::File { doing, path: path.to_owned(), error }
    }

    pub(crate) fn system(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::System { doing: doing.into(), error }
    }
}
