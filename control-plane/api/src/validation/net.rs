//! Addresses and ports.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::RwLock;

use super::field::{Field, Path, quote};
use super::names::{is_dns_subdomain, max_length};
use crate::error::FieldErrors;

/// Ranges within 127.0.0.0/8 that hold the cluster's own pods and Services, as an ordinary user runs it.
static LOOPBACK_RANGES: RwLock<Vec<(u32, u32)>> = RwLock::new(Vec::new());

/// Takes endpoints within a loopback range that the cluster uses for its pods.
pub fn allow_loopback(network: Ipv4Addr, prefix: u8) {
    let mask = u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0);
    let entry = (u32::from(network) & mask, mask);
    if let Ok(mut ranges) = LOOPBACK_RANGES.write()
        && !ranges.contains(&entry)
    {
        ranges.push(entry);
    }
}

fn is_clusters_own(ip: IpAddr) -> bool {
    let IpAddr::V4(ip) = ip else { return false };
    let Ok(ranges) = LOOPBACK_RANGES.read() else {
        return false;
    };
    ranges.iter().any(|(network, mask)| u32::from(ip) & mask == *network)
}

/// An address; leading zeros in IPv4 are borne with, as the reference does.
pub fn parse_ip(text: &str) -> Option<IpAddr> {
    if let Ok(ip) = text.parse() {
        return Some(ip);
    }
    let mut octets = [0; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next().filter(|part| !part.is_empty() && part.bytes().all(|c| c.is_ascii_digit()))?;
        let digits = part.trim_start_matches('0');
        *octet = if digits.is_empty() { 0 } else { digits.parse().ok()? };
    }
    parts.next().is_none().then(|| IpAddr::V4(Ipv4Addr::from(octets)))
}

pub fn is_ipv6(text: &str) -> bool {
    matches!(parse_ip(text), Some(IpAddr::V6(_)))
}

/// An address and the length of its network's prefix.
pub fn parse_cidr(text: &str) -> Option<(IpAddr, u8)> {
    let (ip, prefix) = text.split_once('/')?;
    let ip = parse_ip(ip)?;
    let limit = if ip.is_ipv4() { 32 } else { 128 };
    let prefix: u8 = prefix.parse().ok().filter(|prefix| *prefix <= limit)?;
    Some((ip, prefix))
}

/// Tells what is wrong with an address; true where nothing is.
pub fn valid_ip(path: &Path, text: &str, errors: &mut FieldErrors) -> bool {
    let valid = parse_ip(text).is_some();
    if !valid {
        errors.invalid_str(path, text, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)");
    }
    valid
}

pub fn valid_cidr(path: &Path, text: &str, errors: &mut FieldErrors) -> bool {
    let valid = parse_cidr(text).is_some();
    if !valid {
        errors.invalid_str(path, text, "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)");
    }
    valid
}

/// Addresses that no endpoint may have.
pub fn not_special(path: &Path, text: &str, errors: &mut FieldErrors) {
    let Some(ip) = parse_ip(text) else {
        errors.invalid_str(path, text, "must be a valid IP address");
        return;
    };
    if ip.is_unspecified() {
        errors.invalid_str(path, text, format!("may not be unspecified ({text})"));
    }
    if ip.is_loopback() && !is_clusters_own(ip) {
        errors.invalid_str(path, text, "may not be in the loopback range (127.0.0.0/8, ::1/128)");
    }
    let (local, multicast) = match ip {
        IpAddr::V4(ip) => (ip.is_link_local(), matches!(ip.octets(), [224, 0, 0, _])),
        IpAddr::V6(ip) => (ip.segments()[0] & 0xffc0 == 0xfe80, ip.segments()[0] & 0xff0f == 0xff02),
    };
    if local {
        errors.invalid_str(path, text, "may not be in the link-local range (169.254.0.0/16, fe80::/10)");
    }
    if multicast {
        errors.invalid_str(path, text, "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)");
    }
}

/// Says that an address is accepted though it is not written the usual way.
pub fn warn_ip(field: &Field<'_>, warnings: &mut Vec<String>) {
    let text = field.str();
    let Some(ip) = parse_ip(text) else { return };
    let canonical = ip.to_string();
    let path = field.path();
    if ip.is_ipv4() && text != canonical {
        warnings.push(format!(
            "{path}: non-standard IP address {} will be considered invalid in a future Kubernetes release: use {}",
            quote(text),
            quote(&canonical)
        ));
    } else if text != canonical {
        warnings.push(format!(
            "{path}: IPv6 address {} should be in RFC 5952 canonical format ({})",
            quote(text),
            quote(&canonical)
        ));
    }
}

/// Whether there are at least two addresses, one of each family.
pub fn is_dual_stack<'a>(addresses: impl Iterator<Item = &'a str>) -> bool {
    let (mut v4, mut v6) = (false, false);
    for text in addresses {
        if is_ipv6(text.split('/').next().unwrap_or_default()) {
            v6 = true;
        } else {
            v4 = true;
        }
    }
    v4 && v6
}

pub fn port_number(path: &Path, port: i64, errors: &mut FieldErrors) {
    if !(1..=65535).contains(&port) {
        errors.invalid_int(path, port, "must be between 1 and 65535, inclusive");
    }
}

/// The form of a port's name (IANA_SVC_NAME).
pub fn is_port_name(name: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if name.len() > 15 {
        errors.push(max_length(15));
    }
    if name.is_empty() || !name.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-') {
        errors.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned());
    }
    if !name.bytes().any(|c| c.is_ascii_lowercase()) {
        errors.push("must contain at least one letter (a-z)".to_owned());
    }
    if name.contains("--") {
        errors.push("must not contain consecutive hyphens".to_owned());
    }
    if name.starts_with('-') || name.ends_with('-') {
        errors.push("must not begin or end with a hyphen".to_owned());
    }
    errors
}

pub fn is_fully_qualified(path: &Path, name: &str, errors: &mut FieldErrors) {
    if name.is_empty() {
        errors.required(path, "");
        return;
    }
    let name = name.strip_suffix('.').unwrap_or(name);
    let wrong = is_dns_subdomain(name);
    if !wrong.is_empty() {
        errors.invalid_all(path, name, wrong);
    } else if !name.contains('.') {
        errors.invalid_str(path, name, "should be a domain with at least two segments separated by dots");
    } else {
        for label in name.split('.').filter(|label| label.len() > 63) {
            errors.invalid_str(path, label, max_length(63));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        assert_eq!(parse_ip("010.0.0.01"), parse_ip("10.0.0.1"));
        assert_eq!(parse_ip("10.0.0"), None);
        assert_eq!(parse_ip("10.0.0.1.2"), None);
        assert_eq!(parse_ip("256.0.0.1"), None);
        assert!(is_ipv6("fd00::1"));
        assert!(parse_cidr("10.0.0.0/33").is_none());
    }

    #[test]
    fn special_addresses_but_the_clusters_own() {
        let wrong = |ip: &str| {
            let mut errors = FieldErrors::default();
            not_special(&Path::new("ip"), ip, &mut errors);
            errors.0.len()
        };
        for ip in ["0.0.0.0", "127.9.0.1", "169.254.1.1", "224.0.0.1", "fe80::1", "::1", "x"] {
            assert_eq!(wrong(ip), 1, "{ip}");
        }
        assert_eq!(wrong("10.1.2.3"), 0);
        allow_loopback(Ipv4Addr::new(127, 80, 0, 0), 16);
        assert_eq!((wrong("127.80.3.4"), wrong("127.81.0.1")), (0, 1));
    }
}
