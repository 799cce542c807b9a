//! Child processes, and waits for them with deadlines.

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

/// Deadline of every wait: longer than the slowest transfer and than the start of a peer with a large share.
pub const DEADLINE: Duration = Duration::from_secs(180);
/// Interval between two polls.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Child process with piped standard input and output. Dropping it kills the process.
pub struct Process {
    pub child: Child,
    input: Option<ChildStdin>,
    lines: mpsc::Receiver<String>,
    stderr: PathBuf,
}

impl Process {
    /// Starts a process. Its standard error is appended to the file `stderr`.
    pub fn spawn(command: &mut Command, stderr: &Path) -> Self {
        let log = File::options().create(true).append(true).open(stderr).expect("the log file is writable");
        let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log).spawn();
        let mut child = spawned.unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let output = child.stdout.take().expect("standard output is piped");
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { input: child.stdin.take(), child, lines, stderr: stderr.to_owned() }
    }

    /// Returns the next line of standard output. Panics when none comes within [`DEADLINE`].
    pub fn read_line(&self) -> String {
        self.lines.recv_timeout(DEADLINE).unwrap_or_else(|error| {
            let stderr = fs::read_to_string(&self.stderr).unwrap_or_default();
            panic!("no line of output ({error}); standard error: {stderr}")
        })
    }

    /// Writes a line to standard input.
    pub fn write_line(&mut self, line: &str) {
        let input = self.input.as_mut().expect("standard input is piped");
        writeln!(input, "{line}").and_then(|()| input.flush()).expect("the process reads its standard input");
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("the process runs");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails when the process has exited.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Instant by which an awaited condition must hold.
pub struct Deadline {
    clock: Clock,
    end: Timestamp,
}

impl Deadline {
    /// Returns the instant [`DEADLINE`] from now.
    pub fn new() -> Self {
        let clock = Clock::start();
        Self { end: clock.now() + DEADLINE, clock }
    }

    /// Pauses before the next poll for `awaited`. Panics when the deadline has passed.
    pub fn pause(&self, awaited: &str) {
        assert!(self.clock.now() < self.end, "{awaited}: not within {DEADLINE:?}");
        pause(POLL_INTERVAL);
    }
}

/// Blocks for a duration.
pub fn pause(duration: Duration) {
    let clock = Clock::start();
    let end = clock.now() + duration;
    // `park_timeout` may return early.
    while clock.now() < end {
        std::thread::park_timeout(end.since(clock.now()));
    }
}
