//! The swarms that this peer takes part in: who else is there, and who has what by now.
//!
//! ```text
//!   download ── join ──> SwarmHandle ──┐                       ┌── talk ══ a swarm stream ══ another member
//!      ^                              ├──> SwarmMembership (a content) <─┤
//!      └── MemberEvent ───────────────┘                       └── talk ══ a swarm stream ══ another member
//! ```
//!
//! A room is there as long as this peer receives the content or anybody talks to it about it. What a member may know is
//! kept in the order in which it came, and each talk remembers how far it has told it: so news are told once, and nobody asks
//! twice.

mod membership;

use std::{
    collections::HashMap,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use shared::{
    contact::Contact,
    content::{ContentHash, FileMeta},
    group_ranges::{GroupRanges, group_count},
    id::PeerId,
    limits,
    net::{
        Connections, Target,
        bulk::{HeaderError, read_header, write_header},
        swarm::{SwarmHello, SwarmUpdate},
    },
    rpc::tracker::Owner,
};
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::store::Share;
use membership::{Download, Initiator, SwarmMembership, UpdateCursor};

/// Events of one download that wait for it. A download that is slower than its members makes them wait.
const MAX_QUEUED_MEMBER_EVENTS: usize = 64;
/// Attempts to reach a member, one after another, before it is left alone.
const DIAL_ATTEMPTS: u32 = 5;
/// Pause between them, and before a member is talked to again after its stream broke.
const DIAL_AGAIN: Duration = Duration::from_secs(2);

/// What a download hears of the other members of its swarm.
#[derive(Debug)]
pub enum MemberEvent {
    /// It takes part, and has these groups more than it said before (possibly none).
    Has(Contact, GroupRanges),
    /// It has all of it.
    HasAll(Contact),
    /// It takes part no more, or cannot be heard any more.
    Left(PeerId),
}

/// All rooms of one peer. Cheap to clone.
#[derive(Clone)]
pub struct Swarms(Arc<Inner>);

struct Inner {
    me: Contact,
    share: Share,
    connections: Connections,
    tasks: TaskTracker,
    rooms: Mutex<HashMap<ContentHash, Weak<SwarmMembership>>>,
}

/// A download's place in its swarm; it leaves when this is dropped.
pub struct SwarmHandle {
    swarms: Swarms,
    room: Arc<SwarmMembership>,
    stop: CancellationToken,
}

impl Swarms {
    /// No rooms yet. `connections` are those for bytes.
    pub fn new(me: Contact, share: Share, connections: Connections, tasks: TaskTracker) -> Self {
        Self(Arc::new(Inner { me, share, connections, tasks, rooms: Mutex::default() }))
    }

    /// A download begins to take part: others are told what is proven of it, now and by and by.
    pub fn join(&self, file: FileMeta, proven: &GroupRanges) -> (SwarmHandle, mpsc::Receiver<MemberEvent>) {
        let room = self.room(file.hash, file.size);
        let (tell, events) = mpsc::channel(MAX_QUEUED_MEMBER_EVENTS);
        let stop = CancellationToken::new();
        let met = room.begin_download(proven, Download { file, tell, stop: stop.clone() });
        let membership = SwarmHandle { swarms: self.clone(), room, stop };
        met.into_iter().for_each(|member| membership.connect_to(member));
        (membership, events)
    }

    /// The files whose names begin with `prefix` that are received here in company, by name; at most `limit`.
    pub fn receiving(&self, prefix: &str, limit: usize) -> Vec<FileMeta> {
        let rooms: Vec<Arc<SwarmMembership>> = self.rooms().values().filter_map(Weak::upgrade).collect();
        let mut files: Vec<FileMeta> = rooms.iter().filter_map(|room| room.received()).collect();
        files.retain(|file| file.name.as_str().starts_with(prefix));
        files.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        files.truncate(limit);
        files
    }

    /// Answers a member that opened a swarm stream.
    pub async fn accept(&self, peer: PeerId, send: quinn::SendStream, mut recv: quinn::RecvStream) {
        let hello: SwarmHello = match timeout(limits::STREAM_HEADER_DEADLINE, read_header(&mut recv)).await {
            Ok(Ok(hello)) => hello,
            Ok(Err(error)) => return tracing::debug!(%error, %peer, "an unreadable hello"),
            Err(_) => return tracing::debug!(%peer, "a hello did not come"),
        };
        let SwarmHello { hash, size, endpoint } = hello;
        let room = if self.0.share.open_for_serving(&hash).is_ok_and(|source| source.size == size) {
            let room = self.room(hash, size);
            room.is_in_share();
            room
        } else {
            let room = self.rooms().get(&hash).and_then(Weak::upgrade);
            match room.filter(|room| room.size == size && room.has_any()) {
                Some(room) => room,
                None => return tracing::debug!(%peer, ?hash, "asked for the swarm of a content that is not here"),
            }
        };
        let member = Contact { peer, endpoint };
        self.meet(&room, member.clone());
        self.talk(&room, member, Initiator::Other, send, recv).await;
    }

    fn room(&self, hash: ContentHash, size: u64) -> Arc<SwarmMembership> {
        let mut rooms = self.rooms();
        if let Some(room) = rooms.get(&hash).and_then(Weak::upgrade)
            && room.size == size
        {
            return room;
        }
        rooms.retain(|_, room| room.strong_count() > 0);
        let room = Arc::new(SwarmMembership::new(hash, size));
        rooms.insert(hash, Arc::downgrade(&room));
        room
    }

    fn rooms(&self) -> MutexGuard<'_, HashMap<ContentHash, Weak<SwarmMembership>>> {
        self.0.rooms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody takes part, as another says.
    fn meet(&self, room: &Arc<SwarmMembership>, member: Contact) {
        if member.peer != self.0.me.peer
            && let Some(stop) = room.meet(&member)
        {
            // Of two that learn of each other at the same time one dials.
            let wait = if member.peer < self.0.me.peer { limits::SWARM_DIAL_LAST } else { Duration::ZERO };
            self.keep_talking(room.clone(), member, wait, stop);
        }
    }

    /// Talks to a member, from `wait` on, again when the stream breaks, until `stop`; nothing new where that is being done already.
    fn keep_talking(&self, room: Arc<SwarmMembership>, member: Contact, wait: Duration, stop: CancellationToken) {
        if !room.begin_dialling(&member.peer, &stop) {
            return;
        }
        let this = self.clone();
        self.0.tasks.spawn(async move {
            sleep(wait).await;
            let mut attempts = 0;
            while attempts < DIAL_ATTEMPTS && !stop.is_cancelled() {
                if !room.is_talking_to(&member.peer) {
                    attempts += 1;
                    if let Some((send, recv)) = this.dial(&room, &member).await {
                        this.talk(&room, member.clone(), Initiator::Me, send, recv).await;
                    }
                }
                tokio::select! {
                    () = sleep(DIAL_AGAIN) => {}
                    () = stop.cancelled() => {}
                }
            }
            room.end_dialling(&member.peer, &stop);
        });
    }

    async fn dial(&self, room: &SwarmMembership, member: &Contact) -> Option<(quinn::SendStream, quinn::RecvStream)> {
        let hello = SwarmHello { hash: room.hash, size: room.size, endpoint: self.0.me.endpoint.clone() };
        let opened = async {
            let (mut send, recv) =
                self.0.connections.swarm(&Target::from(member)).await.map_err(|error| error.to_string())?;
            write_header(&mut send, &hello).await.map_err(|error| error.to_string())?;
            Ok::<_, String>((send, recv))
        };
        match opened.await {
            Ok(streams) => Some(streams),
            Err(error) => {
                tracing::debug!(%error, peer = %member.peer, "a member of a swarm cannot be reached");
                None
            }
        }
    }

    /// Tells a member the news and hears its own until one of both goes.
    async fn talk(
        &self,
        room: &Arc<SwarmMembership>,
        member: Contact,
        dialler: Initiator,
        mut send: quinn::SendStream,
        mut recv: quinn::RecvStream,
    ) {
        let Some(talk) = room.begin_talk(&self.0.me.peer, &member.peer, dialler) else { return };
        let ended = tokio::select! {
            ended = tell_news(room, &member.peer, &mut send) => ended,
            ended = self.hear_news(room, &member, &mut recv) => ended,
            () = talk.cancelled() => Ok(()),
        };
        if let Err(error) = ended {
            tracing::debug!(%error, peer = %member.peer, "a talk about a content ended");
        }
        // Fails only when the stream has ended anyway.
        let _ = send.finish();
        if room.end_talk(&member.peer, &talk) {
            room.report(MemberEvent::Left(member.peer)).await;
        }
    }

    async fn hear_news(
        &self,
        room: &Arc<SwarmMembership>,
        member: &Contact,
        recv: &mut quinn::RecvStream,
    ) -> Result<(), HeaderError> {
        room.report(MemberEvent::Has(member.clone(), GroupRanges::default())).await;
        loop {
            match read_header(recv).await? {
                SwarmUpdate::HasAll => {
                    room.has_all(&member.peer);
                    room.report(MemberEvent::HasAll(member.clone())).await;
                }
                SwarmUpdate::Has(ranges) => {
                    let gained = ranges_of(&ranges, room.size).ok_or(HeaderError::Malformed)?;
                    room.report(MemberEvent::Has(member.clone(), gained)).await;
                }
                SwarmUpdate::Members(members) => {
                    for Owner { peer, endpoint } in members {
                        self.meet(room, Contact { peer, endpoint });
                    }
                }
            }
        }
    }
}

async fn tell_news(room: &SwarmMembership, to: &PeerId, send: &mut quinn::SendStream) -> Result<(), HeaderError> {
    let mut told = UpdateCursor::default();
    let mut changes = room.changes();
    loop {
        let (news, is_over) = room.news(to, &mut told);
        for news in news {
            write_header(send, &news).await?;
        }
        // The room outlives those who look at it.
        if is_over || changes.changed().await.is_err() {
            return Ok(());
        }
        sleep(room.pause()).await;
    }
}

/// The groups that a member names, in any order; `None` when there are none such.
fn ranges_of(ranges: &[(u64, u64)], size: u64) -> Option<GroupRanges> {
    let mut set = GroupRanges::default();
    for &(start, end) in ranges {
        if start >= end || end > group_count(size) {
            return None;
        }
        set.insert(start..end);
    }
    Some(set)
}

impl SwarmHandle {
    /// Talks to a member that this download knows from elsewhere, as long as the download runs.
    pub fn connect_to(&self, member: Contact) {
        if member.peer != self.swarms.0.me.peer {
            // It does not know of this one and will not dial.
            self.swarms.keep_talking(self.room.clone(), member, Duration::ZERO, self.stop.clone());
        }
    }

    /// Groups are proven and kept.
    pub fn proven(&self, groups: Range<u64>) {
        self.room.proven(groups);
    }

    /// The content is whole and in the share.
    pub fn shared(&self) {
        self.room.is_in_share();
    }
}

impl Drop for SwarmHandle {
    fn drop(&mut self) {
        self.stop.cancel();
        self.room.end_download();
    }
}
