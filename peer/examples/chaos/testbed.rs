//! Testbed: one network namespace for each host, connected only to the relay ([`super::relay`]). Needs root and `ip`.
//!
//! The relay's namespace has two routing tables. For a datagram that arrives from a host, all addresses of the network
//! are local, so the relay receives it whatever its destination. For a datagram that the relay sends, the addresses are
//! behind the hosts' veth links.

use std::{path::Path, process::Stdio};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    sync::Mutex,
};

use crate::{
    deadline::{PROCESS_DEADLINE, within},
    impairment::Impairments,
    relay::Traffic,
    topology::{Host, NAMESERVER_HOST, address},
};

/// Routing table of the relay's namespace with the routes to the hosts' links.
const LINK_TABLE: &str = "100";

/// Hosts and the network between them. Dropping it removes all namespaces.
pub struct Testbed {
    tag: String,
    hosts: Vec<Host>,
    relay: Option<Mutex<Relay>>,
}

struct Relay {
    _child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Testbed {
    /// Returns why a testbed cannot be created here, or `None` when it can.
    pub fn unavailable() -> Option<String> {
        if !rustix::process::geteuid().is_root() {
            return Some("network namespaces need root".to_owned());
        }
        if std::process::Command::new("ip").arg("-V").output().is_err() {
            return Some("ip (iproute2) is not installed".to_owned());
        }
        let name = format!("brasa-chaos{}-try", std::process::id());
        let created = ip(&["netns", "add", &name]);
        let _ = ip(&["netns", "del", &name]);
        created.err().map(|error| format!("cannot create network namespaces: {error}"))
    }

    /// Creates hosts for the nameserver and for `peers` peers, with an unimpaired network.
    ///
    /// # Errors
    /// When there are more peers than addresses, or when the kernel lacks a feature.
    pub async fn new(peers: usize, seed: u64) -> Result<Self, String> {
        let last = NAMESERVER_HOST + Host::try_from(peers).map_err(|_| "too many peers for one network".to_owned())?;
        let mut testbed = Self { tag: format!("brasa-chaos{}", std::process::id()), hosts: Vec::new(), relay: None };
        let relay = testbed.relay_namespace();
        ip(&["netns", "add", &relay])?;
        for host in NAMESERVER_HOST..=last {
            testbed.add(host)?;
        }
        let configure = |words: &[&str]| ip(&[&["-n", relay.as_str()], words].concat());
        configure(&["link", "set", "lo", "up"])?;
        configure(&["rule", "add", "pref", "1", "iif", "lo", "lookup", LINK_TABLE])?;
        configure(&["rule", "add", "pref", "2", "lookup", "local"])?;
        // The default rule would deliver the relay's own datagrams to the relay.
        configure(&["rule", "del", "pref", "0"])?;
        configure(&["route", "add", "local", "10.79.0.0/24", "dev", "lo", "table", "local"])?;
        // Datagrams from hosts have source addresses that are local here, which the kernel rejects by default.
        let accept = "for file in /proc/sys/net/ipv4/conf/*/accept_local; do echo 1 > $file || exit; done";
        ip(&["netns", "exec", &relay, "sh", "-c", accept])?;
        testbed.relay = Some(Mutex::new(testbed.start_relay(seed)?));
        testbed.apply(&Impairments::default()).await?;
        Ok(testbed)
    }

    fn add(&mut self, host: Host) -> Result<(), String> {
        let (name, relay) = (self.namespace(host), self.relay_namespace());
        let (port, address) = (format!("p{host}"), address(host));
        ip(&["netns", "add", &name])?;
        self.hosts.push(host);
        ip(&["-n", &relay, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &name])?;
        ip(&["-n", &relay, "link", "set", &port, "up"])?;
        ip(&["-n", &relay, "route", "add", &format!("{address}/32"), "dev", &port, "table", LINK_TABLE])?;
        ip(&["-n", &name, "addr", "add", &format!("{address}/32"), "dev", "eth0"])?;
        ip(&["-n", &name, "link", "set", "lo", "up"])?;
        ip(&["-n", &name, "link", "set", "eth0", "up"])?;
        ip(&["-n", &name, "route", "add", "default", "dev", "eth0"])
    }

    fn start_relay(&self, seed: u64) -> Result<Relay, String> {
        let this = std::env::current_exe().map_err(|error| format!("cannot find this executable: {error}"))?;
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.relay_namespace()]).arg(this).arg("--relay").arg(seed.to_string());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().map_err(|error| format!("cannot start the relay: {error}"))?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let (Some(input), Some(output)) = (input, output) else { return Err("the relay has no pipes".to_owned()) };
        Ok(Relay { _child: child, input, output: BufReader::new(output).lines() })
    }

    /// Replaces the impairments of the network. Returns the traffic so far.
    ///
    /// # Errors
    /// When the relay does not answer within [`PROCESS_DEADLINE`].
    pub async fn apply(&self, impairments: &Impairments) -> Result<Traffic, String> {
        let relay = self.relay.as_ref().ok_or("there is no relay")?;
        let mut relay = relay.lock().await;
        let exchange = async {
            let mut line = serde_json::to_vec(impairments)?;
            line.push(b'\n');
            relay.input.write_all(&line).await?;
            relay.input.flush().await?;
            let answer = relay.output.next_line().await?;
            Ok::<Traffic, std::io::Error>(serde_json::from_str(&answer.unwrap_or_default())?)
        };
        let answer = within(PROCESS_DEADLINE, exchange).await.ok_or("the relay did not answer in time")?;
        answer.map_err(|error| format!("the relay failed: {error}"))
    }

    /// Returns a command that runs a program on a host. `ip` replaces itself with the program, so the process id is the
    /// program's.
    pub fn command(&self, host: Host, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace(host)]).arg(program);
        command
    }

    fn relay_namespace(&self) -> String {
        format!("{}-relay", self.tag)
    }

    fn namespace(&self, host: Host) -> String {
        format!("{}-{host}", self.tag)
    }
}

impl Drop for Testbed {
    fn drop(&mut self) {
        // A running relay would keep its namespace alive.
        self.relay = None;
        let hosts: Vec<_> = self.hosts.iter().map(|host| self.namespace(*host)).collect();
        for namespace in hosts.iter().chain([&self.relay_namespace()]) {
            // Fails for a namespace that `new` did not get to create.
            let _ = ip(&["netns", "del", namespace]);
        }
    }
}

fn ip(words: &[&str]) -> Result<(), String> {
    let output = std::process::Command::new("ip").args(words).output().map_err(|error| format!("ip: {error}"))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(format!("ip {}: {}", words.join(" "), stderr.trim())) }
}
