//! Addresses and node ports of Services. What is taken is rebuilt from the Services at start; a
//! write takes what it needs before and gives it back when it fails.

mod bitmap;
mod update;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::sync::{Mutex, MutexGuard, PoisonError};

use ipnet::IpNet;
use sampan_api::{Error, FieldErrors, FieldReason};
use serde_json::{Map, Value, json};

use bitmap::Bitmap;

/// As many addresses of a range are used at most.
const MOST: usize = 1 << 16;
/// Where the cluster's DNS answers, counted from the start of the range: never given by chance.
pub const DNS_OFFSET: usize = 10;

pub struct Allocators {
    range: IpNet,
    ports: RangeInclusive<u16>,
    inner: Mutex<Inner>,
}

struct Inner {
    /// Bit n is the address n + 1: the range's own address is none.
    addresses: Bitmap,
    ports: Bitmap,
}

/// What a write has taken; given back unless it is kept.
#[must_use]
pub struct Taken<'a> {
    allocators: &'a Allocators,
    addresses: Vec<usize>,
    ports: Vec<usize>,
}

impl Taken<'_> {
    pub fn keep(mut self) {
        self.addresses.clear();
        self.ports.clear();
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if self.addresses.is_empty() && self.ports.is_empty() {
            return;
        }
        let mut inner = self.allocators.lock();
        for at in &self.addresses {
            inner.addresses.release(*at);
        }
        for at in &self.ports {
            inner.ports.release(*at);
        }
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

/// The address `offset` behind the start of a range.
pub fn nth(range: &IpNet, offset: usize) -> IpAddr {
    let at = number(range.network()) + offset as u128;
    match range {
        IpNet::V4(_) => IpAddr::V4(Ipv4Addr::from(u32::try_from(at).unwrap_or_default())),
        IpNet::V6(_) => IpAddr::V6(Ipv6Addr::from(at)),
    }
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn needs_address(service: &Value) -> bool {
    matches!(text(service, "/spec/type"), "" | "ClusterIP" | "NodePort" | "LoadBalancer")
}

fn needs_ports(service: &Value) -> bool {
    match text(service, "/spec/type") {
        "NodePort" => true,
        "LoadBalancer" => {
            service.pointer("/spec/allocateLoadBalancerNodePorts").and_then(Value::as_bool) != Some(false)
        }
        _ => false,
    }
}

fn needs_health_port(service: &Value) -> bool {
    text(service, "/spec/type") == "LoadBalancer" && text(service, "/spec/externalTrafficPolicy") == "Local"
}

fn addresses_of(service: &Value) -> Vec<&str> {
    let list = service.pointer("/spec/clusterIPs").and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_str).filter(|ip| *ip != "None" && !ip.is_empty()).collect()
}

/// Node ports of a service, the one for health checks last.
fn ports_of(service: &Value) -> Vec<i64> {
    let list = service.pointer("/spec/ports").and_then(Value::as_array);
    let ports = list.into_iter().flatten().filter_map(|port| port.get("nodePort").and_then(Value::as_i64));
    let health = service.pointer("/spec/healthCheckNodePort").and_then(Value::as_i64);
    let mut all: Vec<i64> = ports.chain(health).filter(|port| *port != 0).collect();
    all.sort_unstable();
    all.dedup();
    all
}

fn spec(service: &mut Value) -> Option<&mut Map<String, Value>> {
    service.get_mut("spec").and_then(Value::as_object_mut)
}

impl Allocators {
    pub fn new(range: IpNet, ports: RangeInclusive<u16>) -> Self {
        let host_bits = u32::from(range.max_prefix_len() - range.prefix_len());
        let all = 1usize.checked_shl(host_bits.min(17)).unwrap_or(MOST).min(MOST);
        // The first is the network, the last is where IPv4 broadcasts.
        let usable = all.saturating_sub(if range.addr().is_ipv4() { 2 } else { 1 });
        let count = usize::from(ports.end().saturating_sub(*ports.start())) + 1;
        let inner = Inner { addresses: Bitmap::new(usable), ports: Bitmap::new(count) };
        Self { range, ports, inner: Mutex::new(inner) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bit(&self, address: &str) -> Option<usize> {
        let address: IpAddr = address.parse().ok()?;
        if !self.range.contains(&address) {
            return None;
        }
        let offset = number(address).checked_sub(number(self.range.network()))?;
        usize::try_from(offset).ok()?.checked_sub(1)
    }

    fn port_bit(&self, port: i64) -> Option<usize> {
        let port = u16::try_from(port).ok()?;
        self.ports.contains(&port).then(|| usize::from(port - self.ports.start()))
    }

    /// Counts what a stored service has.
    pub fn occupy(&self, service: &Value) {
        let mut inner = self.lock();
        for at in addresses_of(service).into_iter().filter_map(|address| self.bit(address)) {
            inner.addresses.take(at);
        }
        for at in ports_of(service).into_iter().filter_map(|port| self.port_bit(port)) {
            inner.ports.take(at);
        }
    }

    /// Gives back what `old` had and `new` has not.
    pub fn release(&self, old: &Value, new: Option<&Value>) {
        let kept = new.map(addresses_of).unwrap_or_default();
        let kept_ports = new.map(ports_of).unwrap_or_default();
        let mut inner = self.lock();
        for address in addresses_of(old).into_iter().filter(|address| !kept.contains(address)) {
            if let Some(at) = self.bit(address) {
                inner.addresses.release(at);
            }
        }
        for port in ports_of(old).into_iter().filter(|port| !kept_ports.contains(port)) {
            if let Some(at) = self.port_bit(port) {
                inner.ports.release(at);
            }
        }
    }

    fn invalid(service: &Value, field: &str, message: String) -> Error {
        let mut errors = FieldErrors::default();
        errors.push(FieldReason::Invalid, field, message);
        Error::Invalid { kind: "Service".to_owned(), name: text(service, "/metadata/name").to_owned(), errors }
    }

    /// Families and policy of a service in a cluster of one family.
    fn families(&self, service: &mut Value) -> Result<(), Error> {
        let own = if self.range.addr().is_ipv4() { "IPv4" } else { "IPv6" };
        let policy = text(service, "/spec/ipFamilyPolicy").to_owned();
        let headless = text(service, "/spec/clusterIP") == "None";
        let selects = service.pointer("/spec/selector").and_then(Value::as_object).is_some_and(|map| !map.is_empty());
        let given: Vec<String> = service
            .pointer("/spec/ipFamilies")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect();
        if headless && !selects {
            // Nobody here answers for it: both families are allowed.
            let other = if own == "IPv4" { "IPv6" } else { "IPv4" };
            let policy = if policy.is_empty() { "RequireDualStack" } else { policy.as_str() };
            let mut families = if given.is_empty() { vec![own.to_owned()] } else { given };
            if policy != "SingleStack" && families.len() == 1 {
                let second = if families.first().is_some_and(|first| first == own) { other } else { own };
                families.push(second.to_owned());
            }
            if let Some(spec) = spec(service) {
                spec.insert("ipFamilyPolicy".to_owned(), policy.into());
                spec.insert("ipFamilies".to_owned(), families.into());
            }
            return Ok(());
        }
        if policy == "RequireDualStack" {
            return Err(Self::invalid(
                service,
                "spec.ipFamilyPolicy",
                "Invalid value: \"RequireDualStack\": this cluster is not configured for dual-stack services"
                    .to_owned(),
            ));
        }
        for (at, family) in given.iter().enumerate() {
            if family != own && matches!(family.as_str(), "IPv4" | "IPv6") {
                return Err(Self::invalid(
                    service,
                    &format!("spec.ipFamilies[{at}]"),
                    format!("Invalid value: {family:?}: not configured on this cluster"),
                ));
            }
        }
        if let Some(spec) = spec(service) {
            if policy.is_empty() {
                spec.insert("ipFamilyPolicy".to_owned(), "SingleStack".into());
            }
            if given.is_empty() {
                spec.insert("ipFamilies".to_owned(), json!([own]));
            }
        }
        Ok(())
    }

    /// Fills in what a service gets from the cluster: families, addresses, node ports. `old` is what
    /// is stored.
    pub fn allocate(&self, service: &mut Value, old: Option<&Value>) -> Result<Taken<'_>, Error> {
        let mut taken = Taken { allocators: self, addresses: Vec::new(), ports: Vec::new() };
        if let Some(old) = old {
            update::carry_over(service, old);
        }
        update::normalize(service, old);
        if needs_address(service) {
            self.families(service)?;
            self.allocate_address(service, old, &mut taken)?;
        }
        if needs_ports(service) {
            self.allocate_ports(service, old, &mut taken)?;
        }
        if needs_health_port(service) {
            self.allocate_health_port(service, old, &mut taken)?;
        }
        Ok(taken)
    }

    fn allocate_address(&self, service: &mut Value, old: Option<&Value>, taken: &mut Taken<'_>) -> Result<(), Error> {
        if text(service, "/spec/clusterIP") == "None" {
            return Ok(());
        }
        let had = old.map(addresses_of).unwrap_or_default();
        let wanted: Vec<String> = addresses_of(service).into_iter().map(str::to_owned).collect();
        if wanted.is_empty() {
            let at = self.lock().addresses.take_any(|at| at + 1 != DNS_OFFSET && at != 0);
            let at = at.ok_or_else(|| Error::Internal("failed to allocate a serviceIP: range is full".to_owned()))?;
            taken.addresses.push(at);
            let address = nth(&self.range, at + 1).to_string();
            if let Some(spec) = spec(service) {
                spec.insert("clusterIPs".to_owned(), json!([address]));
                spec.insert("clusterIP".to_owned(), address.into());
            }
            return Ok(());
        }
        // What was given cannot change: validation says so.
        if !had.is_empty() {
            return Ok(());
        }
        for address in &wanted {
            if address.parse::<IpAddr>().is_err() {
                continue;
            }
            let refused = |why: String| {
                Self::invalid(
                    service,
                    "spec.clusterIPs",
                    format!("Invalid value: {}: failed to allocate IP {address}: {why}", json!(wanted)),
                )
            };
            let at = self.bit(address).ok_or_else(|| {
                refused(format!(
                    "the provided IP ({address}) is not in the valid range. The range of valid IPs is {}",
                    self.range.trunc()
                ))
            })?;
            if !self.lock().addresses.take(at) {
                return Err(refused("provided IP is already allocated".to_owned()));
            }
            taken.addresses.push(at);
        }
        if let Some(first) = wanted.first()
            && let Some(spec) = spec(service)
        {
            spec.insert("clusterIP".to_owned(), first.clone().into());
        }
        Ok(())
    }

    fn port_error(&self, service: &Value, field: &str, port: i64) -> Error {
        let why = if self.port_bit(port).is_none() {
            format!(
                "provided port is not in the valid range. The range of valid ports is {}-{}",
                self.ports.start(),
                self.ports.end()
            )
        } else {
            "provided port is already allocated".to_owned()
        };
        Self::invalid(service, field, format!("Invalid value: {port}: {why}"))
    }

    fn allocate_ports(&self, service: &mut Value, old: Option<&Value>, taken: &mut Taken<'_>) -> Result<(), Error> {
        let had = old.map(ports_of).unwrap_or_default();
        let list = service.pointer("/spec/ports").and_then(Value::as_array).cloned().unwrap_or_default();
        let mut ports = list.clone();
        // First those that ask for a number, so that chance does not take it.
        let mut own: Vec<i64> = Vec::new();
        for (at, port) in list.iter().enumerate() {
            let Some(number) = port.get("nodePort").and_then(Value::as_i64).filter(|number| *number != 0) else {
                continue;
            };
            if own.contains(&number) || had.contains(&number) {
                own.push(number);
                continue;
            }
            let field = format!("spec.ports[{at}].nodePort");
            let bit = self.port_bit(number).ok_or_else(|| self.port_error(service, &field, number))?;
            if !self.lock().ports.take(bit) {
                return Err(self.port_error(service, &field, number));
            }
            taken.ports.push(bit);
            own.push(number);
        }
        for at in 0..ports.len() {
            let Some(port) =
                ports.get(at).filter(|port| port.get("nodePort").and_then(Value::as_i64).unwrap_or_default() == 0)
            else {
                continue;
            };
            // TCP and UDP of one port share the number.
            let shared = ports
                .iter()
                .take(at)
                .find(|other| other.get("port") == port.get("port") && other.get("protocol") != port.get("protocol"));
            let number = match shared.and_then(|other| other.get("nodePort")).and_then(Value::as_i64) {
                Some(number) => number,
                None => {
                    let bit = self.lock().ports.take_any(|_| true);
                    let bit =
                        bit.ok_or_else(|| Error::Internal("failed to allocate a nodePort: range is full".to_owned()))?;
                    taken.ports.push(bit);
                    i64::from(*self.ports.start()) + i64::try_from(bit).unwrap_or_default()
                }
            };
            if let Some(map) = ports.get_mut(at).and_then(Value::as_object_mut) {
                map.insert("nodePort".to_owned(), number.into());
            }
        }
        if !ports.is_empty()
            && let Some(spec) = spec(service)
        {
            spec.insert("ports".to_owned(), ports.into());
        }
        Ok(())
    }

    fn allocate_health_port(
        &self,
        service: &mut Value,
        old: Option<&Value>,
        taken: &mut Taken<'_>,
    ) -> Result<(), Error> {
        const FIELD: &str = "spec.healthCheckNodePort";
        let wanted = service.pointer("/spec/healthCheckNodePort").and_then(Value::as_i64).unwrap_or_default();
        let had = old.and_then(|old| old.pointer("/spec/healthCheckNodePort")).and_then(Value::as_i64);
        if wanted != 0 && had == Some(wanted) {
            return Ok(());
        }
        let bit = if wanted == 0 {
            let bit = self.lock().ports.take_any(|_| true);
            bit.ok_or_else(|| Error::Internal("failed to allocate a HealthCheck NodePort: range is full".to_owned()))?
        } else {
            let bit = self.port_bit(wanted).ok_or_else(|| self.port_error(service, FIELD, wanted))?;
            if !self.lock().ports.take(bit) {
                return Err(self.port_error(service, FIELD, wanted));
            }
            bit
        };
        taken.ports.push(bit);
        if let Some(spec) = spec(service) {
            let number = i64::from(*self.ports.start()) + i64::try_from(bit).unwrap_or_default();
            spec.insert("healthCheckNodePort".to_owned(), number.into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allocators() -> Allocators {
        Allocators::new("10.96.0.0/24".parse().expect("a range"), 30000..=32767)
    }

    fn service(spec: Value) -> Value {
        json!({"metadata": {"name": "x"}, "spec": spec})
    }

    #[test]
    fn gives_and_takes_back() {
        let all = allocators();
        let mut one = service(json!({"type": "NodePort", "ports": [{"port": 80}, {"port": 80, "protocol": "UDP"}]}));
        all.allocate(&mut one, None).expect("room").keep();
        let address = text(&one, "/spec/clusterIP").to_owned();
        assert_eq!(one["spec"]["clusterIPs"], json!([address]));
        assert_eq!(one["spec"]["ports"][0]["nodePort"], one["spec"]["ports"][1]["nodePort"]);
        let mut two = service(json!({"clusterIP": address, "ports": []}));
        let error = all.allocate(&mut two, None).map(Taken::keep).expect_err("taken");
        assert_eq!(
            error.status().1["message"],
            format!(
                "Service \"x\" is invalid: spec.clusterIPs: Invalid value: [\"{address}\"]: failed to allocate IP {address}: provided IP is already allocated"
            )
        );
        all.release(&one, None);
        all.allocate(&mut two, None).expect("free again").keep();
    }

    #[test]
    fn a_failed_write_keeps_nothing() {
        let all = allocators();
        let mut one = service(json!({"clusterIP": "10.96.0.50"}));
        drop(all.allocate(&mut one, None).expect("free"));
        all.allocate(&mut one, None).expect("free").keep();
        let mut far = service(json!({"clusterIP": "10.97.0.1"}));
        let error = all.allocate(&mut far, None).map(Taken::keep).expect_err("out of range");
        assert!(error.status().1["message"].to_string().contains("The range of valid IPs is 10.96.0.0/24"));
    }

    #[test]
    fn an_update_keeps_what_was_given() {
        let all = allocators();
        let mut old = service(json!({"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP"}]}));
        all.allocate(&mut old, None).expect("room").keep();
        let mut new = service(json!({"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP"}, {"port": 81}]}));
        all.allocate(&mut new, Some(&old)).expect("room").keep();
        assert_eq!(new["spec"]["clusterIP"], old["spec"]["clusterIP"]);
        assert_eq!(new["spec"]["ports"][0]["nodePort"], old["spec"]["ports"][0]["nodePort"]);
        assert!(new["spec"]["ports"][1]["nodePort"].is_i64());
    }
}
