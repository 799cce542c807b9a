//! The prompt: history, completion, and cancelling with Ctrl-C.

use std::{
    io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, mpsc},
};

use rustyline::{
    CompletionType, Config, Context, Editor, Helper,
    completion::{Completer, FilenameCompleter, Pair},
    error::ReadlineError,
    highlight::Highlighter,
    hint::Hinter,
    history::FileHistory,
    validate::Validator,
};
use shared::{
    error::{Failure, FailureCode},
    limits::{MAX_COMPLETIONS, MAX_HISTORY_LINES},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};

use super::{
    VERBS,
    console::Console,
    output::Report,
    session::{Input, Source},
    shell_words,
};
use crate::api::PeerApi;

/// The user at a terminal. The line editor blocks, so it has a thread of its own, which is asked for one line
/// at a time: while a command runs, the terminal is in its ordinary mode and Ctrl-C is a signal.
pub(crate) struct Prompt {
    backend: Arc<dyn PeerApi>,
    asks: mpsc::Sender<oneshot::Sender<Input>>,
    known: Arc<Mutex<Known>>,
    console: Console,
    terminal: Terminal,
}

/// File names to offer for completion.
#[derive(Debug, Default)]
struct Known {
    /// In this peer's share.
    own: Vec<String>,
    /// Of the network, from the last `listAll`.
    network: Vec<String>,
}

impl Prompt {
    pub(crate) fn open(backend: Arc<dyn PeerApi>, history: PathBuf, console: &Console) -> Result<Self, Failure> {
        let no_terminal = |error: &dyn std::fmt::Display| {
            Failure::new(
                FailureCode::Io,
                "no prompt",
                format!("the terminal cannot be used: {error}"),
                "use --headless, or give the commands on standard input",
            )
        };
        let terminal = Terminal::remember();
        let known = Arc::new(Mutex::new(Known::default()));
        let config = Config::builder()
            .max_history_size(MAX_HISTORY_LINES)
            .and_then(|config| config.history_ignore_dups(true))
            .map_err(|error| no_terminal(&error))?
            .auto_add_history(true)
            .completion_type(CompletionType::List)
            .build();
        let mut editor: Editor<Completion, FileHistory> =
            Editor::with_config(config).map_err(|error| no_terminal(&error))?;
        editor.set_helper(Some(Completion { known: Arc::clone(&known), paths: FilenameCompleter::new() }));
        if let Err(error) = editor.load_history(&history) {
            // There is none before the first line was typed.
            tracing::debug!(%error, "no history");
        }
        match editor.create_external_printer() {
            Ok(printer) => console.attach(printer).map_err(|error| no_terminal(&error))?,
            Err(error) => tracing::debug!(%error, "log lines will be written over the prompt"),
        }
        let (asks, questions) = mpsc::channel::<oneshot::Sender<Input>>();
        let prompt = format!("[{}]> ", backend.id());
        std::thread::Builder::new()
            .name("prompt".to_owned())
            .spawn(move || {
                for answer in questions {
                    // Nobody waits any more: the session ends.
                    if answer.send(ask(&mut editor, &prompt, &history)).is_err() {
                        return;
                    }
                }
            })
            .map_err(|error| no_terminal(&error))?;
        Ok(Self { backend, asks, known, console: console.clone(), terminal })
    }
}

fn ask(editor: &mut Editor<Completion, FileHistory>, prompt: &str, history: &std::path::Path) -> Input {
    match editor.readline(prompt) {
        Ok(line) => {
            if let Err(error) = editor.append_history(history) {
                tracing::debug!(%error, "the line is not remembered");
            }
            Input::Line(line)
        }
        Err(ReadlineError::Interrupted) => Input::Cancelled,
        Err(ReadlineError::Eof) => Input::End,
        Err(error) => {
            tracing::warn!(%error, "the terminal cannot be read any more");
            Input::End
        }
    }
}

impl Source for Prompt {
    async fn next(&mut self) -> Input {
        // What is in the share may have changed since the last line; a peer that cannot say is still a peer.
        if let Ok(files) = self.backend.list().await {
            let names = files.into_iter().take(MAX_COMPLETIONS).map(|file| file.name.into()).collect();
            self.known.lock().unwrap_or_else(PoisonError::into_inner).own = names;
        }
        let (answer, line) = oneshot::channel();
        if self.asks.send(answer).is_err() {
            return Input::End;
        }
        line.await.unwrap_or(Input::End)
    }

    async fn interrupted(&mut self) {
        // A listener of its own for each command: an earlier Ctrl-C is not meant for this one.
        match signal(SignalKind::interrupt()) {
            Ok(mut signals) => {
                signals.recv().await;
            }
            Err(error) => {
                tracing::warn!(%error, "Ctrl-C cannot be noticed");
                std::future::pending::<()>().await;
            }
        }
    }

    fn shown(&mut self, report: &Report) {
        if let Report::ListAll(listing) = report {
            let mut names: Vec<String> = Vec::new();
            for entry in &listing.files {
                if names.len() < MAX_COMPLETIONS && names.last().is_none_or(|last| last != entry.file.name.as_str()) {
                    names.push(entry.file.name.to_string());
                }
            }
            self.known.lock().unwrap_or_else(PoisonError::into_inner).network = names;
        }
    }
}

impl Drop for Prompt {
    fn drop(&mut self) {
        self.console.detach();
        // The editor's thread may still be waiting for a key, in raw mode, when a signal ends the peer.
        self.terminal.restore();
    }
}

/// The terminal's mode as it was found.
struct Terminal(Option<rustix::termios::Termios>);

impl Terminal {
    fn remember() -> Self {
        Self(rustix::termios::tcgetattr(io::stdin()).ok())
    }

    fn restore(&self) {
        if let Some(mode) = &self.0
            && let Err(error) = rustix::termios::tcsetattr(io::stdin(), rustix::termios::OptionalActions::Now, mode)
        {
            tracing::debug!(%error, "the terminal's mode is not restored");
        }
    }
}

/// Offers verbs, file names and paths.
struct Completion {
    known: Arc<Mutex<Known>>,
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
        let unfinished = shell_words::unfinished(&line[..at]);
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let offered: Vec<&str> = match offer(&unfinished.before) {
            Offer::Paths => {
                drop(known);
                return self.paths.complete_path(line, at);
            }
            Offer::Verbs => {
                VERBS.iter().flat_map(|verb| std::iter::once(verb.name).chain(verb.aliases.iter().copied())).collect()
            }
            Offer::Own => known.own.iter().map(String::as_str).collect(),
            Offer::Network => known.network.iter().map(String::as_str).collect(),
            Offer::Nothing => Vec::new(),
        };
        let mut fitting: Vec<&str> = offered.into_iter().filter(|word| word.starts_with(&unfinished.begun)).collect();
        fitting.sort_unstable();
        fitting.dedup();
        let pair = |word: &str| Pair { display: word.to_owned(), replacement: shell_words::escape(word) };
        Ok((unfinished.start, fitting.into_iter().map(pair).collect()))
    }
}

/// What can stand after words.
#[derive(Debug, PartialEq, Eq)]
enum Offer {
    Verbs,
    Own,
    Network,
    Paths,
    Nothing,
}

fn offer(before: &[String]) -> Offer {
    let mut before = before.iter().map(String::as_str);
    match (before.next(), before.next_back()) {
        (None, _) | (Some("help"), None) => Offer::Verbs,
        (Some("add"), _) | (Some("download"), Some("--to")) => Offer::Paths,
        (Some("remove"), _) => Offer::Own,
        (Some("download"), Some("--from")) => Offer::Nothing,
        (Some("download"), _) => Offer::Network,
        (Some(_), _) => Offer::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete(line: &str) -> (usize, Vec<String>) {
        let known = Known {
            own: vec!["a b.txt".to_owned(), "c.txt".to_owned()],
            network: vec!["far.bin".to_owned(), "fast.bin".to_owned()],
        };
        let completion = Completion { known: Arc::new(Mutex::new(known)), paths: FilenameCompleter::new() };
        let history = FileHistory::new();
        let (start, pairs) = completion.complete(line, line.len(), &Context::new(&history)).unwrap();
        (start, pairs.into_iter().map(|pair| pair.replacement).collect())
    }

    #[test]
    fn verbs_files_and_paths_are_completed_where_they_belong() {
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
    fn local_paths_are_completed_for_add() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("mine one.txt"), "x").unwrap();
        let (_, paths) = complete(&format!("add {}/mi", folder.path().display()));
        assert!(matches!(paths.as_slice(), [path] if path.ends_with("mine\\ one.txt")), "{paths:?}");
    }
}
