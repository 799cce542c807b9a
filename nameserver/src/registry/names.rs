//! Registration, change and removal of names, and the rules of ownership (`docs/names.md`).

use std::{collections::BTreeSet, sync::Arc};

use crate::params::{MAX_NAMES, MAX_NAMES_PER_IDENTITY, MAX_TAGS};
use shared::{
    id::{Incarnation, Role},
    limits::MAX_NAME_BYTES,
    name::{Endpoint, Name, PEER_PREFIX, TRACKER_PREFIX, Tag},
    rpc::nameserver::{Condition, NameError, Record, Register, Registered, Revision, Selector},
    time::Timestamp,
};

use super::{
    NAMESERVER_TAG, Registry,
    change::{Change, NameRow},
    lease::Lease,
    query::Filter,
};

impl Registry {
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
    /// Only the owner or an admin may overwrite a name; the caller becomes its owner. A registration equal to the
    /// present one renews its lease and changes nothing durable.
    ///
    /// # Errors
    /// See [`NameError`]; the registry is unchanged then.
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
        self.check_capacity(caller, &name)?;
        let revision = self.put(now, name, uri, tags, caller.clone(), lease, request.incarnation);
        Ok(Registered { revision, lease: lease.term() })
    }

    /// Extends the lease of a name that this run of the caller registered.
    ///
    /// # Errors
    /// [`NameError::UnknownName`] when the name does not exist or an earlier run of the caller registered it; the
    /// caller must register it again. [`NameError::Superseded`] when a later run holds it. [`NameError::NotAuthorised`]
    /// when another identity owns it or its lease is the seat's.
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

    /// Returns the registration of a name.
    ///
    /// # Errors
    /// [`NameError::UnknownName`].
    pub fn lookup(&self, now: Timestamp, name: &str) -> Result<Record, NameError> {
        self.known(name, now).map(|(name, row)| row.record(&name))
    }

    /// Replaces the tags of a name.
    ///
    /// # Errors
    /// [`NameError::UnknownName`], [`NameError::InvalidTag`], [`NameError::LimitReached`] for more than [`MAX_TAGS`]
    /// tags, [`NameError::NotAuthorised`] for a name of another owner.
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
            return Err(NameError::NotAuthorised(format!("only the nameserver changes {name}")));
        }
        if !may_change(caller, row) {
            return Err(NameError::NotAuthorised(format!("{name} belongs to {}", row.owner)));
        }
        if row.tags == tags {
            return Ok(row.revision);
        }
        let row = NameRow { tags, revision: self.tables.next_revision(), ..NameRow::clone(row) };
        // A change of tags is not a renewal: the deadline stays.
        let revision = self.tables.amend(name, row, now);
        Ok(revision)
    }

    /// Removes the selected names and returns their number. A prefix or expression skips the nameserver's own entry and
    /// names that the caller may not remove. An empty text selects nothing, as in Pyro5.
    ///
    /// # Errors
    /// [`NameError::InvalidQuery`] unless exactly one field is given; [`NameError::NotAuthorised`] when the selected
    /// single name may not be removed by the caller.
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
            // Checked for each name, because a removal of `tracker.<epoch>` also ends the seat, and leases may have
            // ended.
            if self.live(&name, now).is_some_and(|row| may_remove(caller, row)) {
                self.drop_name(name, now);
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// Number of live names, the nameserver's own entry included.
    pub fn count(&self, now: Timestamp) -> u64 {
        let expired = self.tables.deadlines().due(now).count();
        let seat_name = usize::from(self.tables.seat().is_some_and(|state| state.deadline <= now));
        (self.tables.names().len() - expired - seat_name) as u64
    }

    fn known(&self, text: &str, now: Timestamp) -> Result<(Name, &Arc<NameRow>), NameError> {
        let name: Name = text.parse().map_err(|_| unknown(text))?;
        let row = self.live(&name, now).ok_or_else(|| unknown(text))?;
        Ok((name, row))
    }

    /// Checks the bounds on all names and on the names of `caller` before it registers `name`.
    fn check_capacity(&self, caller: &Role, name: &Name) -> Result<(), NameError> {
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
        self.tables.apply(Change::NamePut(name, Arc::new(row)), now)
    }

    /// Removes a name. Removing `tracker.<epoch>` also ends the seat.
    fn drop_name(&mut self, name: Name, now: Timestamp) {
        match self.tables.seat().filter(|state| Name::tracker(state.seat.epoch) == name) {
            Some(state) => {
                let epoch = state.seat.epoch;
                self.vacate(now, epoch);
            }
            None => {
                self.tables.apply(Change::NameRemoved(name), now);
            }
        }
    }
}

fn unknown(text: &str) -> NameError {
    // The text may come from the network, so its copy in the error is bounded.
    NameError::UnknownName(text.chars().take(MAX_NAME_BYTES).collect())
}

fn parse_tags(tags: Vec<String>) -> Result<Vec<Tag>, NameError> {
    let tags: BTreeSet<Tag> =
        tags.into_iter().map(|tag| tag.parse().map_err(NameError::InvalidTag)).collect::<Result<_, _>>()?;
    if tags.len() > MAX_TAGS {
        return Err(NameError::LimitReached { what: "tags of a name".into(), limit: MAX_TAGS as u64 });
    }
    Ok(tags.into_iter().collect())
}

/// Checks whether `caller` may register `name`. Denies every combination that is not listed.
fn may_register(caller: &Role, name: &Name, present: Option<&NameRow>) -> Result<(), NameError> {
    let denied = |why: String| Err(NameError::NotAuthorised(why));
    if *name == Name::nameserver() {
        return denied(format!("{name} is the nameserver's own entry"));
    }
    if name.as_str().starts_with(TRACKER_PREFIX) {
        return denied("a tracker's name is registered by a claim to the seat".into());
    }
    if name.as_str().starts_with(PEER_PREFIX) {
        return match name.as_peer() {
            Some(id) if caller.peer() == Some(&id) => Ok(()),
            _ => denied(format!("only that peer registers {name}, not {caller}")),
        };
    }
    match (caller, present) {
        (Role::Nameserver, _) => denied("a nameserver registers no names with another one".into()),
        (Role::Peer(_), Some(row)) if row.owner != *caller => denied(format!("{name} belongs to {}", row.owner)),
        (Role::Admin | Role::Peer(_), _) => Ok(()),
    }
}

fn may_change(caller: &Role, row: &NameRow) -> bool {
    *caller == Role::Admin || (*caller == row.owner && *caller != Role::Nameserver)
}

fn may_remove(caller: &Role, row: &NameRow) -> bool {
    // A tracker gives up its name by resigning; an admin may remove it.
    row.owner != Role::Nameserver && may_change(caller, row) && (row.lease != Lease::Seat || *caller == Role::Admin)
}

/// Rejects an earlier run of the caller when a later one holds the name.
fn check_incarnation(caller: &Role, incarnation: Incarnation, present: Option<&NameRow>) -> Result<(), NameError> {
    match present {
        Some(row) if row.owner == *caller && caller.peer().is_some() && incarnation < row.incarnation => {
            Err(NameError::Superseded { by: row.incarnation })
        }
        _ => Ok(()),
    }
}
