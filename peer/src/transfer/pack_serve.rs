//! An owner's side of a pack: many small contents, each checked before it leaves, onto a stream.

use std::{fs::File, io, os::unix::fs::FileExt, time::Duration};

use bytes::{Bytes, BytesMut};
use shared::{
    content::ContentHash,
    limits::{BULK_BATCH_BYTES, BULK_BATCHES},
    net::pack::{ITEM_FOLLOWS, ItemRefusal},
};
use tokio::{sync::mpsc, task};

use super::{ServeError, stream::ChunkSink};

/// Sends contents in their order, or why each is left out, and returns the bytes that were handed to the stream.
///
/// `open` gives the file of a content with its size. Files are opened, read and hashed on a blocking thread ahead of the
/// stream, which holds some 2 MiB. `changed` hears of contents that are not what they were. `silence` is how long the sink may
/// take nothing. The stream is not finished: that, or its reset, is the caller's.
///
/// # Errors
/// `Stream` or `Stalled`: what is wrong with a file is told to the receiver instead.
pub async fn serve_pack<S: ChunkSink>(
    contents: Vec<(ContentHash, u64)>,
    open: impl Fn(&ContentHash) -> Result<(File, u64), ItemRefusal> + Send + 'static,
    changed: impl Fn(&ContentHash) + Send + 'static,
    sink: &mut S,
    silence: Duration,
    mut progress: impl FnMut(u64),
) -> Result<u64, ServeError> {
    let (batches, mut ready) = mpsc::channel::<Bytes>(BULK_BATCHES);
    let reader = task::spawn_blocking(move || read_ahead(&contents, open, changed, &batches));
    let mut sent = 0;
    while let Some(batch) = ready.recv().await {
        let mut batch = [batch];
        while !batch[0].is_empty() {
            let written = tokio::time::timeout(silence, sink.send(&mut batch))
                .await
                .map_err(|_| ServeError::Stalled(silence))?
                .map_err(ServeError::Stream)?;
            sent += written as u64;
            progress(written as u64);
        }
    }
    reader.await.map_err(|error| ServeError::Disk(io::Error::other(error)))?;
    Ok(sent)
}

/// Reads, checks and hands over; ends early when nobody takes the batches any more.
fn read_ahead(
    contents: &[(ContentHash, u64)],
    open: impl Fn(&ContentHash) -> Result<(File, u64), ItemRefusal>,
    changed: impl Fn(&ContentHash),
    batches: &mpsc::Sender<Bytes>,
) {
    let mut batch = BytesMut::with_capacity(BULK_BATCH_BYTES);
    for (hash, size) in contents {
        let Ok(len) = usize::try_from(*size) else { return };
        if batch.len() + len + 1 > BULK_BATCH_BYTES && !batch.is_empty() {
            let full = std::mem::replace(&mut batch, BytesMut::with_capacity(BULK_BATCH_BYTES));
            if batches.blocking_send(full.freeze()).is_err() {
                return;
            }
        }
        let begin = batch.len();
        batch.extend_from_slice(&[ITEM_FOLLOWS]);
        batch.resize(begin + 1 + len, 0);
        let read = open(hash).and_then(|(file, found)| {
            // The hash stands for one size: whoever announced another was wrong.
            if found != *size {
                return Err(ItemRefusal::NotHere);
            }
            read_checked(&file, hash, &mut batch[begin + 1..])
        });
        if let Err(refusal) = read {
            batch.truncate(begin);
            batch.extend_from_slice(&[refusal.to_byte()]);
            if refusal == ItemRefusal::Changed {
                changed(hash);
            }
        }
    }
    // Nobody there to take it: the async side has its own error to report.
    let _gone = batches.blocking_send(batch.freeze());
}

/// Fills `target` from the beginning of a file, if that is the content.
///
/// # Errors
/// `Changed` when it is another or shorter, `Unreadable` when the disk says so.
pub(crate) fn read_checked(file: &File, hash: &ContentHash, target: &mut [u8]) -> Result<(), ItemRefusal> {
    file.read_exact_at(target, 0).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => ItemRefusal::Changed,
        _ => ItemRefusal::Unreadable,
    })?;
    if *blake3::hash(target).as_bytes() == hash.0 { Ok(()) } else { Err(ItemRefusal::Changed) }
}
