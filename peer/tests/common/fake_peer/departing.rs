//! A swarm member that has a part of a file, serves it, and leaves the swarm once the other receiver has that part too.

#![expect(clippy::unwrap_used, reason = "a test fails where it does not get what it asks for")]

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::future::BoxFuture;
use peer::{store::Share, transfer::serve};
use shared::{
    content::FileMeta,
    group_ranges::GroupRanges,
    net::{
        StreamKind,
        bulk::{BULK_BEGINS, BulkAccepted, BulkRefusal, BulkRequest, read_header, write_header},
        rpc_transport::serve_calls,
        serve::{Handler, Remote},
        swarm::{SwarmHello, SwarmUpdate},
    },
    rpc::peer::PeerService as _,
    time::{Clock, Timestamp},
};
use tokio::time::sleep;

use super::{finish, service::FakeService};

/// See the module.
pub(crate) struct DepartingMember {
    /// The file that it claims to receive.
    pub(crate) file: FileMeta,
    /// A share with all of the file, from which it serves its part.
    pub(crate) share: Share,
    /// Verification groups that it has: the first ones of the file.
    pub(crate) groups: u64,
    /// Time for which it stays after it has nothing more to give.
    pub(crate) stays: Duration,
    /// Called before it sends the last of its groups.
    pub(crate) before_last: Box<dyn Fn() + Send + Sync>,
    pub(crate) clock: Clock,
    /// Time at which it left.
    pub(crate) left: Arc<OnceLock<Timestamp>>,
    pub(crate) sent_groups: AtomicU64,
}

impl Handler for DepartingMember {
    fn stream(
        self: Arc<Self>,
        _: Arc<Remote>,
        kind: StreamKind,
        send: quinn::SendStream,
        recv: quinn::RecvStream,
    ) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            match kind {
                StreamKind::Peer => {
                    let this = self.clone();
                    let receiving =
                        move || if this.left.get().is_some() { Vec::new() } else { vec![this.file.clone()] };
                    let service = FakeService { receiving: Arc::new(receiving), ..FakeService::default() };
                    serve_calls(send, recv, service.serve()).await;
                }
                StreamKind::Swarm if self.left.get().is_none() => self.serve_swarm(send, recv).await,
                StreamKind::Bulk => self.serve_bulk(send, recv).await,
                _ => {}
            }
        })
    }
}

impl DepartingMember {
    async fn serve_swarm(&self, mut send: quinn::SendStream, mut recv: quinn::RecvStream) {
        read_header::<SwarmHello>(&mut recv).await.unwrap();
        write_header(&mut send, &SwarmUpdate::Has(vec![(0, self.groups)])).await.unwrap();
        let mut received = 0;
        while received < self.groups {
            // A receiver advertises a group once, after it has verified and written it.
            let Ok(news) = read_header(&mut recv).await else { return };
            if let SwarmUpdate::Has(ranges) = news {
                received += ranges.iter().map(|(start, end)| end - start).sum::<u64>();
            }
        }
        sleep(self.stays).await;
        // A second swarm stream of the same receiver may have come to the same end.
        let _ = self.left.set(self.clock.now());
        finish(send).await;
    }

    async fn serve_bulk(&self, mut send: quinn::SendStream, mut recv: quinn::RecvStream) {
        let Ok(request) = read_header::<BulkRequest>(&mut recv).await else { return };
        let requested = request.groups.iter().map(|(start, end)| end - start).sum::<u64>();
        if self.sent_groups.fetch_add(requested, Ordering::Relaxed) + requested >= self.groups {
            (self.before_last)();
        }
        let source = self.share.open_for_serving(&request.hash).unwrap();
        let accepted: Result<BulkAccepted, BulkRefusal> = Ok(BulkAccepted { size: source.size });
        let ranges = GroupRanges::requested(&request.groups, source.size).unwrap();
        let mut encoded = Vec::new();
        serve(source, ranges, &mut encoded, |_| {}).await.unwrap();
        let sent = async {
            write_header(&mut send, &accepted).await.ok()?;
            send.write_all(&[BULK_BEGINS]).await.ok()?;
            send.write_all(&encoded).await.ok()
        };
        // Without a result the receiver has closed the stream.
        if sent.await.is_some() {
            finish(send).await;
        }
    }
}
