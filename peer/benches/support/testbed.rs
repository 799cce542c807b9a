//! Testbed: hosts as network namespaces on one bridge, with token-bucket rate limits (`tc-tbf(8)`). Needs root, `ip`
//! and `tc`.

use std::{collections::BTreeMap, path::Path, process::Command};

/// Bucket and queue of a rate-limited link. The queue delays a datagram by 20 ms at most.
const SHAPE: [&str; 4] = ["burst", "32kb", "latency", "20ms"];

/// Rates of a host's link, Mbit/s. `None` is unlimited.
#[derive(Debug, Clone, Copy, Default)]
pub struct LinkRates {
    pub up_mbit: Option<u32>,
    pub down_mbit: Option<u32>,
}

/// Bridge with hosts. Dropping it removes all namespaces.
pub struct Testbed {
    tag: String,
    hosts: BTreeMap<String, u8>,
}

impl Testbed {
    /// Returns why a testbed cannot be created here, or `None` when it can.
    pub fn unavailable() -> Option<String> {
        if !rustix::process::geteuid().is_root() {
            return Some("network namespaces need root".to_owned());
        }
        for tool in ["ip", "tc"] {
            if Command::new(tool).arg("-V").output().is_err() {
                return Some(format!("{tool} is not installed"));
            }
        }
        let testbed = Self::empty();
        let bridge = testbed.bridge();
        let attempt = run("ip", &["netns", "add", &bridge])
            .and_then(|()| run("ip", &["-n", &bridge, "link", "add", "br0", "type", "bridge"]))
            .and_then(|()| limit_rate(&bridge, "lo", 100));
        attempt.err().map(|error| format!("cannot create network namespaces with rate limits: {error}"))
    }

    /// Creates a bridge without hosts.
    pub fn new() -> Self {
        let testbed = Self::empty();
        ip(&["netns", "add", &testbed.bridge()]);
        ip(&["-n", &testbed.bridge(), "link", "add", "br0", "type", "bridge"]);
        ip(&["-n", &testbed.bridge(), "link", "set", "br0", "up"]);
        // Packet filters on the bridge would cost the hosts processor time. The setting exists only in kernels that can
        // filter bridged packets.
        for family in ["ip", "ip6"] {
            let setting = format!("net.bridge.bridge-nf-call-{family}tables=0");
            let _ = run("ip", &["netns", "exec", &testbed.bridge(), "sysctl", "-qw", &setting]);
        }
        testbed
    }

    fn empty() -> Self {
        Self { tag: format!("brasa-bench{}", std::process::id()), hosts: BTreeMap::new() }
    }

    /// Adds a host. Its address is `10.78.0.N`, with N counted from 1.
    pub fn add(&mut self, host: &str, rates: LinkRates) {
        let number = u8::try_from(self.hosts.len() + 1).expect("fewer hosts than addresses");
        let (name, bridge, port) = (self.namespace(host), self.bridge(), format!("p{number}"));
        ip(&["netns", "add", &name]);
        self.hosts.insert(host.to_owned(), number);
        ip(&["-n", &bridge, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &name]);
        ip(&["-n", &bridge, "link", "set", &port, "master", "br0", "up"]);
        ip(&["-n", &name, "addr", "add", &format!("10.78.0.{number}/24"), "dev", "eth0"]);
        ip(&["-n", &name, "link", "set", "eth0", "up"]);
        ip(&["-n", &name, "link", "set", "lo", "up"]);
        for (namespace, device, rate) in [(&name, "eth0", rates.up_mbit), (&bridge, port.as_str(), rates.down_mbit)] {
            if let Some(rate) = rate {
                limit_rate(namespace, device, rate).unwrap_or_else(|error| panic!("{error}"));
            }
        }
    }

    pub fn address(&self, host: &str) -> String {
        format!("10.78.0.{}", self.hosts[host])
    }

    /// Returns a command that runs a program on a host. `ip` replaces itself with the program, so the process id is the
    /// program's.
    pub fn command(&self, host: &str, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace(host)]).arg(program);
        command
    }

    /// Disconnects a host from the bridge, or connects it again.
    pub fn set_connected(&self, host: &str, is_connected: bool) {
        let port = format!("p{}", self.hosts[host]);
        ip(&["-n", &self.bridge(), "link", "set", &port, if is_connected { "up" } else { "down" }]);
    }

    fn bridge(&self) -> String {
        format!("{}-switch", self.tag)
    }

    fn namespace(&self, host: &str) -> String {
        format!("{}-{host}", self.tag)
    }
}

impl Drop for Testbed {
    fn drop(&mut self) {
        let hosts: Vec<_> = self.hosts.keys().map(|host| self.namespace(host)).collect();
        for namespace in hosts.iter().chain([&self.bridge()]) {
            // Fails for a namespace that was never created.
            let _ = run("ip", &["netns", "del", namespace]);
        }
    }
}

fn ip(words: &[&str]) {
    run("ip", words).unwrap_or_else(|error| panic!("{error}"));
}

fn limit_rate(namespace: &str, device: &str, mbit: u32) -> Result<(), String> {
    let rate = format!("{mbit}mbit");
    let words = ["-n", namespace, "qdisc", "add", "dev", device, "root", "tbf", "rate", &rate];
    run("tc", &[&words, SHAPE.as_slice()].concat())
}

fn run(program: &str, words: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(words).output().map_err(|error| error.to_string())?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(format!("{program} {words:?}: {}", stderr.trim())) }
}
