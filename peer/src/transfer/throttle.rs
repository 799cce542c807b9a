//! Caps on bytes a second, shared by all transfers of one direction.

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

/// A cap, or none. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Throttle(Option<Arc<Capped>>);

#[derive(Debug)]
struct Capped {
    limit: Mutex<RateLimit>,
    clock: Clock,
    /// What goes at once.
    step_bytes: usize,
}

impl Throttle {
    /// So many bytes a second, at least [`limits::MIN_RATE`]; `None`: as fast as it goes.
    pub fn new(bytes_per_second: Option<NonZeroU64>) -> Self {
        Self(bytes_per_second.map(|rate| {
            let rate = rate.max(NonZeroU64::new(limits::MIN_RATE).unwrap_or(rate));
            let step = rate.get().saturating_mul(u64::try_from(limits::PACE.as_millis()).unwrap_or(u64::MAX)) / 1000;
            let step_bytes = usize::try_from(step).unwrap_or(usize::MAX).clamp(1 << 10, limits::BULK_BATCH_BYTES);
            Arc::new(Capped { limit: Mutex::new(RateLimit::new(rate)), clock: Clock::start(), step_bytes })
        }))
    }

    /// The cap, bytes a second.
    pub fn bytes_per_second(&self) -> Option<NonZeroU64> {
        self.0.as_ref().map(|capped| capped.limit.lock().unwrap_or_else(PoisonError::into_inner).bytes_per_second())
    }

    /// How many bytes go at once.
    pub fn batch_bytes(&self) -> usize {
        self.0.as_ref().map_or(limits::BULK_BATCH_BYTES, |capped| capped.step_bytes)
    }

    /// Waits until `bytes` more may go.
    pub async fn wait(&self, bytes: usize) {
        if let Some(capped) = &self.0 {
            let at = capped.limit.lock().unwrap_or_else(PoisonError::into_inner).book(capped.clock.now(), bytes as u64);
            sleep_until(capped.clock.instant(at).into()).await;
        }
    }
}

/// A sink whose bytes go at a pace.
#[derive(Debug)]
pub struct ThrottledSink<S> {
    /// Where they go.
    pub sink: S,
    /// How fast.
    pub pace: Throttle,
}

impl<S: ChunkSink> ChunkSink for ThrottledSink<S> {
    async fn send(&mut self, chunks: &mut [Bytes]) -> io::Result<usize> {
        let Some(capped) = &self.pace.0 else { return self.sink.send(chunks).await };
        let Some(chunk) = chunks.iter_mut().find(|chunk| !chunk.is_empty()) else { return Ok(0) };
        let part = chunk.split_to(chunk.len().min(capped.step_bytes));
        let len = part.len();
        self.pace.wait(len).await;
        let mut part = [part];
        while !part[0].is_empty() {
            self.sink.send(&mut part).await?;
        }
        Ok(len)
    }
}

/// A source whose bytes come at a pace.
#[derive(Debug)]
pub struct ThrottledSource<S> {
    source: S,
    pace: Throttle,
    /// Bytes that came and are not accounted for.
    owed: usize,
}

impl<S> ThrottledSource<S> {
    /// What comes from `source`, so fast.
    pub fn new(source: S, pace: Throttle) -> Self {
        Self { source, pace, owed: 0 }
    }
}

impl<S: ChunkSource> ChunkSource for ThrottledSource<S> {
    async fn ready(&mut self) {
        self.pace.wait(std::mem::take(&mut self.owed)).await;
    }

    fn batch_bytes(&self) -> usize {
        self.pace.batch_bytes()
    }

    async fn next(&mut self, at_most: usize) -> io::Result<Vec<Bytes>> {
        let chunks = self.source.next(at_most).await?;
        self.owed += chunks.iter().map(Bytes::len).sum::<usize>();
        Ok(chunks)
    }
}

#[cfg(test)]
mod tests {
    use super::super::stream::Writer;
    use super::*;

    #[tokio::test]
    async fn bytes_go_at_the_pace_and_all_of_them() {
        let rate = NonZeroU64::new(400_000).unwrap();
        let clock = Clock::start();
        let mut paced = ThrottledSink { sink: Writer(Vec::new()), pace: Throttle::new(Some(rate)) };
        let content: Vec<u8> = (0..200_000).map(|i| i as u8).collect();
        let mut chunks = [Bytes::from(content[..70_000].to_vec()), Bytes::from(content[70_000..].to_vec())];
        let mut sent = 0;
        while sent < content.len() {
            sent += paced.send(&mut chunks).await.unwrap();
        }
        assert_eq!(paced.sink.0, content);
        let seconds = clock.now().since_origin().as_secs_f64();
        // Half a second's worth, of which a burst goes at once.
        assert!(seconds > 0.35, "{seconds} s");
    }
}
