//! Transfers from one share through a stream into another.

#![expect(clippy::unwrap_used, reason = "a test fails where it does not get what it asks for")]

mod store_common;

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use peer::{
    store::{Partial, download::destination::Occupancy, params::DIRECT_MIN_FILE_BYTES},
    transfer::{FetchError, ServeError, Writing, Written, fetch, fetch_from, serve, stream::Reader},
};
use proptest::prelude::*;
use shared::{
    content::{ContentHash, FileMeta},
    error::{Failure, FailureCode},
    group_ranges::GroupRanges,
    limits::GROUP_BYTES,
};
use store_common::{DEADLINE, Fixture, SmallDisk, change_visibly, name, noise};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const G: usize = GROUP_BYTES as usize;

/// A share with `content` as `file`, and its entry.
async fn owner_of(content: &[u8]) -> (Fixture, FileMeta) {
    let owner = Fixture::with(|folder| {
        fs::write(folder.join("file"), content).unwrap();
        // The share waits before it hashes a large file that has just changed.
        File::options().write(true).open(folder.join("file")).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
    })
    .await;
    owner.share.settled().await.unwrap();
    let meta = owner.share.get(&name("file")).unwrap();
    (owner, meta)
}

/// The stream that the owner sends for these groups.
async fn encoded(owner: &Fixture, meta: &FileMeta, ranges: &GroupRanges) -> Vec<u8> {
    let source = owner.share.open_for_serving(&meta.hash).unwrap();
    let mut bytes = Vec::new();
    serve(source, ranges.clone(), &mut bytes, |_| ()).await.unwrap();
    bytes
}

async fn begin(receiver: &Fixture, meta: &FileMeta) -> Partial {
    let destination = receiver.share.destination(&meta.name, None).unwrap();
    receiver.share.begin(&destination, meta).await.unwrap()
}

async fn fetch_all(reader: &[u8], partial: &Partial) -> Result<u64, FetchError> {
    fetch(reader, partial.missing(), partial, DEADLINE, |_| ()).await
}

async fn finish(receiver: &Fixture, partial: Partial, meta: &FileMeta) {
    let destination = receiver.share.destination(&meta.name, None).unwrap();
    receiver.share.finish(partial, &destination, meta, false).await.unwrap();
}

#[tokio::test]
async fn files_of_boundary_sizes_arrive_and_are_served_without_being_hashed_again() {
    for size in [0, 1, G - 1, G, G + 1, 2 * G, 2 * G + 1, 1024 * G - 1, 1024 * G, 1024 * G + 1] {
        let content = noise(size, size as u64);
        let (owner, meta) = owner_of(&content).await;
        let mut receiver = Fixture::new().await;
        let partial = begin(&receiver, &meta).await;
        let source = owner.share.open_for_serving(&meta.hash).unwrap();
        let (mut here, there) = tokio::io::duplex(100_000);
        let sending = async {
            let sent = serve(source, GroupRanges::all(meta.size), &mut here, |_| ()).await;
            here.shutdown().await.unwrap();
            sent
        };
        let (progress, verified) = std::sync::mpsc::channel();
        let receiving = fetch(there, partial.missing(), &partial, DEADLINE, move |bytes| progress.send(bytes).unwrap());
        let (sent, received) = tokio::join!(sending, receiving);
        assert_eq!((sent.unwrap(), received.unwrap()), (meta.size, meta.size));
        assert_eq!(verified.iter().map(|brought| brought.bytes).sum::<u64>(), meta.size);
        finish(&receiver, partial, &meta).await;

        assert!(fs::read(receiver.path("file")).unwrap() == content, "{size}");
        assert_eq!(receiver.share.get(&meta.name), Some(meta.clone()), "the entry keeps its time");
        receiver.wait_for_report("the download", |reported| reported.get(&meta.name) == Some(&meta)).await;
        // The receiver serves the file now and after a restart, without having hashed a byte.
        let again = encoded(&receiver, &meta, &GroupRanges::all(meta.size)).await;
        assert!(again == encoded(&owner, &meta, &GroupRanges::all(meta.size)).await);
        receiver.share.rescan_now().await.unwrap();
        assert_eq!(receiver.share.stats().hashed_bytes, 0);
        let receiver = receiver.restarted().await;
        assert_eq!(receiver.share.get(&meta.name), Some(meta.clone()));
        receiver.share.settled().await.unwrap();
        assert_eq!(receiver.share.stats().hashed_bytes, 0);
        let again = encoded(&receiver, &meta, &GroupRanges::all(meta.size)).await;
        assert!(again == encoded(&owner, &meta, &GroupRanges::all(meta.size)).await);
    }
}

#[tokio::test]
async fn download_continues_where_an_owner_failed() {
    let content = noise(200 * G + 77, 1);
    let (owner, meta) = owner_of(&content).await;
    let whole = encoded(&owner, &meta, &GroupRanges::all(meta.size)).await;
    let receiver = Fixture::new().await;
    let partial = begin(&receiver, &meta).await;

    let truncated = fetch_all(&whole[..whole.len() / 2], &partial).await.unwrap_err();
    assert!(matches!(truncated, FetchError::Truncated { .. }), "{truncated}");
    assert!(truncated.is_owners_fault());
    let got = partial.verified().bytes(meta.size);
    assert!(got > 90 * GROUP_BYTES && got < 110 * GROUP_BYTES, "{got} bytes kept");

    let rest = partial.missing();
    let mut corrupt = encoded(&owner, &meta, &rest).await;
    let last = corrupt.len() - 10;
    corrupt[last] ^= 1;
    match fetch_all(&corrupt, &partial).await.unwrap_err() {
        FetchError::Verification { offset } => assert_eq!(offset, 200 * GROUP_BYTES, "only the last group is wrong"),
        other => panic!("{other}"),
    }
    assert_eq!(partial.missing(), GroupRanges::requested(&[(200, 201)], meta.size).unwrap());
    let premature = receiver.share.destination(&meta.name, None).unwrap();
    receiver.share.finish(partial.clone(), &premature, &meta, false).await.unwrap_err();
    assert!(!receiver.path("file").exists(), "an incomplete file is not put in place");

    let last = encoded(&owner, &meta, &partial.missing()).await;
    assert_eq!(fetch_all(&last, &partial).await.unwrap(), 77);
    finish(&receiver, partial, &meta).await;
    assert!(fs::read(receiver.path("file")).unwrap() == content);
}

/// `Writing::Along` hashes and writes on one thread.
#[tokio::test]
async fn writing_along_with_hashing_keeps_the_groups_before_a_fault() {
    let content = noise(300 * G + 17, 8);
    let (owner, meta) = owner_of(&content).await;
    let receiver = Fixture::new().await;
    let partial = begin(&receiver, &meta).await;
    let all = partial.missing();
    let mut damaged = encoded(&owner, &meta, &all).await;
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    let along = |bytes: Vec<u8>, ranges: GroupRanges| {
        let partial = partial.clone();
        async move {
            let mut source = Reader(&bytes[..]);
            let heard = Arc::new(AtomicU64::new(0));
            let progress = {
                let heard = heard.clone();
                move |brought: Written| {
                    heard.fetch_add(brought.new_bytes, Ordering::Relaxed);
                }
            };
            let result = fetch_from(&mut source, ranges, &partial, DEADLINE, Writing::Along, progress).await;
            (result, heard.load(Ordering::Relaxed))
        }
    };
    let (result, heard) = along(damaged, all.clone()).await;
    assert!(matches!(result, Err(FetchError::Verification { .. })), "{result:?}");
    assert_eq!(heard, partial.verified().bytes(meta.size));
    assert!(heard > meta.size / 3, "{heard}");
    let rest = partial.missing();
    let (result, heard) = along(encoded(&owner, &meta, &rest).await, rest.clone()).await;
    assert_eq!((result.unwrap(), heard), (rest.bytes(meta.size), rest.bytes(meta.size)));
    finish(&receiver, partial, &meta).await;
    assert!(fs::read(receiver.path("file")).unwrap() == content);
}

/// A file that is large enough to be written past the page cache if the disk is fast: in parts that do not begin at
/// blocks of the disk runs, with an end inside a block, and served while it is received.
#[tokio::test]
async fn large_file_is_the_same_in_every_way_of_writing() {
    let content = noise(usize::try_from(DIRECT_MIN_FILE_BYTES).unwrap() + 5 * G + 17, 9);
    let (owner, meta) = owner_of(&content).await;
    let groups = meta.size.div_ceil(GROUP_BYTES);
    let part = |from, to| GroupRanges::requested(&[(from, to)], meta.size).unwrap();
    for writing in [Writing::Apart, Writing::Along] {
        let receiver = Fixture::new().await;
        let partial = begin(&receiver, &meta).await;
        for ranges in [part(1001, groups), part(0, 77), part(77, 1001)] {
            let bytes = encoded(&owner, &meta, &ranges).await;
            let mut source = Reader(&bytes[..]);
            let came = fetch_from(&mut source, ranges.clone(), &partial, DEADLINE, writing, |_| ()).await.unwrap();
            assert_eq!(came, ranges.bytes(meta.size));
            let (source, verified) = partial.open_for_serving().unwrap();
            assert!(verified.covers(&ranges));
            let mut passed_on = Vec::new();
            serve(source, ranges, &mut passed_on, |_| ()).await.unwrap();
            assert!(passed_on == bytes, "{writing:?}: the receiver sends the bytes that it received");
        }
        finish(&receiver, partial, &meta).await;
        assert!(fs::read(receiver.path("file")).unwrap() == content, "{writing:?}");
    }
}

#[tokio::test]
async fn file_from_two_owners_at_once_is_complete() {
    let content = noise(300 * G + 5, 2);
    let (owner, meta) = owner_of(&content).await;
    let receiver = Fixture::new().await;
    let partial = begin(&receiver, &meta).await;
    let odd = GroupRanges::requested(&[(0, 100), (250, 260), (270, 301)], meta.size).unwrap();
    let even = odd.missing(meta.size);
    let (first, second) = (encoded(&owner, &meta, &odd).await, encoded(&owner, &meta, &even).await);
    let one = fetch(&first[..], odd, &partial, DEADLINE, |_| ());
    let other = fetch(&second[..], even, &partial, DEADLINE, |_| ());
    let (one, other) = tokio::join!(one, other);
    assert_eq!(one.unwrap() + other.unwrap(), meta.size);
    finish(&receiver, partial, &meta).await;
    assert!(fs::read(receiver.path("file")).unwrap() == content);
    // The outboard arrived in pieces too and is complete.
    assert!(encoded(&receiver, &meta, &GroupRanges::all(meta.size)).await.len() > content.len());
}

#[tokio::test]
async fn wrong_size_is_a_verification_error() {
    let content = noise(5 * G + 100, 3);
    let (owner, meta) = owner_of(&content).await;
    let mut whole = encoded(&owner, &meta, &GroupRanges::all(meta.size)).await;
    // An owner with a wrong size may send any number of bytes.
    whole.resize(whole.len() * 4, 0);
    let receiver = Fixture::new().await;
    for size in [0, 1, meta.size - 1, meta.size + 1, meta.size + GROUP_BYTES, 3 * meta.size] {
        let wrong = FileMeta { size, ..meta.clone() };
        let partial = begin(&receiver, &wrong).await;
        let error = fetch_all(&whole, &partial).await.unwrap_err();
        assert!(matches!(error, FetchError::Verification { .. }), "{size}: {error}");
        assert!(partial.verified().is_empty() || size > GROUP_BYTES);
    }
    receiver.share.rescan_now().await.unwrap();
    assert!(receiver.names().is_empty());
}

#[tokio::test]
async fn silent_owner_fails_the_fetch_and_received_groups_are_kept() {
    let content = noise(50 * G, 4);
    let (owner, meta) = owner_of(&content).await;
    let whole = encoded(&owner, &meta, &GroupRanges::all(meta.size)).await;
    let receiver = Fixture::new().await;
    let partial = begin(&receiver, &meta).await;
    let (mut here, there) = tokio::io::duplex(whole.len());
    here.write_all(&whole[..30 * G]).await.unwrap();
    let silence = Duration::from_millis(200);
    let error = fetch(there, partial.missing(), &partial, silence, |_| ()).await.unwrap_err();
    assert!(matches!(error, FetchError::Silent(_)), "{error}");
    assert!(!partial.verified().is_empty(), "the groups before the silence are kept");
    drop(here);
}

#[tokio::test]
async fn receiver_that_stops_reading_blocks_the_owner() {
    let content = noise(64 << 20, 5);
    let (owner, meta) = owner_of(&content).await;
    let source = owner.share.open_for_serving(&meta.hash).unwrap();
    let (mut here, mut there) = tokio::io::duplex(4096);
    let sending = tokio::spawn(async move { serve(source, GroupRanges::all(meta.size), &mut here, |_| ()).await });
    there.read_u8().await.unwrap();
    assert!(!sending.is_finished());
    drop(there);
    let ended = tokio::time::timeout(DEADLINE, sending).await.unwrap().unwrap();
    assert!(matches!(ended, Err(ServeError::Stream(_))), "{ended:?}");
}

#[tokio::test]
async fn file_that_changes_during_an_upload_sends_no_wrong_bytes() {
    type Change = fn(&File);
    let changes: [(&str, Change); 3] = [
        ("overwritten", |file| file.write_all_at(b"changed", 40 << 20).unwrap()),
        ("shrunk", |file| file.set_len(40 << 20).unwrap()),
        ("emptied", |file| file.set_len(0).unwrap()),
    ];
    for (how, change) in changes {
        let content = noise(48 << 20, 6);
        let (owner, meta) = owner_of(&content).await;
        let receiver = Fixture::new().await;
        let partial = begin(&receiver, &meta).await;
        let source = owner.share.open_for_serving(&meta.hash).unwrap();
        let (mut here, mut there) = tokio::io::duplex(64 << 10);
        let sending = tokio::spawn(async move { serve(source, GroupRanges::all(meta.size), &mut here, |_| ()).await });
        let mut head = vec![0; 1 << 20];
        there.read_exact(&mut head).await.unwrap();
        let file = File::options().write(true).open(owner.path("file")).unwrap();
        change_visibly(&owner.path("file"), || change(&file));
        let stream = (&head[..]).chain(there);
        let received = fetch(stream, partial.missing(), &partial, DEADLINE, |_| ()).await;
        let sent = sending.await.unwrap();
        assert!(matches!(sent, Err(ServeError::Changed { .. })), "{how}: {sent:?}");
        // This stream ends without a reset, so the receiver sees a truncation. Its verified groups are right.
        assert!(matches!(received, Err(FetchError::Truncated { .. })), "{how}: {received:?}");
        assert!(partial.verified().bytes(meta.size) > 0, "{how}");
    }
}

#[tokio::test]
async fn broken_stream_fails_the_fetch_with_its_error() {
    let (_owner, meta) = owner_of(&noise(3 * G, 7)).await;
    let receiver = Fixture::new().await;
    let partial = begin(&receiver, &meta).await;
    let reset = broken_stream(io::ErrorKind::ConnectionReset);
    let broken = fetch(reset, partial.missing(), &partial, DEADLINE, |_| ()).await.unwrap_err();
    assert!(matches!(&broken, FetchError::Stream(error) if error.kind() == io::ErrorKind::ConnectionReset), "{broken}");
}

/// A stream whose first read fails.
fn broken_stream(kind: io::ErrorKind) -> impl tokio::io::AsyncRead + Unpin {
    struct Broken(io::ErrorKind);
    impl tokio::io::AsyncRead for Broken {
        fn poll_read(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
            _: &mut tokio::io::ReadBuf<'_>,
        ) -> std::task::Poll<io::Result<()>> {
            std::task::Poll::Ready(Err(self.0.into()))
        }
    }
    Broken(kind)
}

#[tokio::test]
async fn download_replaces_a_file_only_when_forced() {
    let content = noise(2 * G, 8);
    let (owner, meta) = owner_of(&content).await;
    let whole = encoded(&owner, &meta, &GroupRanges::all(meta.size)).await;
    let receiver = Fixture::with(|folder| fs::write(folder.join("file"), "mine").unwrap()).await;
    let destination = receiver.share.destination(&meta.name, None).unwrap();
    let standing = async |force| receiver.share.occupancy(&destination, meta.hash, meta.size, force).await;
    assert_eq!(Failure::from(standing(false).await.unwrap_err()).code, FailureCode::Exists);

    // The file may also appear after that check.
    let partial = begin(&receiver, &meta).await;
    fetch_all(&whole, &partial).await.unwrap();
    let refused = Failure::from(receiver.share.finish(partial, &destination, &meta, false).await.unwrap_err());
    assert_eq!(refused.code, FailureCode::Exists);
    assert_eq!(fs::read(receiver.path("file")).unwrap(), b"mine");

    assert_eq!(standing(true).await.unwrap(), Occupancy::Replaceable);
    let partial = begin(&receiver, &meta).await;
    fetch_all(&whole, &partial).await.unwrap();
    receiver.share.finish(partial, &destination, &meta, true).await.unwrap();
    assert!(fs::read(receiver.path("file")).unwrap() == content);
    assert_eq!(standing(false).await.unwrap(), Occupancy::Identical);
}

#[tokio::test]
async fn download_to_another_folder_is_not_shared() {
    let content = noise(3 * G, 9);
    let (owner, meta) = owner_of(&content).await;
    let whole = encoded(&owner, &meta, &GroupRanges::all(meta.size)).await;
    let receiver = Fixture::new().await;
    fs::create_dir(receiver.outside("elsewhere")).unwrap();
    let to = receiver.outside("elsewhere/renamed");
    let destination = receiver.share.destination(&meta.name, Some(&to)).unwrap();
    let partial = receiver.share.begin(&destination, &meta).await.unwrap();
    fetch_all(&whole, &partial).await.unwrap();
    receiver.share.finish(partial, &destination, &meta, false).await.unwrap();
    assert!(fs::read(&to).unwrap() == content);
    assert_eq!(fs::read_dir(receiver.outside("elsewhere")).unwrap().count(), 1, "the folder holds the file alone");
    assert!(receiver.names().is_empty(), "the file is not in the share");
}

#[tokio::test]
async fn second_download_of_a_content_is_refused_while_the_first_runs() {
    let (_owner, meta) = owner_of(&noise(2 * G, 10)).await;
    let receiver = Fixture::new().await;
    let first = begin(&receiver, &meta).await;
    let other = receiver.share.destination(&name("other"), None).unwrap();
    let refused = Failure::from(receiver.share.begin(&other, &meta).await.unwrap_err());
    assert_eq!(refused.code, FailureCode::LimitReached);
    drop(first);
    receiver.share.begin(&other, &meta).await.unwrap();
}

#[tokio::test]
async fn download_larger_than_the_disk_is_refused_at_its_beginning() {
    let Some(disk) = SmallDisk::mount("size=1m") else { return };
    let receiver = Fixture::open(tempfile::tempdir().unwrap(), disk.path().to_path_buf()).await;
    let destination = receiver.share.destination(&name("big"), None).unwrap();
    let file =
        FileMeta { name: name("big"), size: 5_000_000, hash: ContentHash([1; 32]), mtime_micros: 0, executable: false };
    let refused = Failure::from(receiver.share.begin(&destination, &file).await.unwrap_err());
    assert_eq!(refused.code, FailureCode::NoSpace);
    assert!(refused.why.contains("5000000"), "{refused}");
    fs::write(receiver.path("room"), noise(900_000, 11)).expect("the refused download takes no space");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn damage_anywhere_is_detected_and_no_wrong_byte_is_kept(
        size in 1usize..40 * G,
        at: prop::sample::Index,
        flip in 1u8..=255,
        cut: Option<prop::sample::Index>,
        seed: u64,
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let content = noise(size, seed);
            let (owner, meta) = owner_of(&content).await;
            let mut stream = encoded(&owner, &meta, &GroupRanges::all(meta.size)).await;
            match cut {
                Some(cut) => stream.truncate(cut.index(stream.len())),
                None => {
                    let at = at.index(stream.len());
                    stream[at] ^= flip;
                }
            }
            let receiver = Fixture::new().await;
            let partial = begin(&receiver, &meta).await;
            let error = fetch_all(&stream, &partial).await.unwrap_err();
            match (&error, cut) {
                (FetchError::Truncated { .. }, Some(_)) => {}
                (FetchError::Verification { offset }, None) => {
                    // The error names the group with the damage, and all groups before that one are kept.
                    assert_eq!(partial.verified().bytes(meta.size), *offset);
                }
                _ => panic!("{error}"),
            }
            let kept = partial.verified().bytes(meta.size) as usize;
            let lying: Vec<_> = walk(&receiver.path(".brasa/partial")).collect();
            let data = lying.iter().find(|path| path.extension().is_none()).expect("the partial file");
            assert!(fs::read(data).unwrap()[..kept] == content[..kept]);
            drop(partial);
            receiver.share.rescan_now().await.unwrap();
            assert!(receiver.names().is_empty());
            assert_eq!(walk(&receiver.path(".brasa/partial")).count(), 0, "no partial file is left");
        });
    }
}

fn walk(dir: &std::path::Path) -> impl Iterator<Item = std::path::PathBuf> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path())
}
