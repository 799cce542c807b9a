//! A receiver's side: groups of a file, with their proofs, from a stream into a partial file.

use std::{
    io,
    ops::{Range, RangeInclusive},
    pin::pin,
    sync::mpsc::{Receiver, Sender, SyncSender},
    thread,
    time::Duration,
};

use bytes::{Buf, Bytes};
use futures::FutureExt;
use shared::{
    error::{Failure, FailureCode},
    group_ranges::GroupRanges,
    limits::{BULK_BATCHES, DISK_RUN_BYTES, GROUP_BYTES},
    time::{Clock, Timestamp},
};
use tokio::{io::AsyncRead, sync::mpsc, task};

use super::stream::{ChunkSource, Reader};
use crate::{
    bao::{
        aligned::AlignedBuffer,
        verifier::{Mismatch, PAIR_BYTES, Step, Verifier},
    },
    diagnostics::meter::DecoderMeter,
    store::{download::partial::Partial, error::is_no_space},
};

/// How long chunks are gathered before the decoder is woken, at least and at most: waking it for every few datagrams costs
/// more than hashing them, and so does waking the stream's reader. Meanwhile nobody reads; the stream's window has room.
const GATHER: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_millis(8);
/// How much is gathered if that is possible in time.
const GATHER_BYTES: usize = 64 << 10;
/// How long verified bytes are gathered at most before they are written: only what is written counts as proven, and
/// others of the swarm wait for it.
const RUN_TIME: Duration = Duration::from_millis(20);
/// Runs that are verified and wait for the one that is being written.
const RUNS_UNDER_WAY: usize = 1;
/// Processors from which on a thread of its own for writing pays.
const OVERLAP_FROM: usize = 3;

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
                (FailureCode::VerificationFailed, "nothing wrong was kept; fetch it from another owner")
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

/// What more was verified of what a request is to bring, in its order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Bytes.
    pub bytes: u64,
    /// How many of them no other request had brought before.
    pub new_bytes: u64,
}

/// Receives `ranges` of the partial's file and returns the bytes of the file that came.
///
/// Each group is checked as it arrives and only then written, in place, if no other request brought it before; `progress` hears what more
/// was verified. Bytes behind the encoding are left unread or dropped. May run several times on one partial, for
/// different ranges even at once.
///
/// # Errors
/// See [`FetchError`]; `silence` is how long the stream may bring nothing while there is room for it.
pub async fn fetch<R: AsyncRead + Unpin + Send>(
    reader: R,
    ranges: GroupRanges,
    partial: &Partial,
    silence: Duration,
    progress: impl FnMut(Written) + Send + 'static,
) -> Result<u64, FetchError> {
    fetch_from(&mut Reader(reader), ranges, partial, silence, Writing::Apart, progress).await
}

/// Who writes what was verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writing {
    /// A thread of its own: hashing and writing overlap.
    Apart,
    /// The thread that hashes.
    Along,
}

impl Writing {
    /// As it is fastest on this machine: where there are not more processors than the network alone keeps busy, handing
    /// over costs more than it brings (an eighth of all the time, on two).
    pub fn for_this_machine() -> Self {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        if processors >= OVERLAP_FROM { Self::Apart } else { Self::Along }
    }
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
    writing: Writing,
    progress: impl FnMut(Written) + Send + 'static,
) -> Result<u64, FetchError> {
    let (batches, incoming) = mpsc::channel(BULK_BATCHES);
    // Proofs come on top: when so much is there, the rest is little.
    let expected = usize::try_from(ranges.bytes(partial.size())).unwrap_or(usize::MAX);
    let run_bytes = expected.min(DISK_RUN_BYTES);
    let (hash, size, has_pairs) = (partial.hash(), partial.size(), partial.outboard().is_some());
    let meter = source.meter();
    let writer = Writer { partial: partial.clone(), meter: meter.clone(), progress };
    let decoder_meter = meter.clone();
    let decoding = move |output| {
        let sink = Sink::new(run_bytes, has_pairs, output, decoder_meter.clone());
        decode(Verifier::new(hash, size, ranges), Incoming::new(incoming, decoder_meter), sink)
    };
    let (decoder, writer) = match writing {
        Writing::Apart => {
            let (writes, verified) = std::sync::mpsc::sync_channel(RUNS_UNDER_WAY);
            let (empty, emptied) = std::sync::mpsc::channel();
            let writer = task::spawn_blocking(move || write_all(writer, &verified, &empty));
            (task::spawn_blocking(move || decoding(Output::Thread { writes, emptied })), Some(writer))
        }
        Writing::Along => (task::spawn_blocking(move || decoding(Output::Here(writer))), None),
    };
    let stream = async {
        let mut gathered = Vec::new();
        let mut gather = *GATHER.start();
        let mut came = 0;
        loop {
            // Room first: a receiver with a slow disk must not take its own pauses for the owner's silence.
            let Ok(room) = batches.reserve().await else { return Ok(()) };
            source.ready().await;
            let batch = source.batch_bytes();
            let mut bytes = 0;
            let mut has_waited = false;
            let ended = loop {
                let next = source.next(batch);
                let next = if bytes == 0 {
                    match tokio::time::timeout(silence, next).await {
                        Ok(next) => next,
                        Err(_) if source.is_excused() => continue,
                        Err(_) => break Some(Err(FetchError::Silent(silence))),
                    }
                } else if let Some(next) = next.now_or_never() {
                    next
                } else if has_waited || came + bytes >= expected {
                    break None;
                } else {
                    tokio::time::sleep(gather).await;
                    has_waited = true;
                    continue;
                };
                match next {
                    Err(error) => break Some(Err(FetchError::Stream(error))),
                    Ok(chunks) if chunks.is_empty() => break Some(Ok(())),
                    Ok(chunks) => {
                        bytes += chunks.iter().map(Bytes::len).sum::<usize>();
                        gathered.extend(chunks);
                        if bytes >= batch {
                            break None;
                        }
                    }
                }
            };
            came += bytes;
            gather = if bytes < GATHER_BYTES { gather * 2 } else { gather / 2 }.clamp(*GATHER.start(), *GATHER.end());
            if bytes > 0 {
                room.send(std::mem::take(&mut gathered));
            }
            if let Some(ended) = ended {
                return ended;
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
    if let Some(writer) = writer {
        // The decoder has let go of its end: the writer ends when it has written what it was given.
        let written = meter.until_written(writer).await;
        written.map_err(|error| FetchError::Disk(io::Error::other(error)))?.map_err(FetchError::from_disk)?;
    }
    match (decoded, broken) {
        // Wrong bytes and a full disk say more than the stream's end, which only follows from it.
        (Err(FetchError::Truncated { .. }), Err(broken)) => Err(broken),
        (decoded, _) => decoded,
    }
}

/// The encoded bytes, on the blocking side.
pub(super) struct Incoming {
    batches: mpsc::Receiver<Vec<Bytes>>,
    chunks: std::vec::IntoIter<Bytes>,
    chunk: Bytes,
    meter: DecoderMeter,
}

impl Incoming {
    pub(super) fn new(batches: mpsc::Receiver<Vec<Bytes>>, meter: DecoderMeter) -> Self {
        Self { batches, chunks: Vec::new().into_iter(), chunk: Bytes::new(), meter }
    }

    /// Fills `target`; `false` when the stream ends before.
    pub(super) fn fill(&mut self, mut target: &mut [u8]) -> bool {
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

/// Checks, and has written what is right. Ends early, without an error, when a writer in another thread has one.
fn decode<P: FnMut(Written)>(
    mut verifier: Verifier,
    mut incoming: Incoming,
    mut sink: Sink<P>,
) -> Result<u64, FetchError> {
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
                sink.pair(index, &pair);
            }
            Step::Group { offset, len } => {
                if !sink.make_room(offset, len)? {
                    return Ok(received);
                }
                reached = offset;
                let slot = sink.slot(len);
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
    sink.flush()?;
    ended.map_or(Ok(received), Err)
}

/// Verified bytes on their way to the disk.
struct Write {
    /// One run of the file: its first `len` bytes.
    data: AlignedBuffer,
    len: usize,
    offset: u64,
    groups: Range<u64>,
    /// Runs of the outboard, each with its place: all that prove these groups to others and did not come before.
    pairs: Vec<(u64, Vec<u8>)>,
}

/// Where verified runs go.
enum Output<P> {
    /// To the disk, by the one that verifies.
    Here(Writer<P>),
    /// To a thread that writes, which gives the buffers back.
    Thread { writes: SyncSender<Write>, emptied: Receiver<AlignedBuffer> },
}

/// Collects what was verified in runs and has those written.
struct Sink<P> {
    run_bytes: usize,
    has_pairs: bool,
    /// Of `run_bytes`, written over again and again: clearing it would be a pass over all bytes.
    data: AlignedBuffer,
    len: usize,
    offset: u64,
    groups: Range<u64>,
    pairs: Vec<(u64, Vec<u8>)>,
    output: Output<P>,
    meter: DecoderMeter,
    clock: Clock,
    begun: Timestamp,
}

impl<P: FnMut(Written)> Sink<P> {
    fn new(run_bytes: usize, has_pairs: bool, output: Output<P>, meter: DecoderMeter) -> Self {
        Self {
            run_bytes,
            has_pairs,
            data: AlignedBuffer::new(run_bytes),
            len: 0,
            offset: 0,
            groups: 0..0,
            pairs: Vec::new(),
            output,
            meter,
            clock: Clock::start(),
            begun: Timestamp::ZERO,
        }
    }

    fn pair(&mut self, index: u64, pair: &[u8; PAIR_BYTES]) {
        if !self.has_pairs {
            return;
        }
        let at = index * PAIR_BYTES as u64;
        match self.pairs.last_mut() {
            Some((start, run)) if *start + run.len() as u64 == at => run.extend_from_slice(pair),
            _ => self.pairs.push((at, pair.to_vec())),
        }
    }

    /// Sees to it that the `len` bytes at `offset` join the run; `false` when nobody writes any more.
    fn make_room(&mut self, offset: u64, len: usize) -> Result<bool, FetchError> {
        let joins = self.offset + self.len as u64 == offset && self.len + len <= self.run_bytes;
        let now = self.clock.now();
        if self.len > 0 && (!joins || now.since(self.begun) >= RUN_TIME) && !self.flush()? {
            return Ok(false);
        }
        if self.len == 0 {
            self.begun = now;
            self.offset = offset;
            self.groups = offset / GROUP_BYTES..offset / GROUP_BYTES;
        }
        Ok(true)
    }

    /// A place for the next `len` bytes; they count only after [`commit`](Self::commit).
    fn slot(&mut self, len: usize) -> &mut [u8] {
        &mut self.data.bytes_mut()[self.len..self.len + len]
    }

    fn commit(&mut self, offset: u64, len: usize) {
        debug_assert_eq!(self.offset + self.len as u64, offset, "runs have no holes");
        self.len += len;
        self.groups.end = offset / GROUP_BYTES + 1;
    }

    /// Whether somebody still writes.
    fn flush(&mut self) -> Result<bool, FetchError> {
        if self.groups.is_empty() {
            return Ok(true);
        }
        let data = std::mem::take(&mut self.data);
        let len = std::mem::take(&mut self.len);
        let pairs = std::mem::take(&mut self.pairs);
        let groups = std::mem::replace(&mut self.groups, 0..0);
        let write = Write { data, len, offset: self.offset, groups, pairs };
        self.data = match &mut self.output {
            Output::Here(writer) => {
                self.meter.waiting_for_disk(|| writer.write(write)).map_err(FetchError::from_disk)?
            }
            Output::Thread { writes, emptied } => {
                // There is no room while the disk is the slower one.
                if self.meter.waiting_for_disk(|| writes.send(write)).is_err() {
                    return Ok(false);
                }
                emptied.try_recv().unwrap_or_else(|_| AlignedBuffer::new(self.run_bytes))
            }
        };
        Ok(true)
    }
}

/// Writes what was verified, and marks groups in the partial once they are written.
struct Writer<P> {
    partial: Partial,
    meter: DecoderMeter,
    progress: P,
}

impl<P: FnMut(Written)> Writer<P> {
    /// Returns the buffer.
    fn write(&mut self, write: Write) -> io::Result<AlignedBuffer> {
        let Write { data, len, offset, groups, pairs } = write;
        let bytes = len as u64;
        let new_bytes = self.meter.writing(|| self.partial.keep(&data.bytes()[..len], offset, groups, &pairs))?;
        (self.progress)(Written { bytes, new_bytes });
        Ok(data)
    }
}

fn write_all(
    mut writer: Writer<impl FnMut(Written)>,
    verified: &Receiver<Write>,
    emptied: &Sender<AlignedBuffer>,
) -> io::Result<()> {
    for write in verified {
        // The decoder has ended: nothing comes after this.
        let _last = emptied.send(writer.write(write)?);
    }
    Ok(())
}
