//! Swarms in which this peer takes part: the other members, and what they have of each content.
//!
//! ```text
//!   download ── join ──> SwarmHandle ──┐                          ┌── session ══ swarm stream ══ member
//!      ^                               ├──> SwarmMembership <─────┤
//!      └── MemberEvent ────────────────┘    (one a content)       └── session ══ swarm stream ══ member
//! ```
//!
//! A membership exists while this peer downloads the content or has a session about it. It records changes in their order, and
//! each session has a cursor into them: every change is sent once, and members never poll. Rules: docs/swarm.md.

mod membership;
mod params;
mod session;

use std::{
    collections::HashMap,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use shared::{
    contact::Contact,
    content::{ContentHash, FileMeta},
    group_ranges::GroupRanges,
    id::PeerId,
    limits,
    net::{Connections, bulk::read_header, swarm::SwarmHello},
};
use tokio::{sync::mpsc, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::store::Share;
pub use membership::MemberEvent;
use membership::{Download, SwarmMembership};
use session::Sessions;

/// Swarms of one peer. Cheap to clone.
#[derive(Clone)]
pub struct Swarms(Arc<Inner>);

struct Inner {
    share: Share,
    sessions: Sessions,
    memberships: Mutex<HashMap<ContentHash, Weak<SwarmMembership>>>,
}

/// Membership of a download in the swarm of its content. Dropping it leaves the swarm.
pub struct SwarmHandle {
    membership: Arc<SwarmMembership>,
    sessions: Sessions,
    stop: CancellationToken,
}

impl Swarms {
    /// Creates the swarms of `me`, without members. `connections` are those for bulk data.
    pub fn new(me: Contact, share: Share, connections: Connections, tasks: TaskTracker) -> Self {
        let sessions = Sessions::new(me, connections, tasks);
        Self(Arc::new(Inner { share, sessions, memberships: Mutex::default() }))
    }

    /// Joins the swarm of a download and advertises its `verified` groups, and others as they are verified. Returns the events
    /// of the members.
    pub fn join(&self, file: FileMeta, verified: &GroupRanges) -> (SwarmHandle, mpsc::Receiver<MemberEvent>) {
        let membership = self.membership(file.hash, file.size);
        let (sender, events) = mpsc::channel(params::MAX_QUEUED_MEMBER_EVENTS);
        let stop = CancellationToken::new();
        let download = Download { file, events: sender, stop: stop.clone() };
        let members = membership.begin_download(verified, download);
        let handle = SwarmHandle { membership, sessions: self.0.sessions.clone(), stop };
        members.into_iter().for_each(|member| handle.connect_to(member));
        (handle, events)
    }

    /// Returns the files that this peer downloads in a swarm and whose names begin with `prefix`, sorted by name, at most
    /// `limit`.
    pub fn receiving(&self, prefix: &str, limit: usize) -> Vec<FileMeta> {
        let memberships: Vec<_> = self.memberships().values().filter_map(Weak::upgrade).collect();
        let mut files: Vec<FileMeta> = memberships.iter().filter_map(|membership| membership.received()).collect();
        files.retain(|file| file.name.as_str().starts_with(prefix));
        files.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        files.truncate(limit);
        files
    }

    /// Serves a swarm stream that a member has opened.
    pub async fn accept(&self, peer: PeerId, send: quinn::SendStream, mut recv: quinn::RecvStream) {
        let hello: SwarmHello = match timeout(limits::STREAM_HEADER_DEADLINE, read_header(&mut recv)).await {
            Ok(Ok(hello)) => hello,
            Ok(Err(error)) => return tracing::debug!(%peer, %error, "cannot read a swarm hello"),
            Err(_) => return tracing::debug!(%peer, "a swarm hello did not arrive in time"),
        };
        let SwarmHello { hash, size, endpoint } = hello;
        let membership = if self.0.share.open_for_serving(&hash).is_ok_and(|source| source.size == size) {
            let membership = self.membership(hash, size);
            membership.set_complete();
            membership
        } else {
            let membership = self.memberships().get(&hash).and_then(Weak::upgrade);
            match membership.filter(|membership| membership.size == size && membership.has_any()) {
                Some(membership) => membership,
                None => return tracing::debug!(%peer, ?hash, "refusing a swarm stream: the content is not here"),
            }
        };
        self.0.sessions.accept(&membership, Contact { peer, endpoint }, send, recv).await;
    }

    fn membership(&self, hash: ContentHash, size: u64) -> Arc<SwarmMembership> {
        let mut memberships = self.memberships();
        if let Some(membership) = memberships.get(&hash).and_then(Weak::upgrade)
            && membership.size == size
        {
            return membership;
        }
        memberships.retain(|_, membership| membership.strong_count() > 0);
        let membership = Arc::new(SwarmMembership::new(hash, size));
        memberships.insert(hash, Arc::downgrade(&membership));
        membership
    }

    fn memberships(&self) -> MutexGuard<'_, HashMap<ContentHash, Weak<SwarmMembership>>> {
        self.0.memberships.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SwarmHandle {
    /// Keeps a session with a member that the download knows from elsewhere, until the download ends.
    pub fn connect_to(&self, member: Contact) {
        self.sessions.connect(&self.membership, member, self.stop.clone());
    }

    /// Advertises verified groups.
    pub fn proven(&self, groups: Range<u64>) {
        self.membership.add_verified(groups);
    }

    /// Advertises the complete content, which is in the share now.
    pub fn shared(&self) {
        self.membership.set_complete();
    }
}

impl Drop for SwarmHandle {
    fn drop(&mut self) {
        self.stop.cancel();
        self.membership.end_download();
    }
}
