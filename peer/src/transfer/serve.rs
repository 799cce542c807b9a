//! An owner's side: groups of a file, with their proofs, onto a stream.

use std::{
    io::{self, IoSliceMut},
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use shared::{
    group_ranges::GroupRanges,
    limits::{BULK_BATCH_BYTES, BULK_BATCHES, GROUP_BYTES, UPLOAD_SILENCE},
    net::bulk::BulkAbort,
};
use tokio::{io::AsyncWrite, sync::mpsc, task};

use super::{
    buffer_pool::{Buffer, Pool},
    stream::{ChunkSink, Writer},
};
use crate::{
    bao::{
        check::{OUTBOARD_RUN_BYTES, check},
        read_ahead::{RunReader, read_exact_vectored_at},
        tree_hash::hash_file,
        verifier::{Mismatch, PAIR_BYTES, Step, Verifier, outboard_bytes},
    },
    store::source::Source,
};

/// Why a file could not be sent to its end. What was sent until then is right.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The file (or its outboard) is not what it was when it was hashed. Reset the stream so that the receiver
    /// tries another owner, and have the share look at it again ([`crate::store::Share::invalidate`]).
    #[error("the file changed (at offset {offset})")]
    Changed {
        /// Where it was noticed.
        offset: u64,
    },
    /// The file could not be read. Reset the stream.
    #[error("the file cannot be read: {0}")]
    Disk(#[source] io::Error),
    /// The receiver went away; nothing to do.
    #[error("the stream broke: {0}")]
    Stream(#[source] io::Error),
    /// The receiver took no byte for so long. Reset the stream; it says nothing of the file.
    #[error("the receiver took nothing for {} s", .0.as_secs_f32())]
    Stalled(Duration),
}

impl ServeError {
    /// What the stream is reset with. A receiver asks no more of an owner whose file [`Changed`](BulkAbort::Changed), so that is
    /// said only when it is so; after anything else it may come back.
    pub fn abort(&self) -> BulkAbort {
        match self {
            Self::Changed { .. } => BulkAbort::Changed,
            Self::Disk(_) | Self::Stream(_) | Self::Stalled(_) => BulkAbort::Stopped,
        }
    }
}

/// Sends `ranges` of a file, with proofs, and returns the bytes of the file that were sent.
///
/// A file that changes, shrinks or vanishes meanwhile ends in an error. Its bytes are not hashed once more before they
/// leave: the receiver does that, so what a damaged disk makes of them is noticed there ([`is_right`] then tells whether
/// it is so). `progress` hears how many bytes more were handed to the stream (proofs included). The stream is not
/// finished: that, or its reset, is the caller's.
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

/// [`serve`], to a sink that takes whole chunks, through buffers of `pool`; `silence` is how long it may take none of them.
///
/// # Errors
/// See [`ServeError`].
pub async fn serve_to<S: ChunkSink>(
    source: Source,
    ranges: GroupRanges,
    pool: Arc<Pool>,
    sink: &mut S,
    silence: Duration,
    mut progress: impl FnMut(u64),
) -> Result<u64, ServeError> {
    let file_bytes = ranges.bytes(source.size);
    let (batches, mut ready) = mpsc::channel(BULK_BATCHES);
    let encoder = task::spawn_blocking(move || encode(&source, ranges, &pool, &batches));
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
    encoder.await.map_err(|error| ServeError::Disk(io::Error::other(error)))??;
    Ok(file_bytes)
}

/// Whether `ranges` of a file are what its hash says; `None` when `stop` was set before that was known. Reads and hashes them;
/// blocks.
pub fn is_right(source: &Source, ranges: &GroupRanges, stop: &AtomicBool) -> Option<bool> {
    let is_right = match &source.outboard {
        Some(outboard) => check(source.hash, source.size, &source.file, outboard, ranges.clone(), stop).covers(ranges),
        None => hash_file(&source.file, source.size, None, stop).is_ok_and(|hash| hash == source.hash),
    };
    // What was not looked at is not wrong.
    (is_right || !stop.load(Ordering::Relaxed)).then_some(is_right)
}

/// Reads, lays out and hands over; ends early, without an error, when nobody takes the batches any more.
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
                verifier.defer_group();
                batch.group(offset, len);
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
        // Nobody there to take it: the async side has its own error to report.
        let _gone = batches.blocking_send(batch.read(source)?);
    }
    Ok(())
}

fn failed(error: io::Error, offset: u64) -> ServeError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => ServeError::Changed { offset },
        _ => ServeError::Disk(error),
    }
}

/// Part of an encoding, laid out in one buffer: pairs are copied to their places, groups are read into theirs, all that
/// follow each other in the file with one call, whatever lies between them here.
struct Batch {
    buffer: Buffer,
    len: usize,
    /// Where in the file, and where here.
    groups: Vec<(u64, Range<usize>)>,
}

impl Batch {
    fn new(pool: &Arc<Pool>) -> Self {
        Self { buffer: pool.take(), len: 0, groups: Vec::with_capacity(2 * BULK_BATCH_BYTES / GROUP_BYTES as usize) }
    }

    fn pair(&mut self, pair: &[u8]) {
        self.buffer.bytes_mut()[self.len..self.len + pair.len()].copy_from_slice(pair);
        self.len += pair.len();
    }

    fn group(&mut self, offset: u64, len: usize) {
        self.groups.push((offset, self.len..self.len + len));
        self.len += len;
    }

    fn read(mut self, source: &Source) -> Result<Bytes, ServeError> {
        let follow = |a: &(u64, Range<usize>), b: &(u64, Range<usize>)| a.0 + a.1.len() as u64 == b.0;
        let (mut rest, mut passed) = (self.buffer.bytes_mut(), 0);
        for run in self.groups.chunk_by(follow) {
            let mut places = Vec::with_capacity(run.len());
            for (_, place) in run {
                let (_, from) = std::mem::take(&mut rest).split_at_mut(place.start - passed);
                let (here, behind) = from.split_at_mut(place.len());
                places.push(IoSliceMut::new(here));
                (rest, passed) = (behind, place.end);
            }
            let offset = run[0].0;
            read_exact_vectored_at(&source.file, &mut places, offset).map_err(|error| failed(error, offset))?;
        }
        if let Some((offset, _)) = self.groups.first()
            && !source.is_untouched().map_err(ServeError::Disk)?
        {
            return Err(ServeError::Changed { offset: *offset });
        }
        Ok(self.buffer.freeze(self.len))
    }
}
