//! `add PATH…`: shares files and directories.

use std::path::Path;

use shared::error::Failure;

use crate::{
    api::AddRequest,
    cli::{
        arguments::Arguments,
        command::{Command, CommandContext, Outcome, Verb},
        report::{FileChange, Report},
    },
};

pub(super) static VERB: Verb = Verb {
    name: "add",
    aliases: &[],
    usage: "add PATH...",
    summary: "shares a copy of files and directories",
    details: "A bare name that does not exist anywhere creates a small text file of that name, with a note.",
    parse,
};

fn parse(words: Vec<String>) -> Result<Command, Failure> {
    let paths = Arguments::parse(&VERB, words, &[])?.take_positionals("PATH")?;
    Ok(Command::Add { paths })
}

pub(super) async fn run(paths: Vec<String>, context: &CommandContext<'_>) -> Outcome {
    let mut change = FileChange::default();
    let mut failures = Vec::new();
    let mut succeeded = false;
    for typed in paths {
        match context.peer.add(request(&typed, context.working_dir)).await {
            Ok(added) => {
                succeeded = true;
                change.files.extend(added.files);
                change.notes.extend(added.note);
            }
            Err(failure) => failures.push(failure),
        }
    }
    Outcome::from_parts(succeeded.then_some(Report::Added(change)), failures)
}

fn request(typed: &str, working_dir: &Path) -> AddRequest {
    let bare_name = if typed.contains('/') { None } else { typed.parse().ok() };
    AddRequest { path: working_dir.join(typed), bare_name }
}
