//! Sending side of a pack stream: small contents, each hashed before it is sent.

use std::{fs::File, io, os::unix::fs::FileExt, time::Duration};

use super::{
    ServeError,
    params::{BULK_BATCH_BYTES, BULK_BATCHES},
    serve::send_batches,
    stream::ChunkSink,
};
use bytes::{Bytes, BytesMut};
use shared::{
    content::ContentHash,
    net::pack::{ITEM_FOLLOWS, ItemRefusal},
};
use tokio::{sync::mpsc, task};

/// Sends contents in their order; in place of a missing one, the reason. Returns the number of bytes passed to the
/// stream.
///
/// `open` returns the file of a content and its size. A blocking thread opens, reads and hashes the files ahead of the
/// stream and holds about 2 MiB. `changed` receives the hashes of contents that no longer match their file. Fails when
/// the sink takes nothing for `silence`. The caller finishes or resets the stream.
///
/// # Errors
/// `Stream`, `Stalled` or `Internal`: the receiver gets the errors of files in the stream.
pub async fn serve_pack<S: ChunkSink>(
    contents: Vec<(ContentHash, u64)>,
    open: impl Fn(&ContentHash) -> Result<(File, u64), ItemRefusal> + Send + 'static,
    changed: impl Fn(&ContentHash) + Send + 'static,
    sink: &mut S,
    silence: Duration,
    mut progress: impl FnMut(u64),
) -> Result<u64, ServeError> {
    let (batches, ready) = mpsc::channel::<Bytes>(BULK_BATCHES);
    let reader = task::spawn_blocking(move || read_ahead(&contents, open, changed, &batches));
    let mut sent = 0;
    let count = |bytes| {
        sent += bytes;
        progress(bytes);
    };
    send_batches(ready, reader, sink, silence, count).await?;
    Ok(sent)
}

/// Reads and checks the contents in batches. Ends early when the receiving side of `batches` is gone.
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
            // A hash determines the size, so the size in the request is wrong.
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
    // Fails only if the sending task ended, which reports its own error.
    let _ = batches.blocking_send(batch.freeze());
}

/// Fills `target` from the start of a file and checks its hash.
///
/// # Errors
/// `Changed` if the file is shorter or its hash differs, `Unreadable` if it cannot be read.
pub(crate) fn read_checked(file: &File, hash: &ContentHash, target: &mut [u8]) -> Result<(), ItemRefusal> {
    file.read_exact_at(target, 0).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => ItemRefusal::Changed,
        _ => ItemRefusal::Unreadable,
    })?;
    if *blake3::hash(target).as_bytes() == hash.0 { Ok(()) } else { Err(ItemRefusal::Changed) }
}

#[cfg(test)]
mod tests {
    use super::{super::stream::Writer, *};

    #[tokio::test]
    async fn worker_that_panics_is_an_internal_error() {
        let open = |_: &ContentHash| panic!("a defect");
        let contents = vec![(ContentHash([1; 32]), 10)];
        let mut sink = Writer(Vec::new());
        let served = serve_pack(contents, open, |_| (), &mut sink, Duration::from_secs(60), |_| ()).await;
        assert!(matches!(served, Err(ServeError::Internal(_))), "{served:?}");
    }
}
