//! A receiver's side: groups of a file, with their proofs, from a stream into a partial file.

use std::{io, pin::pin, time::Duration};

use bytes::{Buf, Bytes};
use shared::{
    error::{Failure, FailureCode},
    limits::{BULK_BATCHES, DISK_RUN_BYTES, GROUP_BYTES},
};
use tokio::{io::AsyncRead, sync::mpsc, task};

use super::{
    groups::GroupRanges,
    meter::DecoderMeter,
    run_io::RunWriter,
    stream::{ChunkSource, Reader},
    verify::{Mismatch, PAIR_BYTES, Step, Verifier},
};
use crate::store::{failure::is_no_space, partial::Partial};

/// Pairs collected before they are written to the outboard, bytes.
const OUTBOARD_RUN_BYTES: usize = 64 << 10;

/// Why not all groups came. The groups verified until then stay in the partial file.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The owner sent bytes that are not the file's (or lied about its size). Blame it; try another.
    #[error("wrong bytes at offset {offset}")]
    Verification {
        /// Where in the file the first part begins that is not proven.
        offset: u64,
    },
    /// The stream ended too early. Try another owner.
    #[error("the stream ended at offset {offset}")]
    Truncated {
        /// Where in the file.
        offset: u64,
    },
    /// The stream broke or was reset by the owner. Try another.
    #[error("the stream broke: {0}")]
    Stream(#[source] io::Error),
    /// The owner sent nothing for this long. Try another.
    #[error("the owner sent nothing for {} ms", .0.as_millis())]
    Silent(Duration),
    /// The disk is full. No owner helps.
    #[error("no space left: {0}")]
    NoSpace(#[source] io::Error),
    /// The partial file could not be written. No owner helps.
    #[error("the partial file cannot be written: {0}")]
    Disk(#[source] io::Error),
}

impl FetchError {
    /// Whether another owner may do better.
    pub fn is_owners_fault(&self) -> bool {
        match self {
            Self::Verification { .. } | Self::Truncated { .. } | Self::Stream(_) | Self::Silent(_) => true,
            Self::NoSpace(_) | Self::Disk(_) => false,
        }
    }

    /// As a user sees it, when it ends the download of `what`.
    pub fn to_failure(&self, what: &str) -> Failure {
        let (code, hint) = match self {
            Self::Verification { .. } => {
                (FailureCode::VerificationFailed, "nothing of it was kept; fetch it from another owner")
            }
            Self::Truncated { .. } | Self::Stream(_) => (FailureCode::NoOwner, "try again"),
            Self::Silent(_) => (FailureCode::Timeout, "try again"),
            Self::NoSpace(_) => (FailureCode::NoSpace, "free some space and try again"),
            Self::Disk(_) => (FailureCode::Io, "look at the disk and the folder's permissions"),
        };
        Failure::new(code, format!("cannot download {what}"), self, hint)
    }

    fn from_disk(error: io::Error) -> Self {
        if is_no_space(&error) { Self::NoSpace(error) } else { Self::Disk(error) }
    }
}

/// Receives `ranges` of the partial's file and returns the bytes of the file that came.
///
/// Each group is checked as it arrives and only then written, in place; `progress` hears how many bytes more were
/// verified. Bytes behind the encoding are left unread or dropped. May run several times on one partial, for
/// different ranges even at once.
///
/// # Errors
/// See [`FetchError`]; `silence` is how long the stream may bring nothing while there is room for it.
pub async fn fetch<R: AsyncRead + Unpin + Send>(
    reader: R,
    ranges: GroupRanges,
    partial: &Partial,
    silence: Duration,
    progress: impl FnMut(u64) + Send + 'static,
) -> Result<u64, FetchError> {
    fetch_from(&mut Reader(reader), ranges, partial, silence, progress).await
}

/// [`fetch`], from a source that gives whole chunks.
///
/// # Errors
/// See [`FetchError`].
pub async fn fetch_from<S: ChunkSource>(
    source: &mut S,
    ranges: GroupRanges,
    partial: &Partial,
    silence: Duration,
    progress: impl FnMut(u64) + Send + 'static,
) -> Result<u64, FetchError> {
    let (batches, incoming) = mpsc::channel(BULK_BATCHES);
    let (partial, meter) = (partial.clone(), source.meter());
    let decoder = task::spawn_blocking(move || decode(&partial, ranges, Incoming::new(incoming, meter), progress));
    let stream = async {
        loop {
            // Room first: a receiver with a slow disk must not take its own pauses for the owner's silence.
            let Ok(room) = batches.reserve().await else { return Ok(()) };
            source.ready().await;
            match tokio::time::timeout(silence, source.next()).await {
                Err(_) => return Err(FetchError::Silent(silence)),
                Ok(Err(error)) => return Err(FetchError::Stream(error)),
                Ok(Ok(chunks)) if chunks.is_empty() => return Ok(()),
                Ok(Ok(chunks)) => room.send(chunks),
            }
        }
    };
    // The encoding says itself where it ends: the decoder's end is the end of reading.
    let mut decoder = pin!(decoder);
    let (broken, decoded) = tokio::select! {
        biased;
        decoded = &mut decoder => (Ok(()), decoded),
        broken = stream => {
            drop(batches);
            (broken, decoder.await)
        }
    };
    let decoded = decoded.map_err(|error| FetchError::Disk(io::Error::other(error)))?;
    match (decoded, broken) {
        // Wrong bytes and a full disk say more than the stream's end, which only follows from it.
        (Err(FetchError::Truncated { .. }), Err(broken)) => Err(broken),
        (decoded, _) => decoded,
    }
}

/// The encoded bytes, on the blocking side.
struct Incoming {
    batches: mpsc::Receiver<Vec<Bytes>>,
    chunks: std::vec::IntoIter<Bytes>,
    chunk: Bytes,
    meter: DecoderMeter,
}

impl Incoming {
    fn new(batches: mpsc::Receiver<Vec<Bytes>>, meter: DecoderMeter) -> Self {
        Self { batches, chunks: Vec::new().into_iter(), chunk: Bytes::new(), meter }
    }

    /// Fills `target`; `false` when the stream ends before.
    fn fill(&mut self, mut target: &mut [u8]) -> bool {
        while !target.is_empty() {
            if self.chunk.is_empty() {
                self.chunk = match self.chunks.next() {
                    Some(chunk) => chunk,
                    None => match self.meter.waiting(|| self.batches.blocking_recv()) {
                        Some(chunks) => {
                            self.chunks = chunks.into_iter();
                            continue;
                        }
                        None => return false,
                    },
                };
            }
            let len = self.chunk.len().min(target.len());
            let (head, rest) = target.split_at_mut(len);
            self.chunk.copy_to_slice(head);
            target = rest;
        }
        true
    }
}

/// Checks and writes.
fn decode(
    partial: &Partial,
    ranges: GroupRanges,
    mut incoming: Incoming,
    progress: impl FnMut(u64),
) -> Result<u64, FetchError> {
    let mut verifier = Verifier::new(partial.hash(), partial.size(), ranges);
    let mut sink = Sink::new(partial, incoming.meter.clone(), progress);
    let mut reached = 0;
    let mut received = 0;
    let ended = loop {
        let Some(step) = verifier.next() else { break None };
        match step {
            Step::Pair { index } => {
                let mut pair = [0; PAIR_BYTES];
                if !incoming.fill(&mut pair) {
                    break Some(FetchError::Truncated { offset: reached });
                }
                if let Err(Mismatch { offset }) = verifier.accept(&pair) {
                    break Some(FetchError::Verification { offset });
                }
                sink.pair(index, &pair).map_err(FetchError::from_disk)?;
            }
            Step::Group { offset, len } => {
                let slot = sink.slot(offset, len).map_err(FetchError::from_disk)?;
                reached = offset;
                if !incoming.fill(slot) {
                    break Some(FetchError::Truncated { offset });
                }
                if let Err(Mismatch { offset }) = verifier.accept(slot) {
                    break Some(FetchError::Verification { offset });
                }
                sink.commit(offset, len);
                received += len as u64;
            }
        }
    };
    sink.flush().map_err(FetchError::from_disk)?;
    ended.map_or(Ok(received), Err)
}

/// Writes what was verified, in runs, and marks groups in the partial once they are written.
struct Sink<'a, P> {
    partial: &'a Partial,
    data: RunWriter<'a>,
    pairs: Option<RunWriter<'a>>,
    /// Groups in `data` that are not written yet.
    unwritten: GroupRanges,
    meter: DecoderMeter,
    progress: P,
}

impl<'a, P: FnMut(u64)> Sink<'a, P> {
    fn new(partial: &'a Partial, meter: DecoderMeter, progress: P) -> Self {
        // A small file takes a small buffer.
        let data_bytes = usize::try_from(partial.size()).unwrap_or(usize::MAX).min(DISK_RUN_BYTES);
        Self {
            partial,
            data: RunWriter::new(partial.file(), data_bytes),
            pairs: partial.outboard().map(|outboard| RunWriter::new(outboard, OUTBOARD_RUN_BYTES)),
            unwritten: GroupRanges::default(),
            meter,
            progress,
        }
    }

    fn pair(&mut self, index: u64, pair: &[u8; PAIR_BYTES]) -> io::Result<()> {
        if let Some(pairs) = &mut self.pairs {
            pairs.slot(index * PAIR_BYTES as u64, PAIR_BYTES)?.copy_from_slice(pair);
            pairs.commit(PAIR_BYTES);
        }
        Ok(())
    }

    fn slot(&mut self, offset: u64, len: usize) -> io::Result<&mut [u8]> {
        if !self.data.has_room(offset, len) {
            self.flush()?;
        }
        self.data.slot(offset, len)
    }

    fn commit(&mut self, offset: u64, len: usize) {
        self.data.commit(len);
        let group = offset / GROUP_BYTES;
        self.unwritten.insert(group..group + 1);
    }

    /// Pairs before groups: a group counts as verified only when what proves it to others is there too.
    fn flush(&mut self) -> io::Result<()> {
        let bytes = self.data.pending() as u64;
        self.meter.writing(|| {
            if let Some(pairs) = &mut self.pairs {
                pairs.flush()?;
            }
            self.data.flush()
        })?;
        self.partial.mark(&std::mem::take(&mut self.unwritten));
        (self.progress)(bytes);
        Ok(())
    }
}
