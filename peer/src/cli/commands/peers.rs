//! `peers`: who is there.

use shared::error::Failure;

use crate::cli::{Call, Command, Verb, arguments::Arguments, output::Report};

pub(in crate::cli) static VERB: Verb = Verb {
    name: "peers",
    aliases: &[],
    usage: "peers",
    summary: "who is there",
    details: "",
    parse: |words| Arguments::none(&VERB, words).map(|()| Command::Peers),
};

pub(in crate::cli) async fn run(call: &Call<'_>) -> Result<Report, Failure> {
    Ok(Report::Peers(call.backend.peers().await?))
}
