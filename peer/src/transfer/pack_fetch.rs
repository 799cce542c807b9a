//! Receiving side of a pack stream: small contents, each passed on once it is verified.

use std::{io, pin::pin, time::Duration};

use super::{decoder::Incoming, params::BULK_BATCHES, stream::ChunkSource};
use protocol::provider_health::PROVIDER_SILENCE;
use shared::{
    content::ContentHash,
    limits::MAX_PACKED_FILE_BYTES,
    net::pack::{ITEM_FOLLOWS, ItemRefusal},
};
use tokio::{
    sync::mpsc,
    task,
    time::{sleep, timeout},
};

/// Interval of the calls of `on_activity` while this peer is slow.
const ACTIVITY_INTERVAL: Duration = PROVIDER_SILENCE.checked_div(4).expect("4 is not 0");

/// Outcome of one content of a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PackEvent<'a> {
    /// Verified bytes of the content.
    Content(&'a [u8]),
    /// Refusal of the owner to send the content.
    Refused(ItemRefusal),
}

/// Reason why a pack is incomplete. The contents that were passed on before are verified.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PackError<E> {
    /// The owner sent bytes that do not match the hash. Drop the owner and try another one.
    #[error("wrong bytes for {0:?}")]
    Verification(ContentHash),
    /// The answer violates the format. Try another owner.
    #[error("its answer is malformed")]
    Malformed,
    /// The stream ended too early. Try another owner.
    #[error("the stream ended too early")]
    Truncated,
    /// The stream broke or was reset. Try another owner.
    #[error("the stream broke: {0}")]
    Stream(#[source] io::Error),
    /// `take` failed. Another owner does not help.
    #[error("{0}")]
    Rejected(E),
    /// A thread of this peer panicked. Another owner does not help.
    #[error("a thread of the download panicked: {0}")]
    Panicked(String),
}

/// Receives `contents` in this order and passes each with its index to `take`, on a blocking thread.
///
/// `on_activity` is called whenever the owner sends something and, repeatedly, while this peer is slow. The caller
/// detects silence of the owner by missing calls: there is no deadline here.
///
/// # Errors
/// See [`PackError`]; `Rejected` holds the error of `take`.
pub(crate) async fn fetch_pack<S: ChunkSource, E: Send + 'static>(
    source: &mut S,
    contents: Vec<(ContentHash, u64)>,
    mut on_activity: impl FnMut(),
    take: impl FnMut(usize, PackEvent<'_>) -> Result<(), E> + Send + 'static,
) -> Result<(), PackError<E>> {
    let (batches, incoming) = mpsc::channel(BULK_BATCHES);
    let incoming = Incoming::new(incoming, source.meter());
    let decoder = task::spawn_blocking(move || decode(&contents, incoming, take));
    let mut decoder = pin!(decoder);
    let broken = read_batches(source, batches, &mut on_activity).await.err();
    let decoded = loop {
        match timeout(ACTIVITY_INTERVAL, &mut decoder).await {
            Ok(decoded) => break decoded,
            Err(_) => on_activity(),
        }
    };
    let decoded = decoded.unwrap_or_else(|error| Err(PackError::Panicked(error.to_string())));
    match (decoded, broken) {
        // The end of the stream is a consequence of wrong bytes or a full disk, which are the more specific errors.
        (Err(PackError::Truncated), Some(broken)) => Err(PackError::Stream(broken)),
        (decoded, _) => decoded,
    }
}

/// Reads the stream into `batches` until it ends or the decoder does.
async fn read_batches<S: ChunkSource>(
    source: &mut S,
    batches: mpsc::Sender<Vec<bytes::Bytes>>,
    on_activity: &mut impl FnMut(),
) -> io::Result<()> {
    loop {
        // Capacity first: this peer must not mistake its own pauses for silence of the owner.
        let slot = match timeout(ACTIVITY_INTERVAL, batches.reserve()).await {
            Ok(Ok(slot)) => slot,
            Ok(Err(_)) => return Ok(()),
            Err(_) => {
                on_activity();
                continue;
            }
        };
        wait_until_ready(source, on_activity).await;
        let batch_bytes = source.batch_bytes();
        let chunks = tokio::select! {
            biased;
            // The decoder recognises the end of the contents.
            () = batches.closed() => return Ok(()),
            chunks = source.next(batch_bytes) => chunks?,
        };
        if chunks.is_empty() {
            return Ok(());
        }
        on_activity();
        slot.send(chunks);
    }
}

async fn wait_until_ready<S: ChunkSource>(source: &mut S, on_activity: &mut impl FnMut()) {
    let mut ready = pin!(source.ready());
    loop {
        tokio::select! {
            biased;
            () = &mut ready => return,
            () = sleep(ACTIVITY_INTERVAL) => on_activity(),
        }
    }
}

/// Verifies the contents of a pack and passes them to `take`.
fn decode<E>(
    contents: &[(ContentHash, u64)],
    mut incoming: Incoming,
    mut take: impl FnMut(usize, PackEvent<'_>) -> Result<(), E>,
) -> Result<(), PackError<E>> {
    let mut buffer = Vec::new();
    for (number, (hash, size)) in contents.iter().enumerate() {
        let mut first = [0];
        if !incoming.fill(&mut first) {
            return Err(PackError::Truncated);
        }
        let event = if first[0] == ITEM_FOLLOWS {
            let size = (*size).min(MAX_PACKED_FILE_BYTES);
            buffer.resize(usize::try_from(size).map_err(|_| PackError::Malformed)?, 0);
            if !incoming.fill(&mut buffer) {
                return Err(PackError::Truncated);
            }
            if *blake3::hash(&buffer).as_bytes() != hash.0 {
                return Err(PackError::Verification(*hash));
            }
            PackEvent::Content(&buffer)
        } else {
            PackEvent::Refused(ItemRefusal::from_byte(first[0]).ok_or(PackError::Malformed)?)
        };
        take(number, event).map_err(PackError::Rejected)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        fs::File,
        io::Write,
        sync::{Arc, Mutex},
    };

    use super::*;
    use crate::transfer::{
        serve_pack,
        stream::{Reader, Writer},
    };

    fn file(content: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        file
    }

    fn hash(content: &[u8]) -> ContentHash {
        ContentHash(*blake3::hash(content).as_bytes())
    }

    type Taken = Vec<(usize, Result<Vec<u8>, ItemRefusal>)>;

    async fn receive(bytes: &[u8], contents: Vec<(ContentHash, u64)>) -> (Result<(), PackError<Infallible>>, Taken) {
        let taken: Arc<Mutex<Taken>> = Arc::default();
        let take = {
            let taken = taken.clone();
            move |number, event: PackEvent<'_>| {
                let event = match event {
                    PackEvent::Content(bytes) => Ok(bytes.to_vec()),
                    PackEvent::Refused(refusal) => Err(refusal),
                };
                taken.lock().unwrap().push((number, event));
                Ok(())
            }
        };
        let fetched = fetch_pack(&mut Reader(bytes), contents, || {}, take).await;
        let taken = std::mem::take(&mut *taken.lock().unwrap());
        (fetched, taken)
    }

    async fn send(
        contents: Vec<(ContentHash, u64)>,
        files: Vec<(ContentHash, Vec<u8>)>,
    ) -> (Vec<u8>, Vec<ContentHash>) {
        let changed: Arc<Mutex<Vec<ContentHash>>> = Arc::default();
        let open = move |hash: &ContentHash| {
            let (_, content) = files.iter().find(|(known, _)| known == hash).ok_or(ItemRefusal::NotHere)?;
            Ok((file(content), content.len() as u64))
        };
        let note = {
            let changed = changed.clone();
            move |hash: &ContentHash| changed.lock().unwrap().push(*hash)
        };
        let mut sent = Vec::new();
        serve_pack(contents, open, note, &mut Writer(&mut sent), PROVIDER_SILENCE, |_| {}).await.unwrap();
        let changed = changed.lock().unwrap().clone();
        (sent, changed)
    }

    #[tokio::test]
    async fn pack_delivers_present_contents_and_refuses_the_others() {
        let large = vec![7; 200 << 10];
        let files = vec![
            (hash(b""), vec![]),
            (hash(&large), large.clone()),
            // Changed since it was hashed.
            (hash(b"before"), b"behind".to_vec()),
            (hash(b"short"), b"sho".to_vec()),
        ];
        let contents = vec![
            (hash(b""), 0),
            (hash(b"nowhere"), 7),
            (hash(b"before"), 6),
            (hash(&large), large.len() as u64),
            (hash(b"short"), 5),
            (hash(&large), 1),
        ];
        let (bytes, changed) = send(contents.clone(), files).await;
        assert_eq!(changed, [hash(b"before")]);
        let (fetched, taken) = receive(&bytes, contents).await;
        fetched.unwrap();
        let expected = vec![
            (0, Ok(vec![])),
            (1, Err(ItemRefusal::NotHere)),
            (2, Err(ItemRefusal::Changed)),
            (3, Ok(large)),
            (4, Err(ItemRefusal::NotHere)),
            (5, Err(ItemRefusal::NotHere)),
        ];
        assert_eq!(taken, expected);
    }

    #[tokio::test]
    async fn wrong_or_malformed_content_is_not_handed_over() {
        let contents = vec![(hash(b"first"), 5), (hash(b"other"), 5)];
        let (fetched, taken) = receive(b"\x00first\x00wrong", contents.clone()).await;
        assert!(matches!(fetched, Err(PackError::Verification(wrong)) if wrong == hash(b"other")), "{fetched:?}");
        assert_eq!(taken, [(0, Ok(b"first".to_vec()))]);
        let (fetched, _) = receive(b"\x00first\x00oth", contents.clone()).await;
        assert!(matches!(fetched, Err(PackError::Truncated)), "{fetched:?}");
        let (fetched, taken) = receive(b"\x63first", contents).await;
        assert!(matches!(fetched, Err(PackError::Malformed)) && taken.is_empty(), "{fetched:?}");
    }

    #[tokio::test]
    async fn panic_of_the_taker_is_not_a_failure_of_the_owner() {
        let contents = vec![(hash(b"first"), 5)];
        let panics = |_: usize, _: PackEvent<'_>| -> Result<(), Infallible> { panic!("the taker of a test") };
        let fetched = fetch_pack(&mut Reader(&b"\x00first"[..]), contents, || {}, panics).await;
        assert!(matches!(fetched, Err(PackError::Panicked(_))), "{fetched:?}");
    }
}
