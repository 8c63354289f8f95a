//! A container's `/etc/resolv.conf` and `/etc/hosts`, which a guest cannot read by itself: its
//! lookups are answered by the host.

use sampan_wasm::proto::{ContainerSpec, HostAlias};

/// Takes over what both files say; what makes no sense in them is left out.
pub fn apply(spec: &mut ContainerSpec, resolv: &str, hosts: &str) {
    for line in resolv.lines() {
        let mut words = line.split(['#', ';']).next().unwrap_or_default().split_whitespace();
        match words.next() {
            Some("nameserver") => {
                let server = words.next().filter(|text| text.parse::<std::net::IpAddr>().is_ok());
                spec.nameservers.extend(server.map(ToOwned::to_owned));
            }
            Some("search" | "domain") => spec.search_domains = words.map(ToOwned::to_owned).collect(),
            Some("options") => {
                let ndots = words.find_map(|word| word.strip_prefix("ndots:")?.parse().ok());
                spec.ndots = ndots.unwrap_or(spec.ndots);
            }
            _ => {}
        }
    }
    for line in hosts.lines() {
        let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
        let address = words.next().filter(|text| text.parse::<std::net::IpAddr>().is_ok());
        if let Some(address) = address {
            let names: Vec<String> = words.map(ToOwned::to_owned).collect();
            spec.host_aliases.push(HostAlias { address: address.into(), names });
        }
    }
    // As the C library has it; the host's own default is Kubernetes'.
    if spec.ndots == 0 {
        spec.ndots = 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_files_are_taken_over() {
        let mut spec = ContainerSpec::default();
        let resolv =
            "# kubelet\nsearch a.svc b.svc\nnameserver 10.43.0.10\nnameserver nonsense\noptions ndots:5 edns0\n";
        apply(&mut spec, resolv, "10.42.0.7\tweb-0 web # me\nnot an address\n");
        assert_eq!(spec.nameservers, ["10.43.0.10"]);
        assert_eq!((spec.search_domains.as_slice(), spec.ndots), (&["a.svc".to_owned(), "b.svc".into()][..], 5));
        assert_eq!(spec.host_aliases.len(), 1);
        assert_eq!(
            spec.host_aliases.first().map(|alias| alias.names.clone()),
            Some(vec!["web-0".into(), "web".into()])
        );
        let mut empty = ContainerSpec::default();
        apply(&mut empty, "", "");
        assert_eq!(empty.ndots, 1);
    }
}
