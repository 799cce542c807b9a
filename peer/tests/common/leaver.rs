//! A member that receives a file, passes on what it has of it, and is gone as soon as the other has that too.

#![expect(clippy::unwrap_used, reason = "a test ends where it does not get what it asks for")]

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

use super::{answers::Answers, liar::end};

/// See the module.
pub(crate) struct Leaver {
    /// What it receives.
    pub(crate) file: FileMeta,
    /// Has all of it; what is passed on is taken from there.
    pub(crate) share: Share,
    /// How many groups it has: the first ones.
    pub(crate) groups: u64,
    /// How long it stays when it has nothing to give any more.
    pub(crate) stays: Duration,
    /// Called when it is about to send the last of what it has.
    pub(crate) before_last: Box<dyn Fn() + Send + Sync>,
    pub(crate) clock: Clock,
    /// When it left.
    pub(crate) left: Arc<OnceLock<Timestamp>>,
    pub(crate) sent_groups: AtomicU64,
}

impl Handler for Leaver {
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
                    let answers = Answers { receiving: Arc::new(receiving), ..Answers::default() };
                    serve_calls(send, recv, answers.serve()).await;
                }
                StreamKind::Swarm if self.left.get().is_none() => self.talk(send, recv).await,
                StreamKind::Bulk => self.bulk(send, recv).await,
                _ => {}
            }
        })
    }
}

impl Leaver {
    async fn talk(&self, mut send: quinn::SendStream, mut recv: quinn::RecvStream) {
        read_header::<SwarmHello>(&mut recv).await.unwrap();
        write_header(&mut send, &SwarmUpdate::Has(vec![(0, self.groups)])).await.unwrap();
        let mut told = 0;
        while told < self.groups {
            // The other tells a group once, and only when it has nothing more to do about that.
            let Ok(news) = read_header(&mut recv).await else { return };
            if let SwarmUpdate::Has(ranges) = news {
                told += ranges.iter().map(|(start, end)| end - start).sum::<u64>();
            }
        }
        sleep(self.stays).await;
        self.left.set(self.clock.now()).unwrap();
        end(send).await;
    }

    async fn bulk(&self, mut send: quinn::SendStream, mut recv: quinn::RecvStream) {
        let Ok(request) = read_header::<BulkRequest>(&mut recv).await else { return };
        let asked = request.groups.iter().map(|(start, end)| end - start).sum::<u64>();
        if self.sent_groups.fetch_add(asked, Ordering::Relaxed) + asked >= self.groups {
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
        // Otherwise the asker has left.
        if sent.await.is_some() {
            end(send).await;
        }
    }
}
