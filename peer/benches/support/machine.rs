//! Description of the machine that a benchmark runs on.

use std::{fmt, fs, thread};

use serde::Serialize;

#[derive(Debug, Serialize)]
pub struct Machine {
    cpus: usize,
    /// Load average of the last minute before the benchmark (`proc_loadavg(5)`). A busy machine makes times
    /// meaningless.
    load_before: String,
}

impl Machine {
    pub fn detect() -> Self {
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        Self {
            cpus: thread::available_parallelism().map_or(1, usize::from),
            load_before: load.split_whitespace().next().unwrap_or("unknown").to_owned(),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} CPUs, load {} before", self.cpus, self.load_before)
    }
}
