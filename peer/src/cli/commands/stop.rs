//! `exit` and `kill`: end a peer with or without leaving the network.

use shared::id::PeerId;

use crate::cli::{
    arguments::Arguments,
    command::{Command, Outcome, PeerEffect, Verb},
    report::{EndCause, Report},
};

pub(super) static EXIT: Verb = Verb {
    name: "exit",
    aliases: &["quit"],
    usage: "exit",
    summary: "leaves the network and ends this peer",
    details: "",
    parse: |words| Arguments::expect_none(&EXIT, words).map(|()| Command::Exit),
};

pub(super) static KILL: Verb = Verb {
    name: "kill",
    aliases: &[],
    usage: "kill",
    summary: "ends this peer at once without leaving the network; the other peers detect the failure",
    details: "Use it to test the failure of a peer or of the tracker.",
    parse: |words| Arguments::expect_none(&KILL, words).map(|()| Command::Kill),
};

pub(super) fn exit(peer: PeerId) -> Outcome {
    let report = Report::Ended { peer, cause: EndCause::Exit };
    Outcome { report: Some(report), failure: None, effect: PeerEffect::Exit }
}

pub(super) fn kill(peer: PeerId) -> Outcome {
    let report = Report::Ended { peer, cause: EndCause::Kill };
    Outcome { report: Some(report), failure: None, effect: PeerEffect::Kill }
}
