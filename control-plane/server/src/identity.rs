//! Who makes a request.

use std::collections::BTreeMap;

/// The group of those whom no authorization rule binds.
pub const MASTERS: &str = "system:masters";
pub const NODES: &str = "system:nodes";
pub const AUTHENTICATED: &str = "system:authenticated";
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
pub const BOOTSTRAPPERS: &str = "system:bootstrappers";
pub const SERVICE_ACCOUNTS: &str = "system:serviceaccounts";

/// An authenticated user (or the anonymous one).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    pub user: String,
    pub groups: Vec<String>,
    pub uid: String,
    pub extra: BTreeMap<String, Vec<String>>,
}

impl Identity {
    /// A user with these groups, and those of every authenticated one.
    pub fn new<G: Into<String>>(user: impl Into<String>, groups: impl IntoIterator<Item = G>) -> Self {
        let mut groups: Vec<String> = groups.into_iter().map(Into::into).collect();
        if !groups.iter().any(|group| group == AUTHENTICATED) {
            groups.push(AUTHENTICATED.to_owned());
        }
        Self { user: user.into(), groups, ..Self::default() }
    }

    pub fn anonymous() -> Self {
        Self { user: "system:anonymous".to_owned(), groups: vec![UNAUTHENTICATED.to_owned()], ..Self::default() }
    }

    /// The administrator: `kubernetes-admin` in `system:masters`.
    pub fn admin() -> Self {
        Self::new("kubernetes-admin", [MASTERS])
    }

    pub fn scheduler() -> Self {
        Self::new("system:kube-scheduler", [] as [&str; 0])
    }

    pub fn controller_manager() -> Self {
        Self::new("system:kube-controller-manager", [] as [&str; 0])
    }

    pub fn node(name: &str) -> Self {
        Self::new(format!("system:node:{name}"), [NODES])
    }

    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|own| own == group)
    }

    /// The node's name, where a node asks.
    pub fn node_name(&self) -> Option<&str> {
        self.in_group(NODES).then(|| self.user.strip_prefix("system:node:")).flatten()
    }
}
