//! Downloads that continue: what is kept of a partial file, and what is verified again.

#![expect(clippy::unwrap_used, reason = "a test fails where it does not get what it asks for")]

mod store_common;

use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use peer::{
    store::{Destination, Partial, download::resume::format, params::RESUME_MIN_BYTES},
    transfer::{FetchError, fetch, serve},
};
use shared::{
    content::FileMeta,
    error::{Failure, FailureCode},
    group_ranges::GroupRanges,
    limits::GROUP_BYTES,
};
use store_common::{DEADLINE, Fixture, SmallDisk, change_visibly, name, noise};

const G: usize = GROUP_BYTES as usize;
const GROUPS: usize = 300;
/// Size in bytes: above the smallest size with a resume file, and not a whole number of groups.
const SIZE: usize = (GROUPS - 1) * G + 77;

/// A share with `content` as `file`, and its entry.
async fn owner_of(content: &[u8]) -> (Fixture, FileMeta) {
    let owner = Fixture::with(|folder| fs::write(folder.join("file"), content).unwrap()).await;
    owner.share.settled().await.unwrap();
    let meta = owner.share.get(&name("file")).unwrap();
    (owner, meta)
}

/// Groups of a file of [`SIZE`] bytes.
fn set(ranges: &[(u64, u64)]) -> GroupRanges {
    GroupRanges::requested(ranges, SIZE as u64).unwrap()
}

/// Fetches groups from the owner.
async fn receive(owner: &Fixture, partial: &Partial, ranges: &GroupRanges) {
    try_receive(owner, partial, ranges).await.unwrap();
}

async fn try_receive(owner: &Fixture, partial: &Partial, ranges: &GroupRanges) -> Result<u64, FetchError> {
    let source = owner.share.open_for_serving(&partial.hash()).unwrap();
    let mut bytes = Vec::new();
    serve(source, ranges.clone(), &mut bytes, |_| ()).await.unwrap();
    fetch(&bytes[..], ranges.clone(), partial, DEADLINE, |_| ()).await
}

/// A download of one file from one share into another.
struct Download {
    content: Vec<u8>,
    owner: Fixture,
    meta: FileMeta,
    receiver: Fixture,
    to: Option<PathBuf>,
}

impl Download {
    async fn into_share() -> Self {
        let content = noise(SIZE, 1);
        let (owner, meta) = owner_of(&content).await;
        Self { content, owner, meta, receiver: Fixture::new().await, to: None }
    }

    fn destination(&self) -> Destination {
        self.receiver.share.destination(&self.meta.name, self.to.as_deref()).unwrap()
    }

    async fn begin(&self) -> Partial {
        self.receiver.share.begin(&self.destination(), &self.meta).await.unwrap()
    }

    /// Receives groups and stops.
    async fn interrupted_after(&self, ranges: &GroupRanges) {
        let partial = self.begin().await;
        receive(&self.owner, &partial, ranges).await;
    }

    /// Receives the missing groups and finishes the download. The file must be right, and no partial file left.
    async fn complete(&self, partial: Partial) {
        receive(&self.owner, &partial, &partial.missing()).await;
        let path = self.receiver.share.finish(partial, &self.destination(), &self.meta, false).await.unwrap();
        assert!(fs::read(path).unwrap() == self.content);
        assert_eq!(self.left(), Vec::<String>::new());
    }

    /// Path of the partial file.
    fn data(&self) -> PathBuf {
        self.receiver.path(".brasa/partial").join(self.meta.hash.to_hex())
    }

    /// Path of the resume file.
    fn have(&self) -> PathBuf {
        self.receiver.path(".brasa/partial").join(format!("{}.have", self.meta.hash))
    }

    /// Names in the folder of partial files.
    fn left(&self) -> Vec<String> {
        files_in(&self.receiver.path(".brasa/partial"))
    }
}

fn files_in(dir: &Path) -> Vec<String> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[tokio::test]
async fn dropped_download_continues_with_its_verified_groups() {
    let mut download = Download::into_share().await;
    fs::create_dir(download.receiver.outside("elsewhere")).unwrap();
    for to in [None, Some(download.receiver.outside("elsewhere/renamed"))] {
        download.to = to;
        download.interrupted_after(&set(&[(0, 100)])).await;
        download.interrupted_after(&set(&[(150, 200)])).await;
        let partial = download.begin().await;
        assert_eq!(partial.verified(), set(&[(0, 100), (150, 200)]));
        download.complete(partial).await;
        if download.to.is_none() {
            let meta = download.meta.clone();
            download.receiver.wait_for_report("the download", |reported| reported.get(&meta.name) == Some(&meta)).await;
            // The outboard is complete too: the file is served without being hashed.
            assert_eq!(download.receiver.share.stats().hashed_bytes, 0);
            let next = Download::into_share().await;
            receive(&download.receiver, &next.begin().await, &set(&[])).await;
            download.receiver.share.remove(&download.meta.name).await.unwrap();
        }
    }
    assert_eq!(files_in(&download.receiver.outside("elsewhere")), ["renamed"]);
}

#[tokio::test]
async fn damaged_partial_file_is_verified_before_it_counts() {
    type Damage = fn(&Download);
    let all = set(&[(0, 200)]);
    let damages: [(&str, Damage, GroupRanges); 7] = [
        ("a group was overwritten", |d| write(&d.data(), 10 * G as u64 + 5), set(&[(0, 10), (11, 200)])),
        ("it was cut off", |d| cut(&d.data(), 50 * G as u64), set(&[(0, 50)])),
        ("it is another file", |d| fs::write(d.data(), noise(SIZE, 99)).unwrap(), GroupRanges::default()),
        // The pair of the first two groups of the file is number 8 of the outboard: 256, 128, …, 2 groups.
        ("its outboard is damaged", |d| write(&outboard(d), 8 * 64), set(&[(2, 200)])),
        ("the resume file is gone", |d| fs::remove_file(d.have()).unwrap(), all.clone()),
        ("the resume file is garbage", |d| fs::write(d.have(), noise(5000, 3)).unwrap(), all.clone()),
        ("the resume file is torn", |d| cut(&d.have(), 60), all.clone()),
    ];
    for (what, damage, kept) in damages {
        let download = Download::into_share().await;
        download.interrupted_after(&all).await;
        damage(&download);
        let partial = download.begin().await;
        assert_eq!(partial.verified(), kept, "{what}");
        download.complete(partial).await;
    }
}

fn write(path: &Path, at: u64) {
    let file = File::options().write(true).open(path).unwrap();
    change_visibly(path, || file.write_all_at(b"damage", at).unwrap());
}

fn cut(path: &Path, len: u64) {
    File::options().write(true).open(path).unwrap().set_len(len).unwrap();
}

fn outboard(download: &Download) -> PathBuf {
    download.data().with_extension("outboard")
}

#[tokio::test]
async fn small_or_empty_partial_files_are_removed() {
    let download = Download::into_share().await;
    drop(download.begin().await);
    assert_eq!(download.left(), Vec::<String>::new());

    let content = noise(RESUME_MIN_BYTES as usize, 2);
    let (owner, meta) = owner_of(&content).await;
    let small = Download { content, owner, meta, receiver: Fixture::new().await, to: None };
    let partial = small.begin().await;
    receive(&small.owner, &partial, &GroupRanges::requested(&[(0, 5)], small.meta.size).unwrap()).await;
    assert!(!small.have().exists(), "a small file has no resume file");
    drop(partial);
    assert_eq!(small.left(), Vec::<String>::new());
}

#[tokio::test]
async fn received_groups_can_be_served_before_the_download_ends() {
    let download = Download::into_share().await;
    let hash = download.meta.hash;
    assert!(download.receiver.share.open_partial_for_serving(&hash).is_none());
    let partial = download.begin().await;
    receive(&download.owner, &partial, &set(&[(20, 40), (250, 300)])).await;
    receive(&download.owner, &partial, &set(&[(0, 1)])).await;

    let (source, groups) = download.receiver.share.open_partial_for_serving(&hash).unwrap();
    assert_eq!(groups, set(&[(0, 1), (20, 40), (250, 300)]));
    let mut bytes = Vec::new();
    serve(source, groups.clone(), &mut bytes, |_| ()).await.unwrap();
    let third = Fixture::new().await;
    let destination = third.share.destination(&download.meta.name, None).unwrap();
    let passed_on = third.share.begin(&destination, &download.meta).await.unwrap();
    fetch(&bytes[..], groups.clone(), &passed_on, DEADLINE, |_| ()).await.unwrap();
    assert_eq!(passed_on.verified(), groups);

    // An upload of the partial file does not keep the download from beginning again.
    let (_sending, _) = partial.open_for_serving().unwrap();
    assert!(download.receiver.share.receiving(&hash).is_some());
    drop(partial);
    assert!(download.receiver.share.receiving(&hash).is_none());
    let partial = download.begin().await;
    assert_eq!(partial.verified(), groups);
    download.complete(partial).await;
}

#[tokio::test]
async fn unfinished_downloads_are_listed_and_discarded() {
    let mut download = Download::into_share().await;
    let share = download.receiver.share.clone();
    assert_eq!(share.unfinished().await.unwrap(), []);
    let partial = download.begin().await;
    receive(&download.owner, &partial, &set(&[(0, 100)])).await;
    assert_eq!(share.unfinished().await.unwrap(), [], "a running download is not unfinished");
    assert_eq!(Failure::from(share.discard("file", None).await.unwrap_err()).code, FailureCode::LimitReached);
    drop(partial);
    download.to = Some(download.receiver.outside("copy"));
    download.interrupted_after(&set(&[(0, 50)])).await;

    let listed = share.unfinished().await.unwrap();
    let here: Vec<_> = listed.iter().map(|one| (one.file.clone(), one.have_bytes, one.destination.clone())).collect();
    let expected = [(100 * GROUP_BYTES, share.path().join("file")), (50 * GROUP_BYTES, download.to.clone().unwrap())];
    let mut expected = expected.map(|(bytes, path)| (download.meta.clone(), bytes, path));
    expected.sort_by(|a, b| a.2.cmp(&b.2));
    assert_eq!(here, expected);

    let other = "ffff".parse().unwrap();
    assert_eq!(Failure::from(share.discard("file", Some(&other)).await.unwrap_err()).code, FailureCode::NoSuchFile);
    let discarded = share.discard("file", None).await.unwrap();
    assert_eq!(discarded.len(), 2);
    let freed: Vec<_> = discarded.iter().map(|one| one.freed_bytes >= 50 * GROUP_BYTES).collect();
    assert_eq!(freed, [true, true], "{discarded:?}");
    assert_eq!(download.left(), Vec::<String>::new());
    assert!(!files_in(&download.receiver.outside("")).iter().any(|file| file.contains("partial")));
    assert_eq!(Failure::from(share.discard("file", None).await.unwrap_err()).code, FailureCode::NoSuchFile);
}

#[tokio::test]
async fn useless_partial_files_are_removed_at_the_start() {
    let Download { content, owner, meta, receiver, to } = Download::into_share().await;
    let mut download = Download { content, owner, meta, receiver, to };
    download.interrupted_after(&set(&[(0, 100)])).await;
    for junk in ["11.have.new-0123", "22.outboard", &"33".repeat(32)] {
        fs::write(download.receiver.path(".brasa/partial").join(junk), "junk").unwrap();
    }
    download.receiver = download.receiver.restarted().await;
    assert_eq!(download.left().len(), 3, "a download that can continue stays: {:?}", download.left());
    fs::write(download.receiver.path("came otherwise"), &download.content).unwrap();
    download.receiver.share.rescan_now().await.unwrap();
    assert_eq!(download.receiver.names(), ["came otherwise"], "partial files are not shared");
    download.receiver = download.receiver.restarted().await;
    assert_eq!(download.left(), Vec::<String>::new());
}

#[tokio::test]
async fn download_stopped_by_a_full_disk_continues_when_there_is_space() {
    let Some(disk) = SmallDisk::mount("size=6m") else { return };
    let mut download = Download::into_share().await;
    download.receiver = Fixture::open(tempfile::tempdir().unwrap(), disk.path().to_path_buf()).await;
    let partial = download.begin().await;
    receive(&download.owner, &partial, &set(&[(0, 40)])).await;
    // Another program takes the rest of the disk.
    let mut filler = File::create(download.receiver.path(".filler")).unwrap();
    while filler.write(&[0; 4096]).is_ok_and(|written| written > 0) {}
    for group in 40..250 {
        let full = try_receive(&download.owner, &partial, &set(&[(group, group + 1)])).await.unwrap_err();
        assert!(matches!(full, FetchError::NoSpace(_)), "{full}");
        assert!(!full.is_owners_fault());
    }
    let noted = format::parse(&fs::read(download.have()).unwrap()).unwrap();
    let (claimed, _) = noted.claims(&noted.header.boot);
    assert!(claimed.bytes(SIZE as u64) <= 40 * GROUP_BYTES, "the resume file claims groups that were not written");
    let data = fs::read(download.data()).unwrap();
    for group in claimed.iter().flatten() {
        let at = group as usize * G;
        assert!(data[at..at + G] == download.content[at..at + G]);
    }
    drop(partial);
    // The start of a download needs some space.
    let refused =
        Failure::from(download.receiver.share.begin(&download.destination(), &download.meta).await.unwrap_err());
    assert_eq!(refused.code, FailureCode::NoSpace, "{refused}");
    drop(filler);
    fs::remove_file(download.receiver.path(".filler")).unwrap();
    let partial = download.begin().await;
    assert_eq!(partial.verified(), claimed);
    download.complete(partial).await;
}

/// The order in which the folder is read must not matter.
#[tokio::test]
async fn partial_files_too_small_to_continue_are_swept_with_their_outboards() {
    let fixture = Fixture::with(|folder| {
        let partial = folder.join(".brasa/partial");
        fs::create_dir_all(&partial).unwrap();
        for n in 0..40 {
            let data = blake3::hash(&[n]).to_hex().to_string();
            fs::write(partial.join(format!("{data}.outboard")), [0; 64]).unwrap();
            fs::write(partial.join(data), [0; 100]).unwrap();
        }
    })
    .await;
    fixture.share.settled().await.unwrap();
    let left = fs::read_dir(fixture.path(".brasa/partial")).unwrap().count();
    assert_eq!(left, 0);
}
