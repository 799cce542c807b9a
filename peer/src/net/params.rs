//! Parameters of `net`, each with its unit and reason.

use std::time::Duration;

/// Renewals in the term of a lease. With 3, two of them may be lost.
pub const LEASE_RENEWALS_PER_TERM: u32 = 3;
/// Shortest pause after a failed registration: a nameserver that restarts is used at once.
pub const REGISTRATION_SHORTEST: Duration = Duration::from_millis(250);
/// Longest pause after a failed registration. An answer of the nameserver to another call ends it.
pub const REGISTRATION_LONGEST: Duration = Duration::from_secs(5);
/// Interval of log lines about a registration that fails again and again.
pub const LOG_INTERVAL: Duration = Duration::from_secs(60);
/// Shortest pause after a failed authentication: a renewed certificate is used soon.
pub const REFUSAL_SHORTEST: Duration = Duration::from_secs(1);
/// Longest pause after a failed authentication, so that a peer that was shut out costs its network next to nothing.
pub const REFUSAL_LONGEST: Duration = Duration::from_secs(60);
/// Targets remembered for a failed authentication: more than a peer calls at a time.
pub const MAX_REFUSALS: usize = 1024;
/// Known peers that a peer remembers for its next start. All electors are among them.
pub const MAX_KNOWN_PEERS: usize = 256;
/// Interval at which the known peers are compared with the file.
pub const KNOWN_PEERS_POLL: Duration = Duration::from_secs(2);
/// Shortest time between two writes of the file of known peers, since every join and leave changes the list.
pub const KNOWN_PEERS_INTERVAL: Duration = Duration::from_secs(60);
/// Known peers that are asked at a time for the tracker while the nameserver is away.
pub const MAX_ASKED: usize = 16;
/// Shortest pause before the known peers are asked again.
pub const REJOIN_SHORTEST: Duration = Duration::from_millis(500);
/// Longest pause before they are asked again: without the nameserver, that is how a peer learns of a new tracker.
pub const REJOIN_LONGEST: Duration = Duration::from_secs(5);
