//! Policy of a download that has no provider with the missing groups: which peers it asks, and how long it waits. Pure.

use super::params::{MAX_SWARM_FAN_OUTS, RECEIVERS_STALL};
use protocol::provider_health::PROVIDER_SILENCE;
use shared::time::Timestamp;

/// Decision of a [`StallPolicy`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StallAction {
    /// Go on as before.
    Continue,
    /// Ask the known peers which of them receive the content.
    AskPeers,
    /// End the download.
    GiveUp,
}

/// State of a download's supply. In all methods, `has_members` is true if other receivers of the content are connected
/// at the time of the call.
///
/// | state | next state | cause |
/// |---|---|---|
/// | supplied | asking the tracker for other providers | the swarm core reports that it is stuck |
/// | asking the tracker | supplied | a request starts |
/// | | waiting | it names no provider, and other receivers are connected |
/// | | asking the known peers for receivers | it names no provider, and no receiver is connected |
/// | asking the known peers | waiting | some receive it |
/// | | given up | none does |
/// | waiting | supplied | a member has more |
/// | | asking the known peers | the last member leaves |
/// | | given up | [`RECEIVERS_STALL`] has passed |
#[derive(Debug)]
pub(crate) struct StallPolicy {
    state: State,
    /// Time since which no group has been verified after no provider was left. Announcements of members do not reset
    /// it, so it bounds the wait for them.
    stalled_since: Option<Timestamp>,
    /// Time at which the known peers are asked because nothing has been verified yet.
    first_byte_deadline: Option<Timestamp>,
    /// Remaining queries of the known peers.
    fan_outs: u32,
    had_members: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Supplied,
    AskingTracker,
    AskingPeers,
    Waiting,
}

impl StallPolicy {
    /// Creates the policy of a download that begins at `now`. It never asks the known peers unless `may_ask_receivers`.
    pub(crate) fn new(now: Timestamp, may_ask_receivers: bool) -> Self {
        Self {
            state: State::Supplied,
            stalled_since: None,
            // A provider that has left and that the tracker still names does not introduce other receivers.
            first_byte_deadline: may_ask_receivers.then(|| now + PROVIDER_SILENCE),
            fan_outs: if may_ask_receivers { MAX_SWARM_FAN_OUTS } else { 0 },
            had_members: false,
        }
    }

    /// Returns the time at which [`on_deadline`](Self::on_deadline) must be called.
    pub(crate) fn deadline(&self) -> Option<Timestamp> {
        self.gives_up_at().into_iter().chain(self.first_byte_deadline).min()
    }

    fn gives_up_at(&self) -> Option<Timestamp> {
        self.stalled_since.map(|since| since + RECEIVERS_STALL)
    }

    /// Handles the start of a request.
    pub(crate) fn on_request(&mut self) {
        self.state = State::Supplied;
    }

    /// Handles a verified group. It may belong to a cancelled request and arrive after the download stalled. Then the
    /// wait begins again.
    pub(crate) fn on_verified(&mut self, now: Timestamp) {
        self.first_byte_deadline = None;
        self.stalled_since = (self.state != State::Supplied).then_some(now);
    }

    /// Handles that no remaining provider has the missing groups. The caller asks the tracker.
    pub(crate) fn on_stuck(&mut self, now: Timestamp) {
        self.state = State::AskingTracker;
        self.stalled_since.get_or_insert(now);
    }

    /// Handles the answer of the tracker. `any` is true if it names a provider that may help. `has_members` is
    /// evaluated now and not at the time of the query, because the last member may have left in between.
    pub(crate) fn on_providers(&mut self, any: bool, has_members: bool) -> StallAction {
        if any {
            // From now on, only the silence of that provider counts.
            self.stalled_since = None;
            return StallAction::Continue;
        }
        if self.state != State::AskingTracker {
            return StallAction::Continue;
        }
        if has_members {
            self.state = State::Waiting;
            return StallAction::Continue;
        }
        self.ask_peers()
    }

    /// Handles the answers of the known peers. `any` is true if one of them receives the content and may help.
    pub(crate) fn on_receivers(&mut self, any: bool, has_members: bool) -> StallAction {
        if self.state != State::AskingPeers {
            return StallAction::Continue;
        }
        if !any && !has_members {
            return StallAction::GiveUp;
        }
        self.state = State::Waiting;
        StallAction::Continue
    }

    /// Handles that members joined, left or were dropped.
    pub(crate) fn on_members_changed(&mut self, has_members: bool) -> StallAction {
        let had_members = std::mem::replace(&mut self.had_members, has_members);
        if self.state == State::Waiting && had_members && !has_members {
            self.ask_peers()
        } else {
            StallAction::Continue
        }
    }

    /// Handles the passing of the [deadline](Self::deadline).
    pub(crate) fn on_deadline(&mut self, now: Timestamp, has_members: bool) -> StallAction {
        if self.gives_up_at().is_some_and(|at| at <= now) {
            return StallAction::GiveUp;
        }
        if self.first_byte_deadline.take_if(|at| *at <= now).is_some() && !has_members && self.fan_outs > 0 {
            self.fan_outs -= 1;
            return StallAction::AskPeers;
        }
        StallAction::Continue
    }

    fn ask_peers(&mut self) -> StallAction {
        if self.fan_outs == 0 {
            return StallAction::GiveUp;
        }
        self.fan_outs -= 1;
        self.state = State::AskingPeers;
        StallAction::AskPeers
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use shared::time::Clock;

    use super::*;

    fn begin() -> (Timestamp, StallPolicy) {
        let now = Clock::start().now();
        (now, StallPolicy::new(now, true))
    }

    /// A policy that waits for one other receiver, since the returned time.
    fn waiting() -> (Timestamp, StallPolicy) {
        let (now, mut policy) = begin();
        assert_eq!(policy.on_members_changed(true), StallAction::Continue);
        policy.on_stuck(now);
        assert_eq!(policy.on_providers(false, true), StallAction::Continue);
        (now, policy)
    }

    #[test]
    fn answer_of_the_tracker_is_judged_by_the_members_of_that_moment() {
        let (now, mut policy) = begin();
        policy.on_members_changed(true);
        policy.on_stuck(now);
        assert_eq!(policy.on_members_changed(false), StallAction::Continue, "the tracker has not answered yet");
        assert_eq!(policy.on_providers(false, false), StallAction::AskPeers);
        assert_eq!(policy.on_receivers(false, false), StallAction::GiveUp);
        // The other way round.
        let (now, mut policy) = begin();
        policy.on_stuck(now);
        policy.on_members_changed(true);
        assert_eq!(policy.on_providers(false, true), StallAction::Continue);
        assert_eq!(policy.deadline(), Some(now + PROVIDER_SILENCE), "nothing is verified yet");
        policy.on_deadline(now + PROVIDER_SILENCE, true);
        assert_eq!(policy.deadline(), Some(now + RECEIVERS_STALL));
    }

    #[test]
    fn last_receiver_that_leaves_ends_the_wait() {
        let (_, mut policy) = waiting();
        assert_eq!(policy.on_members_changed(false), StallAction::AskPeers);
        assert_eq!(
            policy.on_receivers(true, false),
            StallAction::Continue,
            "another one is found and not connected yet"
        );
        assert_eq!(policy.on_members_changed(false), StallAction::Continue);
        policy.on_members_changed(true);
        assert_eq!(policy.on_members_changed(false), StallAction::AskPeers);
        assert_eq!(policy.on_receivers(false, false), StallAction::GiveUp);
    }

    #[test]
    fn receiver_that_comes_and_goes_causes_a_bounded_number_of_fan_outs() {
        let (_, mut policy) = waiting();
        for _ in 0..MAX_SWARM_FAN_OUTS {
            assert_eq!(policy.on_members_changed(false), StallAction::AskPeers);
            assert_eq!(policy.on_receivers(true, false), StallAction::Continue);
            policy.on_members_changed(true);
        }
        assert_eq!(policy.on_members_changed(false), StallAction::GiveUp);
    }

    #[test]
    fn wait_is_renewed_by_verified_groups_and_not_by_announcements() {
        let (now, mut policy) = waiting();
        let later = now + RECEIVERS_STALL - Duration::from_secs(1);
        policy.on_deadline(later, true);
        // A member announces more and is asked, in vain.
        policy.on_request();
        policy.on_stuck(later);
        assert_eq!(policy.on_providers(false, true), StallAction::Continue);
        assert_eq!(policy.on_deadline(now + RECEIVERS_STALL, true), StallAction::GiveUp);
        // A late group of a cancelled request does not end the wait: it begins anew.
        policy.on_verified(later);
        assert_eq!(policy.deadline(), Some(later + RECEIVERS_STALL));
        policy.on_request();
        policy.on_verified(later);
        assert_eq!(policy.deadline(), None);
        policy.on_stuck(later);
        assert_eq!(
            policy.on_deadline(now + RECEIVERS_STALL, true),
            StallAction::Continue,
            "the wait begins when no provider is left"
        );
        assert_eq!(policy.on_providers(true, true), StallAction::Continue);
        assert_eq!(policy.deadline(), None, "a provider is named");
    }

    #[test]
    fn known_peers_are_asked_once_when_nothing_is_verified_at_first() {
        let (now, mut policy) = begin();
        let due = policy.deadline().unwrap();
        assert_eq!(policy.on_deadline(now, false), StallAction::Continue);
        assert_eq!((policy.on_deadline(due, false), policy.deadline()), (StallAction::AskPeers, None));
        let mut given_only = StallPolicy::new(now, false);
        assert_eq!(given_only.deadline(), None);
        given_only.on_stuck(now);
        assert_eq!(given_only.on_providers(false, false), StallAction::GiveUp, "only the named provider may be asked");
    }
}
