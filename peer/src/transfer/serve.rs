//! Sending side of a bulk stream: groups of a file with their proofs.

use std::{
    io::{self, IoSliceMut},
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use super::{
    buffer_pool::{Buffer, Pool},
    params::{BULK_BATCH_BYTES, BULK_BATCHES},
    stream::{ChunkSink, Writer},
};
use blake3::hazmat::ChainingValue;
use bytes::Bytes;
use shared::{
    group_ranges::GroupRanges,
    limits::{GROUP_BYTES, UPLOAD_SILENCE},
    net::bulk::BulkAbort,
};
use tokio::{io::AsyncWrite, sync::mpsc, task};

use crate::{
    bao::{
        check::{OUTBOARD_RUN_BYTES, check},
        read_ahead::{RunReader, read_exact_vectored_at},
        tree_hash::hash_file,
        verifier::{Mismatch, PAIR_BYTES, Step, Verifier, group_value, outboard_bytes},
    },
    store::source::Source,
};

/// Error of an upload. The data sent before it is correct.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The file or its outboard has another content than the hash says. The caller resets the stream, so that the receiver
    /// asks another owner, and has the share hash the file again ([`crate::store::Share::invalidate`]).
    #[error("the file changed (at offset {offset})")]
    Changed {
        /// Offset in the file at which the change was detected, bytes.
        offset: u64,
    },
    /// The file cannot be read. The caller resets the stream.
    #[error("cannot read the file: {0}")]
    Disk(#[source] io::Error),
    /// The receiver stopped the stream, or the connection ended.
    #[error("the stream failed: {0}")]
    Stream(#[source] io::Error),
    /// The receiver took no byte for this time. The caller resets the stream; the file need not be checked.
    #[error("the receiver took nothing for {} s", .0.as_secs_f32())]
    Stalled(Duration),
    /// The thread that reads the file panicked. The caller resets the stream.
    #[error("the reader of an upload failed: {0}")]
    Internal(#[source] task::JoinError),
}

impl ServeError {
    /// Returns the code for the reset of the stream. A receiver does not return to an owner after
    /// [`Changed`](BulkAbort::Changed); after any other code it may.
    pub fn abort(&self) -> BulkAbort {
        match self {
            Self::Changed { .. } => BulkAbort::Changed,
            Self::Disk(_) | Self::Stream(_) | Self::Stalled(_) | Self::Internal(_) => BulkAbort::Stopped,
        }
    }
}

/// Sends `ranges` of a file with their proofs. Returns the number of bytes of the file that were sent.
///
/// A file that changes its content, shrinks or vanishes meanwhile causes an error. The data of an untouched file is not
/// hashed before it is sent: the receiver hashes it and detects wrong bytes of a damaged disk ([`is_right`] then checks
/// the file). A source in doubt, and the rest of one that is touched meanwhile, is hashed and checked first. `progress`
/// receives the number of bytes passed to the stream, proofs included. The caller finishes or resets the stream.
///
/// # Errors
/// See [`ServeError`].
pub async fn serve<W: AsyncWrite + Unpin + Send>(
    source: Source,
    ranges: GroupRanges,
    writer: &mut W,
    progress: impl FnMut(u64),
) -> Result<u64, ServeError> {
    serve_to(source, ranges, Arc::default(), &mut Writer(writer), UPLOAD_SILENCE, progress).await
}

/// Sends `ranges` of a file like [`serve`], to a sink of chunks, with buffers of `pool`. Fails when the sink takes
/// nothing for `silence`.
///
/// # Errors
/// See [`ServeError`].
pub async fn serve_to<S: ChunkSink>(
    source: Source,
    ranges: GroupRanges,
    pool: Arc<Pool>,
    sink: &mut S,
    silence: Duration,
    progress: impl FnMut(u64),
) -> Result<u64, ServeError> {
    let file_bytes = ranges.bytes(source.size);
    let (batches, ready) = mpsc::channel(BULK_BATCHES);
    let encoder = task::spawn_blocking(move || encode(&source, ranges, &pool, &batches));
    send_batches(ready, encoder, sink, silence, progress).await??;
    Ok(file_bytes)
}

/// Sends the batches that `worker` prepares, and returns the worker's result.
pub(super) async fn send_batches<S: ChunkSink, T>(
    mut ready: mpsc::Receiver<Bytes>,
    worker: task::JoinHandle<T>,
    sink: &mut S,
    silence: Duration,
    mut progress: impl FnMut(u64),
) -> Result<T, ServeError> {
    while let Some(batch) = ready.recv().await {
        let mut batch = [batch];
        while !batch[0].is_empty() {
            let sent = tokio::time::timeout(silence, sink.send(&mut batch))
                .await
                .map_err(|_| ServeError::Stalled(silence))?
                .map_err(ServeError::Stream)?;
            progress(sent as u64);
        }
    }
    worker.await.map_err(ServeError::Internal)
}

/// Reads and hashes `ranges` of a file. Returns true if they match the hash tree, `None` if `stop` was set before the
/// result was known. Blocks.
pub fn is_right(source: &Source, ranges: &GroupRanges, stop: &AtomicBool) -> Option<bool> {
    let is_right = match &source.outboard {
        Some(outboard) => check(source.hash, source.size, &source.file, outboard, ranges.clone(), stop).covers(ranges),
        None => hash_file(&source.file, source.size, None, stop).is_ok_and(|hash| hash == source.hash),
    };
    // A check that was stopped proves nothing.
    (is_right || !stop.load(Ordering::Relaxed)).then_some(is_right)
}

/// Reads the file in batches of the encoding. Ends early, without an error, when the receiving side of `batches` is
/// gone.
fn encode(
    source: &Source,
    ranges: GroupRanges,
    pool: &Arc<Pool>,
    batches: &mpsc::Sender<Bytes>,
) -> Result<(), ServeError> {
    let mut verifier = Verifier::new(source.hash, source.size, ranges);
    let mut pairs = source.outboard.as_ref().map(|outboard| RunReader::new(outboard, OUTBOARD_RUN_BYTES));
    let pairs_end = outboard_bytes(source.size);
    let mut batch = Batch::new(pool);
    let mut reached = 0;
    while let Some(step) = verifier.next() {
        match (step, &mut pairs) {
            (Step::Group { offset, len }, _) => {
                reached = offset;
                batch.group(offset, len, verifier.defer_group());
            }
            (Step::Pair { index }, Some(pairs)) => {
                let at = index * PAIR_BYTES as u64;
                let at = pairs.read(at, PAIR_BYTES, pairs_end).map_err(|error| failed(error, reached))?;
                let pair = &pairs.run()[at..at + PAIR_BYTES];
                verifier.accept(pair).map_err(|Mismatch { offset }| ServeError::Changed { offset })?;
                batch.pair(pair);
            }
            (Step::Pair { .. }, None) => return Err(ServeError::Changed { offset: reached }),
        }
        if batch.len >= BULK_BATCH_BYTES {
            let full = std::mem::replace(&mut batch, Batch::new(pool));
            if batches.blocking_send(full.read(source)?).is_err() {
                return Ok(());
            }
        }
    }
    if batch.len > 0 {
        // Fails only if the sending task ended, which reports its own error.
        let _ = batches.blocking_send(batch.read(source)?);
    }
    Ok(())
}

fn failed(error: io::Error, offset: u64) -> ServeError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => ServeError::Changed { offset },
        _ => ServeError::Disk(error),
    }
}

/// Part of an encoding in one buffer. Pairs are copied into it. Groups are read into it, with one system call for each
/// run of groups that are contiguous in the file, although pairs separate them in the buffer.
struct Batch {
    buffer: Buffer,
    len: usize,
    groups: Vec<BatchGroup>,
}

/// Group in a batch.
struct BatchGroup {
    /// Offset in the file, bytes.
    offset: u64,
    /// Place in the buffer.
    range: Range<usize>,
    /// Value that the hash tree proves.
    value: ChainingValue,
}

impl Batch {
    fn new(pool: &Arc<Pool>) -> Self {
        Self { buffer: pool.take(), len: 0, groups: Vec::with_capacity(2 * BULK_BATCH_BYTES / GROUP_BYTES as usize) }
    }

    fn pair(&mut self, pair: &[u8]) {
        self.buffer.bytes_mut()[self.len..self.len + pair.len()].copy_from_slice(pair);
        self.len += pair.len();
    }

    fn group(&mut self, offset: u64, len: usize, value: ChainingValue) {
        self.groups.push(BatchGroup { offset, range: self.len..self.len + len, value });
        self.len += len;
    }

    fn read(mut self, source: &Source) -> Result<Bytes, ServeError> {
        let follow = |a: &BatchGroup, b: &BatchGroup| a.offset + a.range.len() as u64 == b.offset;
        let (mut rest, mut passed) = (self.buffer.bytes_mut(), 0);
        for run in self.groups.chunk_by(follow) {
            let mut targets = Vec::with_capacity(run.len());
            for BatchGroup { range, .. } in run {
                let (_, from) = std::mem::take(&mut rest).split_at_mut(range.start - passed);
                let (target, behind) = from.split_at_mut(range.len());
                targets.push(IoSliceMut::new(target));
                (rest, passed) = (behind, range.end);
            }
            let offset = run[0].offset;
            read_exact_vectored_at(&source.file, &mut targets, offset).map_err(|error| failed(error, offset))?;
        }
        if source.in_doubt || !source.is_untouched().map_err(ServeError::Disk)? {
            self.check(source.size)?;
        }
        Ok(self.buffer.freeze(self.len))
    }

    /// Compares the groups with the hash tree of the file of `size` bytes.
    fn check(&mut self, size: u64) -> Result<(), ServeError> {
        let is_root = size <= GROUP_BYTES;
        let bytes = self.buffer.bytes_mut();
        let wrong = self
            .groups
            .iter()
            .find(|group| group_value(group.offset, &bytes[group.range.clone()], is_root) != group.value);
        wrong.map_or(Ok(()), |group| Err(ServeError::Changed { offset: group.offset }))
    }
}
