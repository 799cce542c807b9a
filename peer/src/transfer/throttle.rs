//! Rate limits, each shared by all transfers of one direction.

use crate::transfer::params;
use std::{
    io,
    num::NonZeroU64,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use shared::{limits, time::Clock};
use tokio::time::sleep_until;

use super::stream::{ChunkSink, ChunkSource};
use protocol::upload::rate_limit::RateLimit;

/// Optional rate limit, shared by all clones.
#[derive(Debug, Clone, Default)]
pub struct Throttle(Option<Arc<Limited>>);

#[derive(Debug)]
struct Limited {
    limit: Mutex<RateLimit>,
    clock: Clock,
    /// Size of one step, bytes.
    step_bytes: usize,
}

impl Throttle {
    /// Creates a limit in bytes per second, raised to at least [`limits::MIN_RATE`]; `None` means no limit.
    pub fn new(bytes_per_second: Option<NonZeroU64>) -> Self {
        Self(bytes_per_second.map(|rate| {
            let rate = rate.max(NonZeroU64::new(limits::MIN_RATE).unwrap_or(rate));
            let step =
                rate.get().saturating_mul(u64::try_from(params::THROTTLE_STEP.as_millis()).unwrap_or(u64::MAX)) / 1000;
            let step_bytes = usize::try_from(step).unwrap_or(usize::MAX).clamp(1 << 10, params::BULK_BATCH_BYTES);
            Arc::new(Limited { limit: Mutex::new(RateLimit::new(rate)), clock: Clock::start(), step_bytes })
        }))
    }

    /// Returns the limit, bytes per second.
    pub fn bytes_per_second(&self) -> Option<NonZeroU64> {
        self.0.as_ref().map(|limited| limited.limit.lock().unwrap_or_else(PoisonError::into_inner).bytes_per_second())
    }

    /// Returns the number of bytes to transfer between two calls of [`wait`](Self::wait).
    pub fn batch_bytes(&self) -> usize {
        self.0.as_ref().map_or(params::BULK_BATCH_BYTES, |limited| limited.step_bytes)
    }

    /// Waits until `bytes` more are within the limit.
    pub async fn wait(&self, bytes: usize) {
        if let Some(limited) = &self.0 {
            let now = limited.clock.now();
            let at = limited.limit.lock().unwrap_or_else(PoisonError::into_inner).book(now, bytes as u64);
            sleep_until(limited.clock.instant(at).into()).await;
        }
    }
}

/// Sink with a rate limit.
#[derive(Debug)]
pub struct ThrottledSink<S> {
    /// Wrapped sink.
    pub sink: S,
    /// Limit.
    pub throttle: Throttle,
}

impl<S: ChunkSink> ChunkSink for ThrottledSink<S> {
    async fn send(&mut self, chunks: &mut [Bytes]) -> io::Result<usize> {
        let Some(limited) = &self.throttle.0 else { return self.sink.send(chunks).await };
        let Some(chunk) = chunks.iter_mut().find(|chunk| !chunk.is_empty()) else { return Ok(0) };
        let part = chunk.split_to(chunk.len().min(limited.step_bytes));
        let len = part.len();
        self.throttle.wait(len).await;
        let mut part = [part];
        while !part[0].is_empty() {
            self.sink.send(&mut part).await?;
        }
        Ok(len)
    }
}

/// Source with a rate limit.
#[derive(Debug)]
pub struct ThrottledSource<S> {
    source: S,
    throttle: Throttle,
    /// Bytes received and not yet counted against the limit.
    uncounted: usize,
}

impl<S> ThrottledSource<S> {
    /// Limits the rate of `source`.
    pub fn new(source: S, throttle: Throttle) -> Self {
        Self { source, throttle, uncounted: 0 }
    }
}

impl<S: ChunkSource> ChunkSource for ThrottledSource<S> {
    async fn ready(&mut self) {
        self.throttle.wait(std::mem::take(&mut self.uncounted)).await;
    }

    fn batch_bytes(&self) -> usize {
        self.throttle.batch_bytes()
    }

    async fn next(&mut self, at_most: usize) -> io::Result<Vec<Bytes>> {
        let chunks = self.source.next(at_most).await?;
        self.uncounted += chunks.iter().map(Bytes::len).sum::<usize>();
        Ok(chunks)
    }
}

#[cfg(test)]
mod tests {
    use super::super::stream::Writer;
    use super::*;

    #[tokio::test]
    async fn throttled_sink_sends_all_bytes_at_the_limit() {
        let rate = NonZeroU64::new(400_000).unwrap();
        let clock = Clock::start();
        let mut throttled = ThrottledSink { sink: Writer(Vec::new()), throttle: Throttle::new(Some(rate)) };
        let content: Vec<u8> = (0..200_000).map(|i| i as u8).collect();
        let mut chunks = [Bytes::from(content[..70_000].to_vec()), Bytes::from(content[70_000..].to_vec())];
        let mut sent = 0;
        while sent < content.len() {
            sent += throttled.send(&mut chunks).await.unwrap();
        }
        assert_eq!(throttled.sink.0, content);
        let seconds = clock.now().since_origin().as_secs_f64();
        // Half a second for all of the data, minus the burst.
        assert!(seconds > 0.35, "{seconds} s");
    }
}
