//! Parameters of the swarm sessions.

use std::time::Duration;

/// Events that wait for one download. Members that send faster than the download handles the events wait.
pub(super) const MAX_QUEUED_MEMBER_EVENTS: usize = 64;
/// Attempts to connect to a member before it is given up.
pub(super) const DIAL_ATTEMPTS: u32 = 5;
/// Pause between two attempts, and before reconnecting after a session ended.
pub(super) const DIAL_RETRY: Duration = Duration::from_secs(2);
/// Members that one other member named and that this peer dials without having reached them yet. An honest member can name
/// more at once, but those learn of this peer too and dial it.
pub(super) const MAX_DIALS_PER_INFORMANT: usize = 64;
