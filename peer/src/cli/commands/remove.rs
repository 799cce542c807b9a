//! `remove NAME…`: removes files from the share.

use shared::error::Failure;

use crate::cli::{
    arguments::Arguments,
    command::{Command, CommandContext, Outcome, Verb},
    report::{FileChange, Report},
};

pub(super) static VERB: Verb = Verb {
    name: "remove",
    aliases: &[],
    usage: "remove NAME...",
    summary: "removes files from the share and from the index",
    details: "NAME is a name that `list` shows. Other owners keep their copies.",
    parse,
};

fn parse(words: Vec<String>) -> Result<Command, Failure> {
    let names = Arguments::parse(&VERB, words, &[])?.take_positionals("NAME")?;
    Ok(Command::Remove { names })
}

pub(super) async fn run(names: Vec<String>, context: &CommandContext<'_>) -> Outcome {
    let mut change = FileChange::default();
    let mut failures = Vec::new();
    for name in &names {
        match context.peer.remove(name).await {
            Ok(file) => change.files.push(file),
            Err(failure) => failures.push(failure),
        }
    }
    let succeeded = !change.files.is_empty();
    Outcome::from_parts(succeeded.then_some(Report::Removed(change)), failures)
}
