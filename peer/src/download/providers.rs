//! The owners of a download: those that the tracker named, and those that receive the content too. Pure.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use shared::{contact::Contact, id::PeerId};

use crate::swarm::MemberEvent;
use protocol::swarm::{Dropped, Event, Has, ProviderId};

/// How often an owner that failed, or a member that left, is asked again although nothing has come of it since.
const MAX_CHANCES: u32 = 2;

/// An owner, numbered by its place.
pub(crate) struct Owner {
    pub(crate) contact: Contact,
    /// Bytes proven of it.
    pub(crate) bytes: Arc<AtomicU64>,
    /// What it did wrong last.
    pub(crate) problem: Option<String>,
    pub(crate) lied: bool,
    /// It receives the content itself, and is known only from what it tells.
    pub(crate) is_member: bool,
    presence: Presence,
    /// How often it was asked again since it last brought anything.
    chances: u32,
    /// What it had brought by then.
    bytes_at_last_chance: u64,
}

/// Whether a member is there, as it tells by its stream.
///
/// | state | leaves it for | by |
/// |---|---|---|
/// | away | receiving, whole | its news; when it was there before, as long as it has chances |
/// | receiving | whole | it says that it has everything, once: saying so again changes nothing |
/// | receiving, whole | given up | it is asked for no more |
/// | given up | whole | it says that it has everything, as long as it has chances |
/// | all | away | it leaves |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Presence {
    Away,
    Receiving,
    Whole,
    GivenUp,
}

impl Owner {
    /// It is asked for no more.
    pub(crate) fn dropped(&mut self, why: Dropped) {
        self.lied |= why == Dropped::SentCorruptData;
        if self.presence != Presence::Away {
            self.presence = Presence::GivenUp;
        }
    }

    fn has_chance(&self) -> bool {
        self.chances < MAX_CHANCES || self.bytes.load(Ordering::Relaxed) > self.bytes_at_last_chance
    }

    /// Whether it may be asked again; counts. Who has brought something since begins anew.
    fn takes_chance(&mut self) -> bool {
        if self.lied || !self.has_chance() {
            return false;
        }
        let bytes = self.bytes.load(Ordering::Relaxed);
        if std::mem::replace(&mut self.bytes_at_last_chance, bytes) < bytes {
            self.chances = 0;
        }
        self.chances += 1;
        true
    }
}

/// All of them, numbered by their places.
#[derive(Default)]
pub(crate) struct Owners {
    pub(crate) list: Vec<Owner>,
    by_peer: BTreeMap<PeerId, ProviderId>,
}

impl Owners {
    /// The number of a peer, and whether it is new; `None` when there are too many.
    pub(crate) fn number(&mut self, contact: &Contact, is_member: bool) -> Option<(ProviderId, bool)> {
        if let Some(&number) = self.by_peer.get(&contact.peer) {
            return Some((number, false));
        }
        if self.list.len() >= protocol::swarm::params::MAX_SWARM_PROVIDERS {
            return None;
        }
        let number = ProviderId(u32::try_from(self.list.len()).ok()?);
        let contact = contact.clone();
        self.by_peer.insert(contact.peer.clone(), number);
        self.list.push(Owner {
            contact,
            bytes: Arc::default(),
            problem: None,
            lied: false,
            is_member,
            presence: Presence::Away,
            chances: 0,
            bytes_at_last_chance: 0,
        });
        Some((number, true))
    }

    /// The tracker names it although nobody was left to ask: it is new, has come back, or deserves another chance.
    pub(crate) fn found(&mut self, contact: &Contact) -> Option<Event> {
        let (owner, is_new) = self.number(contact, false)?;
        let known = self.get_mut(owner)?;
        if !is_new {
            if !known.takes_chance() {
                return None;
            }
            known.contact = contact.clone();
        }
        known.is_member = false;
        Some(Event::ProviderAdded { provider: owner, has: Has::All, rtt: None })
    }

    /// What another member's news are to the core.
    pub(crate) fn member_event(&mut self, event: MemberEvent) -> Option<Event> {
        let ((owner, is_new), has) = match event {
            MemberEvent::Has(contact, gained) => (self.number(&contact, true)?, Has::Groups(gained)),
            MemberEvent::HasAll(contact) => (self.number(&contact, true)?, Has::All),
            MemberEvent::Left(peer) => {
                let owner = *self.by_peer.get(&peer)?;
                let known = self.get_mut(owner)?;
                let was_here = std::mem::replace(&mut known.presence, Presence::Away) != Presence::Away;
                return (was_here && known.is_member).then_some(Event::ProviderLost { provider: owner });
            }
        };
        // What is known of an owner from the tracker needs no news.
        let known = self.get_mut(owner).filter(|owner| owner.is_member)?;
        let is_again = match (known.presence, &has) {
            (Presence::Receiving, Has::Groups(_)) => {
                let Has::Groups(gained) = has else { return None };
                return Some(Event::ProviderGained { provider: owner, gained });
            }
            (Presence::Whole, _) | (Presence::GivenUp, Has::Groups(_)) => return None,
            (Presence::Receiving, Has::All) => false,
            (Presence::Away, _) => !is_new,
            (Presence::GivenUp, Has::All) => true,
        };
        if is_again && !known.takes_chance() {
            return None;
        }
        known.presence = if has == Has::All { Presence::Whole } else { Presence::Receiving };
        Some(Event::ProviderAdded { provider: owner, has, rtt: None })
    }

    /// Whether somebody is there who receives the content too.
    pub(crate) fn has_members(&self) -> bool {
        self.list.iter().any(|owner| owner.presence != Presence::Away && !owner.lied)
    }

    /// Whether news of a peer that is not there would be listened to.
    pub(crate) fn may_help(&self, peer: &PeerId) -> bool {
        let known = self.by_peer.get(peer).and_then(|owner| self.list.get(owner.0 as usize));
        known.is_none_or(|owner| !owner.lied && owner.has_chance())
    }

    /// Where `me` stands among those who receive the content, by their names.
    pub(crate) fn place_of(&self, me: &PeerId) -> (u32, u32) {
        let others = self.list.iter().filter(|owner| owner.presence == Presence::Receiving && !owner.lied);
        let (mut place, mut receivers) = (0, 1);
        for other in others {
            place += u32::from(other.contact.peer < *me);
            receivers += 1;
        }
        (place, receivers)
    }

    pub(crate) fn get_mut(&mut self, owner: ProviderId) -> Option<&mut Owner> {
        self.list.get_mut(owner.0 as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::group_ranges::GroupRanges;

    fn peer(id: &str) -> PeerId {
        id.parse().unwrap()
    }

    fn contact(id: &str) -> Contact {
        Contact { peer: peer(id), endpoint: "quic://127.0.0.1:1".parse().unwrap() }
    }

    fn has(id: &str) -> MemberEvent {
        MemberEvent::Has(contact(id), GroupRanges::default())
    }

    fn has_all(id: &str) -> MemberEvent {
        MemberEvent::HasAll(contact(id))
    }

    fn left(id: &str) -> MemberEvent {
        MemberEvent::Left(peer(id))
    }

    #[test]
    fn the_place_is_among_those_who_receive_by_their_names() {
        let mut owners = Owners::default();
        let me = peer("m");
        owners.number(&contact("owner"), false);
        assert_eq!(owners.place_of(&me), (0, 1), "an owner receives nothing");
        for id in ["a", "z", "k"] {
            assert!(owners.member_event(has(id)).is_some());
        }
        assert_eq!(owners.place_of(&me), (2, 4));
        assert!(owners.member_event(has_all("a")).is_some());
        assert_eq!(owners.place_of(&me), (1, 3), "who has it all receives no more");
        assert!(matches!(owners.member_event(left("z")), Some(Event::ProviderLost { .. })));
        assert_eq!(owners.place_of(&me), (1, 2));
        let liar = owners.number(&contact("k"), true).unwrap().0;
        owners.get_mut(liar).unwrap().dropped(Dropped::SentCorruptData);
        assert_eq!(owners.place_of(&me), (0, 1), "who lied does not count");
        assert!(owners.member_event(has("z")).is_some());
        assert_eq!(owners.place_of(&me), (0, 2), "it is back");
    }

    #[test]
    fn who_comes_and_goes_without_bringing_anything_is_left_alone_in_the_end() {
        let mut owners = Owners::default();
        let comes = |owners: &mut Owners| {
            let came = owners.member_event(has("a")).is_some() && owners.member_event(has_all("a")).is_some();
            owners.member_event(left("a"));
            came
        };
        for _ in 0..=MAX_CHANCES {
            assert!(owners.may_help(&peer("a")) && comes(&mut owners));
        }
        assert!(!owners.may_help(&peer("a")) && !comes(&mut owners) && !owners.has_members());
        // Had it brought something, it could go on.
        owners.list[0].bytes.fetch_add(1, Ordering::Relaxed);
        assert!(owners.may_help(&peer("a")) && comes(&mut owners));
    }

    #[test]
    fn saying_again_that_it_has_everything_does_not_excuse_a_member() {
        let mut owners = Owners::default();
        assert!(owners.member_event(has("a")).is_some() && owners.member_event(has_all("a")).is_some());
        for _ in 0..3 {
            assert_eq!((owners.member_event(has("a")), owners.member_event(has_all("a"))), (None, None));
        }
        let mut forgiven = 0;
        for _ in 0..9 {
            owners.list[0].dropped(Dropped::Failing);
            forgiven += u32::from(owners.member_event(has_all("a")).is_some());
        }
        assert_eq!(forgiven, MAX_CHANCES);
    }
}
