//! An owner's side: groups of a file, with their proofs, onto a stream.

use std::{fs::File, io, ops::Range};

use bytes::{Bytes, BytesMut};
use shared::{
    content::ContentHash,
    limits::{BULK_BATCH_BYTES, BULK_BATCHES, UPLOAD_RUN_BYTES, UPLOAD_SILENCE},
};
use tokio::{io::AsyncWrite, sync::mpsc, task};

use super::{
    groups::GroupRanges,
    run_io::{Run, RunReader},
    stream::{ChunkSink, Writer},
    verify::{Mismatch, PAIR_BYTES, Step, Verifier, outboard_bytes},
};
use crate::store::stamp::Stamp;

/// Pairs read from an outboard at a time, bytes: those of 16 MiB of file.
const OUTBOARD_RUN_BYTES: usize = 64 << 10;

/// A file that can be served: opened, with what proves its groups.
#[derive(Debug)]
pub struct Source {
    /// Hash of its bytes.
    pub hash: ContentHash,
    /// Bytes.
    pub size: u64,
    pub(crate) file: File,
    /// `None` when the file has one group, which needs none.
    pub(crate) outboard: Option<File>,
    /// What the file looks like as long as nobody writes to it; `None` for a file that this process alone writes to, and
    /// only where it is not read.
    pub(crate) stamp: Option<Stamp>,
}

impl Source {
    /// Whether the file was not written to since it was hashed. The kernel sets the times before it changes a byte, so bytes
    /// that were read before this is asked are those that were hashed. (A program that maps the file into its memory can
    /// get round that; then the receiver notices.)
    fn is_untouched(&self) -> io::Result<bool> {
        match &self.stamp {
            Some(stamp) => Ok(Stamp::from_stat(&rustix::fs::fstat(&self.file)?).is_same_write(stamp)),
            None => Ok(true),
        }
    }
}

/// Why a file could not be sent to its end. What was sent until then is right.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The file (or its outboard) is not what it was when it was hashed. Reset the stream so that the receiver
    /// tries another owner, and have the share look at it again ([`crate::store::Share::suspect`]).
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
    /// The receiver took no byte for `limits::UPLOAD_SILENCE`. Reset the stream.
    #[error("the receiver took nothing for {} s", UPLOAD_SILENCE.as_secs())]
    Stalled,
}

/// Sends `ranges` of a file, with proofs, and returns the bytes of the file that were sent.
///
/// A file that changes, shrinks or vanishes meanwhile ends in an error. Its bytes are not hashed once more before they
/// leave: the receiver does that, so what a damaged disk makes of them is noticed there ([`check`] then tells whether
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
    serve_to(source, ranges, &mut Writer(writer), progress).await
}

/// [`serve`], to a sink that takes whole chunks.
///
/// # Errors
/// See [`ServeError`].
pub async fn serve_to<S: ChunkSink>(
    source: Source,
    ranges: GroupRanges,
    sink: &mut S,
    mut progress: impl FnMut(u64),
) -> Result<u64, ServeError> {
    let file_bytes = ranges.bytes(source.size);
    let (batches, mut ready) = mpsc::channel(BULK_BATCHES);
    let encoder = task::spawn_blocking(move || encode(&source, ranges, &batches));
    while let Some(Batch { mut chunks, mut bytes }) = ready.recv().await {
        while bytes > 0 {
            let sent = tokio::time::timeout(UPLOAD_SILENCE, sink.send(&mut chunks))
                .await
                .map_err(|_| ServeError::Stalled)?
                .map_err(ServeError::Stream)?;
            bytes -= sent;
            progress(sent as u64);
        }
    }
    encoder.await.map_err(|error| ServeError::Disk(io::Error::other(error)))??;
    Ok(file_bytes)
}

/// Reads `ranges` of a file and compares them with its hash. Blocks.
///
/// # Errors
/// [`ServeError::Changed`] when they are not what they should be.
pub fn check(source: &Source, ranges: GroupRanges) -> Result<(), ServeError> {
    walk(source, ranges, Checked::Groups, |_| true)
}

/// Encoded bytes on their way.
struct Batch {
    chunks: Vec<Bytes>,
    bytes: usize,
}

/// Reads and hands over; ends early, without an error, when nobody takes the batches any more.
fn encode(source: &Source, ranges: GroupRanges, batches: &mpsc::Sender<Batch>) -> Result<(), ServeError> {
    let mut encoder = Encoder::default();
    let mut there = true;
    walk(source, ranges, Checked::Pairs, |part| {
        match part {
            Part::Pair(pair) => encoder.pair(pair),
            Part::Group { run, at, len } => encoder.group(run, at, len),
        }
        if encoder.bytes >= BULK_BATCH_BYTES {
            there = batches.blocking_send(encoder.take()).is_ok();
        }
        there
    })?;
    if there && encoder.bytes > 0 {
        // Nobody there to take it: the async side has its own error to report.
        let _gone = batches.blocking_send(encoder.take());
    }
    Ok(())
}

/// A part of an encoding.
enum Part<'a> {
    Pair(&'a [u8]),
    /// `len` bytes at `at` of a run that was read.
    Group {
        run: &'a Run,
        at: usize,
        len: usize,
    },
}

/// What of a file is compared with its hash.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Checked {
    /// The outboard alone.
    Pairs,
    /// All of it.
    Groups,
}

/// Reads the parts of an encoding in order, until `part` does not want more.
fn walk(
    source: &Source,
    ranges: GroupRanges,
    checked: Checked,
    mut part: impl FnMut(Part<'_>) -> bool,
) -> Result<(), ServeError> {
    let mut verifier = Verifier::new(source.hash, source.size, ranges);
    let mut data = RunReader::new(&source.file, UPLOAD_RUN_BYTES);
    let mut pairs = source.outboard.as_ref().map(|outboard| RunReader::new(outboard, OUTBOARD_RUN_BYTES));
    let pairs_end = outboard_bytes(source.size);
    let mut reached = 0;
    while let Some(step) = verifier.next() {
        let changed = |Mismatch { offset }| ServeError::Changed { offset };
        let disk = |error: io::Error| match error.kind() {
            io::ErrorKind::UnexpectedEof => ServeError::Changed { offset: reached },
            _ => ServeError::Disk(error),
        };
        let go_on = match (step, &mut pairs) {
            (Step::Group { offset, len }, _) => {
                let (at, is_new) = data.read(offset, len, verifier.run_end(offset)).map_err(disk)?;
                if is_new && !source.is_untouched().map_err(disk)? {
                    return Err(ServeError::Changed { offset });
                }
                reached = offset;
                match checked {
                    Checked::Pairs => verifier.trust(),
                    Checked::Groups => verifier.accept(&data.run()[at..at + len]).map_err(changed)?,
                }
                part(Part::Group { run: data.run(), at, len })
            }
            (Step::Pair { index }, Some(pairs)) => {
                let (at, _) = pairs.read(index * PAIR_BYTES as u64, PAIR_BYTES, pairs_end).map_err(disk)?;
                let pair = &pairs.run()[at..at + PAIR_BYTES];
                verifier.accept(pair).map_err(changed)?;
                part(Part::Pair(pair))
            }
            (Step::Pair { .. }, None) => return Err(ServeError::Changed { offset: reached }),
        };
        if !go_on {
            break;
        }
    }
    Ok(())
}

/// Collects the parts of an encoding as chunks. Groups are not copied: they stay in the run they were read with.
#[derive(Default)]
struct Encoder {
    chunks: Vec<Bytes>,
    bytes: usize,
    pairs: BytesMut,
    /// Groups that follow each other in a run, not in `chunks` yet.
    groups: Option<(Run, Range<usize>)>,
}

impl Encoder {
    fn pair(&mut self, pair: &[u8]) {
        self.end_groups();
        self.pairs.extend_from_slice(pair);
        self.bytes += pair.len();
    }

    fn group(&mut self, run: &Run, at: usize, len: usize) {
        self.bytes += len;
        match &mut self.groups {
            Some((of, range)) if range.end == at && of.as_ptr() == run.as_ptr() => range.end += len,
            _ => {
                self.end_groups();
                self.end_pairs();
                self.groups = Some((run.clone(), at..at + len));
            }
        }
    }

    fn end_pairs(&mut self) {
        if !self.pairs.is_empty() {
            self.chunks.push(self.pairs.split().freeze());
        }
    }

    fn end_groups(&mut self) {
        if let Some((run, range)) = self.groups.take() {
            self.chunks.push(run.slice(range));
        }
    }

    fn take(&mut self) -> Batch {
        self.end_groups();
        self.end_pairs();
        Batch { chunks: std::mem::take(&mut self.chunks), bytes: std::mem::take(&mut self.bytes) }
    }
}
