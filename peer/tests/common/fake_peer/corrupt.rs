//! An owner that serves wrong bytes, a wrong size, or nothing after it accepted a request.

#![expect(clippy::unwrap_used, reason = "a test fails where it does not get what it asks for")]

use std::{collections::BTreeMap, future::pending, sync::Arc};

use futures::future::BoxFuture;
use peer::{
    store::Share,
    transfer::{serve, throttle::Throttle},
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

use super::finish;

/// Fault of a [`CorruptOwner`]. Apart from `PackedContent`, packs are served correctly.
#[derive(Clone)]
pub(crate) enum Fault {
    /// Bulk streams carry wrong bytes only.
    Bytes,
    /// Bulk requests are accepted; no byte follows.
    Stall,
    /// Bulk streams announce half of the size and carry wrong bytes.
    Size,
    /// Packs carry one wrong byte in this content.
    PackedContent(ContentHash),
    /// Bulk streams carry the bytes that the share has, at the rate of an honest owner, with one bit flipped in the
    /// middle of each piece.
    BitInEachPiece(Share, Throttle),
}

/// An owner of `contents` that serves them with a fault.
pub(crate) struct CorruptOwner {
    pub(crate) fault: Fault,
    pub(crate) contents: BTreeMap<ContentHash, Vec<u8>>,
}

impl Handler for CorruptOwner {
    fn stream(
        self: Arc<Self>,
        _: Arc<Remote>,
        kind: StreamKind,
        send: quinn::SendStream,
        recv: quinn::RecvStream,
    ) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            match kind {
                StreamKind::Bulk => self.serve_bulk(send, recv).await,
                StreamKind::Pack => self.serve_pack(send, recv).await,
                _ => {}
            }
        })
    }
}

impl CorruptOwner {
    async fn serve_bulk(&self, mut send: quinn::SendStream, mut recv: quinn::RecvStream) {
        let Ok(request) = read_header::<BulkRequest>(&mut recv).await else { return };
        let size = self.contents[&request.hash].len() as u64;
        let size = if matches!(self.fault, Fault::Size) { size / 2 } else { size };
        let accepted: Result<BulkAccepted, BulkRefusal> = Ok(BulkAccepted { size });
        if write_header(&mut send, &accepted).await.is_err() || send.write_all(&[BULK_BEGINS]).await.is_err() {
            return;
        }
        match &self.fault {
            // The stream stays open until the connection ends.
            Fault::Stall => pending().await,
            // Ends when the receiver stops the stream.
            Fault::Bytes | Fault::Size | Fault::PackedContent(_) => {
                while send.write_all(&[0x55; 64 << 10]).await.is_ok() {}
            }
            Fault::BitInEachPiece(share, pace) => {
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
                finish(send).await;
            }
        }
    }

    async fn serve_pack(&self, mut send: quinn::SendStream, mut recv: quinn::RecvStream) {
        let Ok(request) = read_header::<PackRequest>(&mut recv).await else { return };
        write_header(&mut send, &Ok::<_, BulkRefusal>(PackAccepted)).await.unwrap();
        send.write_all(&[BULK_BEGINS]).await.unwrap();
        for (hash, _) in request.contents().unwrap() {
            let mut content = self.contents[hash].clone();
            if matches!(&self.fault, Fault::PackedContent(faulty) if faulty == hash) {
                content[0] ^= 1;
            }
            if send.write_all(&[&[ITEM_FOLLOWS], content.as_slice()].concat()).await.is_err() {
                return;
            }
        }
        finish(send).await;
    }
}
