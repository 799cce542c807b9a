//! Configuration of a nameserver.

use std::{net::Ipv4Addr, path::PathBuf, str::FromStr};

use shared::{
    limits::MAX_NAME_BYTES,
    name::{Endpoint, Host},
    settings::parse_host,
};

/// Configuration of a nameserver. [`Config::new`] returns the defaults of `docs/cli.md`.
#[derive(Debug, Clone)]
pub struct Config {
    /// Address to listen at, or a host name of this machine. Default 127.0.0.1, which serves this machine only.
    pub host: Host,
    /// UDP port to listen at; 0 takes a free port. Default 9090.
    pub port: u16,
    /// Storage of the registry. Default redb, in the state folder.
    pub storage: StorageChoice,
    /// Base folder of all state.
    pub state_dir: PathBuf,
    /// Endpoint at which other machines reach the nameserver. Default: the address it listens at, or the machine's
    /// addresses when it listens at all of them.
    pub advertise: Option<Advertise>,
}

impl Config {
    /// Returns the defaults, with all state below `state_dir`.
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

/// Storage of the registry, as `-s` names it: `memory`, `redb` or `redb:PATH`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum StorageChoice {
    /// In memory; lost when the process ends.
    Memory,
    /// The redb file `registry.redb` in the state folder.
    #[default]
    Redb,
    /// The redb file at this path.
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
                Err("etcd is not supported by this version; use memory, redb or redb:PATH".to_owned())
            }
            _ => Err("use memory, redb or redb:PATH".to_owned()),
        }
    }
}

/// Advertised address of a nameserver, as `--advertise` names it: `HOST` or `HOST:PORT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advertise {
    host: Host,
    port: Option<u16>,
}

impl Advertise {
    /// Endpoint of a nameserver that listens at `port`.
    pub fn endpoint(&self, port: u16) -> Endpoint {
        Endpoint { host: self.host.clone(), port: self.port.unwrap_or(port) }
    }
}

impl FromStr for Advertise {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.len() > MAX_NAME_BYTES {
            return Err("too long for a host".to_owned());
        }
        if let Ok(Endpoint { host, port }) = Endpoint::from_host_port(text) {
            return Ok(Self { host, port: Some(port) });
        }
        Ok(Self { host: parse_host(text)?, port: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn storage_choice_parses_documented_forms_only() {
        assert_eq!("memory".parse(), Ok(StorageChoice::Memory));
        assert_eq!("redb".parse(), Ok(StorageChoice::Redb));
        assert_eq!("redb:/a/b:c.redb".parse(), Ok(StorageChoice::RedbFile("/a/b:c.redb".into())));
        for bad in ["", "sql", "redb:", "memory:", "Memory"] {
            assert!(bad.parse::<StorageChoice>().is_err(), "{bad}");
        }
        assert!("etcd:http://h:2379".parse::<StorageChoice>().unwrap_err().contains("not supported"));
    }

    #[test]
    fn advertised_host_without_a_port_takes_the_listening_port() {
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
