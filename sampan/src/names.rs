//! The forms of names that are checked here because they are needed before a server could say so.

/// Lower-case letters, digits and `-`, at most 63, with neither end a `-`.
pub fn is_dns_label(name: &str) -> bool {
    let bytes = name.as_bytes();
    let alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    bytes.len() <= 63
        && bytes.first().is_some_and(alphanumeric)
        && bytes.last().is_some_and(alphanumeric)
        && bytes.iter().all(|byte| alphanumeric(byte) || *byte == b'-')
}

/// Labels joined by dots, at most 253.
pub fn is_dns_subdomain(name: &str) -> bool {
    name.len() <= 253 && name.split('.').all(is_dns_label)
}

/// A label that begins with a letter, as a Service's name has to.
pub fn is_service_name(name: &str) -> bool {
    is_dns_label(name) && name.starts_with(|first: char| first.is_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_nodes() {
        for good in ["a", "a-1.b", "0"] {
            assert!(is_dns_subdomain(good), "{good}");
        }
        for bad in ["", "A", "a_b", "-a", "a-", "a..b", "a."] {
            assert!(!is_dns_subdomain(bad), "{bad}");
        }
    }

    #[test]
    fn names_of_services() {
        assert!(is_service_name("a-1") && is_service_name(&"a".repeat(63)));
        for bad in ["", "1a", "a.b", "A", "a-", &"a".repeat(64)] {
            assert!(!is_service_name(bad), "{bad}");
        }
    }
}
