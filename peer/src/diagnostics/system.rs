//! Counters of the operating system: processor time and dropped datagrams.

use crate::diagnostics::params;
use std::{
    fs,
    sync::{Mutex, PoisonError},
};

use shared::{
    rpc::peer::MachineReport,
    time::{Clock, Timestamp},
};

/// Number of leading fields of the first line of `/proc/stat` that sum up to the total time (proc(5)): user, nice,
/// system, idle, iowait, irq, softirq, steal. The time of guests is part of user.
const CPU_FIELDS: usize = 8;
/// Fields of the time in which a processor is idle: idle, iowait.
const IDLE_FIELDS: [usize; 2] = [3, 4];
/// Fields of `/proc/self/stat` after the name of the program: user and system time, ticks.
const OWN_FIELDS: [usize; 2] = [11, 12];

/// Reader of the counters of this machine, at most once every [`params::MACHINE_SAMPLE`].
#[derive(Debug)]
pub struct Machine {
    clock: Clock,
    last: Mutex<Option<(Timestamp, Sample)>>,
}

/// Counters at one time; zero where the system does not provide them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sample {
    /// Total time of all processors, ticks.
    all: u64,
    /// Idle time, ticks.
    idle: u64,
    /// Time of this process, ticks.
    own: u64,
    /// UDP datagrams dropped because a receive buffer was full, of all programs.
    udp_drops: u64,
}

impl Default for Machine {
    fn default() -> Self {
        Self { clock: Clock::start(), last: Mutex::default() }
    }
}

impl Machine {
    /// Returns the counters, at most [`params::MACHINE_SAMPLE`] old.
    pub fn sample(&self) -> Sample {
        let now = self.clock.now();
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, sample)) = &*last
            && now.since(*at) < params::MACHINE_SAMPLE
        {
            return *sample;
        }
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let sample = Sample::parse(&read("/proc/stat"), &read("/proc/self/stat"), &read("/proc/net/snmp"));
        *last = Some((now, sample));
        sample
    }
}

impl Sample {
    fn parse(stat: &str, own: &str, snmp: &str) -> Self {
        let ticks =
            |text: &str| -> Vec<u64> { text.split_whitespace().map_while(|field| field.parse().ok()).collect() };
        let cpu = ticks(stat.lines().next().and_then(|line| line.strip_prefix("cpu ")).unwrap_or_default());
        // The name of the program can contain spaces and parentheses.
        let own = own.rsplit_once(')').map_or("", |(_, fields)| fields);
        let own: Vec<&str> = own.split_whitespace().collect();
        let own = OWN_FIELDS.iter().filter_map(|field| own.get(*field)?.parse::<u64>().ok()).sum();
        Self {
            all: cpu.iter().take(CPU_FIELDS).sum(),
            idle: IDLE_FIELDS.iter().filter_map(|field| cpu.get(*field)).sum(),
            own,
            udp_drops: udp_drops(snmp).unwrap_or_default(),
        }
    }

    /// Returns the use of the processors since `earlier`, or `None` if no tick has passed or the system has no
    /// counters.
    pub fn report_since(&self, earlier: &Self) -> Option<MachineReport> {
        let all = self.all.saturating_sub(earlier.all);
        let permille = |part: u64| u16::try_from(part.saturating_mul(1000).checked_div(all)?.min(1000)).ok();
        Some(MachineReport {
            idle_permille: permille(self.idle.saturating_sub(earlier.idle))?,
            own_permille: permille(self.own.saturating_sub(earlier.own))?,
        })
    }

    /// Number of datagrams dropped since `earlier`, of all programs.
    pub fn drops_since(&self, earlier: &Self) -> u64 {
        self.udp_drops.saturating_sub(earlier.udp_drops)
    }
}

/// Reads the column `RcvbufErrors` of the two `Udp:` lines.
fn udp_drops(snmp: &str) -> Option<u64> {
    let mut lines = snmp.lines().filter_map(|line| line.strip_prefix("Udp:"));
    let column = lines.next()?.split_whitespace().position(|name| name == "RcvbufErrors")?;
    lines.next()?.split_whitespace().nth(column)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str = "7 (a ) b) R 1 1 1 0 -1 4194304 100 0 0 0 30 12 0 0 20 0 1 0 1 2 3";

    fn snmp(drops: u64) -> String {
        let names = "Udp: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors";
        format!("Tcp: A B\nTcp: 1 2\n{names}\nUdp: 3 1 9 4 {drops}\nUdpLite: X\nUdpLite: 1\n")
    }

    #[test]
    fn samples_are_parsed_and_compared() {
        let before = Sample::parse("cpu  100 0 50 800 50 0 0 0 7 0\ncpu0 1\n", OWN, &snmp(5));
        assert_eq!(before, Sample { all: 1000, idle: 850, own: 42, udp_drops: 5 });
        let after = Sample::parse("cpu  700 0 150 1050 100 0 0 0 7 0\n", &OWN.replace("30 12", "530 12"), &snmp(12));
        let report = MachineReport { idle_permille: 300, own_permille: 500 };
        assert_eq!((after.report_since(&before), after.drops_since(&before)), (Some(report), 7));
        assert_eq!(before.report_since(&before), None);
    }

    #[test]
    fn sample_of_a_system_without_counters_is_zero() {
        let none = Sample::parse("", "", "");
        assert_eq!((none, none.report_since(&none)), (Sample::default(), None));
        assert_eq!(Sample::parse("cpu x", "nonsense", "Udp: RcvbufErrors\n"), Sample::default());
    }
}
