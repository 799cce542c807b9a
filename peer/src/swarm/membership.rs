//! One content's swarm, as this peer knows it: what is here of it, who takes part, who talks.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use shared::{
    contact::Contact,
    content::{ContentHash, FileMeta},
    group_ranges::GroupRanges,
    id::PeerId,
    limits,
    net::swarm::SwarmUpdate,
    rpc::tracker::Owner,
};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::MemberEvent;

/// See the module.
pub(crate) struct SwarmMembership {
    pub(crate) hash: ContentHash,
    /// Bytes.
    pub(crate) size: u64,
    state: Mutex<State>,
    /// Wakes those who tell the news.
    changed: watch::Sender<()>,
}

#[derive(Default)]
struct State {
    holds: Holds,
    /// Who receives the content, by the number under which they were met. A number is never used again, so that a talk remembers its
    /// place whoever has gone since.
    met: BTreeMap<u64, Contact>,
    /// The numbers of those.
    known: BTreeMap<PeerId, u64>,
    next_number: u64,
    talks: BTreeMap<PeerId, Session>,
    download: Option<Download>,
    /// Whom a task of the download that runs here dials, one task for each.
    dialled: BTreeSet<PeerId>,
}

/// What this peer has of the content.
#[derive(Default)]
enum Holds {
    /// Nothing (any more): talks end.
    #[default]
    Nothing,
    /// What a download has proven so far, in that order.
    Part(Vec<Range<u64>>),
    /// A file in the share.
    All,
}

/// A download of the content that runs here.
pub(crate) struct Download {
    /// What it receives, as it was announced.
    pub(crate) file: FileMeta,
    pub(crate) tell: mpsc::Sender<MemberEvent>,
    /// Ends with it.
    pub(crate) stop: CancellationToken,
}

/// Who dialled a talk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Initiator {
    Me,
    Other,
}

/// A stream to a member.
struct Session {
    dialler: Initiator,
    stop: CancellationToken,
    /// The member said that it has everything.
    has_all: bool,
}

/// How far a member was told the news.
#[derive(Default)]
pub(crate) struct UpdateCursor {
    ranges: usize,
    /// The number of the first member that it was not told of.
    members: u64,
    all: bool,
}

impl SwarmMembership {
    pub(crate) fn new(hash: ContentHash, size: u64) -> Self {
        Self { hash, size, state: Mutex::default(), changed: watch::Sender::new(()) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        self.changed.send_replace(());
    }

    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Returns those that are there already.
    pub(crate) fn begin_download(&self, proven: &GroupRanges, download: Download) -> Vec<Contact> {
        let proven = proven.iter().collect();
        let mut state = self.state();
        state.holds = Holds::Part(proven);
        state.download = Some(download);
        state.dialled.clear();
        let met = state.met.values().cloned().collect();
        drop(state);
        self.wake();
        met
    }

    /// What the download that runs here receives.
    pub(crate) fn received(&self) -> Option<FileMeta> {
        self.state().download.as_ref().map(|download| download.file.clone())
    }

    pub(crate) fn end_download(&self) {
        let mut state = self.state();
        state.download = None;
        if matches!(state.holds, Holds::Part(..)) {
            state.holds = Holds::Nothing;
        }
        drop(state);
        self.wake();
    }

    pub(crate) fn is_in_share(&self) {
        let mut state = self.state();
        if !matches!(state.holds, Holds::All) {
            state.holds = Holds::All;
            drop(state);
            self.wake();
        }
    }

    pub(crate) fn proven(&self, groups: Range<u64>) {
        if let Holds::Part(proven) = &mut self.state().holds {
            proven.push(groups);
        }
        self.wake();
    }

    /// Whether there is anything to talk about.
    pub(crate) fn has_any(&self) -> bool {
        !matches!(self.state().holds, Holds::Nothing)
    }

    /// Somebody takes part. Returns, if it is new and a download runs here that should talk to it, when to stop that.
    pub(crate) fn meet(&self, member: &Contact) -> Option<CancellationToken> {
        let mut state = self.state();
        if state.known.len() >= limits::MAX_SWARM_MEMBERS || state.known.contains_key(&member.peer) {
            return None;
        }
        let number = state.next_number;
        state.next_number += 1;
        state.known.insert(member.peer.clone(), number);
        state.met.insert(number, member.clone());
        let stop = state.download.as_ref().map(|download| download.stop.clone());
        drop(state);
        self.wake();
        stop
    }

    /// A task is about to dial `peer` until `stop`, which ends with the download; whether it is the only one.
    pub(crate) fn begin_dialling(&self, peer: &PeerId, stop: &CancellationToken) -> bool {
        let mut state = self.state();
        !stop.is_cancelled() && state.dialled.len() < limits::MAX_SWARM_MEMBERS && state.dialled.insert(peer.clone())
    }

    /// The task ends.
    pub(crate) fn end_dialling(&self, peer: &PeerId, stop: &CancellationToken) {
        let mut state = self.state();
        // Otherwise it is the next download's list already.
        if !stop.is_cancelled() {
            state.dialled.remove(peer);
        }
    }

    pub(crate) fn is_talking_to(&self, peer: &PeerId) -> bool {
        self.state().talks.contains_key(peer)
    }

    /// A stream to `peer` is there; until the token is cancelled. `None` when the stream is one too many: of two that both dialled at
    /// the same time, the smaller id's stays. Otherwise what was accepted last replaces what was there: its other end may be gone.
    pub(crate) fn begin_talk(&self, me: &PeerId, peer: &PeerId, dialler: Initiator) -> Option<CancellationToken> {
        let mut state = self.state();
        match state.talks.get(peer) {
            Some(_) if dialler == Initiator::Me => return None,
            Some(talk) if talk.dialler == Initiator::Me && me < peer => return None,
            Some(talk) => talk.stop.cancel(),
            None if state.talks.len() >= limits::MAX_SWARM_MEMBERS => return None,
            None => {}
        }
        let stop = CancellationToken::new();
        state.talks.insert(peer.clone(), Session { dialler, stop: stop.clone(), has_all: false });
        Some(stop)
    }

    /// Whether nothing has taken its place yet.
    pub(crate) fn end_talk(&self, peer: &PeerId, stop: &CancellationToken) -> bool {
        let mut state = self.state();
        // Cancelled only by the one that took its place.
        if stop.is_cancelled() {
            return false;
        }
        state.talks.remove(peer);
        if let Some(number) = state.known.remove(peer) {
            state.met.remove(&number);
        }
        true
    }

    pub(crate) fn has_all(&self, peer: &PeerId) {
        if let Some(talk) = self.state().talks.get_mut(peer) {
            talk.has_all = true;
        }
        self.wake();
    }

    /// Tells the download, if there is one; waits when it is behind.
    pub(crate) async fn report(&self, event: MemberEvent) {
        let tell = self.state().download.as_ref().map(|download| download.tell.clone());
        if let Some(tell) = tell {
            // Gone in the meantime: nobody wants to know.
            let _ = tell.send(event).await;
        }
    }

    /// How long news are gathered: in a large swarm everybody has many to tell them to.
    pub(crate) fn pause(&self) -> Duration {
        let talks = self.state().talks.len();
        limits::SWARM_UPDATE_INTERVAL
            .saturating_mul(u32::try_from(talks.div_ceil(limits::SWARM_UPDATE_MEMBERS)).unwrap_or(u32::MAX))
    }

    /// What `to` was not told yet, and whether that is the last of it.
    pub(crate) fn news(&self, to: &PeerId, told: &mut UpdateCursor) -> (Vec<SwarmUpdate>, bool) {
        let state = self.state();
        let mut news = Vec::new();
        match &state.holds {
            Holds::Nothing => return (news, true),
            Holds::Part(proven) => {
                let mut new = GroupRanges::default();
                proven.iter().skip(told.ranges).for_each(|range| new.insert(range.clone()));
                told.ranges = proven.len();
                let ranges = new.to_request();
                news.extend(ranges.chunks(limits::RANGES_PER_UPDATE).map(|ranges| SwarmUpdate::Has(ranges.to_vec())));
            }
            Holds::All => {
                if !std::mem::replace(&mut told.all, true) {
                    news.push(SwarmUpdate::HasAll);
                }
            }
        }
        let members = state.met.range(told.members..).map(|(_, member)| member);
        let members: Vec<_> = members.filter(|member| member.peer != *to).collect();
        told.members = state.next_number;
        news.extend(members.chunks(limits::MEMBERS_PER_UPDATE).map(|members| {
            let owner = |member: &&Contact| Owner { peer: member.peer.clone(), endpoint: member.endpoint.clone() };
            SwarmUpdate::Members(members.iter().map(owner).collect())
        }));
        // Two that both have it all have nothing more to tell each other.
        let is_over = told.all && state.talks.get(to).is_some_and(|talk| talk.has_all);
        (news, is_over)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_and_goes_leaves_nothing_behind_and_each_who_stays_is_told_of_once() {
        let room = SwarmMembership::new(ContentHash([1; 32]), 1 << 20);
        room.is_in_share();
        let peer = |id: &str| -> PeerId { id.parse().unwrap() };
        let meet = |id: &str| {
            room.meet(&Contact { peer: peer(id), endpoint: "quic://127.0.0.1:1".parse().unwrap() });
            room.begin_talk(&peer("me"), &peer(id), Initiator::Other).unwrap()
        };
        let mut told = UpdateCursor::default();
        let mut told_of = || {
            let news = room.news(&peer("a"), &mut told).0.into_iter();
            news.filter_map(|news| match news {
                SwarmUpdate::Members(members) => Some(members),
                _ => None,
            })
            .flatten()
            .map(|member| member.peer)
            .collect::<Vec<_>>()
        };
        meet("a");
        assert_eq!(told_of(), []);
        for _ in 0..1000 {
            let flaps = meet("flaps");
            assert_eq!(told_of(), [peer("flaps")]);
            assert!(room.end_talk(&peer("flaps"), &flaps));
        }
        meet("b");
        let gone = meet("gone");
        assert!(room.end_talk(&peer("gone"), &gone));
        meet("c");
        assert_eq!(told_of(), [peer("b"), peer("c")], "those who are there still");
        assert_eq!(told_of(), []);
        let state = room.state();
        assert_eq!((state.met.len(), state.known.len(), state.talks.len()), (3, 3, 3));
    }

    #[test]
    fn a_member_is_dialled_by_one_task_at_a_time_and_by_the_next_download_anew() {
        let room = SwarmMembership::new(ContentHash([1; 32]), 1 << 20);
        let begin = || {
            let stop = CancellationToken::new();
            let file = FileMeta {
                name: "a.bin".parse().unwrap(),
                size: room.size,
                hash: room.hash,
                mtime_micros: 0,
                executable: false,
            };
            let (tell, _) = mpsc::channel(1);
            room.begin_download(&GroupRanges::default(), Download { file, tell, stop: stop.clone() });
            stop
        };
        let member: PeerId = "a".parse().unwrap();
        let first = begin();
        assert!(room.begin_dialling(&member, &first) && !room.begin_dialling(&member, &first));
        room.end_dialling(&member, &first);
        assert!(room.begin_dialling(&member, &first));
        first.cancel();
        room.end_download();
        let second = begin();
        assert!(!room.begin_dialling(&member, &first), "what it belongs to is over");
        assert!(room.begin_dialling(&member, &second));
        room.end_dialling(&member, &first);
        assert!(!room.begin_dialling(&member, &second), "the end of an earlier one's task is not its end");
    }
}
