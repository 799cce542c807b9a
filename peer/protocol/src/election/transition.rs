//! Changes of state that states ask for.

use shared::rpc::nameserver::Seat;

use super::{
    port_probe::Refusal,
    report::{StepDown, Suspicion},
};

/// Change of state that a state asks for. Only `Machine::apply` carries it out.
#[derive(Debug)]
#[must_use]
pub(crate) enum Transition {
    /// No change.
    Stay,
    /// Searches for a tracker.
    Search,
    /// Restarts the search after a higher epoch; see `Searching::restarted`.
    RestartSearch,
    /// Suspects the followed tracker, with the refusal of its port if that is the reason.
    Suspect(Suspicion, Option<Refusal>),
    /// Follows the suspected tracker again, which answered.
    LiftSuspicion(Seat),
    /// Follows the holder of a seat, whose epoch is the highest known.
    Follow(Seat),
    /// Stops being the tracker.
    StepDown(StepDown),
    /// Stops; all notices are sent.
    Stop,
}
