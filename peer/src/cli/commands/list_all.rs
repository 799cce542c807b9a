//! `listAll`: all files of the network with their owners.

use shared::error::Failure;

use crate::cli::{Call, Command, Verb, arguments::Arguments, output::Report};

pub(in crate::cli) static VERB: Verb = Verb {
    name: "listAll",
    aliases: &["listall"],
    usage: "listAll",
    summary: "all files of the network with their owners, from the tracker",
    details: "Where peers have different contents under one name, each version is shown as NAME@HASH.",
    parse: |words| Arguments::none(&VERB, words).map(|()| Command::ListAll),
};

pub(in crate::cli) async fn run(call: &Call<'_>) -> Result<Report, Failure> {
    Ok(Report::ListAll(call.backend.list_all().await?))
}
