//! One request of a download: a bulk stream from a provider to the partial file.

use std::{io, ops::Range, sync::Arc, time::Duration};

use bytes::Bytes;
use protocol::provider_health::PROVIDER_SILENCE;
use protocol::swarm::{self, Event, ProviderId, RequestId};
use shared::{
    contact::Contact,
    content::FileMeta,
    group_ranges::GroupRanges,
    limits,
    net::{
        Connections, Target,
        bulk::{
            BULK_BEGINS, BULK_WAITS, BulkAbort, BulkAccepted, BulkRefusal, BulkRequest, HeaderError, read_header,
            write_header,
        },
    },
    time::{Clock, Timestamp},
};
use tokio::{
    io::AsyncReadExt,
    sync::mpsc,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::error::RequestError;
use crate::{
    diagnostics::meter::{Phase, RequestPhase, SourceMeter},
    store::Partial,
    transfer::{
        FetchError, Writing, Written, fetch_from,
        metered::Metered,
        stream::ChunkSource,
        throttle::{Throttle, ThrottledSource},
    },
};

/// Interval of activity reports to the core while bytes arrive: shorter than the margin after which the core considers
/// a provider stalled.
const ACTIVITY_INTERVAL: Duration = Duration::from_millis(20);
/// Minimum number of bytes received within [`PROVIDER_SILENCE`] that prove that a provider serves another request. The
/// machine of a dead provider sends fewer, and so does a provider that sends only queue notices.
const BUSY_BYTES: u64 = limits::GROUP_BYTES;

/// Report of a request's task to the engine.
#[derive(Debug)]
pub(crate) enum TaskReport {
    /// Event for the swarm core.
    Event(Event),
    /// Groups of a request are verified and written. `new_bytes` of them had not been written by another request.
    Verified { request: RequestId, groups: Range<u64>, new_bytes: u64 },
    /// A request failed because of its provider. With `is_hashing`, the provider has the file and hashes it first.
    Failed { request: RequestId, why: swarm::Failure, problem: String, is_hashing: bool },
    /// A request ended because the core cancelled or truncated it. The core expects no event.
    Stopped(RequestId),
    /// This peer cannot write. Another provider does not help.
    Fatal(FetchError),
}

/// Runs the task of a request: waits until `fetch` ends or `stop` is cancelled, and reports the end.
pub(crate) async fn run_request(
    request: RequestId,
    fetch: impl Future<Output = Result<(), RequestError>>,
    stop: CancellationToken,
    reports: mpsc::Sender<TaskReport>,
) {
    let outcome = tokio::select! {
        outcome = fetch => Some(outcome),
        () = stop.cancelled() => None,
    };
    let report = match outcome {
        None => TaskReport::Stopped(request),
        Some(Ok(())) => TaskReport::Event(Event::RequestDone { request }),
        Some(Err(RequestError::Fetch(error))) if !error.is_owners_fault() => TaskReport::Fatal(error),
        Some(Err(error)) => TaskReport::Failed {
            request,
            why: failure_of(&error),
            problem: error.to_string(),
            is_hashing: matches!(error, RequestError::Refused(BulkRefusal::Hashing)),
        },
    };
    // Fails only if the engine has ended.
    let _ = reports.send(report).await;
}

/// Parameters of the stream of one request.
pub(crate) struct RequestStream {
    pub(crate) bulk: Connections,
    pub(crate) throttle: Throttle,
    pub(crate) provider: Contact,
    pub(crate) file: FileMeta,
    pub(crate) partial: Partial,
    pub(crate) meter: Arc<SourceMeter>,
}

impl RequestStream {
    /// Requests `groups` and writes the received groups. Meanwhile reports activity of the provider.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub(crate) async fn fetch(
        &self,
        request: RequestId,
        groups: Range<u64>,
        reports: &mpsc::Sender<TaskReport>,
        mut progress: impl FnMut(Written) + Send + 'static,
    ) -> Result<(), RequestError> {
        let mut stage = self.meter.request();
        let ranges = GroupRanges::requested(&[(groups.start, groups.end)], self.file.size)
            .map_err(|_| RequestError::Refused(BulkRefusal::BadRanges))?;
        let activity = ActivityReporter { request, reports };
        let mut recv = self.open(&ranges).await?;
        let liveness = self.wait_for_turn(&mut recv, &mut stage, &activity).await?;
        let source = ReportingSource {
            source: ThrottledSource::new(&mut recv, self.throttle.clone()),
            has_begun: false,
            liveness,
            activity,
            clock: Clock::start(),
            next_report: Timestamp::ZERO,
        };
        let progress = {
            let meter = self.meter.clone();
            move |written: Written| {
                meter.arrived(written.bytes);
                progress(written);
            }
        };
        let mut source = Metered { source, meter: &self.meter };
        let writing = Writing::for_this_machine();
        match fetch_from(&mut source, ranges, &self.partial, PROVIDER_SILENCE, writing, progress).await {
            Ok(_) => Ok(()),
            Err(error) => {
                let is_wrong = matches!(error, FetchError::Verification { .. });
                let why = if is_wrong { BulkAbort::Wrong } else { BulkAbort::Enough };
                // Fails only if the stream has ended.
                let _ = recv.stop(why.to_varint());
                Err(if was_reset_as_changed(&error) { RequestError::Changed } else { error.into() })
            }
        }
    }

    /// Sends the request and reads the answer.
    async fn open(&self, ranges: &GroupRanges) -> Result<quinn::RecvStream, RequestError> {
        let header = BulkRequest { hash: self.file.hash, groups: ranges.to_request() };
        let open = async {
            let (mut send, mut recv) = self.bulk.bulk(&Target::from(&self.provider)).await?;
            write_header(&mut send, &header).await?;
            // A stream that the provider has closed shows in its answer.
            let _ = send.finish();
            let accepted = read_header::<Result<BulkAccepted, BulkRefusal>>(&mut recv).await??;
            Ok::<_, RequestError>((accepted, recv))
        };
        let (BulkAccepted { size }, recv) =
            timeout(PROVIDER_SILENCE, open).await.map_err(|_| RequestError::Silent)??;
        if size != self.file.size {
            return Err(RequestError::OtherSize { claimed: size, announced: self.file.size });
        }
        Ok(recv)
    }

    /// Waits until the provider begins to send.
    async fn wait_for_turn(
        &self,
        recv: &mut quinn::RecvStream,
        stage: &mut RequestPhase,
        activity: &ActivityReporter<'_>,
    ) -> Result<Liveness, RequestError> {
        let connection = self.bulk.connection(&Target::from(&self.provider)).await?;
        let rtt = connection.rtt();
        self.meter.set_rtt(rtt);
        let mut liveness = Liveness::of(connection);
        stage.enter(Phase::Queued);
        // Fails only if the engine has ended.
        let _ = activity.reports.send(activity.active(Some(rtt))).await;
        wait_for_turn(recv, || activity.report(), || liveness.is_busy()).await?;
        stage.enter(Phase::Streaming);
        Ok(liveness)
    }
}

/// Reports to the core that a provider is active.
#[derive(Clone, Copy)]
struct ActivityReporter<'a> {
    request: RequestId,
    reports: &'a mpsc::Sender<TaskReport>,
}

impl ActivityReporter<'_> {
    fn active(&self, rtt: Option<Duration>) -> TaskReport {
        let provider: ProviderId = self.request.provider;
        TaskReport::Event(Event::Activity { provider, rtt })
    }

    fn report(&self) {
        // A full queue means that the core has other reports to process.
        let _ = self.reports.try_send(self.active(None));
    }

    fn report_begun(&self) {
        // If the queue is full, the first verified group tells the core that the request has begun.
        let _ = self.reports.try_send(TaskReport::Event(Event::RequestStarted { request: self.request }));
    }
}

/// Stream that reports arriving bytes between the reports of verified groups: on a slow path, the run of groups for one
/// write takes long to fill.
struct ReportingSource<'a> {
    source: ThrottledSource<&'a mut quinn::RecvStream>,
    has_begun: bool,
    liveness: Liveness,
    activity: ActivityReporter<'a>,
    clock: Clock,
    next_report: Timestamp,
}

impl ChunkSource for ReportingSource<'_> {
    /// Waits for the throttle. Meanwhile reports activity, because the provider is not stalled but held back by this
    /// peer.
    async fn ready(&mut self) {
        let mut turn = std::pin::pin!(self.source.ready());
        loop {
            tokio::select! {
                biased;
                () = &mut turn => return,
                () = sleep(ACTIVITY_INTERVAL) => self.activity.report(),
            }
        }
    }

    fn batch_bytes(&self) -> usize {
        self.source.batch_bytes()
    }

    fn is_excused(&mut self) -> bool {
        self.liveness.is_busy()
    }

    async fn next(&mut self, at_most: usize) -> io::Result<Vec<Bytes>> {
        let chunks = self.source.next(at_most).await?;
        if !std::mem::replace(&mut self.has_begun, true) {
            self.activity.report_begun();
        }
        let now = self.clock.now();
        if now >= self.next_report {
            self.next_report = now + ACTIVITY_INTERVAL;
            self.activity.report();
        }
        Ok(chunks)
    }
}

/// Distinguishes a dead provider from one that first serves another request of this peer.
struct Liveness {
    connection: quinn::Connection,
    received: u64,
}

impl Liveness {
    fn of(connection: quinn::Connection) -> Self {
        let received = connection.stats().udp_rx.bytes;
        Self { connection, received }
    }

    /// Returns true if at least [`BUSY_BYTES`] arrived on the connection since the last call.
    fn is_busy(&mut self) -> bool {
        let before = std::mem::replace(&mut self.received, self.connection.stats().udp_rx.bytes);
        self.received - before >= BUSY_BYTES
    }
}

/// Waits until a provider begins to send. `on_queued` is called for each notice that the request is in the provider's
/// queue: the core decides how long that is acceptable, since other providers may be faster. Silence ends the wait
/// unless `is_busy`.
///
/// # Errors
/// If the stream breaks, carries anything else, or nothing for [`PROVIDER_SILENCE`].
pub(crate) async fn wait_for_turn(
    recv: &mut quinn::RecvStream,
    mut on_queued: impl FnMut(),
    mut is_busy: impl FnMut() -> bool,
) -> Result<(), HeaderError> {
    loop {
        match timeout(PROVIDER_SILENCE, recv.read_u8()).await {
            Ok(Ok(BULK_BEGINS)) => return Ok(()),
            Ok(Ok(BULK_WAITS)) => on_queued(),
            Ok(Ok(_)) => return Err(HeaderError::Malformed),
            Ok(Err(error)) => return Err(HeaderError::Stream(error)),
            Err(_) if is_busy() => {}
            Err(_) => return Err(HeaderError::Stream(io::ErrorKind::TimedOut.into())),
        }
    }
}

/// Returns true if the provider reset the stream because its file changed.
fn was_reset_as_changed(error: &FetchError) -> bool {
    let FetchError::Stream(error) = error else { return false };
    let reset = error.get_ref().and_then(|source| source.downcast_ref::<quinn::ReadError>());
    matches!(reset, Some(quinn::ReadError::Reset(code)) if BulkAbort::from_varint(*code) == Some(BulkAbort::Changed))
}

/// Classifies a failure for the swarm core.
fn failure_of(error: &RequestError) -> swarm::Failure {
    match error {
        RequestError::Refused(BulkRefusal::NotHere) => swarm::Failure::NotHere,
        // The file may take long to hash; another owner, if there is one, gets the next request.
        RequestError::Refused(BulkRefusal::Busy | BulkRefusal::Hashing) => swarm::Failure::Busy { retry_after: None },
        RequestError::Refused(BulkRefusal::BadRanges | BulkRefusal::Unreadable) | RequestError::OtherSize { .. } => {
            swarm::Failure::Refused
        }
        RequestError::Changed => swarm::Failure::Changed,
        RequestError::Header(HeaderError::Stream(error)) if error.kind() == io::ErrorKind::TimedOut => {
            swarm::Failure::Silent
        }
        RequestError::Silent | RequestError::Fetch(FetchError::Silent(_)) => swarm::Failure::Silent,
        RequestError::Fetch(FetchError::Verification { .. }) => swarm::Failure::SentCorruptData,
        RequestError::Net(_) | RequestError::Header(_) | RequestError::Fetch(_) => swarm::Failure::Broken,
    }
}
