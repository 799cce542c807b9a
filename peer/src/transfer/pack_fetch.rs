//! A receiver's side of a pack: contents from a stream, each handed over when it is proven to be what was asked for.

use std::{io, pin::pin};

use protocol::provider_health::PROVIDER_SILENCE;
use shared::{
    content::ContentHash,
    error::Failure,
    limits::{BULK_BATCHES, MAX_PACKED_FILE_BYTES},
    net::pack::{ITEM_FOLLOWS, ItemRefusal},
};
use tokio::{
    sync::mpsc,
    task,
    time::{sleep, timeout},
};

use super::{fetch::Incoming, stream::ChunkSource};

/// What comes of one content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PackEvent<'a> {
    /// Its bytes, proven.
    Content(&'a [u8]),
    /// The owner leaves it out.
    Refused(ItemRefusal),
}

/// Why not all of a pack came. What was handed over until then is right.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PackError {
    /// The owner sent bytes that are not the content's. Blame it; try another.
    #[error("wrong bytes for {0:?}")]
    Verification(ContentHash),
    /// It does not keep to the format.
    #[error("its answer is malformed")]
    Malformed,
    /// The stream ended too early. Try another owner.
    #[error("the stream ended too early")]
    Truncated,
    /// The stream broke or was reset. Try another owner.
    #[error("the stream broke: {0}")]
    Stream(#[source] io::Error),
    /// What was to be done with a content failed. No owner helps.
    #[error(transparent)]
    Taking(Failure),
}

/// Receives `contents` in this order. `take` gets each, by its place, on a blocking thread.
///
/// `heard` is called whenever the owner sent something and, again and again, while it is this peer that is slow; there is no
/// deadline here. In memory are some 2 MiB and one content.
///
/// # Errors
/// See [`PackError`]; `Taking` is what `take` gave.
pub(crate) async fn fetch_pack<S: ChunkSource>(
    source: &mut S,
    contents: Vec<(ContentHash, u64)>,
    mut heard: impl FnMut(),
    take: impl FnMut(usize, PackEvent<'_>) -> Result<(), Failure> + Send + 'static,
) -> Result<(), PackError> {
    let (batches, incoming) = mpsc::channel(BULK_BATCHES);
    let incoming = Incoming::new(incoming, source.meter());
    let decoder = task::spawn_blocking(move || decode(&contents, incoming, take));
    let mut decoder = pin!(decoder);
    let broken = loop {
        // Room first: this peer's own pauses must not be taken for the owner's silence.
        let room = match timeout(PROVIDER_SILENCE / 4, batches.reserve()).await {
            Ok(Ok(room)) => room,
            Ok(Err(_)) => break None,
            Err(_) => {
                heard();
                continue;
            }
        };
        {
            let mut ready = pin!(source.ready());
            loop {
                tokio::select! {
                    biased;
                    () = &mut ready => break,
                    () = sleep(PROVIDER_SILENCE / 4) => heard(),
                }
            }
        }
        let batch = source.batch_bytes();
        let read = tokio::select! {
            biased;
            // The contents say themselves where they end.
            () = batches.closed() => break None,
            read = source.next(batch) => read,
        };
        match read {
            Err(error) => break Some(PackError::Stream(error)),
            Ok(chunks) if chunks.is_empty() => break None,
            Ok(chunks) => {
                heard();
                room.send(chunks);
            }
        }
    };
    drop(batches);
    let decoded = loop {
        match timeout(PROVIDER_SILENCE / 4, &mut decoder).await {
            Ok(decoded) => break decoded,
            Err(_) => heard(),
        }
    };
    let decoded = decoded.unwrap_or_else(|error| Err(PackError::Stream(io::Error::other(error))));
    match (decoded, broken) {
        // Wrong bytes and a full disk say more than the stream's end, which only follows from it.
        (Err(PackError::Truncated), Some(broken)) => Err(broken),
        (decoded, _) => decoded,
    }
}

fn decode(
    contents: &[(ContentHash, u64)],
    mut incoming: Incoming,
    mut take: impl FnMut(usize, PackEvent<'_>) -> Result<(), Failure>,
) -> Result<(), PackError> {
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
        take(number, event).map_err(PackError::Taking)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
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

    async fn receive(bytes: &[u8], contents: Vec<(ContentHash, u64)>) -> (Result<(), PackError>, Taken) {
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
    async fn what_is_there_comes_and_what_is_not_is_told() {
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
    async fn nothing_wrong_is_handed_over() {
        let contents = vec![(hash(b"first"), 5), (hash(b"other"), 5)];
        let (fetched, taken) = receive(b"\x00first\x00wrong", contents.clone()).await;
        assert!(matches!(fetched, Err(PackError::Verification(wrong)) if wrong == hash(b"other")), "{fetched:?}");
        assert_eq!(taken, [(0, Ok(b"first".to_vec()))]);
        let (fetched, _) = receive(b"\x00first\x00oth", contents.clone()).await;
        assert!(matches!(fetched, Err(PackError::Truncated)), "{fetched:?}");
        let (fetched, taken) = receive(b"\x63first", contents).await;
        assert!(matches!(fetched, Err(PackError::Malformed)) && taken.is_empty(), "{fetched:?}");
    }
}
