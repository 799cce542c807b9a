//! The commands: from words to what is shown.
//!
//! | room | what is in it |
//! |---|---|
//! | [`backend`] | what the commands ask of a peer |
//! | `words`, `arguments`, `suggest` | a line as words, words as a command, what a wrong word may have meant |
//! | `commands/` | one file a verb |
//! | [`output`] | what is shown, to people and as JSON |
//! | [`front`] | what the program does: a prompt, a service, one command |
//! | [`session`] | commands one after another |
//! | `repl`, `lines` | where commands come from: a prompt, standard input |
//! | [`console`], `progress` | standard error: messages that spare the prompt, the progress bar |

pub mod app;
mod arguments;
mod commands;
pub mod console;
pub mod control;
#[cfg(test)]
pub(crate) mod fake;
pub mod output;
pub(crate) mod progress;
mod prompt;
pub mod session;
mod shell_words;
mod stdin_source;
mod suggest;

use std::path::Path;

use crate::api::{PeerApi, ProgressSink};
use output::Report;
use shared::error::{Failure, FailureCode};

use commands::{add, download, elect, exit, help, list, list_all, peers, remove, status, tracker};

/// One command, its arguments understood. The variants' contents are in the verb's file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// `list`
    List,
    /// `listAll`
    ListAll,
    /// `add PATH…`
    Add(add::Add),
    /// `remove NAME…`
    Remove(remove::Remove),
    /// `download NAME[@HASH]…`
    Download(download::Download),
    /// `tracker`
    Tracker,
    /// `peers`
    Peers,
    /// `eleger`
    Elect,
    /// `status`
    Status,
    /// `help [COMMAND]`
    Help(help::Help),
    /// `kill`
    Kill,
    /// `exit`
    Exit,
}

/// A verb of the command line: how it is called and read.
struct Verb {
    name: &'static str,
    aliases: &'static [&'static str],
    usage: &'static str,
    summary: &'static str,
    /// What `help VERB` says besides; may be empty.
    details: &'static str,
    parse: fn(Vec<String>) -> Result<Command, Failure>,
}

/// In the order in which `help` shows them.
static VERBS: [&Verb; 12] = [
    &list::VERB,
    &list_all::VERB,
    &add::VERB,
    &remove::VERB,
    &download::VERB,
    &tracker::VERB,
    &peers::VERB,
    &elect::VERB,
    &status::VERB,
    &help::VERB,
    &exit::KILL,
    &exit::EXIT,
];

impl Verb {
    fn named(word: &str) -> Option<&'static Self> {
        VERBS.into_iter().find(|verb| verb.name == word || verb.aliases.contains(&word))
    }

    /// The failure of arguments that this verb does not take.
    fn misused(&self, why: impl std::fmt::Display) -> Failure {
        Failure::new(
            FailureCode::Usage,
            format!("wrong arguments for {}", self.name),
            why,
            format!("usage: {}", self.usage),
        )
    }
}

fn unknown_command(word: &str) -> Failure {
    let names = VERBS.into_iter().flat_map(|verb| std::iter::once(verb.name).chain(verb.aliases.iter().copied()));
    let near = suggest::nearest(word, names);
    let hint = if near.is_empty() {
        "`help` lists the commands".to_owned()
    } else {
        format!("did you mean {}? `help` lists the commands", near.join(" or "))
    };
    let shown: String = word.chars().take(40).collect();
    Failure::new(FailureCode::UnknownCommand, format!("unknown command {shown:?}"), "no command is called so", hint)
}

impl Command {
    /// Reads a command, its verb first.
    ///
    /// # Errors
    /// `unknown_command`, with the nearest names, and `usage`, with how the verb is used.
    pub fn parse(words: Vec<String>) -> Result<Self, Failure> {
        let mut words = words.into_iter();
        let Some(word) = words.next() else {
            return Err(Failure::new(
                FailureCode::Usage,
                "no command",
                "the line is empty",
                "`help` lists the commands",
            ));
        };
        let verb = Verb::named(&word).ok_or_else(|| unknown_command(&word))?;
        let rest: Vec<String> = words.collect();
        if rest.iter().take_while(|word| *word != "--").any(|word| word == "--help") {
            return Ok(Self::Help(help::Help { verb: Some(verb.name) }));
        }
        (verb.parse)(rest)
    }

    /// Whether the command needs no peer.
    pub fn is_local(&self) -> bool {
        matches!(self, Self::Help(_))
    }

    /// Whether the command makes a peer end, so that none is to be started for it.
    pub fn is_end(&self) -> bool {
        matches!(self, Self::Exit | Self::Kill)
    }
}

/// Takes `--json` out of a command's words, wherever it stands before a `--`; whether it was there.
pub fn take_json_flag(words: Vec<String>) -> (Vec<String>, bool) {
    let mut found = false;
    let mut literal = false;
    let rest = words.into_iter().filter(|word| {
        literal |= word == "--";
        let flag = !literal && word == "--json";
        found |= flag;
        !flag
    });
    (rest.collect(), found)
}

/// What a command depends on besides its words.
pub struct Call<'a> {
    /// Who carries it out.
    pub backend: &'a dyn PeerApi,
    /// What relative paths are relative to; absolute.
    pub working_dir: &'a Path,
    /// Where it tells how far it is.
    pub progress: ProgressSink,
}

/// What came of a command. Of several files, some may be done and others have failed.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// What was done.
    pub report: Option<Report>,
    /// What failed.
    pub failure: Option<Failure>,
    /// Whether the peer goes on.
    pub next: Next,
}

/// Whether a peer goes on after a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// It does.
    Continue,
    /// It leaves the network and ends.
    Exit,
    /// Its process ends at once, without a word to the others.
    Kill,
}

impl From<Result<Report, Failure>> for Outcome {
    fn from(result: Result<Report, Failure>) -> Self {
        match result {
            Ok(report) => Self { report: Some(report), failure: None, next: Next::Continue },
            Err(failure) => failure.into(),
        }
    }
}

impl From<Failure> for Outcome {
    fn from(failure: Failure) -> Self {
        Self { report: None, failure: Some(failure), next: Next::Continue }
    }
}

impl Outcome {
    /// Of a command that the user stopped.
    pub fn interrupted() -> Self {
        Failure::new(
            FailureCode::Interrupted,
            "stopped",
            "you asked for it",
            "give the command again; a download goes on where it was",
        )
        .into()
    }

    /// The exit status of this as a one-shot command.
    pub fn exit_status(&self) -> u8 {
        self.failure.as_ref().map_or(0, |failure| failure.code.exit_status())
    }

    /// Of several files: those `done`, and the failures of the others as one.
    fn of_many(done: Option<Report>, mut failures: Vec<Failure>) -> Self {
        let failure = match failures.len() {
            0 | 1 => failures.pop(),
            count => {
                // The first decides the code; it is the one to be repaired first.
                let first = failures.swap_remove(0);
                Some(Failure { what: format!("{count} failed, the first: {}", first.what), ..first })
            }
        };
        Self { report: done, failure, next: Next::Continue }
    }
}

/// Carries out a command. Dropping the future stops it.
pub async fn execute(command: Command, call: Call<'_>) -> Outcome {
    match command {
        Command::List => list::run(&call).await.into(),
        Command::ListAll => list_all::run(&call).await.into(),
        Command::Add(add) => add.run(&call).await,
        Command::Remove(remove) => remove.run(&call).await,
        Command::Download(download) => download.run(&call).await,
        Command::Tracker => tracker::run(&call).await.into(),
        Command::Peers => peers::run(&call).await.into(),
        Command::Elect => elect::run(&call).await.into(),
        Command::Status => status::run(&call).await.into(),
        Command::Help(help) => Ok(help.run()).into(),
        Command::Kill => exit::kill(&call.backend.id()),
        Command::Exit => exit::exit(&call.backend.id()),
    }
}

#[cfg(test)]
mod tests;
