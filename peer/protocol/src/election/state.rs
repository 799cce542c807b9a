//! The states of a peer towards the seat.

use shared::{contact::Contact, epoch::Epoch, rpc::nameserver::Seat, rpc::peer::SeatNotice, time::Timestamp};

use super::{Action, ctx::Ctx, follower::Follower, searching::Searching, tracker::Tracker, transition::Transition};
use crate::CallId;

/// Relation of this peer to the seat.
#[derive(Debug, Clone)]
pub(crate) enum State {
    /// It follows no tracker, and may suspect the one that it followed.
    Searching(Searching),
    /// It follows a tracker.
    Follower(Box<Follower>),
    /// It is the tracker.
    Tracker(Box<Tracker>),
    /// It was the tracker, and resigns before it stops.
    Leaving(Leaving),
}

impl State {
    /// The seat as this peer sees it: its own, the followed one or the suspected one.
    pub(crate) fn seat(&self) -> Option<&Seat> {
        match self {
            Self::Searching(searching) => searching.suspected.as_ref(),
            Self::Follower(follower) => Some(&follower.seat),
            Self::Tracker(tracker) => Some(&tracker.seat),
            Self::Leaving(_) => None,
        }
    }

    /// The tracker that this peer follows or is.
    pub(crate) fn tracker(&self) -> Option<&Seat> {
        self.seat().filter(|_| matches!(self, Self::Follower(_) | Self::Tracker(_)))
    }

    pub(crate) fn is_leaving(&self) -> bool {
        matches!(self, Self::Leaving(_))
    }

    pub(crate) fn is_searching(&self) -> bool {
        matches!(self, Self::Searching(_))
    }
}

/// A tracker that resigns in order to stop.
#[derive(Debug, Clone)]
pub(crate) struct Leaving {
    pub(crate) epoch: Epoch,
    /// The resignation.
    pub(crate) call: CallId,
    /// Time until which the resignation is waited for.
    pub(crate) until: Timestamp,
    /// Peers that are notified when the seat is vacant, standbys first.
    pub(crate) followers: Vec<Contact>,
}

impl Leaving {
    /// Notifies the followers that the seat is vacant, so that the first successor's claim finds it so.
    pub(crate) fn say_farewell(&mut self, ctx: &mut Ctx<'_>) -> Transition {
        let notice = SeatNotice::Vacated(self.epoch);
        let followers = std::mem::take(&mut self.followers);
        ctx.out.extend(followers.into_iter().map(|to| Action::SendNotice { to, notice: notice.clone() }));
        Transition::Stop
    }

    pub(crate) fn run_timers(&mut self, ctx: &mut Ctx<'_>) -> Transition {
        if self.until <= ctx.now { self.say_farewell(ctx) } else { Transition::Stay }
    }
}
