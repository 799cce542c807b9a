//! How long registrations stay, and which of them ends next.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use shared::{
    id::Role,
    limits::{MAX_LEASE, MIN_LEASE},
    name::Name,
    rpc::nameserver::{LeaseRequest, NameError},
    time::Timestamp,
};

/// How long a registration stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Lease {
    /// Until removed.
    Permanent,
    /// Until this long after the last renewal.
    For(Duration),
    /// As long as the tracker's seat: `tracker.<epoch>`.
    Seat,
}

impl Lease {
    /// The lease that `caller` gets for its request.
    ///
    /// # Errors
    /// [`NameError::NotAuthorised`] when a permanent one is asked for by anybody but an admin.
    pub(crate) fn grant(request: LeaseRequest, caller: &Role) -> Result<Self, NameError> {
        match request {
            LeaseRequest::For(asked) => Ok(Self::For(asked.clamp(MIN_LEASE, MAX_LEASE))),
            LeaseRequest::Permanent if *caller == Role::Admin => Ok(Self::Permanent),
            LeaseRequest::Permanent => Err(NameError::NotAuthorised("only an admin registers permanent names".into())),
        }
    }

    /// Its length, when it has one of its own.
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

/// When leased names end, in both directions: by name and by time.
#[derive(Debug, Clone, Default)]
pub(crate) struct Deadlines {
    by_name: BTreeMap<Name, Timestamp>,
    by_time: BTreeSet<(Timestamp, Name)>,
}

impl Deadlines {
    /// Sets, moves or (with `None`) drops a name's deadline; returns the one it had.
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

    /// The name's deadline.
    pub(crate) fn of(&self, name: &Name) -> Option<Timestamp> {
        self.by_name.get(name).copied()
    }

    /// Whether the name has a deadline and it has come.
    pub(crate) fn passed(&self, name: &Name, now: Timestamp) -> bool {
        self.by_name.get(name).is_some_and(|at| *at <= now)
    }

    /// The names whose deadline has come, earliest first.
    pub(crate) fn due(&self, now: Timestamp) -> impl Iterator<Item = &Name> {
        self.by_time.iter().take_while(move |(at, _)| *at <= now).map(|(_, name)| name)
    }

    /// The earliest deadline.
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
    fn a_lease_is_brought_into_its_bounds() {
        let peer = Role::Peer("p".parse().unwrap());
        let grant = |asked| Lease::grant(LeaseRequest::For(asked), &peer).unwrap();
        assert_eq!(grant(Duration::ZERO), Lease::For(MIN_LEASE));
        assert_eq!(grant(Duration::MAX), Lease::For(MAX_LEASE));
        assert_eq!(grant(Duration::from_secs(7)), Lease::For(Duration::from_secs(7)));
        assert!(Lease::grant(LeaseRequest::Permanent, &peer).is_err());
        assert_eq!(Lease::grant(LeaseRequest::Permanent, &Role::Admin), Ok(Lease::Permanent));
    }

    #[test]
    fn a_moved_deadline_leaves_nothing_behind() {
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
