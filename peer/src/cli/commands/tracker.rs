//! `tracker`: who is tracker.

use shared::error::Failure;

use crate::cli::{Call, Command, Verb, arguments::Arguments, output::Report};

pub(in crate::cli) static VERB: Verb = Verb {
    name: "tracker",
    aliases: &[],
    usage: "tracker",
    summary: "who is tracker, its epoch and address",
    details: "",
    parse: |words| Arguments::none(&VERB, words).map(|()| Command::Tracker),
};

pub(in crate::cli) async fn run(call: &Call<'_>) -> Result<Report, Failure> {
    Ok(Report::Tracker(call.backend.tracker().await?))
}
