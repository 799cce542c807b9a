//! Command lines from a terminal, with history, completion and Ctrl-C.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, mpsc},
};

use super::{
    command::Verb,
    commands::VERBS,
    console::Console,
    params::{MAX_COMPLETIONS, MAX_HISTORY_LINES},
    report::Report,
    shell_words,
    source::{CommandSource, Input},
};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use rustyline::{
    CompletionType, Config, Context, Editor, Helper,
    completion::{Completer, FilenameCompleter, Pair},
    error::ReadlineError,
    highlight::Highlighter,
    hint::Hinter,
    history::FileHistory,
    validate::Validator,
};
use shared::error::{Failure, FailureCode};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};

use crate::api::PeerApi;

/// Prompt at a terminal.
///
/// The line editor blocks, so it runs in a thread of its own, which reads one line per request. While a command runs,
/// the terminal is in its original mode, in which Ctrl-C is a signal.
pub(crate) struct Prompt {
    peer: Arc<dyn PeerApi>,
    requests: mpsc::Sender<oneshot::Sender<Input>>,
    names: Arc<Mutex<FileNames>>,
    console: Console,
    terminal: TerminalMode,
}

/// File names for completion.
#[derive(Debug, Default)]
struct FileNames {
    /// Names in this peer's share.
    local: Vec<String>,
    /// Names in the network, from the last `listAll`.
    network: Vec<String>,
}

impl Prompt {
    /// Opens the prompt: loads the history, directs the log to the line editor, and starts the editor's thread.
    ///
    /// # Errors
    /// `io` when the terminal cannot be used.
    pub(crate) fn open(peer: Arc<dyn PeerApi>, history: PathBuf, console: &Console) -> Result<Self, Failure> {
        let terminal = TerminalMode::save();
        let names = Arc::new(Mutex::new(FileNames::default()));
        let mut editor = open_editor(Arc::clone(&names)).map_err(no_terminal)?;
        if let Err(error) = editor.load_history(&history) {
            // The file is missing before the first line.
            tracing::debug!(%error, "cannot load the history");
        }
        match editor.create_external_printer() {
            Ok(printer) => console.attach(printer).map_err(no_terminal)?,
            Err(error) => tracing::debug!(%error, "log lines will overwrite the prompt"),
        }
        let prompt = format!("[{}]> ", peer.id());
        let (requests, received) = mpsc::channel::<oneshot::Sender<Input>>();
        std::thread::Builder::new()
            .name("prompt".to_owned())
            .spawn(move || {
                for answer in received {
                    // The receiver is dropped when the session ends.
                    if answer.send(read_line(&mut editor, &prompt, &history)).is_err() {
                        return;
                    }
                }
            })
            .map_err(no_terminal)?;
        Ok(Self { peer, requests, names, console: console.clone(), terminal })
    }
}

impl CommandSource for Prompt {
    async fn next(&mut self) -> Input {
        // The share may have changed since the last line. Without a list the previous names stay.
        if let Ok(files) = self.peer.list().await {
            let names = files.into_iter().take(MAX_COMPLETIONS).map(|file| file.name.into()).collect();
            self.names.lock().unwrap_or_else(PoisonError::into_inner).local = names;
        }
        let (answer, line) = oneshot::channel();
        if self.requests.send(answer).is_err() {
            return Input::End;
        }
        line.await.unwrap_or(Input::End)
    }

    async fn interrupted(&mut self) {
        // A new listener for each command does not see earlier signals.
        match signal(SignalKind::interrupt()) {
            Ok(mut signals) => {
                signals.recv().await;
            }
            Err(error) => {
                tracing::warn!(%error, "cannot listen for Ctrl-C");
                std::future::pending::<()>().await;
            }
        }
    }

    fn on_report(&mut self, report: &Report) {
        if let Report::ListAll(listing) = report {
            let mut names: Vec<String> = Vec::new();
            for entry in &listing.files {
                if names.len() < MAX_COMPLETIONS && names.last().is_none_or(|last| last != entry.file.name.as_str()) {
                    names.push(entry.file.name.to_string());
                }
            }
            self.names.lock().unwrap_or_else(PoisonError::into_inner).network = names;
        }
    }
}

impl Drop for Prompt {
    fn drop(&mut self) {
        self.console.detach();
        // When a signal ends the peer, the editor's thread may still wait for a key, with the terminal in raw mode.
        self.terminal.restore();
    }
}

type LineEditor = Editor<Completion, FileHistory>;

fn open_editor(names: Arc<Mutex<FileNames>>) -> rustyline::Result<LineEditor> {
    let config = Config::builder()
        .max_history_size(MAX_HISTORY_LINES)?
        .history_ignore_dups(true)?
        .auto_add_history(true)
        .completion_type(CompletionType::List)
        .build();
    let mut editor = Editor::with_config(config)?;
    editor.set_helper(Some(Completion { names, paths: FilenameCompleter::new() }));
    Ok(editor)
}

fn read_line(editor: &mut LineEditor, prompt: &str, history: &Path) -> Input {
    match editor.readline(prompt) {
        Ok(line) => {
            if let Err(error) = editor.append_history(history) {
                tracing::debug!(%error, "cannot append to the history");
            }
            Input::Line(line)
        }
        Err(ReadlineError::Interrupted) => Input::Cancelled,
        Err(ReadlineError::Eof) => Input::End,
        Err(error) => {
            tracing::warn!(%error, "cannot read the terminal");
            Input::End
        }
    }
}

fn no_terminal(error: impl std::fmt::Display) -> Failure {
    let hint = "use --headless, or give the commands on standard input";
    Failure::new(FailureCode::Io, "cannot open the prompt", format!("the terminal cannot be used: {error}"), hint)
}

/// Mode of the terminal before the line editor changes it; `None` if standard input is not a terminal.
struct TerminalMode(Option<Termios>);

impl TerminalMode {
    fn save() -> Self {
        Self(tcgetattr(io::stdin()).ok())
    }

    fn restore(&self) {
        if let Some(mode) = &self.0
            && let Err(error) = tcsetattr(io::stdin(), OptionalActions::Now, mode)
        {
            tracing::debug!(%error, "cannot restore the terminal's mode");
        }
    }
}

/// Completion of verbs, file names and paths.
struct Completion {
    names: Arc<Mutex<FileNames>>,
    paths: FilenameCompleter,
}

impl Helper for Completion {}
impl Highlighter for Completion {}
impl Validator for Completion {}
impl Hinter for Completion {
    type Hint = String;
}

impl Completer for Completion {
    type Candidate = Pair;

    fn complete(&self, line: &str, at: usize, _context: &Context<'_>) -> rustyline::Result<(usize, Vec<Pair>)> {
        let partial = shell_words::parse_partial(&line[..at]);
        let names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let candidates: Vec<&str> = match candidates(&partial.before) {
            Candidates::Paths => {
                drop(names);
                return self.paths.complete_path(line, at);
            }
            Candidates::Verbs => VERBS.into_iter().flat_map(Verb::names).collect(),
            Candidates::LocalFiles => names.local.iter().map(String::as_str).collect(),
            Candidates::NetworkFiles => names.network.iter().map(String::as_str).collect(),
            Candidates::None => Vec::new(),
        };
        let mut matches: Vec<&str> = candidates.into_iter().filter(|word| word.starts_with(&partial.current)).collect();
        matches.sort_unstable();
        matches.dedup();
        let pair = |word: &str| Pair { display: word.to_owned(), replacement: shell_words::escape(word) };
        Ok((partial.start, matches.into_iter().map(pair).collect()))
    }
}

/// Kind of word that can follow the words before the cursor.
#[derive(Debug, PartialEq, Eq)]
enum Candidates {
    Verbs,
    LocalFiles,
    NetworkFiles,
    Paths,
    None,
}

fn candidates(before: &[String]) -> Candidates {
    let mut before = before.iter().map(String::as_str);
    match (before.next(), before.next_back()) {
        (None, _) | (Some("help"), None) => Candidates::Verbs,
        (Some("add"), _) | (Some("download"), Some("--to")) => Candidates::Paths,
        (Some("remove"), _) => Candidates::LocalFiles,
        (Some("download"), Some("--from")) => Candidates::None,
        (Some("download"), _) => Candidates::NetworkFiles,
        (Some(_), _) => Candidates::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete(line: &str) -> (usize, Vec<String>) {
        let names = FileNames {
            local: vec!["a b.txt".to_owned(), "c.txt".to_owned()],
            network: vec!["far.bin".to_owned(), "fast.bin".to_owned()],
        };
        let completion = Completion { names: Arc::new(Mutex::new(names)), paths: FilenameCompleter::new() };
        let history = FileHistory::new();
        let (start, pairs) = completion.complete(line, line.len(), &Context::new(&history)).unwrap();
        (start, pairs.into_iter().map(|pair| pair.replacement).collect())
    }

    #[test]
    fn completion_offers_verbs_and_files_by_position() {
        assert_eq!(complete("dow"), (0, vec!["download".to_owned()]));
        assert_eq!(complete("help tr"), (5, vec!["tracker".to_owned()]));
        assert_eq!(complete("remove a"), (7, vec!["a\\ b.txt".to_owned()]));
        assert_eq!(complete("remove 'a b"), (7, vec!["a\\ b.txt".to_owned()]));
        assert_eq!(complete("download fa").1, ["far.bin", "fast.bin"]);
        assert!(complete("download x --from fa").1.is_empty());
        assert!(complete("list ").1.is_empty());
        assert_eq!(complete("LIST").1, Vec::<String>::new());
    }

    #[test]
    fn completion_of_add_offers_local_paths() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("mine one.txt"), "x").unwrap();
        let (_, paths) = complete(&format!("add {}/mi", folder.path().display()));
        assert!(matches!(paths.as_slice(), [path] if path.ends_with("mine\\ one.txt")), "{paths:?}");
    }
}
