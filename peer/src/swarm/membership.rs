//! Membership of this peer in the swarm of one content: what it has of the content, its sessions, and its dials.
//!
//! A peer is a member while there is a session with it. Contacts that other members name are only dialled: an invented
//! contact neither takes the place of a member nor is passed on.

use crate::swarm::params;
use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use shared::{
    contact::Contact,
    content::{ContentHash, FileMeta},
    group_ranges::GroupRanges,
    id::PeerId,
    net::swarm::SwarmUpdate,
    rpc::tracker::Owner,
};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::params::MAX_DIALS_PER_INFORMANT;

/// Event of a swarm for the download of its content.
#[derive(Debug)]
pub enum MemberEvent {
    /// The member has these groups in addition to those of its earlier events. Empty when the session begins.
    Has(Contact, GroupRanges),
    /// The member has the complete content.
    HasAll(Contact),
    /// The session with the member has ended.
    Left(PeerId),
}

/// Membership of this peer in one swarm; see the module.
pub(super) struct SwarmMembership {
    pub(super) hash: ContentHash,
    /// Size of the content, bytes.
    pub(super) size: u64,
    state: Mutex<State>,
    /// Wakes the sessions, which then send updates.
    changed: watch::Sender<()>,
}

#[derive(Default)]
struct State {
    holds: Holds,
    /// Members by the number that they got when their session began. Numbers ascend and are not reused, so an
    /// [`UpdateCursor`] stays valid when members leave.
    members: BTreeMap<u64, Contact>,
    next_number: u64,
    sessions: BTreeMap<PeerId, Session>,
    download: Option<Download>,
    /// Peers that a task of the current download dials, with the member that named them. The latter is removed when a
    /// session with the peer begins.
    dials: BTreeMap<PeerId, Option<PeerId>>,
}

/// Part of the content that this peer has.
#[derive(Default)]
enum Holds {
    /// Nothing. The sessions end.
    #[default]
    Nothing,
    /// The groups that a download has verified, in the order of their arrival.
    Part(Vec<Range<u64>>),
    /// A complete file in the share.
    All,
}

/// Download of the content by this peer.
pub(super) struct Download {
    /// File as it was announced.
    pub(super) file: FileMeta,
    pub(super) events: mpsc::Sender<MemberEvent>,
    /// Cancelled at the end of the download.
    pub(super) stop: CancellationToken,
}

/// Side that opened a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Initiator {
    Me,
    Other,
}

/// Swarm stream to a member.
struct Session {
    /// Key in [`State::members`].
    number: u64,
    initiator: Initiator,
    stop: CancellationToken,
    /// The member has the complete content.
    has_all: bool,
}

/// Position of a session in the updates that it has sent.
#[derive(Default)]
pub(super) struct UpdateCursor {
    /// Number of verified ranges sent.
    ranges: usize,
    /// Number of the first member not sent.
    members: u64,
    /// [`SwarmUpdate::HasAll`] was sent.
    all: bool,
}

impl SwarmMembership {
    pub(super) fn new(hash: ContentHash, size: u64) -> Self {
        Self { hash, size, state: Mutex::default(), changed: watch::Sender::new(()) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        self.changed.send_replace(());
    }

    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Registers a download with the groups that it has verified already. Returns the current members.
    pub(super) fn begin_download(&self, verified: &GroupRanges, download: Download) -> Vec<Contact> {
        let verified = verified.iter().collect();
        let mut state = self.state();
        state.holds = Holds::Part(verified);
        state.download = Some(download);
        state.dials.clear();
        let members = state.members.values().cloned().collect();
        drop(state);
        self.wake();
        members
    }

    /// Returns the file that a download of this peer receives.
    pub(super) fn received(&self) -> Option<FileMeta> {
        self.state().download.as_ref().map(|download| download.file.clone())
    }

    pub(super) fn end_download(&self) {
        let mut state = self.state();
        state.download = None;
        if matches!(state.holds, Holds::Part(..)) {
            state.holds = Holds::Nothing;
        }
        drop(state);
        self.wake();
    }

    /// Records that the complete content is in the share.
    pub(super) fn set_complete(&self) {
        let mut state = self.state();
        if !matches!(state.holds, Holds::All) {
            state.holds = Holds::All;
            drop(state);
            self.wake();
        }
    }

    /// Records verified groups.
    pub(super) fn add_verified(&self, groups: Range<u64>) {
        if let Holds::Part(verified) = &mut self.state().holds {
            verified.push(groups);
        }
        self.wake();
    }

    /// Returns true if this peer has, or downloads, a part of the content.
    pub(super) fn has_any(&self) -> bool {
        !matches!(self.state().holds, Holds::Nothing)
    }

    /// Returns the token that ends with the current download.
    pub(super) fn download_stop(&self) -> Option<CancellationToken> {
        self.state().download.as_ref().map(|download| download.stop.clone())
    }

    /// Registers a task that dials `peer` for the download that ends with `stop`. `informant` is the member that named
    /// the peer, unless the download found it itself. Returns false if the task must not start: another one dials the
    /// peer already, the download has ended, or a limit is reached.
    pub(super) fn begin_dialling(&self, peer: &PeerId, informant: Option<&PeerId>, stop: &CancellationToken) -> bool {
        let mut state = self.state();
        if stop.is_cancelled() {
            return false;
        }
        if let Some(named_by) = state.dials.get_mut(peer) {
            if informant.is_none() {
                *named_by = None;
            }
            return false;
        }
        let of_same_kind = state.dials.values().filter(|named_by| named_by.is_some() == informant.is_some()).count();
        let of_informant = state.dials.values().filter(|named_by| named_by.as_ref() == informant).count();
        if of_same_kind >= params::MAX_SWARM_MEMBERS || informant.is_some() && of_informant >= MAX_DIALS_PER_INFORMANT {
            return false;
        }
        state.dials.insert(peer.clone(), informant.cloned());
        true
    }

    /// Removes a task registered by [`begin_dialling`](Self::begin_dialling).
    pub(super) fn end_dialling(&self, peer: &PeerId, stop: &CancellationToken) {
        let mut state = self.state();
        // After its download has ended, the entry can be one of the next download.
        if !stop.is_cancelled() {
            state.dials.remove(peer);
        }
    }

    pub(super) fn has_session(&self, peer: &PeerId) -> bool {
        self.state().sessions.contains_key(peer)
    }

    /// Registers a stream to `member`, which ends when the returned token is cancelled. Returns `None` if the stream is
    /// redundant or the limit is reached.
    ///
    /// If both sides opened a stream at the same time, the one of the smaller id stays. Otherwise an accepted stream
    /// replaces an earlier one, whose other end may no longer exist.
    pub(super) fn begin_session(
        &self,
        me: &PeerId,
        member: &Contact,
        initiator: Initiator,
    ) -> Option<CancellationToken> {
        let mut state = self.state();
        let number = match state.sessions.get(&member.peer) {
            Some(_) if initiator == Initiator::Me => return None,
            Some(session) if session.initiator == Initiator::Me && me < &member.peer => return None,
            Some(session) => {
                session.stop.cancel();
                Some(session.number)
            }
            None if state.sessions.len() >= params::MAX_SWARM_MEMBERS => return None,
            None => None,
        };
        // A member at a new endpoint gets a new number, so that the other members receive the endpoint.
        let number = match number {
            Some(number) if state.members.get(&number) == Some(member) => number,
            replaced => {
                replaced.map(|number| state.members.remove(&number));
                let number = state.next_number;
                state.next_number += 1;
                state.members.insert(number, member.clone());
                number
            }
        };
        let stop = CancellationToken::new();
        let session = Session { number, initiator, stop: stop.clone(), has_all: false };
        state.sessions.insert(member.peer.clone(), session);
        if let Some(named_by) = state.dials.get_mut(&member.peer) {
            *named_by = None;
        }
        drop(state);
        self.wake();
        Some(stop)
    }

    /// Removes a session. Returns false if another one has replaced it.
    pub(super) fn end_session(&self, peer: &PeerId, stop: &CancellationToken) -> bool {
        let mut state = self.state();
        // Only a replacement cancels the token.
        if stop.is_cancelled() {
            return false;
        }
        if let Some(session) = state.sessions.remove(peer) {
            state.members.remove(&session.number);
        }
        true
    }

    /// Records that a member has the complete content.
    pub(super) fn member_has_all(&self, peer: &PeerId) {
        if let Some(session) = self.state().sessions.get_mut(peer) {
            session.has_all = true;
        }
        self.wake();
    }

    /// Sends an event to the download, if there is one. Waits while its queue is full.
    pub(super) async fn report(&self, event: MemberEvent) {
        let events = self.state().download.as_ref().map(|download| download.events.clone());
        if let Some(events) = events {
            // Fails only if the download has ended.
            let _ = events.send(event).await;
        }
    }

    /// Returns the time for which a session collects changes before it sends them: longer in a large swarm, where each
    /// change is sent to many members.
    pub(super) fn update_interval(&self) -> Duration {
        let sessions = self.state().sessions.len();
        params::SWARM_UPDATE_INTERVAL
            .saturating_mul(u32::try_from(sessions.div_ceil(params::SWARM_UPDATE_MEMBERS)).unwrap_or(u32::MAX))
    }

    /// Returns the updates for `to` since `cursor`, and true if no others can follow.
    pub(super) fn updates(&self, to: &PeerId, cursor: &mut UpdateCursor) -> (Vec<SwarmUpdate>, bool) {
        let state = self.state();
        let mut updates = Vec::new();
        match &state.holds {
            Holds::Nothing => return (updates, true),
            Holds::Part(verified) => {
                let mut new = GroupRanges::default();
                verified.iter().skip(cursor.ranges).for_each(|range| new.insert(range.clone()));
                cursor.ranges = verified.len();
                let ranges = new.to_request();
                updates
                    .extend(ranges.chunks(params::RANGES_PER_UPDATE).map(|ranges| SwarmUpdate::Has(ranges.to_vec())));
            }
            Holds::All => {
                if !std::mem::replace(&mut cursor.all, true) {
                    updates.push(SwarmUpdate::HasAll);
                }
            }
        }
        let members = state.members.range(cursor.members..).map(|(_, member)| member);
        let members: Vec<_> = members.filter(|member| member.peer != *to).collect();
        cursor.members = state.next_number;
        updates.extend(members.chunks(params::MEMBERS_PER_UPDATE).map(|members| {
            let owner = |member: &&Contact| Owner { peer: member.peer.clone(), endpoint: member.endpoint.clone() };
            SwarmUpdate::Members(members.iter().map(owner).collect())
        }));
        // Two members with the complete content exchange nothing more.
        let is_over = cursor.all && state.sessions.get(to).is_some_and(|session| session.has_all);
        (updates, is_over)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(id: &str) -> PeerId {
        id.parse().unwrap()
    }

    fn contact(id: &str) -> Contact {
        Contact { peer: peer(id), endpoint: "quic://127.0.0.1:1".parse().unwrap() }
    }

    fn membership() -> SwarmMembership {
        SwarmMembership::new(ContentHash([1; 32]), 1 << 20)
    }

    fn accept(membership: &SwarmMembership, member: &Contact) -> CancellationToken {
        membership.begin_session(&peer("me"), member, Initiator::Other).unwrap()
    }

    /// Returns the members in the updates for `to` since `cursor`.
    fn named(membership: &SwarmMembership, to: &str, cursor: &mut UpdateCursor) -> Vec<Contact> {
        let (updates, _) = membership.updates(&peer(to), cursor);
        let members = updates.into_iter().filter_map(|update| match update {
            SwarmUpdate::Members(members) => Some(members),
            _ => None,
        });
        members.flatten().map(|Owner { peer, endpoint }| Contact { peer, endpoint }).collect()
    }

    fn begin_download(membership: &SwarmMembership) -> CancellationToken {
        let stop = CancellationToken::new();
        let file = FileMeta {
            name: "a.bin".parse().unwrap(),
            size: membership.size,
            hash: membership.hash,
            mtime_micros: 0,
            executable: false,
        };
        let (events, _) = mpsc::channel(1);
        membership.begin_download(&GroupRanges::default(), Download { file, events, stop: stop.clone() });
        stop
    }

    #[test]
    fn members_are_sent_once_and_only_while_their_session_lasts() {
        let membership = membership();
        membership.set_complete();
        let mut cursor = UpdateCursor::default();
        accept(&membership, &contact("a"));
        assert_eq!(named(&membership, "a", &mut cursor), []);
        for _ in 0..1000 {
            let flapping = accept(&membership, &contact("flapping"));
            assert_eq!(named(&membership, "a", &mut cursor), [contact("flapping")]);
            assert!(membership.end_session(&peer("flapping"), &flapping));
        }
        accept(&membership, &contact("b"));
        let left = accept(&membership, &contact("left"));
        assert!(membership.end_session(&peer("left"), &left));
        accept(&membership, &contact("c"));
        assert_eq!(named(&membership, "a", &mut cursor), [contact("b"), contact("c")]);
        assert_eq!(named(&membership, "a", &mut cursor), []);
        let state = membership.state();
        assert_eq!((state.members.len(), state.sessions.len()), (3, 3));
    }

    #[test]
    fn member_that_reconnects_is_sent_again_only_with_a_new_endpoint() {
        let membership = membership();
        membership.set_complete();
        let mut cursor = UpdateCursor::default();
        let first = accept(&membership, &contact("b"));
        assert_eq!(named(&membership, "a", &mut cursor), [contact("b")]);
        accept(&membership, &contact("b"));
        assert!(!membership.end_session(&peer("b"), &first), "a replaced session removed its replacement");
        assert_eq!(named(&membership, "a", &mut cursor), []);
        let moved = Contact { endpoint: "quic://127.0.0.1:2".parse().unwrap(), ..contact("b") };
        accept(&membership, &moved);
        assert_eq!(named(&membership, "a", &mut cursor), [moved]);
    }

    #[test]
    fn invented_members_neither_displace_real_ones_nor_are_passed_on() {
        let membership = membership();
        let stop = begin_download(&membership);
        let dial = |id: &str, informant: Option<&str>| {
            membership.begin_dialling(&peer(id), informant.map(peer).as_ref(), &stop)
        };
        let invented = (0..params::MAX_SWARM_MEMBERS * 2).map(|number| format!("invented{number}"));
        let dialled: Vec<_> = invented.filter(|id| dial(id, Some("liar"))).collect();
        assert_eq!(dialled.len(), MAX_DIALS_PER_INFORMANT);
        assert!(dial("named", Some("honest")), "the names of one member blocked those of another");
        for number in 0..params::MAX_SWARM_MEMBERS {
            assert!(dial(&format!("owner{number}"), None), "invented members blocked an owner");
        }
        accept(&membership, &contact("real"));
        assert_eq!(named(&membership, "other", &mut UpdateCursor::default()), [contact("real")]);

        // A dial that ends without a session leaves nothing behind.
        dialled.iter().for_each(|id| membership.end_dialling(&peer(id), &stop));
        assert_eq!(membership.state().dials.len(), 1 + params::MAX_SWARM_MEMBERS);
        assert!(dial(&dialled[0], Some("liar")));
    }

    #[test]
    fn member_that_was_reached_no_longer_counts_against_its_informant() {
        let membership = membership();
        let stop = begin_download(&membership);
        let dial = |id: &str| membership.begin_dialling(&peer(id), Some(&peer("informant")), &stop);
        for number in 0..params::MAX_SWARM_MEMBERS / 2 {
            let id = format!("m{number}");
            assert!(dial(&id), "{id}");
            membership.begin_session(&peer("me"), &contact(&id), Initiator::Me).unwrap();
        }
    }

    #[test]
    fn member_is_dialled_by_one_task_and_again_for_the_next_download() {
        let membership = membership();
        let member = peer("a");
        let dial = |stop: &CancellationToken| membership.begin_dialling(&member, None, stop);
        let first = begin_download(&membership);
        assert!(dial(&first) && !dial(&first));
        membership.end_dialling(&member, &first);
        assert!(dial(&first));
        first.cancel();
        membership.end_download();
        let second = begin_download(&membership);
        assert!(!dial(&first), "a dial began for a download that has ended");
        assert!(dial(&second));
        membership.end_dialling(&member, &first);
        assert!(!dial(&second), "a task of the first download removed a dial of the second");
    }
}
