//! Resources that a process uses, from `/proc` (proc(5)).

use std::{
    fs,
    path::{Path, PathBuf},
};

use shared::time::Clock;

use crate::process::Process;

/// Clock ticks a second in `/proc/PID/stat` (`USER_HZ`): 100 wherever Linux runs on x86 or ARM.
const TICKS_PER_SECOND: f64 = 100.0;

/// Resource usage of a process.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    /// User and system time of all threads, exited ones included, seconds.
    pub cpu_seconds: f64,
    /// Peak of the resident memory since [`reset_peak`], bytes.
    pub peak_bytes: u64,
}

/// Resets the peak of the resident memory to its present value.
pub fn reset_peak(process: &Process) {
    fs::write(proc(process, "clear_refs"), "5").expect("a parent may reset the peak of its child");
}

/// Returns the resource usage of a process so far.
pub fn usage(process: &Process) -> Usage {
    let stat = fs::read_to_string(proc(process, "stat")).expect("the process runs");
    // The name in parentheses may contain any character, so the fields are counted from its end.
    let (_, fields) = stat.rsplit_once(')').expect("the name is in parentheses");
    let ticks = |field: usize| -> f64 {
        fields.split_whitespace().nth(field).and_then(|ticks| ticks.parse().ok()).expect("a number of ticks")
    };
    let status = fs::read_to_string(proc(process, "status")).expect("the process runs");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("every process has a VmHWM");
    let kib: u64 = peak.trim().trim_end_matches(" kB").parse().expect("VmHWM is a number of kB");
    Usage { cpu_seconds: (ticks(11) + ticks(12)) / TICKS_PER_SECOND, peak_bytes: kib << 10 }
}

/// Returns the output of `work` and its duration in seconds.
pub fn timed<T>(work: impl FnOnce() -> T) -> (T, f64) {
    let clock = Clock::start();
    let output = work();
    (output, clock.now().since_origin().as_secs_f64())
}

fn proc(process: &Process, file: &str) -> PathBuf {
    Path::new("/proc").join(process.child.id().to_string()).join(file)
}
