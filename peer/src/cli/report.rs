//! Results of commands as data. [`output`](super::output) renders them.

use shared::{content::FileMeta, epoch::Epoch, id::PeerId, name::Endpoint, rpc::nameserver::Seat};

use crate::api::{Discarded, Downloaded, Explained, GlobalListing, Status};

/// Result of a command.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Report {
    /// Files of this peer.
    List {
        /// Id of this peer.
        peer: PeerId,
        /// Files in its share.
        files: Vec<FileMeta>,
    },
    /// Files of the network.
    ListAll(GlobalListing),
    /// Files added to the share.
    Added(FileChange),
    /// Files removed from the share.
    Removed(FileChange),
    /// Files of a download.
    Downloaded {
        /// Complete files.
        files: Vec<Downloaded>,
        /// Explanations of the rate, one per NAME argument; empty without `--explain`.
        explained: Vec<Explained>,
    },
    /// Discarded unfinished downloads.
    Discarded(Vec<Discarded>),
    /// Current tracker.
    Tracker(Seat),
    /// Registered peers.
    Peers(Vec<(PeerId, Endpoint)>),
    /// Result of a forced election.
    Elected {
        /// Epoch of the winner.
        epoch: Epoch,
        /// Winner.
        peer: PeerId,
    },
    /// State of this peer.
    Status(Box<Status>),
    /// Descriptions of commands.
    Help(Vec<CommandHelp>),
    /// End of a peer.
    Ended {
        /// Id of the peer.
        peer: PeerId,
        /// Cause of the end.
        cause: EndCause,
    },
}

/// Change of a peer's share.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct FileChange {
    /// Files that were added or removed.
    pub(crate) files: Vec<FileMeta>,
    /// Remarks for the user.
    pub(crate) notes: Vec<String>,
}

/// Description of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CommandHelp {
    /// Verb of the command.
    pub(crate) name: &'static str,
    /// Other names of the verb.
    pub(crate) aliases: &'static [&'static str],
    /// Synopsis.
    pub(crate) usage: &'static str,
    /// One-line description.
    pub(crate) summary: &'static str,
    /// Further explanation; may be empty.
    pub(crate) details: &'static str,
}

/// Cause of the end of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EndCause {
    /// The command `exit`.
    Exit,
    /// The command `kill`.
    Kill,
    /// None: the peer was not running.
    NotRunning,
}
