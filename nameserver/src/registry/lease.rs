//! Duration of registrations, and the order in which they end.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

use crate::params::{MAX_LEASE, MIN_LEASE};
use serde::{Deserialize, Serialize};
use shared::{
    id::Role,
    name::Name,
    rpc::nameserver::{LeaseRequest, NameError},
    time::Timestamp,
};

/// Duration of a registration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Lease {
    /// Until the name is removed.
    Permanent,
    /// For this time after the last renewal.
    For(Duration),
    /// As long as the tracker's seat; only `tracker.<epoch>` has this lease.
    Seat,
}

impl Lease {
    /// Grants the lease that `caller` requests, clamped to [`MIN_LEASE`] and [`MAX_LEASE`].
    ///
    /// # Errors
    /// [`NameError::NotAuthorised`] when a caller other than an admin requests a permanent lease.
    pub(crate) fn grant(request: LeaseRequest, caller: &Role) -> Result<Self, NameError> {
        match request {
            LeaseRequest::For(term) => Ok(Self::For(term.clamp(MIN_LEASE, MAX_LEASE))),
            LeaseRequest::Permanent if *caller == Role::Admin => Ok(Self::Permanent),
            LeaseRequest::Permanent => Err(NameError::NotAuthorised("only an admin registers permanent names".into())),
        }
    }

    /// Length of the lease; `None` when it has no length of its own.
    pub(crate) fn term(self) -> Option<Duration> {
        match self {
            Self::For(term) => Some(term),
            Self::Permanent | Self::Seat => None,
        }
    }
}

impl fmt::Display for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Permanent => f.write_str("permanent"),
            Self::For(term) => write!(f, "{term:?}"),
            Self::Seat => f.write_str("seat"),
        }
    }
}

/// Deadlines of leased names, indexed by name and by time.
#[derive(Debug, Clone, Default)]
pub(crate) struct Deadlines {
    by_name: BTreeMap<Name, Timestamp>,
    by_time: BTreeSet<(Timestamp, Name)>,
}

impl Deadlines {
    /// Sets or, with `None`, removes a name's deadline; returns the previous one.
    pub(crate) fn set(&mut self, name: &Name, at: Option<Timestamp>) -> Option<Timestamp> {
        let old = match at {
            Some(at) => self.by_name.insert(name.clone(), at),
            None => self.by_name.remove(name),
        };
        if let Some(old) = old {
            self.by_time.remove(&(old, name.clone()));
        }
        if let Some(at) = at {
            self.by_time.insert((at, name.clone()));
        }
        old
    }

    /// Deadline of a name.
    pub(crate) fn of(&self, name: &Name) -> Option<Timestamp> {
        self.by_name.get(name).copied()
    }

    /// Returns whether the name has a deadline that has passed.
    pub(crate) fn passed(&self, name: &Name, now: Timestamp) -> bool {
        self.by_name.get(name).is_some_and(|at| *at <= now)
    }

    /// Names whose deadlines have passed, earliest first.
    pub(crate) fn due(&self, now: Timestamp) -> impl Iterator<Item = &Name> {
        self.by_time.iter().take_while(move |(at, _)| *at <= now).map(|(_, name)| name)
    }

    /// Earliest deadline.
    pub(crate) fn next(&self) -> Option<Timestamp> {
        self.by_time.first().map(|(at, _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Timestamp {
        Timestamp::from_origin(Duration::from_millis(millis))
    }

    #[test]
    fn lease_request_outside_the_bounds_is_clamped() {
        let peer = Role::Peer("p".parse().unwrap());
        let grant = |term| Lease::grant(LeaseRequest::For(term), &peer).unwrap();
        assert_eq!(grant(Duration::ZERO), Lease::For(MIN_LEASE));
        assert_eq!(grant(Duration::MAX), Lease::For(MAX_LEASE));
        assert_eq!(grant(Duration::from_secs(7)), Lease::For(Duration::from_secs(7)));
        assert!(Lease::grant(LeaseRequest::Permanent, &peer).is_err());
        assert_eq!(Lease::grant(LeaseRequest::Permanent, &Role::Admin), Ok(Lease::Permanent));
    }

    #[test]
    fn moved_deadline_leaves_no_index_entry() {
        let (a, b): (Name, Name) = ("a".parse().unwrap(), "b".parse().unwrap());
        let mut deadlines = Deadlines::default();
        deadlines.set(&a, Some(at(10)));
        deadlines.set(&b, Some(at(20)));
        assert_eq!(deadlines.set(&a, Some(at(30))), Some(at(10)));
        assert_eq!(deadlines.next(), Some(at(20)));
        assert!(!deadlines.passed(&a, at(29)) && deadlines.passed(&a, at(30)));
        assert_eq!(deadlines.due(at(30)).collect::<Vec<_>>(), [&b, &a]);
        deadlines.set(&b, None);
        deadlines.set(&a, None);
        assert_eq!(deadlines.next(), None);
        assert!(deadlines.by_name.is_empty());
    }
}
