//! Entries of the nameserver: names, tags and endpoints.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    str::FromStr,
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use crate::{
    epoch::Epoch,
    id::PeerId,
    limits::{MAX_NAME_BYTES, MAX_TAG_BYTES, MAX_URI_BYTES},
};

/// Name in the nameserver: 1 to [`MAX_NAME_BYTES`] bytes of UTF-8 without control characters.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(Arc<str>);

/// Error of parsing a [`Name`]; holds the first 80 characters of the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{0:?} is not a name: 1 to 255 bytes without control characters")]
pub struct InvalidName(pub String);

/// Prefix of a peer's name; the peer's id follows.
pub const PEER_PREFIX: &str = "peer.";
/// Prefix of a tracker's name; its epoch follows.
pub const TRACKER_PREFIX: &str = "tracker.";

impl Name {
    /// Returns the name of the nameserver's own entry.
    pub fn nameserver() -> Self {
        Self("nameserver".into())
    }

    /// Returns `peer.<id>`.
    pub fn peer(id: &PeerId) -> Self {
        Self(format!("{PEER_PREFIX}{id}").into())
    }

    /// Returns `tracker.<epoch>`.
    pub fn tracker(epoch: Epoch) -> Self {
        Self(format!("{TRACKER_PREFIX}{epoch}").into())
    }

    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the id from a peer's name, or `None` for another kind of name.
    pub fn as_peer(&self) -> Option<PeerId> {
        self.0.strip_prefix(PEER_PREFIX)?.parse().ok()
    }

    /// Returns the epoch from a tracker's name, or `None` for another kind of name.
    pub fn as_tracker(&self) -> Option<Epoch> {
        self.0.strip_prefix(TRACKER_PREFIX)?.parse().ok().map(Epoch)
    }
}

impl FromStr for Name {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        if text.is_empty() || text.len() > MAX_NAME_BYTES || text.chars().any(crate::file_name::is_unprintable) {
            return Err(InvalidName(text.chars().take(80).collect()));
        }
        Ok(Self(text.into()))
    }
}

impl TryFrom<String> for Name {
    type Error = InvalidName;
    fn try_from(text: String) -> Result<Self, InvalidName> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0.as_ref().to_owned()
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

/// Metadata tag of a name: 1 to [`MAX_TAG_BYTES`] bytes of UTF-8 without control characters.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Tag(Arc<str>);

/// Error of parsing a [`Tag`]; holds the first 80 characters of the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{0:?} is not a tag: 1 to 128 bytes without control characters")]
pub struct InvalidTag(pub String);

impl Tag {
    /// Returns the tag as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Tag {
    type Err = InvalidTag;

    fn from_str(text: &str) -> Result<Self, InvalidTag> {
        if text.is_empty() || text.len() > MAX_TAG_BYTES || text.chars().any(crate::file_name::is_unprintable) {
            return Err(InvalidTag(text.chars().take(80).collect()));
        }
        Ok(Self(text.into()))
    }
}

impl TryFrom<String> for Tag {
    type Error = InvalidTag;
    fn try_from(text: String) -> Result<Self, InvalidTag> {
        text.parse()
    }
}

impl From<Tag> for String {
    fn from(tag: Tag) -> Self {
        tag.0.as_ref().to_owned()
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

/// Host of an [`Endpoint`]: an address, or a DNS name that the dialling side resolves.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Host {
    /// IPv4 or IPv6 address.
    Ip(IpAddr),
    /// DNS name of at most 253 bytes: lower-case letters, digits, `-`, `_` and `.`.
    Name(String),
}

/// Address of a QUIC server, written `quic://host:port` with an IPv6 host in brackets (RFC 3986 section 3.2.2).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Endpoint {
    /// Host.
    pub host: Host,
    /// UDP port, never 0.
    pub port: u16,
}

/// Error of parsing an [`Endpoint`]; holds the first 80 characters of the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{0:?} is not an endpoint: write quic://HOST:PORT, an IPv6 host in brackets")]
pub struct InvalidUri(pub String);

const SCHEME: &str = "quic://";

impl Endpoint {
    /// Returns the socket address, or `None` if the host is a DNS name.
    pub fn socket_addr(&self) -> Option<SocketAddr> {
        match self.host {
            Host::Ip(ip) => Some(SocketAddr::new(ip, self.port)),
            Host::Name(_) => None,
        }
    }

    /// Parses `HOST:PORT`, the form of command-line flags and join tokens.
    ///
    /// # Errors
    /// Fails if `text` has another form, has port 0 or is longer than [`MAX_URI_BYTES`].
    pub fn from_host_port(text: &str) -> Result<Self, InvalidUri> {
        let wrong = || InvalidUri(text.chars().take(80).collect());
        if text.len() > MAX_URI_BYTES {
            return Err(wrong());
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(wrong)?;
        let host = Host::from_str(host).map_err(|_| wrong())?;
        Ok(Self { host, port })
    }

    /// Returns `HOST:PORT`, without the scheme.
    pub fn host_port(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

impl FromStr for Host {
    type Err = InvalidUri;

    fn from_str(text: &str) -> Result<Self, InvalidUri> {
        let wrong = || InvalidUri(text.chars().take(80).collect());
        if let Some(inner) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            return inner.parse::<Ipv6Addr>().map(|ip| Self::Ip(ip.into())).map_err(|_| wrong());
        }
        if let Ok(ip) = text.parse::<std::net::Ipv4Addr>() {
            return Ok(Self::Ip(ip.into()));
        }
        let label = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let numeric = text.chars().all(|c| c.is_ascii_digit() || c == '.');
        if text.is_empty() || text.len() > 253 || numeric || !text.chars().all(label) || text.starts_with(['.', '-']) {
            return Err(wrong());
        }
        Ok(Self::Name(text.to_ascii_lowercase()))
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]"),
            Self::Ip(IpAddr::V4(ip)) => write!(f, "{ip}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(address: SocketAddr) -> Self {
        Self { host: Host::Ip(address.ip().to_canonical()), port: address.port() }
    }
}

impl FromStr for Endpoint {
    type Err = InvalidUri;

    fn from_str(text: &str) -> Result<Self, InvalidUri> {
        let rest = text.strip_prefix(SCHEME).ok_or_else(|| InvalidUri(text.chars().take(80).collect()))?;
        Self::from_host_port(rest).map_err(|_| InvalidUri(text.chars().take(80).collect()))
    }
}

impl TryFrom<String> for Endpoint {
    type Error = InvalidUri;
    fn try_from(text: String) -> Result<Self, InvalidUri> {
        text.parse()
    }
}

impl From<Endpoint> for String {
    fn from(endpoint: Endpoint) -> Self {
        endpoint.to_string()
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}:{}", self.host, self.port)
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_of_a_peer_or_tracker_parses_back() {
        let id: PeerId = "peer1".parse().unwrap();
        assert_eq!(Name::peer(&id).as_str(), "peer.peer1");
        assert_eq!(Name::peer(&id).as_peer(), Some(id));
        assert_eq!(Name::tracker(Epoch(7)).as_tracker(), Some(Epoch(7)));
        assert_eq!("tracker.x".parse::<Name>().unwrap().as_tracker(), None);
    }

    #[test]
    fn name_with_control_characters_is_rejected() {
        assert!("unicode\u{20ac}".parse::<Name>().is_ok());
        for bad in ["", "a\nb", "a\u{1b}[m", &"x".repeat(256)] {
            assert!(bad.parse::<Name>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn endpoint_text_round_trips_and_malformed_text_is_rejected() {
        for good in ["quic://127.0.0.1:9090", "quic://[::1]:9090", "quic://[fe80::1]:1", "quic://lab-3.example.org:80"]
        {
            assert_eq!(good.parse::<Endpoint>().unwrap().to_string(), good);
        }
        for bad in [
            "",
            "quic://",
            "quic://host",
            "quic://host:0",
            "quic://host:99999",
            "quic://::1:9090",
            "quic://[::1]",
            "http://host:1",
            "PYRO:x@host:1",
            "quic://ho st:1",
            "quic://256.1.1.1:1",
            "quic://:1",
            "nonsense",
        ] {
            assert!(bad.parse::<Endpoint>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn endpoint_of_a_mapped_ipv4_address_is_plain_ipv4() {
        let mapped: SocketAddr = "[::ffff:10.0.0.1]:5".parse().unwrap();
        assert_eq!(Endpoint::from(mapped).to_string(), "quic://10.0.0.1:5");
    }
}
