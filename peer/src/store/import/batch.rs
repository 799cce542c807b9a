//! Downloads of many small files: written to a hidden directory, made durable and put in their places in groups.
//!
//! ```text
//! look ─ stage (write, time, mode) ┐
//!        stage …                   ├─ commit: sync ─ rename each ─ sync the directories ─ (index adopts all at once)
//!        stage …                   ┘
//! ```
//!
//! All calls are blocking. What `Occupancy`, [`Destination`] and `Partial::place` do for one large file holds for each small one.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Write},
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use rustix::fs::AtFlags;
use shared::{
    content::FileMeta,
    error::{Failure, FailureCode},
    limits::GROUP_BYTES,
};
use tracing::warn;

use super::staging::{SYNC_ALL_FROM, Stage};
use crate::{
    bao::tree_hash::hash_file,
    store::{
        download::{
            destination::{Destination, Occupancy, Place},
            partial::set_attributes,
        },
        error::io_failure,
        file_stat::FileStat,
        index::IndexEntry,
        inner::{ArrivalGuard, Arrivals, HashOutcome, ShareInner},
    },
};

/// A way in for many small files. Clones are handles of the same; what was staged and not committed goes with the last.
#[derive(Debug, Clone)]
pub(crate) struct StagedBatch(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    inner: Arc<ShareInner>,
    outside: Option<PathBuf>,
    force: bool,
    numbers: AtomicU64,
    stages: Mutex<Stages>,
}

#[derive(Debug, Default)]
struct Stages {
    share: Option<Arc<Stage>>,
    /// By device: nothing can be renamed from one to another.
    outside: BTreeMap<u64, Arc<Stage>>,
}

/// What was found at a destination.
#[derive(Debug)]
pub(crate) enum Inspected {
    /// The file is there with just this content; what the index is to know of it.
    Identical(Destination, Option<IndexEntry>),
    /// It is to be fetched.
    Wanted(Destination),
}

/// A file, whole, that is not durable and not in its place yet.
#[derive(Debug)]
pub(crate) struct Staged {
    destination: Destination,
    meta: FileMeta,
    stage: Arc<Stage>,
    number: u64,
}

impl Staged {
    /// Bytes.
    pub(crate) fn size(&self) -> u64 {
        self.meta.size
    }
}

/// What became of a group.
#[derive(Debug)]
pub(crate) struct Committed {
    /// For each file in the order of the group, where it lies or why not.
    pub(crate) files: Vec<Result<PathBuf, Failure>>,
    /// For [`crate::store::Share::know`].
    pub(crate) arrived: Arrivals,
}

impl StagedBatch {
    pub(crate) fn new(inner: Arc<ShareInner>, outside: Option<&Path>, force: bool) -> Self {
        let outside = outside.map(Path::to_path_buf);
        let inner = Inner { inner, outside, force, numbers: AtomicU64::new(0), stages: Mutex::default() };
        Self(Arc::new(inner))
    }

    /// Where a file goes and what is there.
    ///
    /// # Errors
    /// As `Share::destination` and `Share::standing`; and when nothing can be written where it goes.
    pub(crate) fn inspect(&self, meta: &FileMeta, to: Option<&Path>) -> Result<Inspected, Failure> {
        let inner = &self.0.inner;
        let destination = Destination::resolve(&inner.root, &meta.name, to)?;
        match destination.occupancy(meta.hash, meta.size, self.0.force, &inner.stopping)? {
            Occupancy::Identical => {
                // It may have come a moment ago; whoever asked shall find it in the index.
                let known = destination.name().and_then(|name| match inner.inspect(name) {
                    HashOutcome::Done(known) => Some(known),
                    HashOutcome::Changed | HashOutcome::Gone | HashOutcome::Unreadable(_) => None,
                });
                Ok(Inspected::Identical(destination, known))
            }
            Occupancy::Vacant | Occupancy::Replaceable => {
                // Before a byte of it is asked for.
                self.stage_for(&destination).map_err(|error| io_failure("write to", destination.path(), &error))?;
                Ok(Inspected::Wanted(destination))
            }
        }
    }

    /// Files that were found in place, for [`crate::store::Share::know`].
    pub(crate) fn found(known: Vec<IndexEntry>) -> Arrivals {
        Arrivals { files: known, arriving: None }
    }

    /// Fails when there is obviously too little room for `bytes` in `files` files on one of the disks they go to.
    ///
    /// # Errors
    /// `NoSpace`.
    pub(crate) fn check_space(&self, files: u64, bytes: u64) -> Result<(), Failure> {
        let stages = self.stages();
        // With all on one disk it is known how much must fit there.
        let mut all = stages.share.iter().chain(stages.outside.values());
        let (Some(stage), None) = (all.next(), all.next()) else { return Ok(()) };
        let stat = rustix::fs::fstatvfs(stage.dir())
            .map_err(|error| io_failure("look at the disk of", self.0.inner.root.path(), &error.into()))?;
        // Half a block a file is lost on average.
        let needed = bytes.saturating_add(files.saturating_mul(stat.f_frsize / 2));
        let available = stat.f_bavail.saturating_mul(stat.f_frsize);
        if needed <= available {
            return Ok(());
        }
        let why = format!("{needed} bytes are needed and {available} are free");
        Err(Failure::new(
            FailureCode::NoSpace,
            format!("cannot download {files} files"),
            why,
            "free some space and try again",
        ))
    }

    /// Writes a content, which was verified, with time and mode of `meta`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn stage(&self, destination: &Destination, meta: &FileMeta, content: &[u8]) -> Result<Staged, Failure> {
        let write = || -> io::Result<Staged> {
            let stage = self.stage_for(destination)?;
            let number = self.0.numbers.fetch_add(1, Ordering::Relaxed);
            let staged = Staged { destination: destination.clone(), meta: meta.clone(), stage, number };
            let mut file = staged.stage.create(number)?;
            let written =
                file.write_all(content).and_then(|()| set_attributes(&file, meta.mtime_micros, meta.executable));
            if let Err(error) = written {
                staged.stage.discard(number);
                return Err(error);
            }
            if destination.name().is_some() && meta.size > GROUP_BYTES {
                self.keep_outboard(&file, meta);
            }
            Ok(staged)
        };
        write().map_err(|error| io_failure("write", destination.path(), &error))
    }

    /// The receiver is to serve it by groups too.
    fn keep_outboard(&self, file: &File, meta: &FileMeta) {
        let inner = &self.0.inner;
        let kept = || -> io::Result<()> {
            if inner.outboards.has(meta.hash, meta.size) {
                return Ok(());
            }
            let outboard = inner.outboards.create()?;
            hash_file(file, meta.size, Some(outboard.as_file()), &inner.stopping)?;
            inner.outboards.keep(outboard, meta.hash)
        };
        if let Err(error) = kept() {
            // The file is complete; what is missing is hashed again before it is served.
            warn!(%error, name = %meta.name, "the outboard cannot be kept");
        }
    }

    /// Makes a group of files durable, then puts them in their places, durably. A file that is in the way of one is no
    /// hindrance for the others.
    ///
    /// # Errors
    /// When the disk could not make the group durable; then none of it is in place.
    pub(crate) fn commit(&self, group: Vec<Staged>) -> Result<Committed, Failure> {
        sync_files(&group).map_err(|error| io_failure("write to", self.0.inner.root.path(), &error))?;
        let inner = &self.0.inner;
        let names = group.iter().filter_map(|staged| staged.destination.name().cloned()).collect();
        let arriving = Some(ArrivalGuard::new(inner, names));
        let mut order: Vec<usize> = (0..group.len()).collect();
        order.sort_by(|one, other| group[*one].destination.path().cmp(group[*other].destination.path()));
        let mut files: Vec<Option<Result<PathBuf, Failure>>> = group.iter().map(|_| None).collect();
        let mut known = Vec::with_capacity(group.len());
        let mut directories = Directories::default();
        for at in order {
            let staged = &group[at];
            let placed = directories
                .open(&staged.destination, inner)
                .and_then(|dir| self.place(staged, dir))
                .map(|stat| {
                    if let Some(name) = staged.destination.name() {
                        known.push(inner.own(name.clone(), stat, staged.meta.hash));
                    }
                })
                .or_else(|error| self.in_the_way(staged, &error, &mut known));
            if placed.is_err() {
                staged.stage.discard(staged.number);
            }
            files[at] = Some(placed.map(|()| staged.destination.path().to_path_buf()));
        }
        directories.sync().map_err(|error| io_failure("write to", inner.root.path(), &error))?;
        inner.remember(&known);
        let files = files.into_iter().map(|file| file.expect("every file of the group was looked at")).collect();
        Ok(Committed { files, arrived: Arrivals { files: known, arriving } })
    }

    fn place(&self, staged: &Staged, dir: &OwnedFd) -> io::Result<FileStat> {
        let base = staged.destination.base();
        staged.stage.place(staged.number, dir, &base, self.0.force)?;
        Ok(FileStat::from_stat(&rustix::fs::statat(dir, &base, AtFlags::SYMLINK_NOFOLLOW)?))
    }

    /// Something came to the destination since it was looked at. If it is the same file, all is well.
    fn in_the_way(&self, staged: &Staged, error: &io::Error, known: &mut Vec<IndexEntry>) -> Result<(), Failure> {
        if error.kind() == io::ErrorKind::AlreadyExists
            && let Ok(Inspected::Identical(_, found)) = self.look_again(staged)
        {
            known.extend(found);
            staged.stage.discard(staged.number);
            return Ok(());
        }
        Err(staged.destination.cannot_complete(error))
    }

    fn look_again(&self, staged: &Staged) -> Result<Inspected, Failure> {
        self.inspect(&staged.meta, Some(staged.destination.path()))
    }

    fn stages(&self) -> MutexGuard<'_, Stages> {
        self.0.stages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The stage from which files can be renamed to this destination.
    fn stage_for(&self, destination: &Destination) -> io::Result<Arc<Stage>> {
        let mut stages = self.stages();
        let Place::Outside { dir, .. } = &destination.place else {
            if let Some(stage) = &stages.share {
                return Ok(Arc::clone(stage));
            }
            let stage = Arc::new(Stage::in_share(&self.0.inner.root, "download")?);
            stages.share = Some(Arc::clone(&stage));
            return Ok(stage);
        };
        let device = device_of(dir)?;
        if let Some(stage) = stages.outside.get(&device) {
            return Ok(Arc::clone(stage));
        }
        let common = self.0.outside.as_deref().filter(|folder| device_of(folder).is_ok_and(|other| other == device));
        let stage = Arc::new(Stage::outside(common.unwrap_or(dir))?);
        stages.outside.insert(device, Arc::clone(&stage));
        Ok(stage)
    }
}

fn device_of(path: &Path) -> io::Result<u64> {
    Ok(FileStat::of(&path.metadata()?).id().0)
}

/// Makes the contents of all files durable.
fn sync_files(group: &[Staged]) -> io::Result<()> {
    if group.len() < SYNC_ALL_FROM {
        return group.iter().try_for_each(|staged| staged.stage.open(staged.number)?.sync_all());
    }
    let mut synced: Vec<&Arc<Stage>> = Vec::new();
    for staged in group {
        if !synced.iter().any(|stage| Arc::ptr_eq(stage, &staged.stage)) {
            rustix::fs::syncfs(staged.stage.dir())?;
            synced.push(&staged.stage);
        }
    }
    Ok(())
}

/// The directories that files are put into, one open at a time.
#[derive(Debug, Default)]
pub(crate) struct Directories {
    current: Option<(PathBuf, OwnedFd)>,
    /// To be synced; once there are many, one of each disk.
    touched: Vec<OwnedFd>,
    disks: BTreeMap<u64, OwnedFd>,
}

impl Directories {
    /// The directory of a destination, made where it is missing in the share.
    pub(crate) fn open(&mut self, destination: &Destination, inner: &ShareInner) -> io::Result<&OwnedFd> {
        let parent = destination.path().parent().unwrap_or(Path::new("/"));
        if self.current.as_ref().is_none_or(|(path, _)| path != parent) {
            let (dir, _) = destination.open_dir(&inner.root)?;
            self.touch(dir.try_clone()?)?;
            self.current = Some((parent.to_path_buf(), dir));
        }
        self.current.as_ref().map(|(_, dir)| dir).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn touch(&mut self, dir: OwnedFd) -> io::Result<()> {
        if self.touched.len() < SYNC_ALL_FROM && self.disks.is_empty() {
            self.touched.push(dir);
            return Ok(());
        }
        for dir in self.touched.drain(..).chain([dir]) {
            let device = FileStat::from_stat(&rustix::fs::fstat(&dir)?).id().0;
            self.disks.entry(device).or_insert(dir);
        }
        Ok(())
    }

    pub(crate) fn sync(self) -> io::Result<()> {
        for dir in &self.touched {
            rustix::fs::fsync(dir)?;
        }
        for disk in self.disks.values() {
            rustix::fs::syncfs(disk.as_fd())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt, time::Duration};

    use shared::content::ContentHash;
    use tokio::sync::mpsc;

    use super::*;
    use crate::store::{Changes, Share, ShareOptions};

    async fn share(dir: &Path) -> (Share, mpsc::Receiver<Changes>) {
        let (events, changes) = mpsc::channel(64);
        let options = ShareOptions { rescan: Duration::from_secs(3600), ..ShareOptions::default() };
        (Share::open(&dir.join("share"), &dir.join("state"), options, events).await.unwrap(), changes)
    }

    fn file(name: &str, content: &[u8]) -> FileMeta {
        let hash = ContentHash(*blake3::hash(content).as_bytes());
        let size = content.len() as u64;
        FileMeta { name: name.parse().unwrap(), size, hash, mtime_micros: 1_000_000_000_123_456, executable: true }
    }

    fn stage(batch: &StagedBatch, meta: &FileMeta, to: Option<&Path>, content: &[u8]) -> Staged {
        match batch.inspect(meta, to).unwrap() {
            Inspected::Wanted(destination) => batch.stage(&destination, meta, content).unwrap(),
            Inspected::Identical(..) => panic!("{} is there already", meta.name),
        }
    }

    #[tokio::test]
    async fn a_group_is_in_place_shared_and_not_hashed_again() {
        let dir = tempfile::tempdir().unwrap();
        let (share, mut changes) = share(dir.path()).await;
        let batch = share.staged_batch(None, false);
        let contents: Vec<Vec<u8>> = (0..40_usize).map(|number| vec![7; number * 1_000]).collect();
        let metas: Vec<FileMeta> =
            contents.iter().enumerate().map(|(n, content)| file(&format!("d{}/f{n}", n % 20), content)).collect();
        let group = metas.iter().zip(&contents).map(|(meta, content)| stage(&batch, meta, None, content)).collect();
        assert_eq!(share.list(), [], "nothing shows before it is durable");
        let committed = batch.commit(group).unwrap();
        share.adopt(committed.arrived).await.unwrap();
        for ((meta, content), path) in metas.iter().zip(&contents).zip(committed.files) {
            let path = path.unwrap();
            assert_eq!(path, meta.name.below(share.path()));
            assert_eq!(&fs::read(&path).unwrap(), content);
            assert_ne!(path.metadata().unwrap().permissions().mode() & 0o100, 0);
            assert_eq!(share.get(&meta.name).as_ref(), Some(meta));
            share.open_for_serving(&meta.hash).unwrap();
        }
        share.rescan_now().await.unwrap();
        assert_eq!((share.stats().files, share.stats().hashed_bytes), (40, 0));
        let told = changes.recv().await.unwrap();
        assert_eq!(told.upserts.len(), 40, "in one piece");
        drop(batch);
        assert_eq!(fs::read_dir(share.path().join(".brasa/incoming")).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn what_came_meanwhile_is_not_replaced_and_the_same_file_is_no_hindrance() {
        let dir = tempfile::tempdir().unwrap();
        let (share, _changes) = share(dir.path()).await;
        let metas = [file("other", b"theirs"), file("same", b"theirs"), file("free", b"theirs")];
        let batch = share.staged_batch(None, false);
        let group = metas.iter().map(|meta| stage(&batch, meta, None, b"theirs")).collect();
        fs::write(share.path().join("other"), "mine").unwrap();
        fs::write(share.path().join("same"), "theirs").unwrap();
        let committed = batch.commit(group).unwrap();
        let codes: Vec<_> =
            committed.files.iter().map(|file| file.as_ref().map(|_| ()).map_err(|failure| failure.code)).collect();
        assert_eq!(codes, [Err(FailureCode::Exists), Ok(()), Ok(())]);
        assert_eq!(fs::read(share.path().join("other")).unwrap(), b"mine");
        let forced = share.staged_batch(None, true);
        let group = vec![stage(&forced, &metas[0], None, b"theirs")];
        forced.commit(group).unwrap().files[0].as_ref().unwrap();
        assert_eq!(fs::read(share.path().join("other")).unwrap(), b"theirs");
    }

    #[tokio::test]
    async fn elsewhere_the_files_lie_beside_their_place_and_leftovers_are_swept() {
        let dir = tempfile::tempdir().unwrap();
        let (share, _changes) = share(dir.path()).await;
        let outside = dir.path().join("outside");
        fs::create_dir_all(outside.join(".brasa-incoming-killed")).unwrap();
        fs::write(outside.join(".brasa-incoming-killed/0"), "half").unwrap();
        let batch = share.staged_batch(Some(&outside), false);
        let meta = file("docs/a", b"content");
        let staged = stage(&batch, &meta, Some(&outside.join("b")), b"content");
        assert!(!outside.join(".brasa-incoming-killed").exists());
        assert!(!outside.join("b").exists());
        let committed = batch.commit(vec![staged]).unwrap();
        assert!(committed.arrived.files.is_empty());
        drop(batch);
        let names: Vec<_> = fs::read_dir(&outside).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["b"]);
    }

    #[tokio::test]
    async fn what_is_given_up_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (share, _changes) = share(dir.path()).await;
        let batch = share.staged_batch(None, false);
        let staged = stage(&batch, &file("a/b", b"content"), None, b"content");
        assert_eq!(fs::read_dir(share.path().join(".brasa/incoming")).unwrap().count(), 1);
        drop((batch, staged));
        assert_eq!(fs::read_dir(share.path().join(".brasa/incoming")).unwrap().count(), 0);
        assert!(!share.path().join("a").exists());
    }
}
