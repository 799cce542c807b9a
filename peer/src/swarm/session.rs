//! Swarm streams: dials members, and exchanges updates with them until one side leaves.

use crate::swarm::params;
use std::{sync::Arc, time::Duration};

use shared::{
    contact::Contact,
    group_ranges::{GroupRanges, group_count},
    id::PeerId,
    net::{
        Connections, Target,
        bulk::{HeaderError, read_header, write_header},
        swarm::{SwarmHello, SwarmUpdate},
    },
    rpc::tracker::Owner,
};
use tokio::time::sleep;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    membership::{Initiator, MemberEvent, SwarmMembership, UpdateCursor},
    params::{DIAL_ATTEMPTS, DIAL_RETRY},
};

/// Sessions of one peer. Cheap to clone.
#[derive(Clone)]
pub(super) struct Sessions(Arc<Inner>);

struct Inner {
    me: Contact,
    connections: Connections,
    tasks: TaskTracker,
}

impl Sessions {
    pub(super) fn new(me: Contact, connections: Connections, tasks: TaskTracker) -> Self {
        Self(Arc::new(Inner { me, connections, tasks }))
    }

    /// Keeps a session with a member that the download found itself, until `stop`. Dials at once: the member may not
    /// know of this peer.
    pub(super) fn connect(&self, membership: &Arc<SwarmMembership>, member: Contact, stop: CancellationToken) {
        self.keep_session(membership, member, None, Duration::ZERO, stop);
    }

    /// Runs a session on a stream that the member has opened.
    pub(super) async fn accept(
        &self,
        membership: &Arc<SwarmMembership>,
        member: Contact,
        send: quinn::SendStream,
        recv: quinn::RecvStream,
    ) {
        self.meet(membership, member.clone(), None);
        self.run(membership, member, Initiator::Other, send, recv).await;
    }

    /// Dials a member that opened a stream or that `informant` named, if a download runs.
    fn meet(&self, membership: &Arc<SwarmMembership>, member: Contact, informant: Option<&PeerId>) {
        if let Some(stop) = membership.download_stop() {
            // Two members that receive each other's names at the same time do not both dial.
            let delay = if member.peer < self.0.me.peer { params::SWARM_DIAL_LAST } else { Duration::ZERO };
            self.keep_session(membership, member, informant, delay, stop);
        }
    }

    /// Dials `member` after `delay` and again whenever there is no session, until `stop` or [`DIAL_ATTEMPTS`] dials.
    /// Does nothing if another task dials it.
    fn keep_session(
        &self,
        membership: &Arc<SwarmMembership>,
        member: Contact,
        informant: Option<&PeerId>,
        delay: Duration,
        stop: CancellationToken,
    ) {
        if member.peer == self.0.me.peer || !membership.begin_dialling(&member.peer, informant, &stop) {
            return;
        }
        let (this, membership) = (self.clone(), membership.clone());
        self.0.tasks.spawn(async move {
            sleep(delay).await;
            let mut attempts = 0;
            while attempts < DIAL_ATTEMPTS && !stop.is_cancelled() {
                if !membership.has_session(&member.peer) {
                    attempts += 1;
                    if let Some((send, recv)) = this.dial(&membership, &member).await {
                        this.run(&membership, member.clone(), Initiator::Me, send, recv).await;
                    }
                }
                tokio::select! {
                    () = sleep(DIAL_RETRY) => {}
                    () = stop.cancelled() => {}
                }
            }
            membership.end_dialling(&member.peer, &stop);
        });
    }

    async fn dial(
        &self,
        membership: &SwarmMembership,
        member: &Contact,
    ) -> Option<(quinn::SendStream, quinn::RecvStream)> {
        let SwarmMembership { hash, size, .. } = *membership;
        let hello = SwarmHello { hash, size, endpoint: self.0.me.endpoint.clone() };
        let opened = async {
            let (mut send, recv) =
                self.0.connections.swarm(&Target::from(member)).await.map_err(|error| error.to_string())?;
            write_header(&mut send, &hello).await.map_err(|error| error.to_string())?;
            Ok::<_, String>((send, recv))
        };
        opened.await.inspect_err(|error| tracing::debug!(peer = %member.peer, %error, "cannot dial a member")).ok()
    }

    /// Exchanges updates with a member until one side leaves or another stream replaces this one.
    async fn run(
        &self,
        membership: &Arc<SwarmMembership>,
        member: Contact,
        initiator: Initiator,
        mut send: quinn::SendStream,
        mut recv: quinn::RecvStream,
    ) {
        let Some(session) = membership.begin_session(&self.0.me.peer, &member, initiator) else { return };
        let ended = tokio::select! {
            ended = send_updates(membership, &member.peer, &mut send) => ended,
            ended = self.receive_updates(membership, &member, &mut recv) => ended,
            () = session.cancelled() => Ok(()),
        };
        if let Err(error) = ended {
            tracing::debug!(peer = %member.peer, %error, "a swarm session ended");
        }
        // Fails only if the stream has ended already.
        let _ = send.finish();
        if membership.end_session(&member.peer, &session) {
            membership.report(MemberEvent::Left(member.peer)).await;
        }
    }

    async fn receive_updates(
        &self,
        membership: &Arc<SwarmMembership>,
        member: &Contact,
        recv: &mut quinn::RecvStream,
    ) -> Result<(), HeaderError> {
        membership.report(MemberEvent::Has(member.clone(), GroupRanges::default())).await;
        loop {
            match read_header(recv).await? {
                SwarmUpdate::HasAll => {
                    membership.member_has_all(&member.peer);
                    membership.report(MemberEvent::HasAll(member.clone())).await;
                }
                SwarmUpdate::Has(ranges) => {
                    let gained = parse_ranges(&ranges, membership.size).ok_or(HeaderError::Malformed)?;
                    membership.report(MemberEvent::Has(member.clone(), gained)).await;
                }
                SwarmUpdate::Members(members) => {
                    for Owner { peer, endpoint } in members {
                        self.meet(membership, Contact { peer, endpoint }, Some(&member.peer));
                    }
                }
            }
        }
    }
}

async fn send_updates(
    membership: &SwarmMembership,
    to: &PeerId,
    send: &mut quinn::SendStream,
) -> Result<(), HeaderError> {
    let mut cursor = UpdateCursor::default();
    let mut changes = membership.changes();
    loop {
        let (updates, is_over) = membership.updates(to, &mut cursor);
        for update in updates {
            write_header(send, &update).await?;
        }
        // `changed` fails only after the membership is dropped, which this function borrows.
        if is_over || changes.changed().await.is_err() {
            return Ok(());
        }
        sleep(membership.update_interval()).await;
    }
}

/// Converts the ranges of an update, in any order. Returns `None` if one is empty or beyond the end of the content.
fn parse_ranges(ranges: &[(u64, u64)], size: u64) -> Option<GroupRanges> {
    let mut set = GroupRanges::default();
    for &(start, end) in ranges {
        if start >= end || end > group_count(size) {
            return None;
        }
        set.insert(start..end);
    }
    Some(set)
}
