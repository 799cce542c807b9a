//! Counters of transfer times. A measurement reads the clock twice for each batch, never for a group.
//!
//! | side | measured time | by |
//! |---|---|---|
//! | receiver | progress of the requests | [`RequestPhase`] |
//! | | streams wait for data or for the rate limit | `transfer::metered::Metered`, around the source |
//! | | decoders wait for data or for the disk; writes to the disk | [`DecoderMeter`], in `transfer` and `download` |
//! | owner | uploads send, or wait for the network | the sinks in `transfer::metered` |
//!
//! [`super::bottleneck`] interprets the times.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use shared::time::{Clock, Timestamp};

use super::{bottleneck::SourceTime, rate::RecentRate};

/// Sum of times, added by several threads.
#[derive(Debug, Default)]
pub struct TimeCounter(AtomicU64);

impl TimeCounter {
    /// Adds a time.
    pub fn add(&self, time: Duration) {
        self.0.fetch_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Sum so far.
    pub fn total(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }
}

/// Phase of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Sent, not answered.
    Opening,
    /// Accepted, waiting for an upload slot.
    Queued,
    /// Receiving data.
    Streaming,
}

/// Number of requests in each phase, and the total time in which the most advanced request was in it.
#[derive(Debug, Default)]
struct Phases {
    /// End of the time that is counted already.
    at: Timestamp,
    /// Number of requests in each [`Phase`].
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

/// Meter of a download, shared by its sources.
#[derive(Debug)]
pub struct DownloadMeter {
    pub(crate) clock: Clock,
    phases: Mutex<Phases>,
    rate: Mutex<RecentRate>,
    sync: TimeCounter,
}

impl DownloadMeter {
    /// Creates the meter of a download that starts at the origin of `clock`.
    pub fn new(clock: Clock) -> Arc<Self> {
        let rate = Mutex::new(RecentRate::new(clock.now()));
        Arc::new(Self { clock, phases: Mutex::default(), rate, sync: TimeCounter::default() })
    }

    /// Time since the start of the download.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Time in which at least one request was open.
    pub fn active(&self) -> Duration {
        let mut phases = lock(&self.phases);
        phases.advance(self.clock.now());
        phases.time.opening + phases.time.queued + phases.time.streaming
    }

    /// Time for making files durable.
    pub fn sync(&self) -> &TimeCounter {
        &self.sync
    }

    /// Bytes received, and the current rate in bytes per second.
    pub fn rate(&self) -> (u64, u64) {
        let rate = lock(&self.rate);
        (rate.bytes(), rate.per_second(self.clock.now()))
    }
}

/// Meter of the streams of a download from one source.
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
    /// Creates the meter of a source of `download`.
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

    /// Starts the measurement of a request, which ends when the result is dropped.
    pub fn request(self: &Arc<Self>) -> RequestPhase {
        let request = RequestPhase { meter: self.clone(), phase: Phase::Opening };
        self.change(None, Some(Phase::Opening));
        request
    }

    fn change(&self, from: Option<Phase>, to: Option<Phase>) {
        let now = self.download.clock.now();
        lock(&self.phases).change(now, from, to);
        lock(&self.download.phases).change(now, from, to);
    }

    /// Returns the meter for a decoder of this source.
    pub fn decoder(self: &Arc<Self>) -> DecoderMeter {
        DecoderMeter(Some(self.clone()))
    }

    /// Counts bytes that are verified and written.
    pub fn arrived(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        lock(&self.download.rate).record(self.download.clock.now(), bytes);
    }

    /// Sets the round-trip time of the path.
    pub fn set_rtt(&self, rtt: Duration) {
        self.rtt_micros.store(u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Round-trip time of the path, if known.
    pub fn rtt(&self) -> Option<Duration> {
        Some(self.rtt_micros.load(Ordering::Relaxed)).filter(|micros| *micros > 0).map(Duration::from_micros)
    }

    /// Bytes received from this source.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Times so far.
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

/// Open request of a source. Ends on drop.
#[derive(Debug)]
pub struct RequestPhase {
    meter: Arc<SourceMeter>,
    phase: Phase,
}

impl RequestPhase {
    /// Moves the request to `phase`.
    pub fn enter(&mut self, phase: Phase) {
        self.meter.change(Some(self.phase), Some(phase));
        self.phase = phase;
    }
}

impl Drop for RequestPhase {
    fn drop(&mut self) {
        self.meter.change(Some(self.phase), None);
    }
}

/// Optional counters of a decoder.
#[derive(Debug, Clone, Default)]
pub struct DecoderMeter(Option<Arc<SourceMeter>>);

impl DecoderMeter {
    /// Runs `work` and counts its time as waiting for data.
    pub fn waiting<T>(&self, work: impl FnOnce() -> T) -> T {
        self.counted(|meter| &meter.decoder_wait, work)
    }

    /// Runs `work` and counts its time as waiting for the thread that writes.
    pub fn waiting_for_disk<T>(&self, work: impl FnOnce() -> T) -> T {
        self.counted(|meter| &meter.disk_wait, work)
    }

    /// Awaits the last write of another thread and counts the time as waiting for the disk.
    pub async fn until_written<T>(&self, written: impl Future<Output = T>) -> T {
        let Some(meter) = &self.0 else { return written.await };
        let begun = meter.download.clock.now();
        let done = written.await;
        meter.disk_wait.add(meter.download.clock.now().since(begun));
        done
    }

    /// Runs `work` and counts its time as writing to the disk.
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

/// Meter of the uploads of one content to one peer.
#[derive(Debug, Default)]
pub struct UploadMeter {
    /// Duration of the uploads until now.
    pub served: TimeCounter,
    /// Part of [`served`](Self::served) in which data waited for the rate limit or the network.
    pub sending: TimeCounter,
    /// Part of [`sending`](Self::sending) in which data waited for the network.
    pub network_wait: TimeCounter,
    /// Time in which requests waited for a slot.
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
    fn time_counts_for_the_most_advanced_request() {
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
    async fn request_that_is_dropped_stops_counting() {
        let download = DownloadMeter::new(Clock::start());
        let source = SourceMeter::new(download.clone());
        let mut request = source.request();
        request.enter(Phase::Queued);
        request.enter(Phase::Streaming);
        source.arrived(1000);
        drop(request);
        let (time, active) = (source.time(), download.active());
        assert_eq!(source.time(), time);
        assert_eq!(download.active(), active);
        assert_eq!((time.requests, source.bytes(), download.rate().0), (1, 1000, 1000));
    }
}
