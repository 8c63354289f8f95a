//! What this node made on the machine, written down before it is made.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::files;
use crate::mode::Mode;
use crate::namespace;
use crate::netlink::{Mac, Netlink, Route, Tunnel};
use crate::services::nft;

const VERSION: u64 = 1;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TenantRecord {
    /// The link's name on the machine, and what tells it from another of that name.
    pub(crate) link: String,
    pub(crate) mac: Mac,
    pub(crate) peer_mac: Mac,
}

/// The device of the tunnels to other nodes, and which there are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OverlayRecord {
    pub(crate) link: String,
    pub(crate) mac: Mac,
    pub(crate) tunnels: BTreeMap<Ipv4Net, Tunnel>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Content {
    version: u64,
    /// The machine's start and the network namespace in which all this is.
    boot: String,
    namespace: u64,
    /// Whose it is: another owner in the same directory begins anew.
    owner: Owner,
    routes: BTreeSet<Route>,
    tenants: BTreeMap<String, TenantRecord>,
    tables: BTreeSet<String>,
    #[serde(default)]
    overlay: Option<OverlayRecord>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Owner {
    pub(crate) cluster_id: String,
    pub(crate) node_name: String,
    pub(crate) mode: Mode,
    pub(crate) pod_cidr: String,
    pub(crate) cluster_cidr: String,
    pub(crate) service_cidr: String,
}

/// What [`clean`] took away.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    pub namespaces: usize,
    pub links: usize,
    pub routes: usize,
    pub tables: usize,
}

pub(crate) struct Records {
    dir: PathBuf,
    content: Content,
}

fn records_file(dir: &Path) -> PathBuf {
    dir.join("made.json")
}

pub(crate) fn addresses_file(dir: &Path) -> PathBuf {
    dir.join("addresses.json")
}

/// The file that holds a tenant's network namespace.
pub(crate) fn namespace_file(dir: &Path, tenant: &str) -> PathBuf {
    dir.join("netns").join(tenant)
}

impl Records {
    /// The records of an earlier process of the same owner. Another's are worked off first.
    pub(crate) async fn open(dir: &Path, owner: Owner) -> Result<Self> {
        std::fs::create_dir_all(dir.join("netns")).map_err(Error::file("make", dir))?;
        if let Some(content) = files::read::<Content>(&records_file(dir), VERSION)? {
            if content.owner == owner && content.is_here()? {
                return Ok(Self { dir: dir.to_owned(), content });
            }
            let removed = clean(dir).await?;
            tracing::info!(?removed, dir = %dir.display(), "removed what another cluster left");
        }
        let content = Content {
            version: VERSION,
            boot: namespace::boot()?,
            namespace: namespace::current()?,
            owner,
            routes: BTreeSet::new(),
            tenants: BTreeMap::new(),
            tables: BTreeSet::new(),
            overlay: None,
        };
        let records = Self { dir: dir.to_owned(), content };
        records.save()?;
        Ok(records)
    }

    fn save(&self) -> Result<()> {
        files::write(&records_file(&self.dir), &self.content)
    }

    pub(crate) fn tenants(&self) -> &BTreeMap<String, TenantRecord> {
        &self.content.tenants
    }

    pub(crate) fn routes(&self) -> &BTreeSet<Route> {
        &self.content.routes
    }

    pub(crate) fn add_route(&mut self, route: &Route) -> Result<()> {
        if self.content.routes.insert(route.clone()) {
            self.save()?;
        }
        Ok(())
    }

    pub(crate) fn remove_route(&mut self, route: &Route) -> Result<()> {
        if self.content.routes.remove(route) {
            self.save()?;
        }
        Ok(())
    }

    pub(crate) fn add_tenant(&mut self, name: &str, record: TenantRecord) -> Result<()> {
        self.content.tenants.insert(name.to_owned(), record);
        self.save()
    }

    pub(crate) fn remove_tenant(&mut self, name: &str) -> Result<()> {
        if self.content.tenants.remove(name).is_some() {
            self.save()?;
        }
        Ok(())
    }

    pub(crate) fn add_table(&mut self, name: &str) -> Result<()> {
        if self.content.tables.insert(name.to_owned()) {
            self.save()?;
        }
        Ok(())
    }

    pub(crate) fn remove_table(&mut self, name: &str) -> Result<()> {
        if self.content.tables.remove(name) {
            self.save()?;
        }
        Ok(())
    }

    pub(crate) fn overlay(&self) -> Option<&OverlayRecord> {
        self.content.overlay.as_ref()
    }

    pub(crate) fn set_overlay(&mut self, overlay: Option<OverlayRecord>) -> Result<()> {
        if self.content.overlay != overlay {
            self.content.overlay = overlay;
            self.save()?;
        }
        Ok(())
    }

    pub(crate) fn tables(&self) -> &BTreeSet<String> {
        &self.content.tables
    }
}

impl Content {
    fn is_here(&self) -> Result<bool> {
        Ok(self.boot == namespace::boot()? && self.namespace == namespace::current()?)
    }
}

/// Removes the link that a record tells of, if it is still that one.
pub(crate) async fn remove_link(netlink: &Netlink, name: &str, mac: Mac) -> Result<bool> {
    match netlink.link(name).await? {
        Some(link) if link.mac == mac => netlink.delete_link(link.index).await,
        _ => Ok(false),
    }
}

/// Removes what a process that worked on `dir` made and left: what its records say, nothing else.
/// Which pod holds which address is forgotten too. Nothing of it may be running.
pub async fn clean(dir: &Path) -> Result<Removed> {
    let mut removed = Removed::default();
    let path = records_file(dir);
    if let Some(content) = files::read::<Content>(&path, VERSION)? {
        let same_boot = content.boot == namespace::boot()?;
        if same_boot && content.namespace != namespace::current()? {
            return Err(Error::Elsewhere { path });
        }
        if same_boot && content.owner.mode == Mode::Privileged {
            let netlink = Netlink::here()?;
            // Tables first: a Service must not lead anywhere while its guard goes.
            for table in &content.tables {
                removed.tables += usize::from(nft::delete_table(table).await?);
            }
            for record in content.tenants.values() {
                removed.links += usize::from(remove_link(&netlink, &record.link, record.mac).await?);
            }
            if let Some(overlay) = &content.overlay {
                // Its routes and tunnels go with it.
                removed.links += usize::from(remove_link(&netlink, &overlay.link, overlay.mac).await?);
            }
            for route in &content.routes {
                removed.routes += usize::from(netlink.delete_route(route).await?);
            }
        }
        for tenant in content.tenants.keys() {
            removed.namespaces += usize::from(namespace::remove(&namespace_file(dir, tenant))?);
        }
    }
    files::remove(&path)?;
    files::remove(&addresses_file(dir))?;
    // Empty by now; what somebody else put there stays.
    let _ = std::fs::remove_dir(dir.join("netns"));
    Ok(removed)
}
