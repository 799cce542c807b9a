//! Outboards on the disk: `outboards/<2 hex digits>/<62 hex digits>` in the state directory, one for each content of more
//! than one group (format: `docs/transfer.md`).

use std::{
    collections::HashSet,
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::Duration,
};

use shared::{content::ContentHash, limits::GROUP_BYTES, time::unix_micros};
use tempfile::NamedTempFile;

use super::file_stat::FileStat;
use crate::bao::verifier::{PAIR_BYTES, is_root_pair, outboard_bytes};

/// The folder of outboards.
#[derive(Debug)]
pub(crate) struct Outboards {
    dir: PathBuf,
}

/// What a temporary outboard's name begins with.
const TEMPORARY: &str = "tmp-";

impl Outboards {
    /// The outboards in `dir`, which is made where it is missing. What a killed process left half-written goes.
    pub(crate) fn open(dir: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&dir)?;
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(TEMPORARY) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(Self { dir })
    }

    fn path(&self, hash: ContentHash) -> PathBuf {
        let hex = hash.to_hex();
        let (first, rest) = hex.split_at(2);
        self.dir.join(first).join(rest)
    }

    /// The outboard of a content; `None` when it needs none.
    ///
    /// # Errors
    /// `NotFound` when it is not there, `InvalidData` when it cannot be this content's.
    pub(crate) fn open_for(&self, hash: ContentHash, size: u64) -> io::Result<Option<File>> {
        if size <= GROUP_BYTES {
            return Ok(None);
        }
        let file = File::open(self.path(hash))?;
        let mut pair = [0; PAIR_BYTES];
        // Cheap, and it finds what a power cut leaves: the rest is checked pair by pair when it is sent.
        let whole = file.metadata()?.len() == outboard_bytes(size) && file.read_exact_at(&mut pair, 0).is_ok();
        if whole && is_root_pair(&pair, hash) {
            Ok(Some(file))
        } else {
            Err(io::Error::new(io::ErrorKind::InvalidData, "the outboard is damaged"))
        }
    }

    /// Whether the content can be served with what is here.
    pub(crate) fn has(&self, hash: ContentHash, size: u64) -> bool {
        self.open_for(hash, size).is_ok()
    }

    /// A temporary file for an outboard to be; gone when it is dropped.
    pub(crate) fn create(&self) -> io::Result<NamedTempFile> {
        tempfile::Builder::new().prefix(TEMPORARY).tempfile_in(&self.dir)
    }

    /// Puts an outboard in its place.
    pub(crate) fn keep(&self, outboard: NamedTempFile, hash: ContentHash) -> io::Result<()> {
        let path = self.place(hash)?;
        outboard.persist(path)?;
        Ok(())
    }

    /// Moves an outboard that was received from `path` to its place, copying it when that is on another disk.
    pub(crate) fn adopt(&self, path: &Path, hash: ContentHash) -> io::Result<()> {
        match fs::rename(path, self.place(hash)?) {
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
                let mut copy = self.create()?;
                io::copy(&mut File::open(path)?, copy.as_file_mut())?;
                self.keep(copy, hash)?;
                fs::remove_file(path)
            }
            renamed => renamed,
        }
    }

    fn place(&self, hash: ContentHash) -> io::Result<PathBuf> {
        let path = self.path(hash);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        Ok(path)
    }

    /// Forgets a content's outboard.
    pub(crate) fn remove(&self, hash: ContentHash) {
        let _missing = fs::remove_file(self.path(hash));
    }

    /// Deletes the outboards of contents that are not in `live` and that are older than `grace`; how many.
    pub(crate) fn collect(&self, live: &HashSet<ContentHash>, grace: Duration) -> io::Result<usize> {
        let live: HashSet<PathBuf> = live.iter().map(|hash| self.path(*hash)).collect();
        let now = i64::try_from(unix_micros()).unwrap_or(i64::MAX);
        let grace = i64::try_from(grace.as_micros()).unwrap_or(i64::MAX);
        let mut deleted = 0;
        for shelf in fs::read_dir(&self.dir)? {
            let shelf = shelf?;
            if !shelf.file_type()?.is_dir() {
                continue;
            }
            for entry in fs::read_dir(shelf.path())? {
                let entry = entry?;
                let age = now.saturating_sub(FileStat::of(&entry.metadata()?).mtime_micros());
                if !live.contains(&entry.path()) && age >= grace {
                    fs::remove_file(entry.path())?;
                    deleted += 1;
                }
            }
        }
        Ok(deleted)
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write, sync::atomic::AtomicBool};

    use super::*;
    use crate::bao::tree_hash::hash_file;

    #[test]
    fn an_outboard_is_kept_found_checked_and_collected() {
        let dir = tempfile::tempdir().unwrap();
        let outboards = Outboards::open(dir.path().join("outboards")).unwrap();
        let size = 5 * GROUP_BYTES;
        let mut data = tempfile::tempfile().unwrap();
        data.write_all(&vec![7; size as usize]).unwrap();
        let outboard = outboards.create().unwrap();
        let hash = hash_file(&data, size, Some(outboard.as_file()), &AtomicBool::new(false)).unwrap();
        assert!(!outboards.has(hash, size));
        outboards.keep(outboard, hash).unwrap();
        assert!(outboards.has(hash, size));
        assert!(!outboards.has(hash, size + GROUP_BYTES), "another size needs another outboard");
        assert!(outboards.has(ContentHash([1; 32]), GROUP_BYTES), "one group needs none");

        let grace = Duration::from_secs(600);
        assert_eq!(outboards.collect(&HashSet::new(), grace).unwrap(), 0, "it is young");
        assert_eq!(outboards.collect(&HashSet::from([hash]), Duration::ZERO).unwrap(), 0, "it is needed");

        // What a power cut leaves: the right length, and zeros.
        fs::write(outboards.path(hash), vec![0; outboard_bytes(size) as usize]).unwrap();
        assert_eq!(outboards.open_for(hash, size).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(outboards.collect(&HashSet::new(), Duration::ZERO).unwrap(), 1);
        assert_eq!(outboards.open_for(hash, size).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
