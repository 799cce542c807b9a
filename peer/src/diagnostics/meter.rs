//! Where the time of transfers goes: counters that cost a clock call for each batch, never one for a group.
//!
//! | side | what is counted | by |
//! |---|---|---|
//! | receiver | how far its requests are | [`Stage`] |
//! | | its streams wait for bytes, for the cap | [`Metered`], around the source |
//! | | its decoders wait for bytes, for the disk; their writers write | `fetch.rs`, `pack_fetch.rs`, by [`ChunkSource::meter`] |
//! | owner | its uploads send, wait for the network | [`Sent`], around the sink and around what paces it |
//!
//! What the times mean is decided in [`super::bottleneck`].

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use shared::time::{Clock, Timestamp};

use super::{bottleneck::SourceTime, rate::RecentRate};

/// A time that several threads add to.
#[derive(Debug, Default)]
pub struct TimeCounter(AtomicU64);

impl TimeCounter {
    /// Adds.
    pub fn add(&self, time: Duration) {
        self.0.fetch_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// In all.
    pub fn total(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }
}

/// How far a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Asked, and not accepted.
    Opening,
    /// Accepted, and waiting for its turn.
    Queued,
    /// Served.
    Streaming,
}

/// How many requests are how far, and for how long any was.
#[derive(Debug, Default)]
struct Phases {
    at: Timestamp,
    now: [u32; 3],
    time: SourceTime,
}

impl Phases {
    fn advance(&mut self, now: Timestamp) {
        let passed = now.since(self.at);
        self.at = self.at.max(now);
        let [opening, queued, streaming] = self.now;
        if streaming > 0 {
            self.time.streaming += passed;
            self.time.streams += passed * streaming;
        } else if queued > 0 {
            self.time.queued += passed;
        } else if opening > 0 {
            self.time.opening += passed;
        }
    }

    fn change(&mut self, now: Timestamp, from: Option<Phase>, to: Option<Phase>) {
        self.advance(now);
        if let Some(from) = from {
            self.now[from as usize] -= 1;
        }
        if let Some(to) = to {
            self.now[to as usize] += 1;
        }
        if from.is_none() {
            self.time.requests += 1;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the sources of one download have in common.
#[derive(Debug)]
pub struct DownloadMeter {
    pub(crate) clock: Clock,
    phases: Mutex<Phases>,
    rate: Mutex<RecentRate>,
    sync: TimeCounter,
}

impl DownloadMeter {
    /// A download that begins at the origin of `clock`.
    pub fn new(clock: Clock) -> Arc<Self> {
        let rate = Mutex::new(RecentRate::new(clock.now()));
        Arc::new(Self { clock, phases: Mutex::default(), rate, sync: TimeCounter::default() })
    }

    /// The time since it began.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// For how long some request was under way.
    pub fn active(&self) -> Duration {
        let mut phases = lock(&self.phases);
        phases.advance(self.clock.now());
        phases.time.opening + phases.time.queued + phases.time.streaming
    }

    /// Making files durable.
    pub fn sync(&self) -> &TimeCounter {
        &self.sync
    }

    /// Bytes that came, and how many a second lately.
    pub fn rate(&self) -> (u64, u64) {
        let rate = lock(&self.rate);
        (rate.bytes(), rate.per_second(self.clock.now()))
    }
}

/// The streams of a download from one source.
#[derive(Debug)]
pub struct SourceMeter {
    pub(crate) download: Arc<DownloadMeter>,
    phases: Mutex<Phases>,
    bytes: AtomicU64,
    rtt_micros: AtomicU64,
    pub(crate) bytes_wait: TimeCounter,
    pub(crate) throttle_wait: TimeCounter,
    decoder_wait: TimeCounter,
    disk_wait: TimeCounter,
    disk_write: TimeCounter,
}

impl SourceMeter {
    /// A source of `download`.
    pub fn new(download: Arc<DownloadMeter>) -> Arc<Self> {
        Arc::new(Self {
            download,
            phases: Mutex::default(),
            bytes: AtomicU64::new(0),
            rtt_micros: AtomicU64::new(0),
            bytes_wait: TimeCounter::default(),
            throttle_wait: TimeCounter::default(),
            decoder_wait: TimeCounter::default(),
            disk_wait: TimeCounter::default(),
            disk_write: TimeCounter::default(),
        })
    }

    /// A request is made; it is over when the stage is dropped.
    pub fn request(self: &Arc<Self>) -> Stage {
        let stage = Stage { meter: self.clone(), phase: Phase::Opening };
        self.change(None, Some(Phase::Opening));
        stage
    }

    fn change(&self, from: Option<Phase>, to: Option<Phase>) {
        let now = self.download.clock.now();
        lock(&self.phases).change(now, from, to);
        lock(&self.download.phases).change(now, from, to);
    }

    /// For one that checks what comes of it.
    pub fn decoder(self: &Arc<Self>) -> DecoderMeter {
        DecoderMeter(Some(self.clone()))
    }

    /// Bytes are proven and written.
    pub fn arrived(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        lock(&self.download.rate).record(self.download.clock.now(), bytes);
    }

    /// The path's round-trip time.
    pub fn set_rtt(&self, rtt: Duration) {
        self.rtt_micros.store(u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// The path's round-trip time, if it is known.
    pub fn rtt(&self) -> Option<Duration> {
        Some(self.rtt_micros.load(Ordering::Relaxed)).filter(|micros| *micros > 0).map(Duration::from_micros)
    }

    /// Bytes that came of it.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Where the time went until now.
    pub fn time(&self) -> SourceTime {
        let mut phases = lock(&self.phases);
        phases.advance(self.download.clock.now());
        SourceTime {
            bytes_wait: self.bytes_wait.total(),
            throttle_wait: self.throttle_wait.total(),
            decoder_wait: self.decoder_wait.total(),
            disk_wait: self.disk_wait.total(),
            disk_write: self.disk_write.total(),
            ..phases.time
        }
    }
}

/// One request of a source, as far as it is.
#[derive(Debug)]
pub struct Stage {
    meter: Arc<SourceMeter>,
    phase: Phase,
}

impl Stage {
    /// It is further now.
    pub fn enter(&mut self, phase: Phase) {
        self.meter.change(Some(self.phase), Some(phase));
        self.phase = phase;
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.meter.change(Some(self.phase), None);
    }
}

/// A decoder's counters, or none.
#[derive(Debug, Clone, Default)]
pub struct DecoderMeter(Option<Arc<SourceMeter>>);

impl DecoderMeter {
    /// Does `work`, which waits for bytes.
    pub fn waiting<T>(&self, work: impl FnOnce() -> T) -> T {
        self.counted(|meter| &meter.decoder_wait, work)
    }

    /// Does `work`, which waits for what is written on another thread.
    pub fn waiting_for_disk<T>(&self, work: impl FnOnce() -> T) -> T {
        self.counted(|meter| &meter.disk_wait, work)
    }

    /// Waits for the last of what is written on another thread.
    pub async fn until_written<T>(&self, written: impl Future<Output = T>) -> T {
        let Some(meter) = &self.0 else { return written.await };
        let begun = meter.download.clock.now();
        let done = written.await;
        meter.disk_wait.add(meter.download.clock.now().since(begun));
        done
    }

    /// Does `work`, which writes to the disk.
    pub fn writing<T>(&self, work: impl FnOnce() -> T) -> T {
        self.counted(|meter| &meter.disk_write, work)
    }

    fn counted<T>(&self, counter: impl FnOnce(&SourceMeter) -> &TimeCounter, work: impl FnOnce() -> T) -> T {
        let Some(meter) = &self.0 else { return work() };
        let begun = meter.download.clock.now();
        let done = work();
        counter(meter).add(meter.download.clock.now().since(begun));
        done
    }
}

/// Uploads of one content to one peer.
#[derive(Debug, Default)]
pub struct UploadMeter {
    /// From the beginning of uploads to their end, or until now.
    pub served: TimeCounter,
    /// Of that, bytes were held back or not taken.
    pub sending: TimeCounter,
    /// Of that, they were not taken by the network.
    pub network_wait: TimeCounter,
    /// Requests waited for their turn.
    pub slot_wait: TimeCounter,
    /// Bytes sent.
    pub bytes: AtomicU64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Timestamp {
        Timestamp::from_origin(Duration::from_millis(millis))
    }

    #[test]
    fn the_furthest_request_says_what_the_time_was() {
        let mut phases = Phases::default();
        phases.change(at(10), None, Some(Phase::Opening));
        phases.change(at(30), Some(Phase::Opening), Some(Phase::Queued));
        phases.change(at(30), None, Some(Phase::Opening));
        phases.change(at(60), Some(Phase::Queued), Some(Phase::Streaming));
        phases.change(at(100), Some(Phase::Opening), Some(Phase::Streaming));
        phases.change(at(150), Some(Phase::Streaming), None);
        phases.change(at(160), Some(Phase::Streaming), None);
        phases.advance(at(900));
        let ms = Duration::from_millis;
        let SourceTime { opening, queued, streaming, streams, requests, .. } = phases.time;
        assert_eq!((opening, queued, streaming, streams, requests), (ms(20), ms(30), ms(100), ms(150), 2));
    }

    #[tokio::test]
    async fn a_request_that_is_dropped_is_over() {
        let download = DownloadMeter::new(Clock::start());
        let source = SourceMeter::new(download.clone());
        let mut stage = source.request();
        stage.enter(Phase::Queued);
        stage.enter(Phase::Streaming);
        source.arrived(1000);
        drop(stage);
        let (time, active) = (source.time(), download.active());
        assert_eq!(source.time(), time);
        assert_eq!(download.active(), active);
        assert_eq!((time.requests, source.bytes(), download.rate().0), (1, 1000, 1000));
    }
}
