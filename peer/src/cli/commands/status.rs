//! `status`: how this peer is.

use shared::error::Failure;

use crate::cli::{Call, Command, Verb, arguments::Arguments, output::Report};

pub(in crate::cli) static VERB: Verb = Verb {
    name: "status",
    aliases: &[],
    usage: "status",
    summary: "this peer: address, role, epoch, share, transfers and what limits them",
    details: "",
    parse: |words| Arguments::none(&VERB, words).map(|()| Command::Status),
};

pub(in crate::cli) async fn run(call: &Call<'_>) -> Result<Report, Failure> {
    Ok(Report::Status(Box::new(call.backend.status().await?)))
}
