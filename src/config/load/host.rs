//! What the machine is like, as far as it decides where to listen.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use if_addrs::IfAddr;

use super::super::resolve::HostFacts;

/// Looks at the interfaces and at the signs of a container.
pub fn host_facts() -> HostFacts {
    let interfaces = if_addrs::get_if_addrs().unwrap_or_default();
    let tailnet = interfaces.iter().find_map(|interface| match &interface.addr {
        IfAddr::V4(v4) if is_tailnet(v4.ip, v4.prefixlen) => Some(v4.ip),
        _ => None,
    });
    let addresses: Vec<IpAddr> = interfaces.iter().map(if_addrs::Interface::ip).collect();
    HostFacts { addresses, tailnet, in_container: in_container() }
}

/// Tailscale gives each node one address of 100.64.0.0/10 and nothing around it. Providers use the same
/// range for their customers, but hand out whole networks: those must not be taken for a tailnet.
const fn is_tailnet(address: Ipv4Addr, prefix_len: u8) -> bool {
    let octets = address.octets();
    octets[0] == 100 && octets[1] & 0xC0 == 64 && prefix_len == 32
}

fn in_container() -> bool {
    // Docker and Podman leave a file; Kubernetes and systemd-nspawn set a variable.
    ["/.dockerenv", "/run/.containerenv"].iter().any(|path| Path::new(path).exists())
        || ["container", "KUBERNETES_SERVICE_HOST"]
            .iter()
            .any(|name| std::env::var_os(name).is_some_and(|it| !it.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_has_loopback() {
        assert!(host_facts().addresses.iter().any(IpAddr::is_loopback));
    }

    #[test]
    fn tells_tailscale_from_carrier_grade_nat() {
        assert!(is_tailnet(Ipv4Addr::new(100, 101, 102, 103), 32));
        assert!(!is_tailnet(Ipv4Addr::new(100, 101, 102, 103), 24));
        assert!(!is_tailnet(Ipv4Addr::new(100, 128, 0, 1), 32));
        assert!(!is_tailnet(Ipv4Addr::new(192, 168, 0, 1), 32));
    }
}
