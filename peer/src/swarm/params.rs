//! Parameters of the swarm sessions.

use std::time::Duration;

/// Maximum number of queued events of one download. While the queue is full, the sessions stop reading.
pub(super) const MAX_QUEUED_MEMBER_EVENTS: usize = 64;
/// Number of attempts to connect to a member.
pub(super) const DIAL_ATTEMPTS: u32 = 5;
/// Pause between two attempts, and before reconnecting after a session ended.
pub(super) const DIAL_RETRY: Duration = Duration::from_secs(2);
/// Maximum number of members named by one other member that this peer is dialling. An honest member can name more at
/// once, but those learn of this peer too and dial it.
pub(super) const MAX_DIALS_PER_INFORMANT: usize = 64;

/// Time for which updates of a swarm are gathered, with up to [`SWARM_UPDATE_MEMBERS`] members.
pub(crate) const SWARM_UPDATE_INTERVAL: Duration = Duration::from_millis(50);
/// Number of members up to which [`SWARM_UPDATE_INTERVAL`] holds; with more, it grows in proportion.
pub(crate) const SWARM_UPDATE_MEMBERS: usize = 16;
/// Maximum number of ranges of groups in one update.
pub(crate) const RANGES_PER_UPDATE: usize = 512;
/// Maximum number of members named in one update.
pub(crate) const MEMBERS_PER_UPDATE: usize = 64;
/// Maximum number of members of one swarm with which a peer has a session.
pub(crate) const MAX_SWARM_MEMBERS: usize = 256;
/// Time for which a receiver waits for the other receiver to dial before it dials itself.
pub(crate) const SWARM_DIAL_LAST: Duration = Duration::from_millis(500);
