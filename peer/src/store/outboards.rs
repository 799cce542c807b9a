//! Outboards on disk: `outboards/<2 hex digits>/<62 hex digits>` in the state directory, one for each content of more
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

/// Directory of outboards.
#[derive(Debug)]
pub(crate) struct Outboards {
    dir: PathBuf,
}

/// Prefix in the name of a temporary outboard.
const TEMPORARY: &str = "tmp-";

impl Outboards {
    /// Opens the directory `dir` or creates it. Deletes temporary files that killed processes left.
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

    /// Opens the outboard of a content. Returns `None` for a content of one group, which has none.
    ///
    /// # Errors
    /// `NotFound` if there is none, `InvalidData` if it is damaged or belongs to another content.
    pub(crate) fn open_for(&self, hash: ContentHash, size: u64) -> io::Result<Option<File>> {
        if size <= GROUP_BYTES {
            return Ok(None);
        }
        let file = File::open(self.path(hash))?;
        let mut pair = [0; PAIR_BYTES];
        // A cheap check that detects damage by a power cut. Each pair is checked before it is sent.
        let is_complete = file.metadata()?.len() == outboard_bytes(size) && file.read_exact_at(&mut pair, 0).is_ok();
        if is_complete && is_root_pair(&pair, hash) {
            Ok(Some(file))
        } else {
            Err(io::Error::new(io::ErrorKind::InvalidData, "the outboard is damaged"))
        }
    }

    /// Returns true if the content has an outboard or needs none, so that it can be served.
    pub(crate) fn has(&self, hash: ContentHash, size: u64) -> bool {
        self.open_for(hash, size).is_ok()
    }

    /// Creates a temporary file for an outboard, which is deleted when it is dropped.
    pub(crate) fn create(&self) -> io::Result<NamedTempFile> {
        tempfile::Builder::new().prefix(TEMPORARY).tempfile_in(&self.dir)
    }

    /// Stores a complete outboard under the hash of its content.
    pub(crate) fn persist(&self, outboard: NamedTempFile, hash: ContentHash) -> io::Result<()> {
        let path = self.prepare_path(hash)?;
        outboard.persist(path)?;
        Ok(())
    }

    /// Moves a received outboard from `path`, or copies it if `path` is on another disk.
    pub(crate) fn adopt(&self, path: &Path, hash: ContentHash) -> io::Result<()> {
        match fs::rename(path, self.prepare_path(hash)?) {
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
                let mut copy = self.create()?;
                io::copy(&mut File::open(path)?, copy.as_file_mut())?;
                self.persist(copy, hash)?;
                fs::remove_file(path)
            }
            renamed => renamed,
        }
    }

    /// Returns the path of an outboard after creating its directory.
    fn prepare_path(&self, hash: ContentHash) -> io::Result<PathBuf> {
        let path = self.path(hash);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        Ok(path)
    }

    /// Deletes the outboard of a content, if there is one.
    pub(crate) fn remove(&self, hash: ContentHash) {
        let _missing = fs::remove_file(self.path(hash));
    }

    /// Deletes the outboards older than `grace` of contents that are not in `live`. Returns their number.
    pub(crate) fn collect(&self, live: &HashSet<ContentHash>, grace: Duration) -> io::Result<usize> {
        let live: HashSet<PathBuf> = live.iter().map(|hash| self.path(*hash)).collect();
        let now = i64::try_from(unix_micros()).unwrap_or(i64::MAX);
        let grace = i64::try_from(grace.as_micros()).unwrap_or(i64::MAX);
        let mut deleted = 0;
        for subdir in fs::read_dir(&self.dir)? {
            let subdir = subdir?;
            if !subdir.file_type()?.is_dir() {
                continue;
            }
            for entry in fs::read_dir(subdir.path())? {
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
    fn persisted_outboard_is_found_checked_and_collected() {
        let dir = tempfile::tempdir().unwrap();
        let outboards = Outboards::open(dir.path().join("outboards")).unwrap();
        let size = 5 * GROUP_BYTES;
        let mut data = tempfile::tempfile().unwrap();
        data.write_all(&vec![7; size as usize]).unwrap();
        let outboard = outboards.create().unwrap();
        let hash = hash_file(&data, size, Some(outboard.as_file()), &AtomicBool::new(false)).unwrap();
        assert!(!outboards.has(hash, size));
        outboards.persist(outboard, hash).unwrap();
        assert!(outboards.has(hash, size));
        assert!(!outboards.has(hash, size + GROUP_BYTES), "another size has another outboard");
        assert!(outboards.has(ContentHash([1; 32]), GROUP_BYTES), "one group has none");

        let grace = Duration::from_secs(600);
        assert_eq!(outboards.collect(&HashSet::new(), grace).unwrap(), 0, "younger than the grace period");
        assert_eq!(outboards.collect(&HashSet::from([hash]), Duration::ZERO).unwrap(), 0, "live");

        // The effect of a power cut: the right length and zeros.
        fs::write(outboards.path(hash), vec![0; outboard_bytes(size) as usize]).unwrap();
        assert_eq!(outboards.open_for(hash, size).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(outboards.collect(&HashSet::new(), Duration::ZERO).unwrap(), 1);
        assert_eq!(outboards.open_for(hash, size).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
