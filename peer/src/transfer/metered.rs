//! Sources and sinks that report their waits to the meters of [`crate::diagnostics::meter`].

use std::{
    io,
    sync::{Arc, atomic::Ordering},
};

use bytes::Bytes;
use shared::time::{Clock, Timestamp};

use super::stream::{ChunkSink, ChunkSource};
use crate::diagnostics::meter::{DecoderMeter, SourceMeter, UploadMeter};

/// Source whose waits are added to a meter.
pub struct Metered<'a, S> {
    /// Wrapped source.
    pub source: S,
    /// Receives the times.
    pub meter: &'a Arc<SourceMeter>,
}

impl<S: ChunkSource> ChunkSource for Metered<'_, S> {
    async fn ready(&mut self) {
        let begun = self.meter.download.clock.now();
        self.source.ready().await;
        self.meter.throttle_wait.add(self.meter.download.clock.now().since(begun));
    }

    fn batch_bytes(&self) -> usize {
        self.source.batch_bytes()
    }

    async fn next(&mut self, at_most: usize) -> io::Result<Vec<Bytes>> {
        // A wait that is cancelled counts too.
        let _waiting = Waiting { meter: self.meter, begun: self.meter.download.clock.now() };
        self.source.next(at_most).await
    }

    fn is_excused(&mut self) -> bool {
        self.source.is_excused()
    }

    fn meter(&self) -> DecoderMeter {
        self.meter.decoder()
    }
}

/// Wait for data, measured until drop.
struct Waiting<'a> {
    meter: &'a SourceMeter,
    begun: Timestamp,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.meter.bytes_wait.add(self.meter.download.clock.now().since(self.begun));
    }
}

/// Sink whose time is added to [`UploadMeter::network_wait`].
pub struct NetworkMeteredSink<S> {
    /// Wrapped sink.
    pub sink: S,
    /// Receives the times.
    pub meter: Arc<UploadMeter>,
    /// Clock of the measurement.
    pub clock: Clock,
}

impl<S: ChunkSink> ChunkSink for NetworkMeteredSink<S> {
    async fn send(&mut self, chunks: &mut [Bytes]) -> io::Result<usize> {
        let begun = self.clock.now();
        let sent = self.sink.send(chunks).await;
        self.meter.network_wait.add(self.clock.now().since(begun));
        sent
    }
}

/// Outermost sink of an upload. Adds the time in its calls to [`UploadMeter::sending`], and the time since its
/// creation, which includes the waits for the disk between two calls, to [`UploadMeter::served`].
pub struct UploadMeteredSink<S> {
    sink: S,
    meter: Arc<UploadMeter>,
    clock: Clock,
    /// End of the time that is counted already.
    until: Timestamp,
}

impl<S> UploadMeteredSink<S> {
    /// Starts the measurement of an upload.
    pub fn new(sink: S, meter: Arc<UploadMeter>, clock: Clock) -> Self {
        Self { sink, meter, clock, until: clock.now() }
    }

    /// Returns the wrapped sink. Direct writes to it are not counted.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.sink
    }

    /// Unwraps the sink.
    pub fn into_inner(self) -> S {
        self.sink
    }
}

impl<S: ChunkSink> ChunkSink for UploadMeteredSink<S> {
    async fn send(&mut self, chunks: &mut [Bytes]) -> io::Result<usize> {
        let begun = self.clock.now();
        let sent = self.sink.send(chunks).await;
        let now = self.clock.now();
        self.meter.sending.add(now.since(begun));
        self.meter.served.add(now.since(self.until));
        self.until = now;
        self.meter.bytes.fetch_add(*sent.as_ref().unwrap_or(&0) as u64, Ordering::Relaxed);
        sent
    }
}
