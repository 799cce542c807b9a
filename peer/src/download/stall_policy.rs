//! Whom a download asks, and how long it waits, when nobody who is left has what is missing. Pure.

use protocol::provider_health::PROVIDER_SILENCE;
use shared::{
    limits::{MAX_SWARM_FAN_OUTS, SWARM_PATIENCE},
    time::Timestamp,
};

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// Nothing else than before.
    GoOn,
    /// Ask the known peers who receives the content.
    AskPeers,
    /// End the download.
    GiveUp,
}

/// See the module. `has_members` is always whether others who receive the content are there, now.
///
/// | state | leaves it for |
/// |---|---|
/// | supplied | asking the tracker: the core says that it is stuck |
/// | asking the tracker for other owners | supplied: something is asked for; waiting: it named none, and others receive the content; asking the known peers: nobody does as far as this one knows |
/// | asking the known peers who receives it | waiting: some do; given up: nobody does |
/// | waiting | supplied: a member has more; asking the known peers: the last member leaves; given up: too long |
#[derive(Debug)]
pub(crate) struct Patience {
    state: State,
    /// Since when nobody who is asked has brought anything after nobody was left to ask. What members promise does not end it: this
    /// alone says how long they are waited for.
    dry_since: Option<Timestamp>,
    /// When the known peers are asked because nothing has come at all.
    unheard: Option<Timestamp>,
    /// How often the known peers may still be asked.
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

impl Patience {
    /// Of a download that begins at `now`; not `in_company`, it asks no other receivers.
    pub(crate) fn new(now: Timestamp, in_company: bool) -> Self {
        Self {
            state: State::Supplied,
            dry_since: None,
            // An owner that the tracker still names and that has gone introduces nobody.
            unheard: in_company.then(|| now + PROVIDER_SILENCE),
            fan_outs: if in_company { MAX_SWARM_FAN_OUTS } else { 0 },
            had_members: false,
        }
    }

    /// When [`due`](Self::due) is to be called at the latest.
    pub(crate) fn deadline(&self) -> Option<Timestamp> {
        self.gives_up_at().into_iter().chain(self.unheard).min()
    }

    fn gives_up_at(&self) -> Option<Timestamp> {
        self.dry_since.map(|since| since + SWARM_PATIENCE)
    }

    /// Somebody is asked for something.
    pub(crate) fn asked(&mut self) {
        self.state = State::Supplied;
    }

    /// A group is proven. Of a request that was given up it may come after nobody was left to ask: then the wait begins anew.
    pub(crate) fn proven(&mut self, now: Timestamp) {
        self.unheard = None;
        self.dry_since = (self.state != State::Supplied).then_some(now);
    }

    /// Nobody who is left has what is missing: the tracker is asked.
    pub(crate) fn stuck(&mut self, now: Timestamp) {
        self.state = State::AskingTracker;
        self.dry_since.get_or_insert(now);
    }

    /// The tracker's answer is here; it names `any` owners that may help, or none. Whether others are there is judged now, not when it was
    /// asked: the last of them may have left in between.
    pub(crate) fn named(&mut self, any: bool, has_members: bool) -> Next {
        if any {
            // Somebody can complete it: what holds is how long an owner may be silent.
            self.dry_since = None;
            return Next::GoOn;
        }
        if self.state != State::AskingTracker {
            return Next::GoOn;
        }
        if has_members {
            self.state = State::Waiting;
            return Next::GoOn;
        }
        self.ask_peers()
    }

    /// The known peers' answers are here; `any` of those who say that they receive the content may help, or none.
    pub(crate) fn received(&mut self, any: bool, has_members: bool) -> Next {
        if self.state != State::AskingPeers {
            return Next::GoOn;
        }
        if !any && !has_members {
            return Next::GiveUp;
        }
        self.state = State::Waiting;
        Next::GoOn
    }

    /// Members came, left or were dropped.
    pub(crate) fn members_changed(&mut self, has_members: bool) -> Next {
        let had_members = std::mem::replace(&mut self.had_members, has_members);
        if self.state == State::Waiting && had_members && !has_members { self.ask_peers() } else { Next::GoOn }
    }

    /// Time has passed.
    pub(crate) fn due(&mut self, now: Timestamp, has_members: bool) -> Next {
        if self.gives_up_at().is_some_and(|at| at <= now) {
            return Next::GiveUp;
        }
        if self.unheard.take_if(|at| *at <= now).is_some() && !has_members && self.fan_outs > 0 {
            self.fan_outs -= 1;
            return Next::AskPeers;
        }
        Next::GoOn
    }

    fn ask_peers(&mut self) -> Next {
        if self.fan_outs == 0 {
            return Next::GiveUp;
        }
        self.fan_outs -= 1;
        self.state = State::AskingPeers;
        Next::AskPeers
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use shared::time::Clock;

    use super::*;

    fn begin() -> (Timestamp, Patience) {
        let now = Clock::start().now();
        (now, Patience::new(now, true))
    }

    /// Waits for one other receiver, since `now`.
    fn waiting() -> (Timestamp, Patience) {
        let (now, mut patience) = begin();
        assert_eq!(patience.members_changed(true), Next::GoOn);
        patience.stuck(now);
        assert_eq!(patience.named(false, true), Next::GoOn);
        (now, patience)
    }

    #[test]
    fn who_is_there_when_the_tracker_answers_counts_not_who_was_when_it_was_asked() {
        let (now, mut patience) = begin();
        patience.members_changed(true);
        patience.stuck(now);
        assert_eq!(patience.members_changed(false), Next::GoOn, "the tracker has not answered yet");
        assert_eq!(patience.named(false, false), Next::AskPeers);
        assert_eq!(patience.received(false, false), Next::GiveUp);
        // The other way round.
        let (now, mut patience) = begin();
        patience.stuck(now);
        patience.members_changed(true);
        assert_eq!(patience.named(false, true), Next::GoOn);
        assert_eq!(patience.deadline(), Some(now + PROVIDER_SILENCE), "nothing has come yet");
        patience.due(now + PROVIDER_SILENCE, true);
        assert_eq!(patience.deadline(), Some(now + SWARM_PATIENCE));
    }

    #[test]
    fn nobody_is_waited_for_when_the_last_receiver_has_left() {
        let (_, mut patience) = waiting();
        assert_eq!(patience.members_changed(false), Next::AskPeers);
        assert_eq!(patience.received(true, false), Next::GoOn, "another was found, who has said nothing yet");
        assert_eq!(patience.members_changed(false), Next::GoOn);
        patience.members_changed(true);
        assert_eq!(patience.members_changed(false), Next::AskPeers);
        assert_eq!(patience.received(false, false), Next::GiveUp);
    }

    #[test]
    fn one_that_comes_and_goes_does_not_make_it_ask_for_ever() {
        let (_, mut patience) = waiting();
        for _ in 0..MAX_SWARM_FAN_OUTS {
            assert_eq!(patience.members_changed(false), Next::AskPeers);
            assert_eq!(patience.received(true, false), Next::GoOn);
            patience.members_changed(true);
        }
        assert_eq!(patience.members_changed(false), Next::GiveUp);
    }

    #[test]
    fn patience_is_renewed_by_what_comes_and_not_by_what_is_promised() {
        let (now, mut patience) = waiting();
        let later = now + SWARM_PATIENCE - Duration::from_secs(1);
        patience.due(later, true);
        // A member promises more and is asked, in vain.
        patience.asked();
        patience.stuck(later);
        assert_eq!(patience.named(false, true), Next::GoOn);
        assert_eq!(patience.due(now + SWARM_PATIENCE, true), Next::GiveUp);
        // What comes late, of a request that was given up, does not end the wait: it begins anew.
        patience.proven(later);
        assert_eq!(patience.deadline(), Some(later + SWARM_PATIENCE));
        patience.asked();
        patience.proven(later);
        assert_eq!(patience.deadline(), None);
        patience.stuck(later);
        assert_eq!(
            patience.due(now + SWARM_PATIENCE, true),
            Next::GoOn,
            "it counts from the moment that nobody was left"
        );
        assert_eq!(patience.named(true, true), Next::GoOn);
        assert_eq!(patience.deadline(), None, "an owner was named");
    }

    #[test]
    fn when_nothing_comes_at_first_the_known_peers_are_asked_once() {
        let (now, mut patience) = begin();
        let due = patience.deadline().unwrap();
        assert_eq!(patience.due(now, false), Next::GoOn);
        assert_eq!((patience.due(due, false), patience.deadline()), (Next::AskPeers, None));
        let mut alone = Patience::new(now, false);
        assert_eq!(alone.deadline(), None);
        alone.stuck(now);
        assert_eq!(alone.named(false, false), Next::GiveUp, "only given owners may be asked");
    }
}
