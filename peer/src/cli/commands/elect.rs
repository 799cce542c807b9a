//! `eleger`: forces an election.

use shared::error::Failure;

use crate::cli::{Call, Command, Verb, arguments::Arguments, output::Report};

pub(in crate::cli) static VERB: Verb = Verb {
    name: "eleger",
    aliases: &["elect"],
    usage: "eleger",
    summary: "forces an election",
    details: "",
    parse: |words| Arguments::none(&VERB, words).map(|()| Command::Elect),
};

pub(in crate::cli) async fn run(call: &Call<'_>) -> Result<Report, Failure> {
    let (epoch, peer) = call.backend.elect().await?;
    Ok(Report::Elected { epoch, peer })
}
