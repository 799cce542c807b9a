//! One program: what it says, line by line, and how it ends.

use std::{
    io::{BufRead as _, BufReader, Read, Write as _},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc,
    time::Duration,
};

use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};

/// How long anything may take that is waited for: far longer than it should on a busy machine.
pub(crate) const WAIT: Duration = Duration::from_secs(60);

/// What a program said and how it ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// Exit status; `None` when a signal ended it.
    pub(crate) status: Option<i32>,
    /// Standard output, as far as it was not read before.
    pub(crate) out: String,
    /// Standard error.
    pub(crate) err: String,
}

/// A running program, killed when dropped.
pub(crate) struct Program {
    child: Child,
    input: Option<ChildStdin>,
    lines: mpsc::Receiver<String>,
    errors: mpsc::Receiver<String>,
}

impl Program {
    /// Starts a program. Its standard input is what the command says.
    pub(crate) fn spawn(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
        let lines = lines_of(child.stdout.take().expect("it is piped"));
        let errors = lines_of(child.stderr.take().expect("it is piped"));
        Self { input: child.stdin.take(), child, lines, errors }
    }

    /// The next line of standard output.
    pub(crate) fn line(&mut self) -> String {
        match self.lines.recv_timeout(WAIT) {
            Ok(line) => line,
            Err(why) => panic!("no line ({why}); standard error: {:?}", self.errors.try_iter().collect::<Vec<_>>()),
        }
    }

    /// The next line of standard error.
    pub(crate) fn error_line(&mut self) -> String {
        self.errors.recv_timeout(WAIT).expect("a line on standard error")
    }

    /// Writes a line to its standard input.
    pub(crate) fn say(&mut self, line: &str) {
        let input = self.input.as_mut().expect("standard input is open");
        writeln!(input, "{line}").and_then(|()| input.flush()).expect("it reads");
    }

    /// Closes its standard input.
    pub(crate) fn close_input(&mut self) {
        self.input = None;
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("it runs");
    }

    /// From now on it can write no file beyond this size, bytes (setrlimit(2), `RLIMIT_FSIZE`).
    pub(crate) fn limit_file_size(&self, bytes: u64) {
        let limit = Rlimit { current: Some(bytes), maximum: Some(bytes) };
        prlimit(Some(Pid::from_child(&self.child)), Resource::Fsize, limit).expect("it runs");
    }

    /// Waits for its end.
    pub(crate) fn wait(mut self) -> Ended {
        self.input = None;
        let rest = |lines: &mpsc::Receiver<String>| {
            let mut text = String::new();
            loop {
                match lines.recv_timeout(WAIT) {
                    Ok(line) => text += &(line + "\n"),
                    Err(mpsc::RecvTimeoutError::Disconnected) => return text,
                    Err(mpsc::RecvTimeoutError::Timeout) => panic!("it does not end; it said {text:?}"),
                }
            }
        };
        let (out, err) = (rest(&self.lines), rest(&self.errors));
        // Both its outputs are closed: it is ending.
        let status = self.child.wait().expect("it can be waited for").code();
        Ended { status, out, err }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn lines_of(output: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    lines
}

/// Runs a program to its end, with `input` on standard input if that is piped.
pub(crate) fn finish(command: &mut Command, input: &str) -> Ended {
    let mut program = Program::spawn(command);
    if let Some(mut pipe) = program.input.take() {
        let input = input.to_owned();
        // The program may end before it has read all; that is for its test to judge.
        std::thread::spawn(move || pipe.write_all(input.as_bytes()));
    }
    program.wait()
}
