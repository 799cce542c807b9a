//! Providers of a download: those that the tracker names, and other receivers of the content. Pure.

use std::collections::BTreeMap;

use protocol::swarm::params::MAX_SWARM_PROVIDERS;
use protocol::swarm::{Dropped, Event, Has, ProviderId};
use shared::{contact::Contact, id::PeerId};

use crate::swarm::MemberEvent;

/// Retries of a provider that failed, or of a member that left, without a verified byte in between.
const MAX_RETRIES: u32 = 2;

/// A provider, numbered by its place in [`Providers`].
pub(crate) struct Provider {
    pub(crate) contact: Contact,
    /// Last failure.
    pub(crate) problem: Option<String>,
    pub(crate) sent_corrupt_data: bool,
    /// True if the provider is itself a receiver of the content and known only from its swarm session.
    pub(crate) is_member: bool,
    presence: Presence,
    /// Retries since the provider last delivered bytes.
    retries: u32,
    /// True if the provider delivered bytes since its last retry.
    has_delivered: bool,
}

/// Presence of a member according to its swarm session.
///
/// | state | next state | cause |
/// |---|---|---|
/// | away | receiving, complete | it announces what it has; if it was present before, as long as it has retries |
/// | receiving | complete | it announces that it has everything, for the first time |
/// | receiving, complete | given up | it is dropped |
/// | given up | complete | it announces that it has everything, as long as it has retries |
/// | all | away | it leaves |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Presence {
    Away,
    Receiving,
    Complete,
    GivenUp,
}

impl Provider {
    /// Handles that the swarm core has dropped the provider.
    pub(crate) fn on_dropped(&mut self, why: Dropped) {
        self.sent_corrupt_data |= why == Dropped::SentCorruptData;
        if self.presence != Presence::Away {
            self.presence = Presence::GivenUp;
        }
    }

    fn has_retries(&self) -> bool {
        self.retries < MAX_RETRIES || self.has_delivered
    }

    /// Uses a retry, if there is one. Delivered bytes renew all of them.
    fn take_retry(&mut self) -> bool {
        if self.sent_corrupt_data || !self.has_retries() {
            return false;
        }
        if std::mem::take(&mut self.has_delivered) {
            self.retries = 0;
        }
        self.retries += 1;
        true
    }
}

/// All providers of a download. None is ever removed, so numbers stay valid.
#[derive(Default)]
pub(crate) struct Providers {
    list: Vec<Provider>,
    by_peer: BTreeMap<PeerId, ProviderId>,
}

impl Providers {
    /// Returns the number of a peer, and true if it is new; `None` beyond [`MAX_SWARM_PROVIDERS`].
    pub(crate) fn number(&mut self, contact: &Contact, is_member: bool) -> Option<(ProviderId, bool)> {
        if let Some(&number) = self.by_peer.get(&contact.peer) {
            return Some((number, false));
        }
        if self.list.len() >= MAX_SWARM_PROVIDERS {
            return None;
        }
        let number = ProviderId(u32::try_from(self.list.len()).ok()?);
        let contact = contact.clone();
        self.by_peer.insert(contact.peer.clone(), number);
        self.list.push(Provider {
            contact,
            problem: None,
            sent_corrupt_data: false,
            is_member,
            presence: Presence::Away,
            retries: 0,
            has_delivered: false,
        });
        Some((number, true))
    }

    /// Handles a provider that the tracker names after none was left. Returns the event for the core if the provider is
    /// new or has retries left.
    pub(crate) fn on_named(&mut self, contact: &Contact) -> Option<Event> {
        let (number, is_new) = self.number(contact, false)?;
        let known = self.get_mut(number)?;
        if !is_new {
            if !known.take_retry() {
                return None;
            }
            known.contact = contact.clone();
        }
        known.is_member = false;
        Some(Event::ProviderAdded { provider: number, has: Has::All, rtt: None })
    }

    /// Handles verified bytes of a provider. `new_bytes` of them had not been delivered by another provider.
    pub(crate) fn on_delivered(&mut self, number: ProviderId, new_bytes: u64) {
        if let Some(provider) = self.get_mut(number) {
            provider.has_delivered |= new_bytes > 0;
        }
    }

    /// Translates an event of the swarm's sessions for the core.
    pub(crate) fn on_member_event(&mut self, event: MemberEvent) -> Option<Event> {
        let ((number, is_new), has) = match event {
            MemberEvent::Has(contact, gained) => (self.number(&contact, true)?, Has::Groups(gained)),
            MemberEvent::HasAll(contact) => (self.number(&contact, true)?, Has::All),
            MemberEvent::Left(peer) => return self.on_left(&peer),
        };
        // A provider that the tracker named has all of the content.
        let known = self.get_mut(number).filter(|provider| provider.is_member)?;
        let is_retry = match (known.presence, &has) {
            (Presence::Receiving, Has::Groups(_)) => {
                let Has::Groups(gained) = has else { return None };
                return Some(Event::ProviderGained { provider: number, gained });
            }
            (Presence::Complete, _) | (Presence::GivenUp, Has::Groups(_)) => return None,
            (Presence::Receiving, Has::All) => false,
            (Presence::Away, _) => !is_new,
            (Presence::GivenUp, Has::All) => true,
        };
        if is_retry && !known.take_retry() {
            return None;
        }
        known.presence = if has == Has::All { Presence::Complete } else { Presence::Receiving };
        Some(Event::ProviderAdded { provider: number, has, rtt: None })
    }

    fn on_left(&mut self, peer: &PeerId) -> Option<Event> {
        let number = *self.by_peer.get(peer)?;
        let known = self.get_mut(number)?;
        let was_present = std::mem::replace(&mut known.presence, Presence::Away) != Presence::Away;
        (was_present && known.is_member).then_some(Event::ProviderLost { provider: number })
    }

    /// Returns true if another receiver of the content is connected.
    pub(crate) fn has_members(&self) -> bool {
        self.list.iter().any(|provider| provider.presence != Presence::Away && !provider.sent_corrupt_data)
    }

    /// Returns true if announcements of an absent peer would be used.
    pub(crate) fn may_help(&self, peer: &PeerId) -> bool {
        let known = self.by_peer.get(peer).and_then(|number| self.get(*number));
        known.is_none_or(|provider| !provider.sent_corrupt_data && provider.has_retries())
    }

    /// Returns the rank of `me` among the receivers of the content in the order of their ids, and the number of
    /// receivers.
    pub(crate) fn rank_of(&self, me: &PeerId) -> (u32, u32) {
        let is_receiver =
            |provider: &&Provider| provider.presence == Presence::Receiving && !provider.sent_corrupt_data;
        let (mut rank, mut receivers) = (0, 1);
        for other in self.list.iter().filter(is_receiver) {
            rank += u32::from(other.contact.peer < *me);
            receivers += 1;
        }
        (rank, receivers)
    }

    pub(crate) fn get(&self, number: ProviderId) -> Option<&Provider> {
        self.list.get(number.0 as usize)
    }

    pub(crate) fn get_mut(&mut self, number: ProviderId) -> Option<&mut Provider> {
        self.list.get_mut(number.0 as usize)
    }

    /// Returns all providers in the order of their numbers.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Provider> {
        self.list.iter()
    }
}

#[cfg(test)]
mod tests {
    use shared::group_ranges::GroupRanges;

    use super::*;

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
    fn rank_counts_receivers_in_the_order_of_their_ids() {
        let mut providers = Providers::default();
        let me = peer("m");
        providers.number(&contact("provider"), false);
        assert_eq!(providers.rank_of(&me), (0, 1), "a provider that the tracker named receives nothing");
        for id in ["a", "z", "k"] {
            assert!(providers.on_member_event(has(id)).is_some());
        }
        assert_eq!(providers.rank_of(&me), (2, 4));
        assert!(providers.on_member_event(has_all("a")).is_some());
        assert_eq!(providers.rank_of(&me), (1, 3), "a member that has everything receives no more");
        assert!(matches!(providers.on_member_event(left("z")), Some(Event::ProviderLost { .. })));
        assert_eq!(providers.rank_of(&me), (1, 2));
        let corrupt = providers.number(&contact("k"), true).unwrap().0;
        providers.get_mut(corrupt).unwrap().on_dropped(Dropped::SentCorruptData);
        assert_eq!(providers.rank_of(&me), (0, 1), "a member that sent corrupt data does not count");
        assert!(providers.on_member_event(has("z")).is_some());
        assert_eq!(providers.rank_of(&me), (0, 2), "it is back");
    }

    #[test]
    fn member_that_comes_and_goes_without_delivering_is_ignored_in_the_end() {
        let mut providers = Providers::default();
        let comes = |providers: &mut Providers| {
            let came =
                providers.on_member_event(has("a")).is_some() && providers.on_member_event(has_all("a")).is_some();
            providers.on_member_event(left("a"));
            came
        };
        for _ in 0..=MAX_RETRIES {
            assert!(providers.may_help(&peer("a")) && comes(&mut providers));
        }
        assert!(!providers.may_help(&peer("a")) && !comes(&mut providers) && !providers.has_members());
        let number = providers.number(&contact("a"), true).unwrap().0;
        providers.on_delivered(number, 0);
        assert!(!providers.may_help(&peer("a")), "bytes that another had delivered do not count");
        providers.on_delivered(number, 1);
        assert!(providers.may_help(&peer("a")) && comes(&mut providers));
    }

    #[test]
    fn repeated_announcement_of_everything_does_not_renew_retries() {
        let mut providers = Providers::default();
        assert!(providers.on_member_event(has("a")).is_some() && providers.on_member_event(has_all("a")).is_some());
        for _ in 0..3 {
            let again = (providers.on_member_event(has("a")), providers.on_member_event(has_all("a")));
            assert_eq!(again, (None, None));
        }
        let mut retried = 0;
        for _ in 0..9 {
            providers.get_mut(ProviderId(0)).unwrap().on_dropped(Dropped::Failing);
            retried += u32::from(providers.on_member_event(has_all("a")).is_some());
        }
        assert_eq!(retried, MAX_RETRIES);
    }
}
