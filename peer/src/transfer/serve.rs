//! An owner's side: groups of a file, with their proofs, onto a stream.

use std::{fs::File, io};

use bytes::{Bytes, BytesMut};
use shared::{
    content::ContentHash,
    limits::{BULK_BATCH_BYTES, BULK_BATCHES, DISK_RUN_BYTES, UPLOAD_SILENCE},
};
use tokio::{
    io::{AsyncWrite, AsyncWriteExt},
    sync::mpsc,
    task,
};

use super::{
    groups::GroupRanges,
    run_io::RunReader,
    verify::{Mismatch, PAIR_BYTES, Step, Verifier, outboard_bytes},
};

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
/// Every group is hashed before it leaves, so a file that changes, shrinks or vanishes meanwhile ends in an error
/// and never in wrong bytes. `progress` hears how many bytes more were handed to the stream (proofs
/// included). The stream is not finished: that, or its reset, is the caller's.
///
/// # Errors
/// See [`ServeError`].
pub async fn serve<W: AsyncWrite + Unpin>(
    source: Source,
    ranges: GroupRanges,
    writer: &mut W,
    mut progress: impl FnMut(u64),
) -> Result<u64, ServeError> {
    let file_bytes = ranges.bytes(source.size);
    let (batches, mut ready) = mpsc::channel::<Bytes>(BULK_BATCHES);
    let encoder = task::spawn_blocking(move || encode(&source, ranges, &batches));
    while let Some(mut batch) = ready.recv().await {
        while !batch.is_empty() {
            let written = tokio::time::timeout(UPLOAD_SILENCE, writer.write_buf(&mut batch))
                .await
                .map_err(|_| ServeError::Stalled)?
                .map_err(ServeError::Stream)?;
            if written == 0 {
                return Err(ServeError::Stream(io::ErrorKind::WriteZero.into()));
            }
            progress(written as u64);
        }
    }
    encoder.await.map_err(|error| ServeError::Disk(io::Error::other(error)))??;
    Ok(file_bytes)
}

/// Reads, checks and hands over; ends early, without an error, when nobody takes the batches any more.
fn encode(source: &Source, ranges: GroupRanges, batches: &mpsc::Sender<Bytes>) -> Result<(), ServeError> {
    let mut verifier = Verifier::new(source.hash, source.size, ranges);
    let mut data = RunReader::new(&source.file, DISK_RUN_BYTES);
    let mut pairs = source.outboard.as_ref().map(|outboard| RunReader::new(outboard, OUTBOARD_RUN_BYTES));
    let pairs_end = outboard_bytes(source.size);
    let mut batch = BytesMut::with_capacity(BULK_BATCH_BYTES);
    let mut sent_to = 0;
    while let Some(step) = verifier.next() {
        let bytes = match (step, &mut pairs) {
            (Step::Group { offset, len }, _) => {
                sent_to = offset;
                data.read(offset, len, verifier.run_end(offset))
            }
            (Step::Pair { index }, Some(pairs)) => pairs.read(index * PAIR_BYTES as u64, PAIR_BYTES, pairs_end),
            (Step::Pair { .. }, None) => return Err(ServeError::Changed { offset: sent_to }),
        };
        let bytes = bytes.map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => ServeError::Changed { offset: sent_to },
            _ => ServeError::Disk(error),
        })?;
        verifier.accept(bytes).map_err(|Mismatch { offset }| ServeError::Changed { offset })?;
        if batch.len() + bytes.len() > BULK_BATCH_BYTES {
            let full = std::mem::replace(&mut batch, BytesMut::with_capacity(BULK_BATCH_BYTES));
            if batches.blocking_send(full.freeze()).is_err() {
                return Ok(());
            }
        }
        batch.extend_from_slice(bytes);
    }
    if !batch.is_empty() {
        // Nobody there to take it: the async side has its own error to report.
        let _gone = batches.blocking_send(batch.freeze());
    }
    Ok(())
}
