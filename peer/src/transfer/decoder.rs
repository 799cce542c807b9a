//! Blocking part of a receiver: verifies an encoding and writes its groups to the partial file.

use std::{
    io,
    ops::Range,
    sync::mpsc::{Receiver, Sender, SyncSender},
    time::Duration,
};

use bytes::{Buf, Bytes};
use shared::{
    limits::GROUP_BYTES,
    time::{Clock, Timestamp},
};
use tokio::sync::mpsc;

use super::fetch_error::FetchError;
use crate::{
    bao::{
        aligned::AlignedBuffer,
        verifier::{Mismatch, PAIR_BYTES, Step, Verifier},
    },
    diagnostics::meter::DecoderMeter,
    store::Partial,
};

/// Longest time for which verified bytes gather before they are written. Only written groups are advertised to the
/// swarm.
const RUN_TIME: Duration = Duration::from_millis(20);

/// Progress of a request, in the order of its groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Bytes that were verified and written since the last report.
    pub bytes: u64,
    /// Bytes among them that no other request had written before.
    pub new_bytes: u64,
}

/// Encoded bytes as the stream delivers them.
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

    /// Fills `target`. Returns false if the stream ends before.
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

/// Verifies an encoding and passes its groups to `sink`. Returns the bytes of the verified groups. Ends early without
/// an error if the writer in another thread has failed.
pub(super) fn decode<P: FnMut(Written)>(
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
                if !sink.begin_group(offset, len)? {
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

/// One verified run of the file, to be written.
pub(super) struct Write {
    /// Holds the run in its first `len` bytes.
    data: AlignedBuffer,
    len: usize,
    offset: u64,
    groups: Range<u64>,
    /// Runs of the outboard, each with its offset: the pairs that prove these groups and did not arrive before.
    pairs: Vec<(u64, Vec<u8>)>,
}

/// Destination of verified runs.
pub(super) enum Output<P> {
    /// Writer on the thread that verifies.
    Here(Writer<P>),
    /// Channels to a thread that writes and returns the buffers.
    Thread { writes: SyncSender<Write>, emptied: Receiver<AlignedBuffer> },
}

/// Collects verified groups in runs and passes the runs on.
pub(super) struct Sink<P> {
    run_bytes: usize,
    has_pairs: bool,
    /// Buffer of `run_bytes` bytes. Reused without clearing, which would cost a pass over all bytes.
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
    pub(super) fn new(run_bytes: usize, has_pairs: bool, output: Output<P>, meter: DecoderMeter) -> Self {
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

    /// Passes the run on unless the `len` bytes at `offset` can join it. Returns false if the writer has ended.
    fn begin_group(&mut self, offset: u64, len: usize) -> Result<bool, FetchError> {
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

    /// Returns the buffer for the next `len` bytes. They belong to the run only after [`commit`](Self::commit).
    fn slot(&mut self, len: usize) -> &mut [u8] {
        &mut self.data.bytes_mut()[self.len..self.len + len]
    }

    fn commit(&mut self, offset: u64, len: usize) {
        debug_assert_eq!(self.offset + self.len as u64, offset, "runs have no holes");
        self.len += len;
        self.groups.end = offset / GROUP_BYTES + 1;
    }

    /// Passes the run on. Returns false if the writer has ended.
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
                // Blocks while the disk is slower than the network.
                if self.meter.waiting_for_disk(|| writes.send(write)).is_err() {
                    return Ok(false);
                }
                emptied.try_recv().unwrap_or_else(|_| AlignedBuffer::new(self.run_bytes))
            }
        };
        Ok(true)
    }
}

/// Writes verified runs to the partial file, which then marks their groups as verified.
pub(super) struct Writer<P> {
    pub(super) partial: Partial,
    pub(super) meter: DecoderMeter,
    pub(super) progress: P,
}

impl<P: FnMut(Written)> Writer<P> {
    /// Writes a run and returns its buffer.
    fn write(&mut self, write: Write) -> io::Result<AlignedBuffer> {
        let Write { data, len, offset, groups, pairs } = write;
        let bytes = len as u64;
        let new_bytes =
            self.meter.writing(|| self.partial.write_verified(&data.bytes()[..len], offset, groups, &pairs))?;
        (self.progress)(Written { bytes, new_bytes });
        Ok(data)
    }
}

/// Writes runs until the decoder ends, and returns their buffers.
pub(super) fn write_all(
    mut writer: Writer<impl FnMut(Written)>,
    verified: &Receiver<Write>,
    emptied: &Sender<AlignedBuffer>,
) -> io::Result<()> {
    for write in verified {
        // Fails only if the decoder has ended; then this is the last run.
        let _ = emptied.send(writer.write(write)?);
    }
    Ok(())
}
