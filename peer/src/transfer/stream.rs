//! Interface of transfers to streams. Whole chunks go in and out, so that a byte is copied once on its way to the disk
//! and not at all on its way from it.

use std::io;

use super::params::{BULK_BATCH_BYTES, CHUNKS_PER_READ};
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::diagnostics::meter::DecoderMeter;

/// Receiving side of a stream that carries an encoding.
pub trait ChunkSource: Send {
    /// Waits until more may be read. This time does not count as silence of the other side.
    fn ready(&mut self) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }

    /// Returns the number of bytes to read between two calls of [`ready`](Self::ready).
    fn batch_bytes(&self) -> usize {
        BULK_BATCH_BYTES
    }

    /// Reads the bytes that are available. `at_most` bounds their number only if it is less than [`BULK_BATCH_BYTES`].
    /// Returns no chunk at the end of the stream.
    fn next(&mut self, at_most: usize) -> impl Future<Output = io::Result<Vec<Bytes>>> + Send;

    /// Returns true if the silence of the other side is acceptable because it was busy with another request of this
    /// peer. Called when the allowed time has passed.
    fn is_excused(&mut self) -> bool {
        false
    }

    /// Returns the meter of the decoder's time.
    fn meter(&self) -> DecoderMeter {
        DecoderMeter::default()
    }
}

/// Sending side of a stream that carries an encoding.
pub trait ChunkSink: Send {
    /// Sends some of the bytes in order and removes them from the chunks. Returns their number, at least one unless all
    /// chunks are empty.
    fn send(&mut self, chunks: &mut [Bytes]) -> impl Future<Output = io::Result<usize>> + Send;
}

impl ChunkSource for quinn::RecvStream {
    async fn next(&mut self, at_most: usize) -> io::Result<Vec<Bytes>> {
        if at_most < BULK_BATCH_BYTES {
            // One chunk may hold everything that has arrived since the last read.
            let chunk = self.read_chunk(at_most, true).await?;
            return Ok(chunk.into_iter().map(|chunk| chunk.bytes).collect());
        }
        let mut chunks = vec![Bytes::new(); CHUNKS_PER_READ];
        let read = self.read_chunks(&mut chunks).await?;
        chunks.truncate(read.unwrap_or(0));
        Ok(chunks)
    }
}

impl<S: ChunkSource> ChunkSource for &mut S {
    async fn ready(&mut self) {
        (**self).ready().await;
    }

    fn batch_bytes(&self) -> usize {
        (**self).batch_bytes()
    }

    async fn next(&mut self, at_most: usize) -> io::Result<Vec<Bytes>> {
        (**self).next(at_most).await
    }

    fn is_excused(&mut self) -> bool {
        (**self).is_excused()
    }

    fn meter(&self) -> DecoderMeter {
        (**self).meter()
    }
}

impl ChunkSink for quinn::SendStream {
    async fn send(&mut self, chunks: &mut [Bytes]) -> io::Result<usize> {
        Ok(self.write_chunks(chunks).await?.bytes)
    }
}

/// Adapter of any reader to a source, at the cost of one copy.
#[derive(Debug)]
pub struct Reader<R>(pub R);

impl<R: AsyncRead + Unpin + Send> ChunkSource for Reader<R> {
    async fn next(&mut self, at_most: usize) -> io::Result<Vec<Bytes>> {
        let mut buffer = BytesMut::with_capacity(at_most.min(BULK_BATCH_BYTES / 4));
        let read = self.0.read_buf(&mut buffer).await?;
        Ok(if read == 0 { Vec::new() } else { vec![buffer.freeze()] })
    }
}

/// Adapter of any writer to a sink, at the cost of one copy.
#[derive(Debug)]
pub struct Writer<W>(pub W);

impl<W: AsyncWrite + Unpin + Send> ChunkSink for Writer<W> {
    async fn send(&mut self, chunks: &mut [Bytes]) -> io::Result<usize> {
        let Some(chunk) = chunks.iter_mut().find(|chunk| !chunk.is_empty()) else { return Ok(0) };
        match self.0.write_buf(chunk).await? {
            0 => Err(io::ErrorKind::WriteZero.into()),
            written => Ok(written),
        }
    }
}
