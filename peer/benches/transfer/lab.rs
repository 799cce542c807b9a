//! Machines with links of their own: network namespaces on one bridge, slowed down by token buckets. Needs root.

use std::{collections::BTreeMap, path::Path, process::Command};

/// Rates of a machine's link, Mbit/s; `None`: as fast as the kernel copies.
#[derive(Debug, Clone, Copy, Default)]
pub struct Link {
    pub up_mbit: Option<u32>,
    pub down_mbit: Option<u32>,
}

/// A bridge and machines on it; all of it goes when dropped.
pub struct Lab {
    tag: String,
    machines: BTreeMap<String, u8>,
}

impl Lab {
    /// What machines need here and do not find; `None` when everything is there.
    pub fn missing() -> Option<String> {
        if !rustix::process::geteuid().is_root() {
            return Some("network namespaces need root".to_owned());
        }
        for (tool, ask) in [("ip", "-V"), ("tc", "-V")] {
            if Command::new(tool).arg(ask).output().is_err() {
                return Some(format!("{tool} is not installed"));
            }
        }
        let lab = Self::new_unchecked();
        let tried = lab
            .try_ip(&["netns", "add", &lab.switch()])
            .and_then(|()| lab.try_ip(&["-n", &lab.switch(), "link", "add", "br0", "type", "bridge"]))
            .and_then(|()| run("tc", &["-n", &lab.switch(), "qdisc", "add", "dev", "lo", "root", "tbf"], &SHAPE));
        tried.err().map(|why| format!("network namespaces or tc do not work here: {why}"))
    }

    pub fn new() -> Self {
        let lab = Self::new_unchecked();
        lab.ip(&["netns", "add", &lab.switch()]);
        lab.ip(&["-n", &lab.switch(), "link", "add", "br0", "type", "bridge"]);
        lab.ip(&["-n", &lab.switch(), "link", "set", "br0", "up"]);
        // A switch filters nothing, and what it does costs no machine processor time. Where the kernel cannot filter what
        // a bridge passes on, there is no such setting.
        for family in ["ip", "ip6"] {
            let setting = format!("net.bridge.bridge-nf-call-{family}tables=0");
            let _ = lab.try_ip(&["netns", "exec", &lab.switch(), "sysctl", "-qw", &setting]);
        }
        lab
    }

    fn new_unchecked() -> Self {
        Self { tag: format!("brasa-bench{}", std::process::id()), machines: BTreeMap::new() }
    }

    /// Adds a machine; its address is `10.78.0.<number>`, the first one's `10.78.0.1`.
    pub fn add(&mut self, machine: &str, link: Link) {
        let host = u8::try_from(self.machines.len() + 1).expect("a handful of machines");
        let (name, switch, port) = (self.name(machine), self.switch(), format!("p{host}"));
        self.ip(&["netns", "add", &name]);
        self.machines.insert(machine.to_owned(), host);
        self.ip(&["-n", &switch, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &name]);
        self.ip(&["-n", &switch, "link", "set", &port, "master", "br0", "up"]);
        self.ip(&["-n", &name, "addr", "add", &format!("10.78.0.{host}/24"), "dev", "eth0"]);
        self.ip(&["-n", &name, "link", "set", "eth0", "up"]);
        self.ip(&["-n", &name, "link", "set", "lo", "up"]);
        for (namespace, device, rate) in [(&name, "eth0", link.up_mbit), (&switch, port.as_str(), link.down_mbit)] {
            if let Some(rate) = rate {
                let rate = format!("{rate}mbit");
                let words = ["-n", namespace, "qdisc", "add", "dev", device, "root", "tbf", "rate", &rate];
                run("tc", &words, &SHAPE[2..]).unwrap_or_else(|why| panic!("{why}"));
            }
        }
    }

    pub fn address(&self, machine: &str) -> String {
        format!("10.78.0.{}", self.machines[machine])
    }

    /// A program on a machine. `ip` becomes the program, so its process id is the program's.
    pub fn command(&self, machine: &str, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name(machine)]).arg(program);
        command
    }

    /// Pulls a machine's cable, or puts it back.
    pub fn set_cable(&self, machine: &str, is_in: bool) {
        let port = format!("p{}", self.machines[machine]);
        self.ip(&["-n", &self.switch(), "link", "set", &port, if is_in { "up" } else { "down" }]);
    }

    fn switch(&self) -> String {
        format!("{}-switch", self.tag)
    }

    fn name(&self, machine: &str) -> String {
        format!("{}-{machine}", self.tag)
    }

    fn ip(&self, words: &[&str]) {
        self.try_ip(words).unwrap_or_else(|why| panic!("{why}"));
    }

    fn try_ip(&self, words: &[&str]) -> Result<(), String> {
        run("ip", words, &[])
    }
}

/// A modest bucket and queue: a link whose delay does not grow beyond 20 ms.
const SHAPE: [&str; 6] = ["rate", "100mbit", "burst", "32kb", "latency", "20ms"];

fn run(program: &str, words: &[&str], more: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(words).args(more).output().map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(format!("{program} {words:?}: {}", said.trim())) }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let machines: Vec<_> = self.machines.keys().map(|machine| self.name(machine)).collect();
        for namespace in machines.iter().chain([&self.switch()]) {
            // A namespace that was never made cannot go.
            let _ = self.try_ip(&["netns", "del", namespace]);
        }
    }
}
