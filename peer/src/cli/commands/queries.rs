//! Commands without arguments that ask the peer one thing: `list`, `listAll`, `tracker`, `peers`, `eleger`, `status`.

use shared::error::Failure;

use crate::cli::{
    arguments::Arguments,
    command::{Command, CommandContext, Verb},
    report::Report,
};

pub(super) static LIST: Verb = Verb {
    name: "list",
    aliases: &[],
    usage: "list",
    summary: "lists this peer's files: name, size",
    details: "",
    parse: |words| Arguments::expect_none(&LIST, words).map(|()| Command::List),
};

pub(super) static LIST_ALL: Verb = Verb {
    name: "listAll",
    aliases: &["listall"],
    usage: "listAll",
    summary: "lists all files of the network with their owners, from the tracker",
    details: "If peers have different contents under one name, each version is shown as NAME@HASH.",
    parse: |words| Arguments::expect_none(&LIST_ALL, words).map(|()| Command::ListAll),
};

pub(super) static TRACKER: Verb = Verb {
    name: "tracker",
    aliases: &[],
    usage: "tracker",
    summary: "shows the current tracker, its epoch and address",
    details: "",
    parse: |words| Arguments::expect_none(&TRACKER, words).map(|()| Command::Tracker),
};

pub(super) static PEERS: Verb = Verb {
    name: "peers",
    aliases: &[],
    usage: "peers",
    summary: "lists the peers of the network with their addresses",
    details: "",
    parse: |words| Arguments::expect_none(&PEERS, words).map(|()| Command::Peers),
};

pub(super) static ELECT: Verb = Verb {
    name: "eleger",
    aliases: &["elect"],
    usage: "eleger",
    summary: "forces an election",
    details: "",
    parse: |words| Arguments::expect_none(&ELECT, words).map(|()| Command::Elect),
};

pub(super) static STATUS: Verb = Verb {
    name: "status",
    aliases: &[],
    usage: "status",
    summary: "shows this peer's address, role, epoch, share, transfers and what limits them",
    details: "",
    parse: |words| Arguments::expect_none(&STATUS, words).map(|()| Command::Status),
};

pub(super) async fn list(context: &CommandContext<'_>) -> Result<Report, Failure> {
    Ok(Report::List { peer: context.peer.id(), files: context.peer.list().await? })
}

pub(super) async fn list_all(context: &CommandContext<'_>) -> Result<Report, Failure> {
    Ok(Report::ListAll(context.peer.list_all().await?))
}

pub(super) async fn tracker(context: &CommandContext<'_>) -> Result<Report, Failure> {
    Ok(Report::Tracker(context.peer.tracker().await?))
}

pub(super) async fn peers(context: &CommandContext<'_>) -> Result<Report, Failure> {
    Ok(Report::Peers(context.peer.peers().await?))
}

pub(super) async fn elect(context: &CommandContext<'_>) -> Result<Report, Failure> {
    let (epoch, peer) = context.peer.elect().await?;
    Ok(Report::Elected { epoch, peer })
}

pub(super) async fn status(context: &CommandContext<'_>) -> Result<Report, Failure> {
    Ok(Report::Status(Box::new(context.peer.status().await?)))
}
