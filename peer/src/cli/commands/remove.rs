//! `remove NAME…`: takes files out of the share.

use shared::error::Failure;

use crate::cli::{
    Call, Command, Outcome, Verb,
    arguments::Arguments,
    output::{FileChange, Report},
};

pub(in crate::cli) static VERB: Verb = Verb {
    name: "remove",
    aliases: &[],
    usage: "remove NAME...",
    summary: "removes files from the share (and from the index)",
    details: "NAME is what `list` shows. Other peers that have the file keep it.",
    parse,
};

/// `remove`'s arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remove {
    /// Names in the share.
    pub names: Vec<String>,
}

fn parse(words: Vec<String>) -> Result<Command, Failure> {
    let names = Arguments::read(&VERB, words, &[])?.some("NAME")?;
    Ok(Command::Remove(Remove { names }))
}

impl Remove {
    pub(in crate::cli) async fn run(self, call: &Call<'_>) -> Outcome {
        let mut change = FileChange::default();
        let mut failures = Vec::new();
        for name in &self.names {
            match call.backend.remove(name).await {
                Ok(file) => change.files.push(file),
                Err(failure) => failures.push(failure),
            }
        }
        let done = !change.files.is_empty();
        Outcome::of_many(done.then_some(Report::Removed(change)), failures)
    }
}
