//! Bounds and timings of `election`, each with its unit and reason.

use std::time::Duration;

/// Interval at which the tracker renews its seat.
pub const SEAT_RENEWAL: Duration = Duration::from_millis(200);
/// Interval at which an elector probes the port of its tracker. A killed process sends nothing, but its host reports
/// the closed port. With five peers the first one detects it after 10 ms on average, at one byte a probe.
pub const PROBE_INTERVAL: Duration = Duration::from_millis(50);
/// Time for which a voter that the tracker still answers probes its port before it rejects a candidate: two probes and
/// the round trips of a local network, far less than a candidate waits for votes.
pub const VOTE_HOLD: Duration = Duration::from_millis(50);
/// Silence of the tracker after which a peer suspects it.
pub const SUSPICION: Duration = Duration::from_millis(400);
/// Time for which a candidate waits for votes.
pub const VOTE_WAIT: Duration = Duration::from_millis(150);
/// Time for which a claimant waits for the nameserver, which syncs its disk before it answers.
pub const CLAIM_WAIT: Duration = Duration::from_millis(500);
/// Delay between candidates that follow each other in rendezvous order: some round trips of a local network, so that
/// one candidate usually finishes before the next begins.
pub const CANDIDATE_STAGGER: Duration = Duration::from_millis(20);
/// Number of distinct candidate ranks. All further candidates share the last rank.
pub const CANDIDATE_RANKS: u32 = 4;
/// Interval at which a peer without a tracker asks the nameserver for the seat.
pub const SEAT_POLL: Duration = Duration::from_millis(200);
/// Extension of `PEERS_POLL` for each registered peer, so that lists do not flood a large network.
pub const PEERS_POLL_PER_PEER: Duration = Duration::from_millis(10);
/// Interval at which a peer asks for the registered peers while a watch reports changes: a safety net against a broken
/// watch.
pub const WATCHED_PEERS_POLL: Duration = Duration::from_secs(30);
/// Requests for a forced election that wait at a time; all get the result of one election.
pub const MAX_ELECTION_WAITERS: usize = 64;
/// Time without its lease and without heartbeats of a majority after which a tracker steps down.
pub const DRAIN_AFTER: Duration = Duration::from_millis(600);
/// Silence of a peer after which the tracker drops its files. They return with its next heartbeat.
pub const PEER_SILENCE: Duration = Duration::from_millis(1500);
/// Time for which a new tracker delays `listAll` until the known peers have announced their files.
pub const INDEX_SETTLE: Duration = Duration::from_millis(1000);
/// Peers that follow announcements like the tracker, so that one of them can replace it with the index at hand. Each
/// costs every peer another stream of announcements.
pub const MAX_STANDBYS: usize = 2;
/// Delay of other peers' campaigns behind those of standbys: about the spread of the suspicions of one tracker.
pub const STANDBY_HEAD_START: Duration = Duration::from_millis(60);
/// Longest wait for a snapshot's turn that a peer accepts. The tracker admits some 7000 full first pages in this time.
pub const MAX_SNAPSHOT_WAIT: Duration = Duration::from_secs(30);
/// Delay before a peer repeats an announcement that the tracker refused.
pub const ANNOUNCE_RETRY: Duration = Duration::from_secs(1);

/// Deadline of a call about the seat, shorter than the seat's lease (`SEAT_LEASE`), so that a call can be repeated.
pub const SEAT_CALL_DEADLINE: Duration = Duration::from_millis(500);
