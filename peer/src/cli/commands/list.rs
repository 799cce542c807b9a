//! `list`: this peer's files.

use shared::error::Failure;

use crate::cli::{Call, Command, Verb, arguments::Arguments, output::Report};

pub(in crate::cli) static VERB: Verb = Verb {
    name: "list",
    aliases: &[],
    usage: "list",
    summary: "this peer's files: name, size",
    details: "",
    parse: |words| Arguments::none(&VERB, words).map(|()| Command::List),
};

pub(in crate::cli) async fn run(call: &Call<'_>) -> Result<Report, Failure> {
    Ok(Report::List { peer: call.backend.id(), files: call.backend.list().await? })
}
