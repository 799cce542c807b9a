//! The bulk streams that this peer serves to others.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use shared::{
    limits,
    net::bulk::{BulkAbort, BulkAccepted, BulkRefusal, BulkRequest, read_header, write_header},
};
use tokio::{sync::Semaphore, time::timeout};

use crate::{
    counted::Counted,
    store::{OpenError, Share},
    transfer::{GroupRanges, ServeError, serve},
};

/// How long a request waits for its turn before it is told to try elsewhere.
pub(super) const TURN: Duration = Duration::from_secs(1);

/// Serves files of one share.
pub struct Uploads {
    pub(super) share: Share,
    pub(super) slots: Semaphore,
    pub(super) active: AtomicU64,
    pub(super) bytes: AtomicU64,
}

impl Uploads {
    /// Uploads of `share`, at most [`limits::MAX_UPLOADS`] at a time.
    pub fn new(share: Share) -> Arc<Self> {
        Arc::new(Self {
            share,
            slots: Semaphore::new(limits::MAX_UPLOADS),
            active: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        })
    }

    /// How many run.
    pub fn active(&self) -> u64 {
        self.active.load(Ordering::Relaxed)
    }

    /// Bytes sent so far, proofs included.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Serves one stream: reads the request, answers it, and sends what it asks for.
    pub async fn serve(&self, mut send: quinn::SendStream, mut recv: quinn::RecvStream) {
        let request: BulkRequest = match timeout(limits::STREAM_HEADER_DEADLINE, read_header(&mut recv)).await {
            Ok(Ok(request)) => request,
            Ok(Err(error)) => return tracing::debug!(%error, "an unreadable bulk request"),
            Err(_) => return tracing::debug!("a bulk request did not come"),
        };
        let Ok(Ok(_slot)) = timeout(TURN, self.slots.acquire()).await else {
            return refuse(&mut send, BulkRefusal::Busy).await;
        };
        let _running = Counted::on(&self.active);
        let source = match self.share.open_for_serving(&request.hash) {
            Ok(source) => source,
            Err(OpenError::NotHere) => return refuse(&mut send, BulkRefusal::NotHere).await,
            Err(OpenError::Unreadable(error)) => {
                tracing::warn!(%error, hash = ?request.hash, "a shared file cannot be read");
                return refuse(&mut send, BulkRefusal::Unreadable).await;
            }
        };
        let size = source.size;
        let Ok(ranges) = GroupRanges::requested(&request.groups, size) else {
            return refuse(&mut send, BulkRefusal::BadRanges).await;
        };
        let accepted: Result<BulkAccepted, BulkRefusal> = Ok(BulkAccepted { size });
        if let Err(error) = write_header(&mut send, &accepted).await {
            return tracing::debug!(%error, "an asker went away");
        }
        let sent = serve(source, ranges, &mut send, |bytes| {
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
        })
        .await;
        match sent {
            Ok(_) => {
                // Fails only when the asker stopped the stream, having all it wants.
                let _ = send.finish();
            }
            Err(ServeError::Stream(error)) => tracing::debug!(%error, "an asker went away"),
            Err(error) => {
                tracing::warn!(%error, hash = ?request.hash, "a file could not be sent to its end");
                let _ = send.reset(BulkAbort::Changed.to_varint());
                self.share.suspect(&request.hash);
            }
        }
    }
}

async fn refuse(send: &mut quinn::SendStream, refusal: BulkRefusal) {
    let refusal: Result<BulkAccepted, BulkRefusal> = Err(refusal);
    if write_header(send, &refusal).await.is_ok() {
        let _ = send.finish();
    }
}
