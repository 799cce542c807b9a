//! One request of a download: one bulk stream from an owner into the partial file.

use std::{io, ops::Range, sync::Arc, time::Duration};

use bytes::Bytes;
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

use super::{OwnerError, engine::Told, was_reset_as_changed};
use crate::{
    diagnostics::meter::{Phase, SourceMeter},
    store::Partial,
    transfer::{
        Brought, FetchError, Writing, fetch_from,
        metered::Metered,
        stream::ChunkSource,
        throttle::{Throttle, ThrottledSource},
    },
};
use protocol::swarm::{Event, Failure as Why, RequestId};

/// One bulk stream.
pub(crate) struct Stream {
    pub(crate) bulk: Connections,
    pub(crate) pace: Throttle,
    pub(crate) owner: Contact,
    pub(crate) file: FileMeta,
    pub(crate) partial: Partial,
    pub(crate) meter: Arc<SourceMeter>,
}

impl Stream {
    /// Asks for `groups` and keeps what comes. Tells the core that the owner is alive while nothing is proven yet.
    pub(crate) async fn fetch(
        &self,
        request: RequestId,
        groups: Range<u64>,
        tell: &mpsc::Sender<Told>,
        mut progress: impl FnMut(Brought) + Send + 'static,
    ) -> Result<(), OwnerError> {
        let mut stage = self.meter.request();
        let target = Target::from(&self.owner);
        let ranges = GroupRanges::requested(&[(groups.start, groups.end)], self.file.size)
            .map_err(|_| OwnerError::Refused(BulkRefusal::BadRanges))?;
        let header = BulkRequest { hash: self.file.hash, groups: ranges.to_request() };
        let ask = async {
            let (mut send, mut recv) = self.bulk.bulk(&target).await?;
            write_header(&mut send, &header).await?;
            // The request is all that is said; a stream that the owner closed already shows in its answer.
            let _ = send.finish();
            let accepted = read_header::<Result<BulkAccepted, BulkRefusal>>(&mut recv).await??;
            Ok::<_, OwnerError>((accepted, recv))
        };
        let (BulkAccepted { size }, mut recv) =
            timeout(limits::OWNER_SILENCE, ask).await.map_err(|_| OwnerError::Silent)??;
        if size != self.file.size {
            return Err(OwnerError::OtherSize { claimed: size, announced: self.file.size });
        }
        let connection = self.bulk.connection(&target).await?;
        let rtt = Some(connection.rtt());
        self.meter.set_rtt(connection.rtt());
        let mut life = Life::of(connection);
        stage.enter(Phase::Queued);
        let heard = |rtt| Told::Event(Event::Heard { owner: request.owner, rtt });
        // Here and below: the engine is gone when nobody listens.
        let _ = tell.send(heard(rtt)).await;
        // A full queue means that the core has enough to hear of.
        let waits = || drop(tell.try_send(heard(None)));
        wait_for_turn(&mut recv, waits, || life.is_busy()).await?;
        stage.enter(Phase::Streaming);
        let heard = Heard {
            source: ThrottledSource::new(&mut recv, self.pace.clone()),
            has_begun: false,
            life,
            news: News { request, tell },
            clock: Clock::start(),
            next: Timestamp::ZERO,
        };
        let progress = {
            let meter = self.meter.clone();
            move |more: Brought| {
                meter.arrived(more.bytes);
                progress(more);
            }
        };
        let mut source = Metered { source: heard, meter: &self.meter };
        let writing = Writing::for_this_machine();
        match fetch_from(&mut source, ranges, &self.partial, limits::OWNER_SILENCE, writing, progress).await {
            Ok(_) => Ok(()),
            Err(error) => {
                let is_wrong = matches!(error, FetchError::Verification { .. });
                let why = if is_wrong { BulkAbort::Wrong } else { BulkAbort::Enough };
                // Fails only when the stream has ended anyway.
                let _ = recv.stop(why.to_varint());
                Err(if was_reset_as_changed(&error) { OwnerError::Changed } else { error.into() })
            }
        }
    }
}

/// Tells the core, between the groups that are proven, that bytes arrive: on a slow path a write to the disk has many
/// groups and takes a while to fill.
struct Heard<'a> {
    source: ThrottledSource<&'a mut quinn::RecvStream>,
    /// Something came.
    has_begun: bool,
    life: Life,
    news: News<'a>,
    clock: Clock,
    /// When the core is told next.
    next: Timestamp,
}

/// How often the core is told that bytes arrive: within the margin after which an owner counts as quiet.
const TELL_EVERY: Duration = Duration::from_millis(20);

struct News<'a> {
    request: RequestId,
    tell: &'a mpsc::Sender<Told>,
}

impl News<'_> {
    fn heard(&self) {
        // A full queue means that the core has enough to hear of.
        let _ = self.tell.try_send(Told::Event(Event::Heard { owner: self.request.owner, rtt: None }));
    }

    fn begun(&self) {
        // Likewise; that it began shows in its first group as well.
        let _ = self.tell.try_send(Told::Event(Event::Begun { request: self.request }));
    }
}

impl ChunkSource for Heard<'_> {
    /// It is this peer that holds the owner back: no silence of the owner's.
    async fn ready(&mut self) {
        let mut turn = std::pin::pin!(self.source.ready());
        loop {
            tokio::select! {
                biased;
                () = &mut turn => return,
                () = sleep(TELL_EVERY) => self.news.heard(),
            }
        }
    }

    fn batch_bytes(&self) -> usize {
        self.source.batch_bytes()
    }

    fn is_excused(&mut self) -> bool {
        self.life.is_busy()
    }

    async fn next(&mut self, at_most: usize) -> io::Result<Vec<Bytes>> {
        let chunks = self.source.next(at_most).await?;
        if !std::mem::replace(&mut self.has_begun, true) {
            self.news.begun();
        }
        let now = self.clock.now();
        if now >= self.next {
            self.next = now + TELL_EVERY;
            self.news.heard();
        }
        Ok(chunks)
    }
}

/// Tells an owner that is dead from one that sends something else first: it serves one request after another.
struct Life {
    connection: quinn::Connection,
    received: u64,
}

/// What a dead owner's machine, or one that only says that requests wait, does not send within a silence.
const BUSY_BYTES: u64 = limits::GROUP_BYTES;

impl Life {
    fn of(connection: quinn::Connection) -> Self {
        let received = connection.stats().udp_rx.bytes;
        Self { connection, received }
    }

    /// Whether much came on the connection since the last call.
    fn is_busy(&mut self) -> bool {
        let before = std::mem::replace(&mut self.received, self.connection.stats().udp_rx.bytes);
        self.received - before >= BUSY_BYTES
    }
}

/// Waits until an owner begins with what was asked for. `waits` hears that the request is in its queue: for how long that is
/// all right, the core judges, which may have others who are faster. Silence ends it, unless the owner `is_busy`.
///
/// # Errors
/// When the stream breaks, says something else, or nothing for `limits::OWNER_SILENCE`.
pub(crate) async fn wait_for_turn(
    recv: &mut quinn::RecvStream,
    mut waits: impl FnMut(),
    mut is_busy: impl FnMut() -> bool,
) -> Result<(), HeaderError> {
    loop {
        match timeout(limits::OWNER_SILENCE, recv.read_u8()).await {
            Ok(Ok(BULK_BEGINS)) => return Ok(()),
            Ok(Ok(BULK_WAITS)) => waits(),
            Ok(Ok(_)) => return Err(HeaderError::Malformed),
            Ok(Err(error)) => return Err(HeaderError::Stream(error)),
            Err(_) if is_busy() => {}
            Err(_) => return Err(HeaderError::Stream(io::ErrorKind::TimedOut.into())),
        }
    }
}

/// As the core sees it.
pub(crate) fn why(error: &OwnerError) -> Why {
    match error {
        OwnerError::Refused(BulkRefusal::NotHere) => Why::NotHere,
        OwnerError::Refused(BulkRefusal::Busy) => Why::Busy { retry_after: None },
        OwnerError::Refused(BulkRefusal::BadRanges | BulkRefusal::Unreadable) | OwnerError::OtherSize { .. } => {
            Why::Refused
        }
        OwnerError::Changed => Why::Changed,
        OwnerError::Header(HeaderError::Stream(error)) if error.kind() == io::ErrorKind::TimedOut => Why::Silent,
        OwnerError::Silent | OwnerError::Fetch(FetchError::Silent(_)) => Why::Silent,
        OwnerError::Fetch(FetchError::Verification { .. }) => Why::Lied,
        OwnerError::Net(_) | OwnerError::Header(_) | OwnerError::Fetch(_) => Why::Broken,
    }
}
