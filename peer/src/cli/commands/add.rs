//! `add PATH…`: shares files and directories.

use std::path::Path;

use shared::error::Failure;

use crate::{
    api::AddRequest,
    cli::{
        Call, Command, Outcome, Verb,
        arguments::Arguments,
        output::{FileChange, Report},
    },
};

pub(in crate::cli) static VERB: Verb = Verb {
    name: "add",
    aliases: &[],
    usage: "add PATH...",
    summary: "shares a copy of files and directories",
    details: "A bare name that exists nowhere makes a small text file of that name, and says so.",
    parse,
};

/// `add`'s arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Add {
    /// As typed.
    pub paths: Vec<String>,
}

fn parse(words: Vec<String>) -> Result<Command, Failure> {
    let paths = Arguments::read(&VERB, words, &[])?.some("PATH")?;
    Ok(Command::Add(Add { paths }))
}

impl Add {
    pub(in crate::cli) async fn run(self, call: &Call<'_>) -> Outcome {
        let mut change = FileChange::default();
        let mut failures = Vec::new();
        let mut done = false;
        for typed in self.paths {
            match call.backend.add(request(&typed, call.working_dir)).await {
                Ok(added) => {
                    done = true;
                    change.files.extend(added.files);
                    change.notes.extend(added.note);
                }
                Err(failure) => failures.push(failure),
            }
        }
        Outcome::of_many(done.then_some(Report::Added(change)), failures)
    }
}

fn request(typed: &str, working_dir: &Path) -> AddRequest {
    let bare_name = if typed.contains('/') { None } else { typed.parse().ok() };
    AddRequest { path: working_dir.join(typed), bare_name }
}
