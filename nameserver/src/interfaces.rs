//! Addresses of this machine, for a nameserver that listens at all of them.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
};

/// Addresses at which other machines may reach this one: the address of the default route first, then the others.
/// Excludes loopback and link-local addresses. Empty on a machine without a network.
pub(crate) fn own_addresses(ipv6_too: bool) -> Vec<IpAddr> {
    let mut found: Vec<IpAddr> = Vec::new();
    // Addresses reserved for documentation (RFC 5737, RFC 3849), which route to the default gateway. No packet is sent.
    let remote: [IpAddr; 2] =
        [Ipv4Addr::new(198, 51, 100, 1).into(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into()];
    found.extend(remote.into_iter().filter_map(source_towards));
    // Linux lists all addresses here. On other systems only the default route's address is known.
    found.extend(fs::read_to_string("/proc/net/fib_trie").iter().flat_map(|text| parse_fib_trie(text)));
    found.extend(fs::read_to_string("/proc/net/if_inet6").iter().flat_map(|text| parse_if_inet6(text)));

    let mut own: Vec<IpAddr> = Vec::new();
    for ip in found {
        if reachable(ip) && (ip.is_ipv4() || ipv6_too) && !own.contains(&ip) {
            own.push(ip);
        }
    }
    own
}

/// Source address of packets to `to`; `None` when there is no route.
fn source_towards(to: IpAddr) -> Option<IpAddr> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).ok()?;
    socket.connect(SocketAddr::new(to, 9)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

fn reachable(ip: IpAddr) -> bool {
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !ip.is_loopback() && !ip.is_unspecified() && !ip.is_multicast() && !link_local
}

/// Parses Linux's dump of IPv4 routes; returns the addresses marked as local.
fn parse_fib_trie(text: &str) -> Vec<IpAddr> {
    let mut own = Vec::new();
    let mut leaf = None;
    for line in text.lines().map(str::trim) {
        if let Some(address) = line.strip_prefix("|-- ") {
            leaf = address.parse::<Ipv4Addr>().ok();
        } else if line == "/32 host LOCAL" {
            own.extend(leaf.map(IpAddr::from));
        }
    }
    own
}

/// Parses Linux's list of IPv6 addresses; each line begins with an address of 32 hexadecimal digits.
fn parse_if_inet6(text: &str) -> Vec<IpAddr> {
    let first_word = text.lines().filter_map(|line| line.split_ascii_whitespace().next());
    first_word.filter_map(|word| u128::from_str_radix(word, 16).ok()).map(|bits| Ipv6Addr::from(bits).into()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIB_TRIE: &str = "Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 10.0.0.0/24 2 0 2
        |-- 10.0.0.0
           /24 link UNICAST
        |-- 10.0.0.7
           /32 host LOCAL
        |-- 10.0.0.255
           /32 link BROADCAST
     |-- 127.0.0.1
        /32 host LOCAL
";

    #[test]
    fn route_dump_yields_local_addresses_only() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(parse_fib_trie(FIB_TRIE), [ip("10.0.0.7"), ip("127.0.0.1")]);
        let if_inet6 = "fd000000000000000000000000000001 02 40 00 80     eth0\n\
                        00000000000000000000000000000001 01 80 10 80       lo\n";
        assert_eq!(parse_if_inet6(if_inet6), [ip("fd00::1"), ip("::1")]);
        assert!(parse_fib_trie("garbage").is_empty() && parse_if_inet6("garbage").is_empty());
    }

    #[test]
    fn own_addresses_exclude_loopback_and_link_local() {
        for ip in own_addresses(true) {
            assert!(reachable(ip), "{ip}");
        }
        for here in ["127.0.0.1", "::1", "0.0.0.0", "169.254.1.1", "fe80::1"] {
            assert!(!reachable(here.parse().unwrap()), "{here}");
        }
        assert!(own_addresses(false).iter().all(IpAddr::is_ipv4));
    }
}
