//! Sources and sinks whose time is counted by a meter of [`crate::diagnostics::meter`].

use std::{
    io,
    sync::{Arc, atomic::Ordering},
};

use bytes::Bytes;
use shared::time::{Clock, Timestamp};

use super::stream::{ChunkSink, ChunkSource};
use crate::diagnostics::meter::{DecoderMeter, SourceMeter, UploadMeter};

/// A source whose waits are counted.
pub struct Metered<'a, S> {
    /// Where the bytes come from.
    pub source: S,
    /// Where the waits go.
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
        // Counts when it is given up as well.
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

/// A wait for bytes, until it is dropped.
struct Waiting<'a> {
    meter: &'a SourceMeter,
    begun: Timestamp,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.meter.bytes_wait.add(self.meter.download.clock.now().since(self.begun));
    }
}

/// A sink whose time counts as the network's.
pub struct NetworkMeteredSink<S> {
    /// Where the bytes go.
    pub sink: S,
    /// Where the time goes.
    pub meter: Arc<UploadMeter>,
    /// What measures it.
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

/// A sink whose time counts as an upload's: that in it as sending, that between as waiting for what is to be sent.
pub struct UploadMeteredSink<S> {
    sink: S,
    meter: Arc<UploadMeter>,
    clock: Clock,
    until: Timestamp,
}

impl<S> UploadMeteredSink<S> {
    /// The upload begins.
    pub fn new(sink: S, meter: Arc<UploadMeter>, clock: Clock) -> Self {
        Self { sink, meter, clock, until: clock.now() }
    }

    /// The sink again.
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
