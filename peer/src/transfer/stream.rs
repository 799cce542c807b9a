//! What a transfer needs of a stream: whole chunks in and out, so that a byte is copied once on its way to the disk and
//! not at all on its way from it.

use std::io;

use bytes::{Bytes, BytesMut};
use shared::limits::{BULK_BATCH_BYTES, CHUNKS_PER_READ};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::meter::DecoderMeter;

/// Where an encoding comes from.
pub trait ChunkSource: Send {
    /// Waits until more may come. What passes here is nobody's silence.
    fn ready(&mut self) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }

    /// The next bytes, as many as are there but at most some [`BULK_BATCH_BYTES`]; none at the end of the stream.
    fn next(&mut self) -> impl Future<Output = io::Result<Vec<Bytes>>> + Send;

    /// Where the decoder's time is counted.
    fn meter(&self) -> DecoderMeter {
        DecoderMeter::default()
    }
}

/// Where an encoding goes.
pub trait ChunkSink: Send {
    /// Takes some of the bytes, in order, and returns how many: at least one, if there is one. What was taken is gone from
    /// the chunks.
    fn send(&mut self, chunks: &mut [Bytes]) -> impl Future<Output = io::Result<usize>> + Send;
}

impl ChunkSource for quinn::RecvStream {
    async fn next(&mut self) -> io::Result<Vec<Bytes>> {
        let mut chunks = vec![Bytes::new(); CHUNKS_PER_READ];
        let read = self.read_chunks(&mut chunks).await?;
        chunks.truncate(read.unwrap_or(0));
        Ok(chunks)
    }
}

impl ChunkSink for quinn::SendStream {
    async fn send(&mut self, chunks: &mut [Bytes]) -> io::Result<usize> {
        Ok(self.write_chunks(chunks).await?.bytes)
    }
}

/// Any reader as a source, with one copy more.
#[derive(Debug)]
pub struct Reader<R>(pub R);

impl<R: AsyncRead + Unpin + Send> ChunkSource for Reader<R> {
    async fn next(&mut self) -> io::Result<Vec<Bytes>> {
        let mut buffer = BytesMut::with_capacity(BULK_BATCH_BYTES / 4);
        let read = self.0.read_buf(&mut buffer).await?;
        Ok(if read == 0 { Vec::new() } else { vec![buffer.freeze()] })
    }
}

/// Any writer as a sink, with one copy more.
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
