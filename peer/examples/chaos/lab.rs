//! Machines: network namespaces whose only neighbour is the relay ([`super::relay`]). Needs root and `ip`.
//!
//! In the relay's namespace two sets of routes hold. What comes from a machine finds the network's addresses to be local,
//! so that the relay receives it, whomever it is for. What the relay sends finds the machines' cables.

use std::{net::SocketAddrV4, path::Path, process::Stdio};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    sync::Mutex,
};

use crate::{
    impair::{Host, Impairments, NAMESERVER},
    patience::within,
    relay::{Traffic, address},
    world::STEP,
};

/// Routes to the machines' cables, in the relay's namespace.
const CABLES: &str = "100";
/// The nameserver's port; each machine has all ports to itself.
pub const NAMESERVER_PORT: u16 = 9090;

/// The machines and what is between them; all of it goes when dropped.
pub struct Lab {
    tag: String,
    hosts: Vec<Host>,
    relay: Option<Mutex<Relay>>,
}

struct Relay {
    _child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Lab {
    /// What machines need here and do not find; `None` when everything is there.
    pub fn missing() -> Option<String> {
        if !rustix::process::geteuid().is_root() {
            return Some("network namespaces need root".to_owned());
        }
        if std::process::Command::new("ip").arg("-V").output().is_err() {
            return Some("ip (iproute2) is not installed".to_owned());
        }
        let name = format!("brasa-chaos{}-try", std::process::id());
        let made = ip(&["netns", "add", &name]);
        let _ = ip(&["netns", "del", &name]);
        made.err().map(|why| format!("network namespaces do not work here: {why}"))
    }

    /// Machines for the nameserver and for `peers` peers, with a network that loses nothing.
    ///
    /// # Errors
    /// When the kernel does not have what is needed.
    pub async fn new(peers: usize, seed: u64) -> Result<Self, String> {
        let last = NAMESERVER + Host::try_from(peers).map_err(|_| "too many peers for one network".to_owned())?;
        let mut lab = Self { tag: format!("brasa-chaos{}", std::process::id()), hosts: Vec::new(), relay: None };
        let middle = lab.middle();
        ip(&["netns", "add", &middle])?;
        for host in NAMESERVER..=last {
            lab.add(host)?;
        }
        let here = |words: &[&str]| ip(&[&["-n", middle.as_str()], words].concat());
        here(&["link", "set", "lo", "up"])?;
        here(&["rule", "add", "pref", "1", "iif", "lo", "lookup", CABLES])?;
        here(&["rule", "add", "pref", "2", "lookup", "local"])?;
        // Otherwise what the relay sends would come back to it.
        here(&["rule", "del", "pref", "0"])?;
        here(&["route", "add", "local", "10.79.0.0/24", "dev", "lo", "table", "local"])?;
        // What machines send has senders that are local here, too.
        let accept = "for file in /proc/sys/net/ipv4/conf/*/accept_local; do echo 1 > $file || exit; done";
        ip(&["netns", "exec", &middle, "sh", "-c", accept])?;
        lab.relay = Some(Mutex::new(lab.start_relay(seed)?));
        lab.apply(&Impairments::default()).await?;
        Ok(lab)
    }

    fn add(&mut self, host: Host) -> Result<(), String> {
        let (name, middle, port, address) = (self.name(host), self.middle(), format!("p{host}"), address(host));
        ip(&["netns", "add", &name])?;
        self.hosts.push(host);
        ip(&["-n", &middle, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &name])?;
        ip(&["-n", &middle, "link", "set", &port, "up"])?;
        ip(&["-n", &middle, "route", "add", &format!("{address}/32"), "dev", &port, "table", CABLES])?;
        ip(&["-n", &name, "addr", "add", &format!("{address}/32"), "dev", "eth0"])?;
        ip(&["-n", &name, "link", "set", "lo", "up"])?;
        ip(&["-n", &name, "link", "set", "eth0", "up"])?;
        ip(&["-n", &name, "route", "add", "default", "dev", "eth0"])
    }

    fn start_relay(&self, seed: u64) -> Result<Relay, String> {
        let this = std::env::current_exe().map_err(|error| format!("this program is not found: {error}"))?;
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.middle()]).arg(this).arg("--relay").arg(seed.to_string());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().map_err(|error| format!("the relay does not start: {error}"))?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let (Some(input), Some(output)) = (input, output) else { return Err("the relay has no pipes".to_owned()) };
        Ok(Relay { _child: child, input, output: BufReader::new(output).lines() })
    }

    /// Lets the network be like this from now on; the traffic until then.
    ///
    /// # Errors
    /// When the relay does not answer.
    pub async fn apply(&self, impairments: &Impairments) -> Result<Traffic, String> {
        let relay = self.relay.as_ref().ok_or("there is no relay")?;
        let mut relay = relay.lock().await;
        let told = async {
            let mut line = serde_json::to_vec(impairments)?;
            line.push(b'\n');
            relay.input.write_all(&line).await?;
            relay.input.flush().await?;
            let answer = relay.output.next_line().await?;
            Ok::<Traffic, std::io::Error>(serde_json::from_str(&answer.unwrap_or_default())?)
        };
        let answer = within(STEP, told).await.ok_or("the relay does not answer in time")?;
        answer.map_err(|error| format!("the relay fails: {error}"))
    }

    /// A program on a machine. `ip` becomes the program, so its process id is the program's.
    pub fn command(&self, host: Host, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name(host)]).arg(program);
        command
    }

    fn middle(&self) -> String {
        format!("{}-relay", self.tag)
    }

    fn name(&self, host: Host) -> String {
        format!("{}-{host}", self.tag)
    }
}

/// Where the nameserver listens in a lab.
pub fn nameserver_address() -> SocketAddrV4 {
    SocketAddrV4::new(address(NAMESERVER), NAMESERVER_PORT)
}

fn ip(words: &[&str]) -> Result<(), String> {
    let output = std::process::Command::new("ip").args(words).output().map_err(|error| format!("ip: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(format!("ip {}: {}", words.join(" "), said.trim())) }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // The relay goes first: its namespace lives as long as it does.
        self.relay = None;
        let machines: Vec<_> = self.hosts.iter().map(|host| self.name(*host)).collect();
        for namespace in machines.iter().chain([&self.middle()]) {
            // One that was never made cannot go.
            let _ = ip(&["netns", "del", namespace]);
        }
    }
}
