//! Uploads: the bulk and pack streams that this peer serves.
//!
//! ```text
//! request ─ content here? ─ admitted ┬ slot is free ───────── answer, start ─ data, throttled ─ end
//!              │                     └ queued: answer, keep-alives ──┘
//!              └ not here, queue full, invalid ranges: refused
//! ```
//!
//! While an upload has a slot, every write has a deadline ([`limits::UPLOAD_SILENCE`]) and a monitor observes the
//! receiver (`Uploads::monitored`), so that no receiver can keep a slot from the others.
//!
//! | module | contents |
//! |---|---|
//! | `slots` | the slots and the requests that wait for one |
//! | `pack` | packs of small files |
//! | `audit` | the check of a file after a receiver reports wrong data |

mod audit;
mod pack;
pub mod params;
mod slots;

use std::{
    io,
    num::NonZeroU64,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use serde::{Serialize, de::DeserializeOwned};
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
    sync::oneshot,
    time::{sleep, timeout},
};

use crate::{
    diagnostics::{
        gauge::GaugeGuard,
        upload_stats::{ActiveUpload, UploadStats},
    },
    store::{OpenError, Share, source::Source},
    transfer::{
        Pool, ServeError,
        metered::{NetworkMeteredSink, UploadMeteredSink},
        serve_to,
        throttle::{Throttle, ThrottledSink},
    },
};
use audit::ContentAudit;
use protocol::upload::{ack_monitor::AckMonitor, queue::UploadLimits, slow_receiver::SlowReceiverDetector};
use slots::{Slot, Slots};

/// Serves the contents of the share and the verified groups of running downloads.
pub struct Uploads {
    share: Share,
    slots: Slots,
    throttle: Throttle,
    /// Buffers of all uploads, allocated while at least one runs.
    pool: Mutex<Weak<Pool>>,
    /// Deadline of each write to a receiver: [`limits::UPLOAD_SILENCE`].
    silence: Duration,
    audit: ContentAudit,
    stats: Arc<UploadStats>,
    active: AtomicU64,
    bytes: AtomicU64,
    /// Number of bulk uploads that have started.
    started: AtomicU32,
}

/// Receiver of an upload.
#[derive(Clone, Copy)]
struct Receiver<'a> {
    peer: &'a PeerId,
    connection: &'a quinn::Connection,
}

/// Request that has a slot.
struct Admitted<'a> {
    slot: Slot<'a>,
    /// Bytes that precede the data and are not written yet.
    opening: Vec<u8>,
    /// Time in the queue.
    waited: Duration,
}

type UploadSink = UploadMeteredSink<ThrottledSink<NetworkMeteredSink<quinn::SendStream>>>;

/// Upload in progress.
struct Upload<'a> {
    slot: Slot<'a>,
    opening: Vec<u8>,
    sink: UploadSink,
    /// Bytes handed to the stream, proofs included.
    sent: AtomicU64,
    running: GaugeGuard<'a>,
    stats: ActiveUpload,
}

impl Uploads {
    /// Creates the upload side of a peer, with `limits` on the number of uploads and `throttle` on their rate.
    pub fn new(share: Share, limits: UploadLimits, throttle: Throttle, stats: Arc<UploadStats>) -> Arc<Self> {
        Arc::new(Self {
            audit: ContentAudit::new(share.clone()),
            share,
            slots: Slots::new(limits),
            throttle,
            pool: Mutex::default(),
            silence: limits::UPLOAD_SILENCE,
            stats,
            active: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            started: AtomicU32::new(0),
        })
    }

    /// Number of uploads in progress, without the requests that wait for a slot.
    pub fn active(&self) -> u64 {
        self.active.load(Ordering::Relaxed)
    }

    /// Number of requests that wait for a slot.
    pub fn waiting(&self) -> u64 {
        self.slots.load().1 as u64
    }

    /// Bytes sent since the start of the peer, proofs included.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Rate limit of the uploads.
    pub fn throttle(&self) -> &Throttle {
        &self.throttle
    }

    /// Returns how the recent uploads of a content to `peer` spent their time, or `None` if there were none.
    pub fn report(&self, peer: &PeerId, hash: &ContentHash) -> Option<UploadReport> {
        self.stats.report(peer, hash, self.throttle.bytes_per_second().map(NonZeroU64::get))
    }

    /// Serves a bulk stream of `peer`: reads the request, answers it, and sends the data.
    pub async fn serve(
        &self,
        peer: &PeerId,
        connection: &quinn::Connection,
        send: quinn::SendStream,
        mut recv: quinn::RecvStream,
    ) {
        let receiver = Receiver { peer, connection };
        let Some(request) = read_request::<BulkRequest>(peer, &mut recv).await else { return };
        let (source, ranges) = match self.find(&request) {
            Ok(found) => found,
            Err(refusal) => return self.refuse(send, refusal).await,
        };
        let accepted = BulkAccepted { size: source.size };
        let Some((admitted, send)) = self.admit(receiver, send, accepted).await else { return };
        // The oldest upload is sent first, instead of all in turn: its pieces are complete sooner and can be passed
        // on. Calls and swarm updates precede all uploads. A stream that was reset meanwhile fails at the next write.
        let _ = send.set_priority(self.next_priority());
        let mut upload = self.begin(receiver, request.hash, admitted, send);
        let transfer = async {
            self.write(stream_of(&mut upload.sink), &upload.opening).await?;
            let count = |bytes| self.count(&upload.sent, bytes);
            serve_to(source, ranges.clone(), self.pool(), &mut upload.sink, self.silence, count).await
        };
        let Some(result) = self.monitored(receiver, &upload.slot, &upload.sent, transfer).await else { return };
        // A read error or a slow receiver is no evidence against the content: any member can be slow.
        if matches!(result, Err(ServeError::Changed { .. })) {
            self.share.invalidate(&request.hash);
        }
        let sent = upload.sent.load(Ordering::Relaxed);
        if upload.end(receiver, &request.hash, result).await == Some(BulkAbort::Wrong) {
            self.audit.start(request.hash, &ranges, sent);
        }
    }

    /// Returns a priority below those of all earlier uploads. Wraps around after 2^31 uploads.
    fn next_priority(&self) -> i32 {
        !(self.started.fetch_add(1, Ordering::Relaxed) & i32::MAX.cast_unsigned()).cast_signed()
    }

    /// Finds the requested groups in the share or in a running download.
    fn find(&self, request: &BulkRequest) -> Result<(Source, GroupRanges), BulkRefusal> {
        let ranges = |size| GroupRanges::requested(&request.groups, size).map_err(|_| BulkRefusal::BadRanges);
        let refusal = match self.share.open_for_serving(&request.hash) {
            Ok(source) => {
                let ranges = ranges(source.size)?;
                return Ok((source, ranges));
            }
            Err(OpenError::NotHere) => BulkRefusal::NotHere,
            Err(OpenError::Hashing) => BulkRefusal::Hashing,
            Err(OpenError::Unreadable(error)) => {
                tracing::warn!(%error, hash = ?request.hash, "cannot read a shared file");
                BulkRefusal::Unreadable
            }
        };
        let (source, verified) = self.share.open_partial_for_serving(&request.hash).ok_or(refusal)?;
        let ranges = ranges(source.size)?;
        if verified.covers(&ranges) { Ok((source, ranges)) } else { Err(BulkRefusal::NotHere) }
    }

    /// Requests a slot, and refuses the request if the queue is full. A request that has to wait is answered first.
    /// Returns `None` after ending the stream.
    async fn admit<A: Serialize>(
        &self,
        receiver: Receiver<'_>,
        mut send: quinn::SendStream,
        accepted: A,
    ) -> Option<(Admitted<'_>, quinn::SendStream)> {
        let Some((slot, turn)) = self.slots.request(receiver.peer, receiver.connection.stable_id()) else {
            self.refuse(send, BulkRefusal::Busy).await;
            return None;
        };
        let mut opening = Vec::new();
        write_header(&mut opening, &Ok::<A, BulkRefusal>(accepted)).await.ok()?;
        let clock = self.stats.clock();
        let requested = clock.now();
        if let Some(turn) = turn {
            if let Err(error) = self.wait_for_turn(&mut send, &opening, turn).await {
                tracing::debug!(peer = %receiver.peer, %error, "a queued upload ended");
                // Fails only if the stream was reset already.
                let _ = send.reset(error.abort().to_varint());
                return None;
            }
            opening.clear();
        }
        opening.push(BULK_BEGINS);
        Some((Admitted { slot, opening, waited: clock.now().since(requested) }, send))
    }

    /// Answers a request and waits for its turn. Keep-alives show the receiver that this peer still runs.
    async fn wait_for_turn(
        &self,
        send: &mut quinn::SendStream,
        answer: &[u8],
        mut turn: oneshot::Receiver<()>,
    ) -> Result<(), ServeError> {
        self.write(send, answer).await?;
        loop {
            tokio::select! {
                // The caller holds the slot, and with it the sender.
                _ = &mut turn => return Ok(()),
                () = sleep(params::QUEUE_KEEPALIVE) => self.write(send, &[BULK_WAITS]).await?,
                _ = send.stopped() => return Err(ServeError::Stream(io::ErrorKind::ConnectionAborted.into())),
            }
        }
    }

    fn begin<'a>(
        &'a self,
        receiver: Receiver<'_>,
        hash: ContentHash,
        admitted: Admitted<'a>,
        send: quinn::SendStream,
    ) -> Upload<'a> {
        let Admitted { slot, opening, waited } = admitted;
        let stats = self.stats.begin(receiver.peer, hash, receiver.connection);
        let (meter, clock) = (stats.meter.clone(), self.stats.clock());
        meter.slot_wait.add(waited);
        let network = NetworkMeteredSink { sink: send, meter: meter.clone(), clock };
        let throttled = ThrottledSink { sink: network, throttle: self.throttle.clone() };
        let sink = UploadMeteredSink::new(throttled, meter, clock);
        Upload { slot, opening, sink, sent: AtomicU64::new(0), running: GaugeGuard::new(&self.active), stats }
    }

    /// Writes a message within the deadline. The deadline covers the whole message: a receiver that grants credit byte
    /// by byte does not extend it.
    async fn write(&self, send: &mut quinn::SendStream, message: &[u8]) -> Result<(), ServeError> {
        match timeout(self.silence, send.write_all(message)).await {
            Ok(written) => written.map_err(|error| ServeError::Stream(error.into())),
            Err(_) => Err(ServeError::Stalled(self.silence)),
        }
    }

    /// Refuses a request. The refusal of a bulk and of a pack request has the same encoding.
    async fn refuse(&self, mut send: quinn::SendStream, refusal: BulkRefusal) {
        let mut answer = Vec::new();
        let encoded = write_header(&mut answer, &Err::<BulkAccepted, _>(refusal)).await;
        if encoded.is_ok() && self.write(&mut send, &answer).await.is_ok() {
            // Fails only if the receiver stopped the stream.
            let _ = send.finish();
        }
    }

    fn count(&self, sent: &AtomicU64, bytes: u64) {
        sent.fetch_add(bytes, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Runs `transfer`, which has sent `sent` bytes so far, and observes its receiver. Returns `None` after closing the
    /// connection.
    ///
    /// Nothing happens while no other connection waits for a slot. Otherwise a receiver that acknowledges nothing loses
    /// its connection, so that its other requests release their slots too: a receiver that was killed and runs again
    /// does not wait for its earlier run, and one that was only suspended connects again. A receiver that acknowledges
    /// and reads little continues without its slot.
    async fn monitored<T>(
        &self,
        receiver: Receiver<'_>,
        slot: &Slot<'_>,
        sent: &AtomicU64,
        transfer: impl Future<Output = T>,
    ) -> Option<T> {
        let Receiver { peer, connection } = receiver;
        let silent = async {
            let (mut acks, mut detector) = (AckMonitor::default(), SlowReceiverDetector::default());
            loop {
                let stats = connection.stats();
                let frames = stats.frame_tx.stream + stats.frame_tx.ping;
                let is_silent = acks.sample(frames, stats.frame_rx.acks);
                let is_slow = detector.sample(sent.load(Ordering::Relaxed), self.bytes(), self.active());
                if (is_silent || is_slow) && self.slots.others_wait(connection.stable_id()) {
                    if is_silent {
                        return;
                    }
                    slot.demote();
                }
                sleep(protocol::upload::params::MONITOR_INTERVAL).await;
            }
        };
        tokio::select! {
            result = transfer => Some(result),
            () = silent => {
                let address = connection.remote_address();
                tracing::info!(%peer, %address, "closing a connection without acknowledgements: other receivers wait");
                connection.close(CloseCode::Overloaded.to_varint(), b"not heard while others wait");
                None
            }
        }
    }

    /// Returns the buffers that all uploads share.
    fn pool(&self) -> Arc<Pool> {
        let mut pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        pool.upgrade().unwrap_or_else(|| {
            let new = Arc::default();
            *pool = Arc::downgrade(&new);
            new
        })
    }
}

impl Upload<'_> {
    /// Finishes or resets the stream and releases the slot. Returns the receiver's reason for stopping the stream, if
    /// it gave one.
    async fn end(
        self,
        receiver: Receiver<'_>,
        hash: &ContentHash,
        result: Result<u64, ServeError>,
    ) -> Option<BulkAbort> {
        let Self { slot, sink, running, stats, .. } = self;
        let peer = receiver.peer;
        let mut send = sink.into_inner().sink.sink;
        drop(stats);
        match result {
            Ok(_) => {
                // Fails only if the receiver stopped the stream.
                let _ = send.finish();
                // The next upload does not wait for the acknowledgements.
                drop((slot, running));
                until_acknowledged(send).await
            }
            Err(ServeError::Stream(error)) => {
                tracing::debug!(%peer, %error, "the receiver ended an upload");
                stop_reason(&error)
            }
            Err(error) => {
                if let ServeError::Stalled(_) = error {
                    tracing::debug!(%peer, ?hash, %error, "resetting an upload");
                } else {
                    tracing::warn!(%peer, ?hash, %error, "cannot complete an upload");
                }
                // Fails only if the stream was reset already.
                let _ = send.reset(error.abort().to_varint());
                None
            }
        }
    }
}

fn stream_of(sink: &mut UploadSink) -> &mut quinn::SendStream {
    &mut sink.get_mut().sink.sink
}

/// Reads a request within [`limits::STREAM_HEADER_DEADLINE`].
async fn read_request<T: DeserializeOwned>(peer: &PeerId, recv: &mut quinn::RecvStream) -> Option<T> {
    match timeout(limits::STREAM_HEADER_DEADLINE, read_header(recv)).await {
        Ok(Ok(request)) => Some(request),
        Ok(Err(error)) => {
            tracing::debug!(%peer, %error, "cannot read an upload request");
            None
        }
        Err(_) => {
            tracing::debug!(%peer, "an upload request did not arrive in time");
            None
        }
    }
}

/// Waits until the receiver has acknowledged a finished stream or stops it. Returns the reason of the latter.
///
/// A stopped stream is reset: otherwise the data in its send buffer, up to a window, would still be sent.
async fn until_acknowledged(mut send: quinn::SendStream) -> Option<BulkAbort> {
    let code = send.stopped().await.ok().flatten()?;
    // Fails only if the stream was reset already.
    let _ = send.reset(code);
    BulkAbort::from_varint(code)
}

/// Returns the reason with which the receiver stopped a stream.
fn stop_reason(error: &io::Error) -> Option<BulkAbort> {
    match error.get_ref()?.downcast_ref()? {
        quinn::WriteError::Stopped(code) => BulkAbort::from_varint(*code),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
