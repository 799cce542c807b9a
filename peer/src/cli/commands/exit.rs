//! `exit` and `kill`: the two ways to end a peer.

use shared::id::PeerId;

use crate::cli::{Command, Next, Outcome, Verb, arguments::Arguments, output::Report};

pub(in crate::cli) static EXIT: Verb = Verb {
    name: "exit",
    aliases: &["quit"],
    usage: "exit",
    summary: "leaves the network and ends this peer",
    details: "",
    parse: |words| Arguments::none(&EXIT, words).map(|()| Command::Exit),
};

pub(in crate::cli) static KILL: Verb = Verb {
    name: "kill",
    aliases: &[],
    usage: "kill",
    summary: "ends this peer at once, without leaving: the others notice by its silence",
    details: "It is there to try what happens when a peer, or the tracker, dies.",
    parse: |words| Arguments::none(&KILL, words).map(|()| Command::Kill),
};

pub(in crate::cli) fn exit(peer: &PeerId) -> Outcome {
    let report = Report::Ended { peer: peer.clone(), how: Ending::Exit };
    Outcome { report: Some(report), failure: None, next: Next::Exit }
}

pub(in crate::cli) fn kill(peer: &PeerId) -> Outcome {
    let report = Report::Ended { peer: peer.clone(), how: Ending::Kill };
    Outcome { report: Some(report), failure: None, next: Next::Kill }
}

/// How a peer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// By `exit`.
    Exit,
    /// By `kill`.
    Kill,
    /// It was not running.
    NotRunning,
}
