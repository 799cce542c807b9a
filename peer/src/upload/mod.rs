//! The bulk streams that this peer serves to others.
//!
//! ```text
//! request ─ is it here? ─ accepted ┬ a slot is free ─────────────── begins ─ bytes, at a pace ─ end
//!              │                   └ waits, and says so now and then ──┘
//!              └ not here, busy, bad ranges: refused
//! ```

mod audit;
mod pack;

use std::{
    collections::HashMap,
    io,
    num::NonZeroU64,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use shared::{
    content::ContentHash,
    group_ranges::GroupRanges,
    id::PeerId,
    limits,
    net::{
        CloseCode,
        bulk::{BULK_BEGINS, BULK_WAITS, BulkAbort, BulkAccepted, BulkRefusal, BulkRequest, read_header, write_header},
    },
    rpc::peer::UploadReport,
};
use tokio::{
    io::AsyncWriteExt,
    sync::oneshot,
    time::{sleep, timeout},
};

use crate::{
    diagnostics::{gauge::GaugeGuard, upload_stats::UploadStats},
    store::{OpenError, Share, source::Source},
    transfer::{
        Pool, ServeError,
        metered::{NetworkMeteredSink, UploadMeteredSink},
        serve_to,
        throttle::{Throttle, ThrottledSink},
    },
};
use audit::ContentAudit;
use protocol::upload::{
    ack_monitor::Hearing,
    queue::{Asked, UploadId, UploadLimits, UploadSlots},
    slow_receiver::Taking,
};

/// Serves what is in a share, and what is being received.
pub struct Uploads {
    pub(crate) share: Share,
    slots: Mutex<Slots>,
    pub(crate) pace: Throttle,
    /// As long as an upload runs.
    pool: Mutex<Weak<Pool>>,
    /// How long a receiver may take nothing: [`limits::UPLOAD_SILENCE`].
    pub(crate) silence: Duration,
    looks: ContentAudit,
    pub(crate) reports: Arc<UploadStats>,
    pub(crate) active: AtomicU64,
    pub(crate) bytes: AtomicU64,
    /// Uploads of files so far.
    begun: AtomicU32,
}

struct Slots {
    slots: UploadSlots<PeerId>,
    waiting: HashMap<UploadId, Waiting>,
}

struct Waiting {
    /// Which connection it came over: its `stable_id`.
    connection: usize,
    begin: oneshot::Sender<()>,
}

impl Uploads {
    /// Uploads, so many at a time and so fast.
    pub fn new(share: Share, limits: UploadLimits, pace: Throttle, reports: Arc<UploadStats>) -> Arc<Self> {
        let slots = Slots { slots: UploadSlots::new(limits), waiting: HashMap::new() };
        let (active, bytes) = (AtomicU64::new(0), AtomicU64::new(0));
        let (begun, silence) = (AtomicU32::new(0), limits::UPLOAD_SILENCE);
        let (slots, pool, looks) = (Mutex::new(slots), Mutex::default(), ContentAudit::new(share.clone()));
        Arc::new(Self { share, slots, pace, pool, silence, looks, reports, active, bytes, begun })
    }

    /// How many run; those that wait for their turn do not count.
    pub fn active(&self) -> u64 {
        self.active.load(Ordering::Relaxed)
    }

    /// How many wait for their turn.
    pub fn waiting(&self) -> u64 {
        self.slots().slots.load().1 as u64
    }

    /// Bytes sent so far, proofs included.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// The cap on what goes out.
    pub fn pace(&self) -> &Throttle {
        &self.pace
    }

    /// Where the time of the uploads of a content to `peer` went, if there were some lately.
    pub fn report(&self, peer: &PeerId, hash: &ContentHash) -> Option<UploadReport> {
        self.reports.of(peer, hash, self.pace.bytes_per_second().map(NonZeroU64::get))
    }

    /// Serves one stream of `peer`: reads the request, answers it, and sends what it asks for.
    pub async fn serve(
        &self,
        peer: &PeerId,
        connection: &quinn::Connection,
        mut send: quinn::SendStream,
        mut recv: quinn::RecvStream,
    ) {
        let request: BulkRequest = match timeout(limits::STREAM_HEADER_DEADLINE, read_header(&mut recv)).await {
            Ok(Ok(request)) => request,
            Ok(Err(error)) => return tracing::debug!(%error, "an unreadable bulk request"),
            Err(_) => return tracing::debug!("a bulk request did not come"),
        };
        let (source, ranges) = match self.find(&request) {
            Ok(found) => found,
            Err(refusal) => return refuse(&mut send, refusal).await,
        };
        let Some((slot, turn)) = self.ask(peer, connection) else {
            return refuse(&mut send, BulkRefusal::Busy).await;
        };
        let accepted: Result<BulkAccepted, BulkRefusal> = Ok(BulkAccepted { size: source.size });
        if let Err(error) = write_header(&mut send, &accepted).await {
            return tracing::debug!(%error, "an asker went away");
        }
        let clock = self.reports.clock();
        let asked = clock.now();
        if let Err(error) = wait_for(turn, &mut send).await {
            return tracing::debug!(%error, "an asker went away while it waited");
        }
        // What was begun first is sent first, instead of all by turns: pieces become whole, and can be passed on, sooner.
        // Answers and news go before any of it. (A stream that was reset meanwhile shows in what is written to it.)
        let _ = send.set_priority(self.next_priority());
        let reported = self.reports.begin(peer, request.hash, connection);
        let meter = &reported.meter;
        meter.slot_wait.add(clock.now().since(asked));
        let running = GaugeGuard::new(&self.active);
        let network = NetworkMeteredSink { sink: send, meter: meter.clone(), clock };
        let mut sink =
            UploadMeteredSink::new(ThrottledSink { sink: network, pace: self.pace.clone() }, meter.clone(), clock);
        let sent = AtomicU64::new(0);
        let upload = serve_to(source, ranges.clone(), self.pool(), &mut sink, self.silence, |bytes| {
            sent.fetch_add(bytes, Ordering::Relaxed);
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
        });
        let Some(ended) = self.while_heard(connection, &slot, &sent, upload).await else { return };
        let mut send = sink.into_inner().sink.sink;
        drop(reported);
        let sent = sent.into_inner();
        match ended {
            Ok(_) => {
                // Fails only when the asker stopped the stream, having all it wants.
                let _ = send.finish();
                // The next request need not wait for the acknowledgements.
                drop((slot, running));
                if until_taken(send).await == Some(BulkAbort::Wrong) {
                    self.looks.look_at(request.hash, &ranges, sent);
                }
            }
            Err(ServeError::Stream(error)) => {
                tracing::debug!(%error, "an asker went away");
                if was_stopped_as_wrong(&error) {
                    self.looks.look_at(request.hash, &ranges, sent);
                }
            }
            Err(error) => {
                tracing::warn!(%error, hash = ?request.hash, "a file could not be sent to its end");
                let _ = send.reset(error.abort().to_varint());
                // A disk that fails says nothing of the content, and a receiver that does not read still less: any member can
                // be one.
                if matches!(error, ServeError::Changed { .. }) {
                    self.share.suspect(&request.hash);
                }
            }
        }
    }

    /// Lower than that of all uploads before. Begins anew after two thousand million, where two that meet take turns the
    /// wrong way round.
    fn next_priority(&self) -> i32 {
        !(self.begun.fetch_add(1, Ordering::Relaxed) & i32::MAX.cast_unsigned()).cast_signed()
    }

    /// What is asked for, when it is here: in the share, or on its way into it.
    fn find(&self, request: &BulkRequest) -> Result<(Source, GroupRanges), BulkRefusal> {
        let ranges = |size| GroupRanges::requested(&request.groups, size).map_err(|_| BulkRefusal::BadRanges);
        let not_here = match self.share.open_for_serving(&request.hash) {
            Ok(source) => {
                let ranges = ranges(source.size)?;
                return Ok((source, ranges));
            }
            Err(OpenError::NotHere) => BulkRefusal::NotHere,
            Err(OpenError::Unreadable(error)) => {
                tracing::warn!(%error, hash = ?request.hash, "a shared file cannot be read");
                BulkRefusal::Unreadable
            }
        };
        let (source, proven) = self.share.open_partial_for_serving(&request.hash).ok_or(not_here)?;
        let ranges = ranges(source.size)?;
        if proven.covers(&ranges) { Ok((source, ranges)) } else { Err(BulkRefusal::NotHere) }
    }

    /// A slot, now or in its turn; `None` when too many wait.
    pub(crate) fn ask(
        &self,
        peer: &PeerId,
        connection: &quinn::Connection,
    ) -> Option<(Slot<'_>, Option<oneshot::Receiver<()>>)> {
        let mut slots = self.slots();
        match slots.slots.ask(peer) {
            Asked::Now(id) => Some((Slot { uploads: self, id }, None)),
            Asked::Waits(id) => {
                let (begin, turn) = oneshot::channel();
                slots.waiting.insert(id, Waiting { connection: connection.stable_id(), begin });
                Some((Slot { uploads: self, id }, Some(turn)))
            }
            Asked::Busy => None,
        }
    }

    /// An upload, unless its receiver is not heard while others wait for a slot: then the connection is closed, so that
    /// whatever else came over it gives up its place too. A receiver that was killed and runs again does not wait for its
    /// former self, and one that was only frozen connects anew. One that is heard and takes little (`sent` are the bytes it has taken)
    /// goes on without its slot while others wait.
    pub(crate) async fn while_heard<T>(
        &self,
        connection: &quinn::Connection,
        slot: &Slot<'_>,
        sent: &AtomicU64,
        upload: impl Future<Output = T>,
    ) -> Option<T> {
        let unheard = async {
            let (mut hearing, mut taking) = (Hearing::default(), Taking::default());
            loop {
                let counted = connection.stats();
                let frames = counted.frame_tx.stream + counted.frame_tx.ping;
                let is_silent = hearing.look(frames, counted.frame_rx.acks);
                let is_slow = taking.look(sent.load(Ordering::Relaxed), self.bytes(), self.active());
                if (is_silent || is_slow) && self.others_wait(connection) {
                    if is_silent {
                        return;
                    }
                    slot.park();
                }
                sleep(limits::LOOK).await;
            }
        };
        tokio::select! {
            ended = upload => Some(ended),
            () = unheard => {
                let to = connection.remote_address();
                tracing::info!(%to, "a receiver is not heard any more; its place goes to those who wait");
                connection.close(CloseCode::Overloaded.to_varint(), b"not heard while others wait");
                None
            }
        }
    }

    /// Whether requests wait that came over other connections: of other peers, or of the same one, which runs anew.
    fn others_wait(&self, connection: &quinn::Connection) -> bool {
        let id = connection.stable_id();
        self.slots().waiting.values().any(|waiting| waiting.connection != id)
    }

    /// The buffers that all uploads share.
    fn pool(&self) -> Arc<Pool> {
        let mut pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        pool.upgrade().unwrap_or_else(|| {
            let new = Arc::default();
            *pool = Arc::downgrade(&new);
            new
        })
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request's place among the uploads; it is over when this is dropped.
pub(crate) struct Slot<'a> {
    uploads: &'a Uploads,
    id: UploadId,
}

impl Slot<'_> {
    /// Gives the slot to those who wait; the upload goes on without one.
    fn park(&self) {
        let mut slots = self.uploads.slots();
        let mut start = Vec::new();
        slots.slots.park(self.id, &mut start);
        slots.begin(start);
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        let mut slots = self.uploads.slots();
        slots.waiting.remove(&self.id);
        let mut start = Vec::new();
        slots.slots.end(self.id, &mut start);
        slots.begin(start);
    }
}

impl Slots {
    fn begin(&mut self, start: Vec<UploadId>) {
        for id in start {
            if let Some(waiting) = self.waiting.remove(&id) {
                // Gone in the meantime: its own drop, which waits for this lock, gives the slot on.
                let _ = waiting.begin.send(());
            }
        }
    }
}

/// Waits for the turn of a request; meanwhile its asker hears now and then that it is not forgotten.
pub(crate) async fn wait_for(turn: Option<oneshot::Receiver<()>>, send: &mut quinn::SendStream) -> io::Result<()> {
    if let Some(mut turn) = turn {
        loop {
            tokio::select! {
                // The slot, which the caller holds, keeps the other end.
                _ = &mut turn => break,
                () = sleep(limits::QUEUE_KEEPALIVE) => send.write_all(&[BULK_WAITS]).await?,
                _ = send.stopped() => return Err(io::ErrorKind::ConnectionAborted.into()),
            }
        }
    }
    AsyncWriteExt::write_all(send, &[BULK_BEGINS]).await
}

/// Waits until the asker has all of a finished stream, or says why not. What the stream has taken in is sent still, up to its
/// window: when the asker gives it up, no more of that is sent.
pub(crate) async fn until_taken(mut send: quinn::SendStream) -> Option<BulkAbort> {
    // Otherwise it has all, or is gone.
    let code = send.stopped().await.ok().flatten()?;
    // Fails only when it was reset already.
    let _ = send.reset(code);
    BulkAbort::from_varint(code)
}

fn was_stopped_as_wrong(error: &io::Error) -> bool {
    let stopped = error.get_ref().and_then(|source| source.downcast_ref::<quinn::WriteError>());
    matches!(stopped, Some(quinn::WriteError::Stopped(code)) if BulkAbort::from_varint(*code) == Some(BulkAbort::Wrong))
}

/// Answers a request, of whatever kind: refusals look alike whatever the answer would be otherwise.
pub(crate) async fn refuse(send: &mut quinn::SendStream, refusal: BulkRefusal) {
    let refusal: Result<BulkAccepted, BulkRefusal> = Err(refusal);
    if write_header(send, &refusal).await.is_ok() {
        let _ = send.finish();
    }
}

#[cfg(test)]
mod tests;
