//! One program under test: its output line by line, and how it ends.

use std::{
    io::{BufRead as _, BufReader, Read, Write as _},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc,
    time::Duration,
};

use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};

/// Deadline of every wait: far longer than anything takes on a busy machine.
pub(crate) const WAIT: Duration = Duration::from_secs(60);

/// Exit status and output of a program that ended.
#[derive(Debug)]
pub(crate) struct Finished {
    /// Exit status; `None` when a signal ended the program.
    pub(crate) status: Option<i32>,
    /// Standard output that was not read before.
    pub(crate) out: String,
    /// Standard error that was not read before.
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
    /// Starts a program. The command decides about its standard input.
    pub(crate) fn spawn(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
        let lines = lines_of(child.stdout.take().expect("standard output is piped"));
        let errors = lines_of(child.stderr.take().expect("standard error is piped"));
        Self { input: child.stdin.take(), child, lines, errors }
    }

    /// Next line of standard output.
    pub(crate) fn next_line(&mut self) -> String {
        match self.lines.recv_timeout(WAIT) {
            Ok(line) => line,
            Err(why) => panic!("no line ({why}); standard error: {:?}", self.errors.try_iter().collect::<Vec<_>>()),
        }
    }

    /// Next line of standard output; `None` if there is none because the program ends.
    pub(crate) fn first_line(&mut self) -> Option<String> {
        match self.lines.recv_timeout(WAIT) {
            Ok(line) => Some(line),
            Err(mpsc::RecvTimeoutError::Disconnected) => None,
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("neither a line nor an end"),
        }
    }

    /// Next line of standard error.
    pub(crate) fn next_error_line(&mut self) -> String {
        self.errors.recv_timeout(WAIT).expect("a line on standard error")
    }

    /// Reads standard output up to a line that contains `text`, and returns that line.
    pub(crate) fn wait_for_line(&mut self, text: &str) -> String {
        wait_for_line(&self.lines, "standard output", text)
    }

    /// Reads standard error up to a line that contains `text`, and returns that line.
    pub(crate) fn wait_for_error_line(&mut self, text: &str) -> String {
        wait_for_line(&self.errors, "standard error", text)
    }

    /// Lines of standard error that have arrived and were not read before.
    pub(crate) fn error_lines_so_far(&mut self) -> Vec<String> {
        self.errors.try_iter().collect()
    }

    /// Writes a line to its standard input.
    pub(crate) fn write_line(&mut self, line: &str) {
        let input = self.input.as_mut().expect("standard input is open");
        writeln!(input, "{line}").and_then(|()| input.flush()).expect("the program reads its input");
    }

    /// Closes its standard input.
    pub(crate) fn close_input(&mut self) {
        self.input = None;
    }

    /// Process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("the program runs");
    }

    /// Sets the size in bytes beyond which it can write no file (setrlimit(2), `RLIMIT_FSIZE`).
    pub(crate) fn limit_file_size(&self, bytes: u64) {
        let limit = Rlimit { current: Some(bytes), maximum: Some(bytes) };
        prlimit(Some(Pid::from_child(&self.child)), Resource::Fsize, limit).expect("the program runs");
    }

    /// Waits for its end. The deadline starts anew with every line of output.
    pub(crate) fn wait(mut self) -> Finished {
        self.input = None;
        let rest = |lines: &mpsc::Receiver<String>| {
            let mut text = String::new();
            loop {
                match lines.recv_timeout(WAIT) {
                    Ok(line) => text += &(line + "\n"),
                    Err(mpsc::RecvTimeoutError::Disconnected) => return text,
                    Err(mpsc::RecvTimeoutError::Timeout) => panic!("the program does not end; output: {text:?}"),
                }
            }
        };
        let (out, err) = (rest(&self.lines), rest(&self.errors));
        // Both outputs are closed, so the process is ending.
        let status = self.child.wait().expect("the process can be waited for").code();
        Finished { status, out, err }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // The program may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn wait_for_line(lines: &mpsc::Receiver<String>, stream: &str, text: &str) -> String {
    let mut seen = Vec::new();
    loop {
        match lines.recv_timeout(WAIT) {
            Ok(line) if line.contains(text) => return line,
            Ok(line) => seen.push(line),
            Err(why) => panic!("no line with {text:?} on {stream} ({why}); lines so far: {seen:?}"),
        }
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
pub(crate) fn run_to_end(command: &mut Command, input: &str) -> Finished {
    let mut program = Program::spawn(command);
    if let Some(mut pipe) = program.input.take() {
        let input = input.to_owned();
        // The program may end before it has read everything; its test judges that.
        std::thread::spawn(move || pipe.write_all(input.as_bytes()));
    }
    program.wait()
}
