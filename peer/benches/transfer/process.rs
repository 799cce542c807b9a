//! One process: what it says line by line, what it costs, how it is ended.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use shared::time::{Clock, Timestamp};

/// How long anything may take that is waited for: the slowest transfer of all sections and then some.
pub const STEP: Duration = Duration::from_secs(180);
/// How often is looked at what cannot be waited for.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Clock ticks a second in `/proc/PID/stat` (`USER_HZ`): 100 wherever Linux runs on x86 or ARM.
const TICKS_PER_SECOND: f64 = 100.0;

/// A running process, killed when dropped.
pub struct Running {
    pub child: Child,
    input: Option<ChildStdin>,
    lines: mpsc::Receiver<String>,
    errors: PathBuf,
}

/// What a process has used up.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    /// Of all its threads, those that ended included, in user and kernel mode.
    pub cpu_seconds: f64,
    /// Most memory that was resident since [`Running::reset_peak`].
    pub peak_bytes: u64,
}

impl Running {
    /// Starts a process. What it says on standard error goes to the file `errors`.
    pub fn spawn(command: &mut Command, errors: &Path) -> Self {
        let log = File::options().create(true).append(true).open(errors).expect("a file for errors can be made");
        let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log).spawn();
        let mut child = spawned.unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let output = child.stdout.take().expect("it is piped");
        let (tell, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if tell.send(line).is_err() {
                    return;
                }
            }
        });
        Self { input: child.stdin.take(), child, lines, errors: errors.to_owned() }
    }

    /// The next line of its standard output.
    pub fn line(&self) -> String {
        self.line_within(STEP)
    }

    /// The next line of its standard output, which must come within `wait`.
    pub fn line_within(&self, wait: Duration) -> String {
        self.lines.recv_timeout(wait).unwrap_or_else(|why| {
            let said = fs::read_to_string(&self.errors).unwrap_or_default();
            panic!("no line ({why}); standard error: {said}")
        })
    }

    /// Writes a line to its standard input.
    pub fn say(&mut self, line: &str) {
        let input = self.input.as_mut().expect("standard input is open");
        writeln!(input, "{line}").and_then(|()| input.flush()).expect("it reads");
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("it runs");
    }

    fn proc(&self, file: &str) -> PathBuf {
        Path::new("/proc").join(self.child.id().to_string()).join(file)
    }

    /// Lets the memory that is resident now count as the most that ever was (proc(5), `clear_refs`).
    pub fn reset_peak(&self) {
        fs::write(self.proc("clear_refs"), "5").expect("one may ask this of a process of one's own");
    }

    pub fn usage(&self) -> Usage {
        let stat = fs::read_to_string(self.proc("stat")).expect("it runs");
        // The name in brackets may contain anything, so the fields are counted from its end (proc(5)).
        let (_, fields) = stat.rsplit_once(')').expect("the name is in brackets");
        let ticks = |field: usize| -> f64 {
            fields.split_whitespace().nth(field).and_then(|ticks| ticks.parse().ok()).expect("a number of ticks")
        };
        let status = fs::read_to_string(self.proc("status")).expect("it runs");
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("every process has a peak");
        let kib: u64 = peak.trim().trim_end_matches(" kB").parse().expect("a number of KiB");
        Usage { cpu_seconds: (ticks(11) + ticks(12)) / TICKS_PER_SECOND, peak_bytes: kib << 10 }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A point in time until which something must have come.
pub struct Deadline {
    clock: Clock,
    end: Timestamp,
}

impl Deadline {
    pub fn new() -> Self {
        let clock = Clock::start();
        Self { end: clock.now() + STEP, clock }
    }

    /// Waits a moment before the next look; fails the benchmark when the deadline is over.
    pub fn pause(&self, what: &str) {
        assert!(self.clock.now() < self.end, "{what} did not come in time");
        pause(LOOK_EVERY);
    }
}

/// Lets time pass.
pub fn pause(time: Duration) {
    let clock = Clock::start();
    let end = clock.now() + time;
    // It may return early.
    while clock.now() < end {
        std::thread::park_timeout(end.since(clock.now()));
    }
}

/// What `work` gives, and how many seconds it took.
pub fn timed<T>(work: impl FnOnce() -> T) -> (T, f64) {
    let clock = Clock::start();
    let result = work();
    (result, clock.now().since_origin().as_secs_f64())
}
