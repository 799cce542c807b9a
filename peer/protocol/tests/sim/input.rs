//! What a process receives and what comes of it: events, and the calls that a core answers at once.

use protocol::election::{Action, Core, Event, Token};
use shared::{
    epoch::Epoch,
    id::{Incarnation, PeerId},
    rpc::{
        nameserver::SeatView,
        peer::SeatNotice,
        tracker::{Announcement, Heartbeat, HeartbeatAck, TrackerError},
    },
    time::Timestamp,
};

/// Event or call that a process receives.
#[derive(Clone, Debug)]
pub(crate) enum Input {
    Event(Event),
    Call { token: Token, from: PeerId, call: Call },
}

/// Call of another peer that the core answers at once.
#[derive(Clone, Debug)]
pub(crate) enum Call {
    Heartbeat(Heartbeat),
    Announcement(Announcement),
    Leave(Epoch, Incarnation),
    Notice(SeatNotice),
}

/// Action of a core, or its answer to a call.
#[derive(Debug)]
pub(crate) enum Output {
    Action(Action),
    Answer { token: Token, answer: Answer },
}

impl Output {
    /// What remains of the output if the state before it is not durable.
    pub(crate) fn without_durability(self) -> Option<Self> {
        match self {
            Self::Action(action) => action.without_durability().map(Self::Action),
            answer @ Self::Answer { .. } => Some(answer),
        }
    }
}

#[derive(Debug)]
pub(crate) enum Answer {
    Heartbeat(Result<HeartbeatAck, TrackerError>),
    Announcement(Result<(), TrackerError>),
    Leave,
    Notice(SeatView),
}

impl From<Event> for Input {
    fn from(event: Event) -> Self {
        Self::Event(event)
    }
}

impl Input {
    /// Gives the callee's token to a question of another peer.
    pub(crate) fn with_token(self, token: Token) -> Self {
        match self {
            Self::Event(Event::VoteRequested { from, request, .. }) => {
                Event::VoteRequested { token, from, request }.into()
            }
            Self::Event(event) => Self::Event(event),
            Self::Call { from, call, .. } => Self::Call { token, from, call },
        }
    }

    /// Hands the input to `core`. A call is answered after the actions, which may make durable what it depends on.
    pub(crate) fn give_to(self, core: &mut Core, now: Timestamp) -> Vec<Output> {
        let mut actions = Vec::new();
        let out = &mut actions;
        let answer = match self {
            Self::Event(event) => {
                core.handle(now, event, out);
                None
            }
            Self::Call { token, from, call } => {
                let answer = match call {
                    Call::Heartbeat(beat) => Answer::Heartbeat(core.on_heartbeat(now, &from, &beat, out)),
                    Call::Announcement(announcement) => {
                        Answer::Announcement(core.on_announcement(now, &from, announcement, out))
                    }
                    Call::Leave(epoch, run) => {
                        // The leaving peer does not wait for the answer.
                        let _ = core.on_leave(now, &from, epoch, run, out);
                        Answer::Leave
                    }
                    Call::Notice(notice) => Answer::Notice(core.on_notice(now, &from, notice, out)),
                };
                Some(Output::Answer { token, answer })
            }
        };
        actions.into_iter().map(Output::Action).chain(answer).collect()
    }
}
