//! Numbers, names and addresses of the hosts. Pure.

use std::net::{Ipv4Addr, SocketAddrV4};

/// Number of a host: the last octet of its address.
pub type Host = u8;

/// Index of a peer, from 0.
pub type PeerIndex = usize;

/// Host of the nameserver. The hosts of the peers follow.
pub const NAMESERVER_HOST: Host = 1;
/// UDP port of the nameserver. Every host has all ports to itself.
pub const NAMESERVER_PORT: u16 = 9090;

/// Host of a peer.
pub fn host_of(peer: PeerIndex) -> Host {
    Host::try_from(peer).map_or(Host::MAX, |peer| peer.saturating_add(NAMESERVER_HOST + 1))
}

/// Id of a peer: `peer1` for index 0.
pub fn peer_name(peer: PeerIndex) -> String {
    format!("peer{}", peer + 1)
}

/// Address of a host.
pub fn address(host: Host) -> Ipv4Addr {
    Ipv4Addr::new(10, 79, 0, host)
}

/// Address on which the nameserver listens in a testbed.
pub fn nameserver_address() -> SocketAddrV4 {
    SocketAddrV4::new(address(NAMESERVER_HOST), NAMESERVER_PORT)
}
