//! One process of the cluster and its log.

use std::{
    fs::File,
    path::Path,
    process::ExitStatus,
    sync::{Mutex, MutexGuard, PoisonError},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStdout, Command},
};

use crate::deadline::{PROCESS_DEADLINE, within};

/// Lines of a log that a violation quotes.
const QUOTED_LINES: usize = 12;

/// Slot of a process. A restart puts a new process into the same slot.
#[derive(Default)]
pub struct Slot {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    child: Option<Child>,
    is_ready: bool,
    /// Reserved by a fault until the process is ready again.
    is_reserved: bool,
    kills: u64,
}

impl Slot {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Starts a process in this slot. Returns the lines of its standard output; standard error is appended to `log`.
    ///
    /// # Errors
    /// When the process cannot be started.
    pub fn spawn(&self, command: &mut Command, log: &Path) -> Result<Lines<BufReader<ChildStdout>>, String> {
        let log = File::options().create(true).append(true).open(log).map_err(|error| format!("no log: {error}"))?;
        let mut child = command.stderr(log).spawn().map_err(|error| format!("cannot start a process: {error}"))?;
        let output = child.stdout.take().ok_or("a process has no output")?;
        let mut state = self.state();
        state.child = Some(child);
        state.is_ready = false;
        Ok(BufReader::new(output).lines())
    }

    /// Marks the process as ready and ends a reservation.
    pub fn set_ready(&self) {
        let mut state = self.state();
        (state.is_ready, state.is_reserved) = (true, false);
    }

    /// Returns whether the process runs and is ready.
    pub fn is_ready(&self) -> bool {
        let state = self.state();
        state.child.is_some() && state.is_ready
    }

    /// Returns whether the process runs, is ready, and is not reserved by a fault.
    pub fn is_available(&self) -> bool {
        let state = self.state();
        state.child.is_some() && state.is_ready && !state.is_reserved
    }

    /// Reserves an available process for a fault. Returns `false` when it is not available.
    pub fn reserve(&self) -> bool {
        let mut state = self.state();
        let is_available = state.child.is_some() && state.is_ready && !state.is_reserved;
        state.is_reserved |= is_available;
        is_available
    }

    /// Ends a reservation.
    pub fn release(&self) {
        self.state().is_reserved = false;
    }

    /// Returns how often a process in this slot was killed.
    pub fn kills(&self) -> u64 {
        self.state().kills
    }

    /// Kills the process and waits for its exit.
    ///
    /// # Errors
    /// When it does not exit within [`PROCESS_DEADLINE`].
    pub async fn kill(&self) -> Result<(), String> {
        let child = {
            let mut state = self.state();
            state.is_ready = false;
            state.kills += 1;
            state.child.take()
        };
        let Some(mut child) = child else { return Ok(()) };
        let exited = within(PROCESS_DEADLINE, child.kill()).await.ok_or("a killed process did not exit")?;
        exited.map_err(|error| error.to_string())
    }

    /// Sends a signal to the process, if it runs.
    ///
    /// # Errors
    /// When the kernel refuses the signal.
    pub fn signal(&self, signal: Signal) -> Result<(), String> {
        let state = self.state();
        let pid = state.child.as_ref().and_then(Child::id).and_then(|pid| Pid::from_raw(pid.cast_signed()));
        pid.map_or(Ok(()), |pid| kill_process(pid, signal)).map_err(|error| error.to_string())
    }

    /// Waits for the exit of a process that closed its output.
    ///
    /// # Errors
    /// When it does not exit within [`PROCESS_DEADLINE`].
    pub async fn wait(&self) -> Result<Option<ExitStatus>, String> {
        let child = self.state().child.take();
        let Some(mut child) = child else { return Ok(None) };
        let exited = within(PROCESS_DEADLINE, child.wait()).await.ok_or("a process did not exit")?;
        exited.map(Some).map_err(|error| error.to_string())
    }

    /// Returns the exit status of a ready process that exited although nothing stopped it, and empties the slot.
    /// A process that is not ready is watched by the task that starts it.
    pub fn take_unexpected_exit(&self) -> Option<ExitStatus> {
        let mut state = self.state();
        if !state.is_ready {
            return None;
        }
        let Some(Ok(Some(status))) = state.child.as_mut().map(Child::try_wait) else { return None };
        state.child = None;
        state.is_ready = false;
        Some(status)
    }
}

/// Code and message of an error.
pub type CommandError = (String, String);

/// Returns code and message of the last error document (`--json`) in a text.
pub fn last_error(text: &str) -> Option<CommandError> {
    let document = text.lines().rev().find_map(|line| {
        let document: Value = serde_json::from_str(line).ok()?;
        document["error"].is_object().then_some(document)
    })?;
    let error = &document["error"];
    Some((error["code"].as_str()?.to_owned(), error["message"].as_str()?.to_owned()))
}

/// Returns the last lines of a log.
pub fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(QUOTED_LINES)..].join("\n    ")
}

/// Locks a mutex. The data stays usable after a panic: every critical section is a single update.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
