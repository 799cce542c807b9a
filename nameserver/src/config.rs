//! What a nameserver is told.

use std::{net::Ipv4Addr, path::PathBuf, str::FromStr};

use shared::{
    limits::MAX_NAME_BYTES,
    name::{Endpoint, Host},
};

/// What a nameserver is told. `Config::new` gives the defaults of `docs/cli.md`.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where it listens: an address, or a name of this machine. Default 127.0.0.1: one machine.
    pub host: Host,
    /// UDP port; 0 takes a free one. Default 9090.
    pub port: u16,
    /// Where names are kept. Default redb, in the state folder.
    pub storage: StorageChoice,
    /// Base of all state.
    pub state_dir: PathBuf,
    /// Where others are told to reach it. Default: where it listens; when that is every address, the machine's own.
    pub advertise: Option<Advertise>,
}

impl Config {
    /// The defaults, with all state below `state_dir`.
    pub fn new(state_dir: impl Into<PathBuf>) -> Self {
        Self {
            host: Host::Ip(Ipv4Addr::LOCALHOST.into()),
            port: shared::net::session::DEFAULT_PORT,
            storage: StorageChoice::default(),
            state_dir: state_dir.into(),
            advertise: None,
        }
    }
}

/// Where names are kept, as `-s` says it: `memory`, `redb` or `redb:PATH`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum StorageChoice {
    /// Forgotten when the process ends.
    Memory,
    /// In `registry.redb` in the state folder.
    #[default]
    Redb,
    /// In this redb file.
    RedbFile(PathBuf),
}

impl FromStr for StorageChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "memory" => Ok(Self::Memory),
            None if text == "redb" => Ok(Self::Redb),
            Some(("redb", path)) if !path.is_empty() => Ok(Self::RedbFile(path.into())),
            _ if text == "etcd" || text.starts_with("etcd:") => {
                Err("etcd comes with a later version; use memory, redb or redb:PATH".to_owned())
            }
            _ => Err("use memory, redb or redb:PATH".to_owned()),
        }
    }
}

/// Where others are told to reach a nameserver, as `--advertise` says it: `HOST` or `HOST:PORT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advertise {
    host: Host,
    port: Option<u16>,
}

impl Advertise {
    /// The endpoint, for a nameserver that listens at `port`.
    pub fn endpoint(&self, port: u16) -> Endpoint {
        Endpoint { host: self.host.clone(), port: self.port.unwrap_or(port) }
    }
}

impl FromStr for Advertise {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.len() > MAX_NAME_BYTES {
            return Err("that is too long for a host".to_owned());
        }
        if let Ok(Endpoint { host, port }) = Endpoint::from_host_port(text) {
            return Ok(Self { host, port: Some(port) });
        }
        Ok(Self { host: parse_host(text)?, port: None })
    }
}

/// A host as people write it: IPv6 addresses with or without brackets.
///
/// # Errors
/// When it is neither an address nor a host name; the text says so.
pub fn parse_host(text: &str) -> Result<Host, String> {
    let bracketed = || format!("[{text}]").parse();
    text.parse().or_else(|_| bracketed()).map_err(|_| "that is neither an address nor a host name".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn storages_are_chosen_by_name() {
        assert_eq!("memory".parse(), Ok(StorageChoice::Memory));
        assert_eq!("redb".parse(), Ok(StorageChoice::Redb));
        assert_eq!("redb:/a/b:c.redb".parse(), Ok(StorageChoice::RedbFile("/a/b:c.redb".into())));
        for bad in ["", "sql", "redb:", "memory:", "Memory"] {
            assert!(bad.parse::<StorageChoice>().is_err(), "{bad}");
        }
        assert!("etcd:http://h:2379".parse::<StorageChoice>().unwrap_err().contains("later"));
    }

    #[test]
    fn an_advertised_host_has_a_port_or_takes_the_listening_one() {
        let endpoint = |text: &str| text.parse::<Advertise>().unwrap().endpoint(7).to_string();
        assert_eq!(endpoint("ns.example.org"), "quic://ns.example.org:7");
        assert_eq!(endpoint("ns.example.org:1"), "quic://ns.example.org:1");
        assert_eq!(endpoint("10.0.0.1:1"), "quic://10.0.0.1:1");
        assert_eq!(endpoint("::1"), "quic://[::1]:7");
        assert_eq!(endpoint("[::1]:1"), "quic://[::1]:1");
        for bad in ["", "a b", "host:0", "host:99999", "http://host"] {
            assert!(bad.parse::<Advertise>().is_err(), "{bad}");
        }
    }
}
