//! The registry: names, leases, the tracker's seat, tokens. Pure: no clock, no file, no socket, no randomness.
//!
//! Every call is told who asks and what time it is; the durable changes it makes are found in
//! [`Registry::pending`] until the shell says that they are stored ([`Registry::settle`]) or that they
//! could not be ([`Registry::roll_back`]).
//!
//! | file | what is in it |
//! |---|---|
//! | `mod.rs` | registering, changing and removing names; ownership |
//! | [`lease`] | how long names stay |
//! | [`seat`] | the tracker's seat: claim, renew, resign |
//! | [`query`] | listings and selections |
//! | [`token`] | join tokens, and whose key each peer's id is |
//! | [`change`] | what is durable |
//! | [`log`] | the last changes, for those who watch |
//! | `table` | the tables and their indices, with undo |
//!
//! Not here yet: batches (several requests between
//! two settles), revocation (one more table beside the enrolments), backup (a [`Snapshot`] written out).

pub mod change;
pub mod lease;
pub mod log;
pub mod query;
pub mod seat;
mod table;
pub mod token;

#[cfg(test)]
pub(crate) mod tests;

use std::{collections::BTreeSet, sync::Arc};

use shared::{
    id::{Incarnation, Role},
    limits::{EXPIRIES_PER_SWEEP, MAX_NAMES, MAX_NAMES_PER_IDENTITY, MAX_TAGS},
    name::{Endpoint, Name, PEER_PREFIX, TRACKER_PREFIX, Tag},
    rpc::nameserver::{Condition, NameError, Record, Register, Registered, Revision, Selector},
    time::Timestamp,
};

pub use self::change::{Change, EnrolmentRow, Mutation, NameRow, Snapshot, TokenRow};
use self::{lease::Lease, query::Filter, seat::SeatState, table::Tables};

/// Tag of the nameserver's own entry.
pub const NAMESERVER_TAG: &str = "brasa.nameserver";
/// Tag of the tracker's entry.
pub const TRACKER_TAG: &str = "brasa.tracker";

/// Everything the nameserver knows.
#[derive(Debug)]
pub struct Registry {
    tables: Tables,
}

impl Registry {
    /// The registry that `snapshot` describes. All leases, the seat's included, begin anew at `now`: while the
    /// nameserver was away nobody could renew.
    pub fn restore(snapshot: Snapshot, now: Timestamp) -> Self {
        Self { tables: Tables::restore(snapshot, now) }
    }

    /// The durable state. Costs a copy of every table's keys: for tests and backups.
    pub fn snapshot(&self) -> Snapshot {
        self.tables.snapshot()
    }

    /// Changes that are not durable yet, in order.
    pub fn pending(&self) -> &[Mutation] {
        self.tables.pending()
    }

    /// The pending changes are durable.
    pub fn settle(&mut self) {
        self.tables.settle();
    }

    /// The pending changes could not be made durable: undoes them, latest first.
    pub fn roll_back(&mut self) {
        self.tables.roll_back();
    }

    /// Count of changes so far, pending ones included.
    pub fn revision(&self) -> Revision {
        self.tables.revision()
    }

    /// When [`Registry::expire`] has something to do next.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        let seat = self.tables.seat().map(|state| state.deadline);
        [self.tables.deadlines().next(), seat].into_iter().flatten().min()
    }

    /// Lets go of names and of the seat whose leases have run out by `now`, at most
    /// [`EXPIRIES_PER_SWEEP`] at a time. What has run out is invisible to every call before it is swept.
    pub fn expire(&mut self, now: Timestamp) {
        if let Some(state) = self.tables.seat().filter(|state| state.deadline <= now) {
            let epoch = state.seat.epoch;
            self.vacate(now, epoch);
        }
        let due: Vec<Name> = self.tables.deadlines().due(now).take(EXPIRIES_PER_SWEEP).cloned().collect();
        for name in due {
            self.tables.make(Change::NameRemoved(name), now);
        }
    }

    /// Registers the nameserver's own entry.
    pub fn register_self(&mut self, endpoint: Endpoint, now: Timestamp) {
        let name = Name::nameserver();
        let tags = vec![NAMESERVER_TAG.parse().expect("a constant within the limits of tags")];
        let present = self.tables.name(&name);
        if present.is_some_and(|row| row.uri == endpoint && row.tags == tags && row.owner == Role::Nameserver) {
            return;
        }
        self.put(now, name, endpoint, tags, Role::Nameserver, Lease::Permanent, Incarnation::default());
    }

    /// Registers or overwrites a name.
    ///
    /// An overwritten name belongs to whoever overwrites it (the same identity, or an admin). Registering again
    /// what is registered already renews its lease and changes nothing.
    ///
    /// # Errors
    /// See [`NameError`]; nothing has changed then.
    pub fn register(&mut self, now: Timestamp, caller: &Role, request: Register) -> Result<Registered, NameError> {
        let name: Name = request.name.parse().map_err(NameError::InvalidName)?;
        let uri: Endpoint = request.uri.parse().map_err(NameError::InvalidUri)?;
        let tags = request.tags.map(parse_tags).transpose()?;

        let present = self.live(&name, now).cloned();
        if request.condition == Condition::IfAbsent && present.is_some() {
            return Err(NameError::NameExists(name));
        }
        may_register(caller, &name, present.as_deref())?;
        let lease = Lease::grant(request.lease, caller)?;
        check_incarnation(caller, request.incarnation, present.as_deref())?;
        if let Condition::IfRevision(expected) = request.condition {
            let actual = present.as_ref().map(|row| row.revision);
            if actual != Some(expected) {
                return Err(NameError::RevisionMismatch { actual });
            }
        }

        let tags = tags.unwrap_or_else(|| present.as_ref().map(|row| row.tags.clone()).unwrap_or_default());
        if let Some(row) = present.filter(|row| {
            row.uri == uri
                && row.tags == tags
                && row.lease == lease
                && row.owner == *caller
                && row.incarnation == request.incarnation
        }) {
            self.tables.extend(&name, now);
            return Ok(Registered { revision: row.revision, lease: lease.term() });
        }
        self.check_room(caller, &name)?;
        let revision = self.put(now, name, uri, tags, caller.clone(), lease, request.incarnation);
        Ok(Registered { revision, lease: lease.term() })
    }

    /// Extends the lease of a name that this run of the caller registered.
    ///
    /// # Errors
    /// [`NameError::UnknownName`] when it has vanished, or an earlier run of the caller registered it: register it
    /// again. [`NameError::Superseded`] when a later run holds it.
    pub fn renew(
        &mut self,
        now: Timestamp,
        caller: &Role,
        name: &str,
        incarnation: Incarnation,
    ) -> Result<Registered, NameError> {
        let (name, row) = self.known(name, now)?;
        if row.owner != *caller {
            return Err(NameError::NotAuthorised(format!("{name} belongs to {}", row.owner)));
        }
        if row.lease == Lease::Seat {
            return Err(NameError::NotAuthorised(format!("{name} is renewed with the tracker's seat")));
        }
        check_incarnation(caller, incarnation, Some(row))?;
        if row.incarnation != incarnation {
            return Err(unknown(name.as_str()));
        }
        let registered = Registered { revision: row.revision, lease: row.lease.term() };
        self.tables.extend(&name, now);
        Ok(registered)
    }

    /// The registration of a name.
    ///
    /// # Errors
    /// [`NameError::UnknownName`].
    pub fn lookup(&self, now: Timestamp, name: &str) -> Result<Record, NameError> {
        self.known(name, now).map(|(name, row)| row.record(&name))
    }

    /// Replaces the tags of a name.
    ///
    /// # Errors
    /// [`NameError::UnknownName`], [`NameError::InvalidTag`], too many tags, or a name of somebody else's.
    pub fn set_metadata(
        &mut self,
        now: Timestamp,
        caller: &Role,
        name: &str,
        tags: Vec<String>,
    ) -> Result<Revision, NameError> {
        let tags = parse_tags(tags)?;
        let (name, row) = self.known(name, now)?;
        if row.owner == Role::Nameserver || row.lease == Lease::Seat {
            return Err(NameError::NotAuthorised(format!("{name} is the nameserver's to change")));
        }
        if !may_change(caller, row) {
            return Err(NameError::NotAuthorised(format!("{name} belongs to {}", row.owner)));
        }
        if row.tags == tags {
            return Ok(row.revision);
        }
        let row = NameRow { tags, revision: self.tables.next_revision(), ..NameRow::clone(row) };
        // Other tags are no renewal: the deadline stays where it is.
        let revision = self.tables.amend(name, row, now);
        Ok(revision)
    }

    /// Removes what is selected; the number removed. A pattern passes over what the caller may not remove, and
    /// over the nameserver's own entry. An empty text selects nothing, as in Pyro5.
    ///
    /// # Errors
    /// [`NameError::InvalidQuery`] unless exactly one field is given; [`NameError::NotAuthorised`] for one name
    /// that the caller may not remove.
    pub fn remove(&mut self, now: Timestamp, caller: &Role, selector: Selector) -> Result<u64, NameError> {
        let filter = match selector {
            Selector { name: Some(name), prefix: None, regex: None } => {
                let Ok((name, row)) = self.known(&name, now) else { return Ok(0) };
                if row.owner == Role::Nameserver {
                    return Ok(0);
                }
                if !may_remove(caller, row) {
                    return Err(NameError::NotAuthorised(format!("{name} belongs to {}", row.owner)));
                }
                self.drop_name(name, now);
                return Ok(1);
            }
            Selector { name: None, prefix: Some(text), regex: None }
            | Selector { name: None, prefix: None, regex: Some(text) }
                if text.is_empty() =>
            {
                return Ok(0);
            }
            Selector { name: None, prefix: Some(prefix), regex: None } => Filter::prefix(prefix),
            Selector { name: None, prefix: None, regex: Some(regex) } => Filter::regex(&regex)?,
            _ => return Err(NameError::InvalidQuery("give exactly one of name, prefix and regex".into())),
        };
        let chosen: Vec<Name> = match caller {
            Role::Admin => {
                self.tables.names().map(|(name, _)| name).filter(|name| filter.matches(name)).cloned().collect()
            }
            owner => self.tables.owned_by(owner).filter(|name| filter.matches(name)).cloned().collect(),
        };
        let mut removed = 0;
        for name in chosen {
            // Checked one by one: removing `tracker.<epoch>` takes the seat along, and what has run out is gone.
            if self.live(&name, now).is_some_and(|row| may_remove(caller, row)) {
                self.drop_name(name, now);
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// How many names there are, the nameserver's own included.
    pub fn count(&self, now: Timestamp) -> u64 {
        let expired = self.tables.deadlines().due(now).count();
        let seat_name = usize::from(self.tables.seat().is_some_and(|state| state.deadline <= now));
        (self.tables.names().len() - expired - seat_name) as u64
    }

    /// The row of a name whose lease runs.
    fn live(&self, name: &Name, now: Timestamp) -> Option<&Arc<NameRow>> {
        self.tables.name(name).filter(|row| match row.lease {
            Lease::Permanent => true,
            Lease::For(_) => !self.tables.deadlines().passed(name, now),
            Lease::Seat => self.live_seat(now).is_some(),
        })
    }

    fn known(&self, text: &str, now: Timestamp) -> Result<(Name, &Arc<NameRow>), NameError> {
        let name: Name = text.parse().map_err(|_| unknown(text))?;
        let row = self.live(&name, now).ok_or_else(|| unknown(text))?;
        Ok((name, row))
    }

    /// Whether there is room for one more name of `caller`, unless it has this one already.
    fn check_room(&self, caller: &Role, name: &Name) -> Result<(), NameError> {
        let full = |what: &str, limit: usize| NameError::LimitReached { what: what.into(), limit: limit as u64 };
        let present = self.tables.name(name);
        if present.is_none() && self.tables.names().len() >= MAX_NAMES {
            return Err(full("names", MAX_NAMES));
        }
        let own = present.is_some_and(|row| row.owner == *caller);
        if *caller != Role::Admin && !own && self.tables.owned_by(caller).len() >= MAX_NAMES_PER_IDENTITY {
            return Err(full("names of one identity", MAX_NAMES_PER_IDENTITY));
        }
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of a row, named by their types")]
    fn put(
        &mut self,
        now: Timestamp,
        name: Name,
        uri: Endpoint,
        tags: Vec<Tag>,
        owner: Role,
        lease: Lease,
        incarnation: Incarnation,
    ) -> Revision {
        let revision = self.tables.next_revision();
        let row = NameRow { uri, tags, owner, lease, incarnation, revision };
        self.tables.make(Change::NamePut(name, Arc::new(row)), now)
    }

    /// Removes a name; `tracker.<epoch>` takes the seat along, for they are one.
    fn drop_name(&mut self, name: Name, now: Timestamp) {
        match self.tables.seat().filter(|state| Name::tracker(state.seat.epoch) == name) {
            Some(SeatState { seat, .. }) => {
                let epoch = seat.epoch;
                self.vacate(now, epoch);
            }
            None => {
                self.tables.make(Change::NameRemoved(name), now);
            }
        }
    }
}

fn unknown(text: &str) -> NameError {
    // What is echoed back is bounded: the text may come from the network.
    NameError::UnknownName(text.chars().take(shared::limits::MAX_NAME_BYTES).collect())
}

fn parse_tags(tags: Vec<String>) -> Result<Vec<Tag>, NameError> {
    let tags: BTreeSet<Tag> =
        tags.into_iter().map(|tag| tag.parse().map_err(NameError::InvalidTag)).collect::<Result<_, _>>()?;
    if tags.len() > MAX_TAGS {
        return Err(NameError::LimitReached { what: "tags of a name".into(), limit: MAX_TAGS as u64 });
    }
    Ok(tags.into_iter().collect())
}

/// Who may register which name; what nobody is named for here is denied.
fn may_register(caller: &Role, name: &Name, present: Option<&NameRow>) -> Result<(), NameError> {
    let denied = |why: String| Err(NameError::NotAuthorised(why));
    if *name == Name::nameserver() {
        return denied(format!("{name} is the nameserver's own entry"));
    }
    if name.as_str().starts_with(TRACKER_PREFIX) {
        return denied("a tracker's name comes with the seat: claim it".into());
    }
    if name.as_str().starts_with(PEER_PREFIX) {
        return match name.as_peer() {
            Some(id) if caller.peer() == Some(&id) => Ok(()),
            _ => denied(format!("{name} can be registered by that peer only, not by {caller}")),
        };
    }
    match (caller, present) {
        (Role::Nameserver, _) => denied("a nameserver registers nothing with another".into()),
        (Role::Peer(_), Some(row)) if row.owner != *caller => denied(format!("{name} belongs to {}", row.owner)),
        (Role::Admin | Role::Peer(_), _) => Ok(()),
    }
}

fn may_change(caller: &Role, row: &NameRow) -> bool {
    *caller == Role::Admin || (*caller == row.owner && *caller != Role::Nameserver)
}

fn may_remove(caller: &Role, row: &NameRow) -> bool {
    // A tracker gives its name up by resigning; an admin may take it away.
    row.owner != Role::Nameserver && may_change(caller, row) && (row.lease != Lease::Seat || *caller == Role::Admin)
}

/// An earlier run of a process must not undo what a later one has registered.
fn check_incarnation(caller: &Role, incarnation: Incarnation, present: Option<&NameRow>) -> Result<(), NameError> {
    match present {
        Some(row) if row.owner == *caller && caller.peer().is_some() && incarnation < row.incarnation => {
            Err(NameError::Superseded { by: row.incarnation })
        }
        _ => Ok(()),
    }
}
