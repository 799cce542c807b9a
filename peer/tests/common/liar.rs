//! What impostors answer when they are asked for files: one handler for every lie, on bulk streams and in packs.

#![expect(clippy::unwrap_used, reason = "a test ends where it does not get what it asks for")]

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use peer::{
    store::Share,
    transfer::{serve, throttle::Pace},
};
use protocol::swarm::params::MIN_PIECE_BYTES;
use shared::{
    content::ContentHash,
    group_ranges::GroupRanges,
    net::{
        StreamKind,
        bulk::{BULK_BEGINS, BulkAccepted, BulkRefusal, BulkRequest, read_header, write_header},
        pack::{ITEM_FOLLOWS, PackAccepted, PackRequest},
        serve::{Handler, Remote},
    },
};
use tokio::time::sleep;

/// What is wrong with what comes.
#[derive(Clone)]
pub(crate) enum Lie {
    /// On bulk streams every byte is another.
    Bytes,
    /// On bulk streams it accepts, then says nothing.
    Stall,
    /// On bulk streams another size than announced.
    Size,
    /// In packs one content has a wrong byte.
    Content(ContentHash),
    /// On bulk streams all is as it should be, but for one bit in the middle of each piece; at the rate of an honest owner. The share has
    /// the content.
    BitInEachPiece(Share, Pace),
}

/// Answers for `contents`.
pub(crate) struct Liar {
    pub(crate) lie: Lie,
    pub(crate) contents: BTreeMap<ContentHash, Vec<u8>>,
}

impl Handler for Liar {
    fn stream(
        self: Arc<Self>,
        _: Arc<Remote>,
        kind: StreamKind,
        send: quinn::SendStream,
        recv: quinn::RecvStream,
    ) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            match kind {
                StreamKind::Bulk => self.bulk(send, recv).await,
                StreamKind::Pack => self.pack(send, recv).await,
                _ => {}
            }
        })
    }
}

impl Liar {
    async fn bulk(&self, mut send: quinn::SendStream, mut recv: quinn::RecvStream) {
        let Ok(request) = read_header::<BulkRequest>(&mut recv).await else { return };
        let size = self.contents[&request.hash].len() as u64;
        let size = if matches!(self.lie, Lie::Size) { size / 2 } else { size };
        let accepted: Result<BulkAccepted, BulkRefusal> = Ok(BulkAccepted { size });
        if write_header(&mut send, &accepted).await.is_err() || send.write_all(&[BULK_BEGINS]).await.is_err() {
            return;
        }
        match &self.lie {
            Lie::Stall => sleep(Duration::from_secs(60)).await,
            // Ends when the asker has seen enough.
            Lie::Bytes | Lie::Size | Lie::Content(_) => while send.write_all(&[0x55; 64 << 10]).await.is_ok() {},
            Lie::BitInEachPiece(share, pace) => {
                let source = share.open_for_serving(&request.hash).unwrap();
                let ranges = GroupRanges::requested(&request.groups, source.size).unwrap();
                let mut encoded = Vec::new();
                serve(source, ranges, &mut encoded, |_| {}).await.unwrap();
                for piece in encoded.chunks_mut(usize::try_from(MIN_PIECE_BYTES).unwrap()) {
                    let middle = piece.len() / 2;
                    piece[middle] ^= 1;
                }
                for part in encoded.chunks(16 << 10) {
                    pace.wait(part.len()).await;
                    if send.write_all(part).await.is_err() {
                        return;
                    }
                }
                end(send).await;
            }
        }
    }

    async fn pack(&self, mut send: quinn::SendStream, mut recv: quinn::RecvStream) {
        let Ok(request) = read_header::<PackRequest>(&mut recv).await else { return };
        write_header(&mut send, &Ok::<_, BulkRefusal>(PackAccepted)).await.unwrap();
        send.write_all(&[BULK_BEGINS]).await.unwrap();
        for (hash, _) in request.contents().unwrap() {
            let mut content = self.contents[hash].clone();
            if matches!(&self.lie, Lie::Content(lie) if lie == hash) {
                content[0] ^= 1;
            }
            if send.write_all(&[&[ITEM_FOLLOWS], content.as_slice()].concat()).await.is_err() {
                return;
            }
        }
        end(send).await;
    }
}

/// Ends a stream, and waits until the asker has it all.
pub(crate) async fn end(mut send: quinn::SendStream) {
    let _ = send.finish();
    let _ = send.stopped().await;
}
