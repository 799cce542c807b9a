//! Receiving side of a bulk stream: groups of a file, with their proofs, into a partial file.

use std::{ops::RangeInclusive, pin::pin, thread, time::Duration};

use super::{
    decoder::{Incoming, Output, Sink, Writer, Written, decode, write_all},
    fetch_error::FetchError,
    params::BULK_BATCHES,
    stream::{ChunkSource, Reader},
};
use crate::{
    bao::{params::DISK_RUN_BYTES, verifier::Verifier},
    diagnostics::meter::DecoderMeter,
    store::Partial,
};
use bytes::Bytes;
use futures::FutureExt;
use shared::group_ranges::GroupRanges;
use tokio::{
    io::AsyncRead,
    sync::mpsc,
    task::{self, JoinHandle},
    time::{sleep, timeout},
};

/// Shortest and longest time for which chunks gather before the decoder is woken. Waking it for every few datagrams
/// costs more than hashing them, and so does waking the stream's reader. The stream's window buffers meanwhile.
const GATHER: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_millis(8);
/// Bytes to gather, if they arrive in that time.
const GATHER_BYTES: usize = 64 << 10;
/// Verified runs that wait for the one that is being written.
const QUEUED_RUNS: usize = 1;
/// Minimum number of processors with which a separate thread for writing is faster.
const MIN_PROCESSORS_FOR_WRITER: usize = 3;

/// Thread that writes verified bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writing {
    /// A separate thread: hashing and writing overlap.
    Apart,
    /// The thread that hashes.
    Along,
}

impl Writing {
    /// Returns the faster variant for this machine. On a machine on which the network alone keeps all processors busy,
    /// a separate thread costs more than it saves.
    pub fn for_this_machine() -> Self {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        if processors >= MIN_PROCESSORS_FOR_WRITER { Self::Apart } else { Self::Along }
    }
}

/// Receives the groups `ranges` of a partial file and returns the number of bytes of the groups that arrived.
///
/// Each group is verified as it arrives and then written in place, unless another request has written it before;
/// `progress` is called after each write. Bytes after the end of the encoding are left unread or dropped. Several calls
/// may run concurrently on one partial file.
///
/// # Errors
/// See [`FetchError`]. `silence` is the longest time for which the stream may deliver nothing while this peer is ready
/// to receive.
pub async fn fetch<R: AsyncRead + Unpin + Send>(
    reader: R,
    ranges: GroupRanges,
    partial: &Partial,
    silence: Duration,
    progress: impl FnMut(Written) + Send + 'static,
) -> Result<u64, FetchError> {
    fetch_from(&mut Reader(reader), ranges, partial, silence, Writing::Apart, progress).await
}

/// Same as [`fetch`], from a source of whole chunks.
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
    // The proofs are not included. When this many bytes have arrived, little is missing.
    let expected = usize::try_from(ranges.bytes(partial.size())).unwrap_or(usize::MAX);
    let meter = source.meter();
    let incoming = Incoming::new(incoming, meter.clone());
    let threads = Threads::spawn(incoming, ranges, partial, expected, writing, meter.clone(), progress);
    let mut decoder = pin!(threads.decoder);
    // The decoder recognises the end of the encoding, so its end ends the reading.
    let (read, decoded) = tokio::select! {
        biased;
        decoded = &mut decoder => (Ok(()), decoded),
        read = read_batches(source, batches, expected, silence) => (read, decoder.await),
    };
    let decoded = decoded.map_err(|error| FetchError::from_join(&error))?;
    if let Some(writer) = threads.writer {
        // The decoder has dropped its end of the channel, so the writer ends after the last run.
        let written = meter.until_written(writer).await.map_err(|error| FetchError::from_join(&error))?;
        written.map_err(FetchError::from_disk)?;
    }
    match (decoded, read) {
        // The end of the stream is a consequence of wrong bytes or a full disk, which are the more specific errors.
        (Err(FetchError::Truncated { .. }), Err(broken)) => Err(broken),
        (decoded, _) => decoded,
    }
}

/// Blocking threads of one fetch.
struct Threads {
    decoder: JoinHandle<Result<u64, FetchError>>,
    writer: Option<JoinHandle<std::io::Result<()>>>,
}

impl Threads {
    fn spawn(
        incoming: Incoming,
        ranges: GroupRanges,
        partial: &Partial,
        expected: usize,
        writing: Writing,
        meter: DecoderMeter,
        progress: impl FnMut(Written) + Send + 'static,
    ) -> Self {
        let run_bytes = expected.min(DISK_RUN_BYTES);
        let (hash, size, has_pairs) = (partial.hash(), partial.size(), partial.outboard().is_some());
        let writer = Writer { partial: partial.clone(), meter: meter.clone(), progress };
        let decoding = move |output| {
            let sink = Sink::new(run_bytes, has_pairs, output, meter);
            decode(Verifier::new(hash, size, ranges), incoming, sink)
        };
        match writing {
            Writing::Apart => {
                let (writes, verified) = std::sync::mpsc::sync_channel(QUEUED_RUNS);
                let (empty, emptied) = std::sync::mpsc::channel();
                let writer = task::spawn_blocking(move || write_all(writer, &verified, &empty));
                let decoder = task::spawn_blocking(move || decoding(Output::Thread { writes, emptied }));
                Self { decoder, writer: Some(writer) }
            }
            Writing::Along => {
                Self { decoder: task::spawn_blocking(move || decoding(Output::Here(writer))), writer: None }
            }
        }
    }
}

/// Reads the stream into `batches` until it ends or the decoder does.
async fn read_batches<S: ChunkSource>(
    source: &mut S,
    batches: mpsc::Sender<Vec<Bytes>>,
    expected: usize,
    silence: Duration,
) -> Result<(), FetchError> {
    let mut reader = BatchReader { source, silence, expected, read: 0, gather: *GATHER.start(), chunks: Vec::new() };
    loop {
        // Capacity first: a receiver with a slow disk must not mistake its own pauses for silence of the owner.
        let Ok(slot) = batches.reserve().await else { return Ok(()) };
        reader.source.ready().await;
        let ended = reader.read_batch().await;
        if !reader.chunks.is_empty() {
            slot.send(std::mem::take(&mut reader.chunks));
        }
        if let Some(ended) = ended {
            return ended;
        }
    }
}

/// Gathers the chunks of a stream in batches.
struct BatchReader<'a, S> {
    source: &'a mut S,
    silence: Duration,
    /// Bytes of the requested groups.
    expected: usize,
    /// Bytes read so far.
    read: usize,
    /// Time for which the next batch gathers.
    gather: Duration,
    chunks: Vec<Bytes>,
}

impl<S: ChunkSource> BatchReader<'_, S> {
    /// Reads one batch into `chunks`. Returns how the stream ended, if it did.
    async fn read_batch(&mut self) -> Option<Result<(), FetchError>> {
        let batch_bytes = self.source.batch_bytes();
        let mut bytes = 0;
        let mut has_waited = false;
        let ended = loop {
            let next = self.source.next(batch_bytes);
            let next = if bytes == 0 {
                match timeout(self.silence, next).await {
                    Ok(next) => next,
                    Err(_) if self.source.is_excused() => continue,
                    Err(_) => break Some(Err(FetchError::Silent(self.silence))),
                }
            } else if let Some(next) = next.now_or_never() {
                next
            } else if has_waited || self.read + bytes >= self.expected {
                break None;
            } else {
                sleep(self.gather).await;
                has_waited = true;
                continue;
            };
            match next {
                Err(error) => break Some(Err(FetchError::Stream(error))),
                Ok(chunks) if chunks.is_empty() => break Some(Ok(())),
                Ok(chunks) => {
                    bytes += chunks.iter().map(Bytes::len).sum::<usize>();
                    self.chunks.extend(chunks);
                    if bytes >= batch_bytes {
                        break None;
                    }
                }
            }
        };
        self.read += bytes;
        self.gather = if bytes < GATHER_BYTES { self.gather * 2 } else { self.gather / 2 };
        self.gather = self.gather.clamp(*GATHER.start(), *GATHER.end());
        ended
    }
}

#[cfg(test)]
mod tests {
    use protocol::provider_health::PROVIDER_SILENCE;

    use super::*;
    use crate::{
        store::{Share, ShareOptions},
        transfer::serve,
    };

    #[tokio::test]
    async fn panic_of_the_writer_is_not_an_error_of_the_disk() {
        for writing in [Writing::Apart, Writing::Along] {
            let dir = tempfile::tempdir().unwrap();
            let folder = dir.path().join("share");
            std::fs::create_dir(&folder).unwrap();
            std::fs::write(folder.join("original"), vec![7; 100_000]).unwrap();
            let (changes, _kept) = mpsc::channel(100);
            let options = ShareOptions { racy_window: Duration::ZERO, ..ShareOptions::default() };
            let share = Share::open(&folder, &dir.path().join("state"), options, changes).await.unwrap();
            share.settled().await.unwrap();
            let original = share.list().remove(0);
            let file = shared::content::FileMeta { name: "copy".parse().unwrap(), ..original };
            let destination = share.destination(&file.name, None).unwrap();
            let partial = share.begin(&destination, &file).await.unwrap();
            let mut encoded = Vec::new();
            serve(share.open_for_serving(&file.hash).unwrap(), partial.missing(), &mut encoded, |_| {}).await.unwrap();
            let mut source = Reader(encoded.as_slice());
            let panics = |_: Written| panic!("the progress of a test");
            let fetched = fetch_from(&mut source, partial.missing(), &partial, PROVIDER_SILENCE, writing, panics).await;
            assert!(matches!(fetched, Err(FetchError::Panicked(_))), "{writing:?}: {fetched:?}");
        }
    }
}
