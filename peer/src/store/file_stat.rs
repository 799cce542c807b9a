//! Metadata of a file that reveals a change without reading the content.

use std::{fs::Metadata, os::unix::fs::MetadataExt, time::Duration};

use rustix::fs::FileType;

/// Seconds and nanoseconds since 1970.
pub(crate) type FileTime = (i64, u32);

/// Device and inode.
pub(crate) type FileId = (u64, u64);

/// Identity, size and times of a file. While they stay the same, so does the content, except in the case of
/// [`FileStat::is_racy`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileStat {
    pub(crate) device: u64,
    pub(crate) inode: u64,
    /// Bytes.
    pub(crate) size: u64,
    /// Time of the last write. Programs can set it to any value.
    pub(crate) mtime: FileTime,
    /// Time of the last change of content or metadata. Only the kernel sets it.
    pub(crate) ctime: FileTime,
    /// True if the owner of the file may execute it. A change of this permission changes `ctime`.
    pub(crate) executable: bool,
    /// True for a directory, which counts as not executable and 0 bytes long.
    pub(crate) directory: bool,
}

impl FileStat {
    pub(crate) fn of(metadata: &Metadata) -> Self {
        let directory = metadata.is_dir();
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: if directory { 0 } else { metadata.len() },
            mtime: (metadata.mtime(), number(metadata.mtime_nsec())),
            ctime: (metadata.ctime(), number(metadata.ctime_nsec())),
            executable: !directory && metadata.mode() & 0o100 != 0,
            directory,
        }
    }

    pub(crate) fn from_stat(stat: &rustix::fs::Stat) -> Self {
        let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        Self {
            device: number(stat.st_dev),
            inode: number(stat.st_ino),
            size: if directory { 0 } else { number(stat.st_size) },
            mtime: (number(stat.st_mtime), number(stat.st_mtime_nsec)),
            ctime: (number(stat.st_ctime), number(stat.st_ctime_nsec)),
            executable: !directory && stat.st_mode & 0o100 != 0,
            directory,
        }
    }

    /// Returns device and inode.
    pub(crate) fn id(&self) -> FileId {
        (self.device, self.inode)
    }

    /// Returns true if no program wrote to the file between the two stats. A rename or a new hard link does not count.
    pub(crate) fn is_same_write(&self, other: &Self) -> bool {
        (self.id(), self.size, self.mtime) == (other.id(), other.size, other.mtime)
    }

    /// Returns the modification time, microseconds since 1970.
    pub(crate) fn mtime_micros(&self) -> i64 {
        self.mtime.0.saturating_mul(1_000_000).saturating_add(i64::from(self.mtime.1 / 1000))
    }

    /// Returns true if the last change is so close to `hashed_at` that a further change may have left the times as
    /// they are.
    ///
    /// `hashed_at` is the time at which hashing began, microseconds since 1970. A file system stores times with the
    /// resolution of its clock tick, so two changes within one tick look the same ("Racy Git" in git's technical
    /// documentation).
    pub(crate) fn is_racy(&self, hashed_at: u64, window: Duration) -> bool {
        is_near(self.mtime, hashed_at, window) || is_near(self.ctime, hashed_at, window)
    }

    /// As [`is_racy`](Self::is_racy), for a file that this process wrote, hashed and renamed: the rename set the change
    /// time, and any later writer sets the modification time.
    pub(crate) fn is_racy_after_own_write(&self, hashed_at: u64, window: Duration) -> bool {
        is_near(self.mtime, hashed_at, window)
    }
}

/// Converts a field of `stat`, whose integer types differ between platforms. Sizes and nanoseconds are never negative.
fn number<F, T: TryFrom<F> + Default>(field: F) -> T {
    T::try_from(field).unwrap_or_default()
}

fn is_near(time: FileTime, unix_micros: u64, window: Duration) -> bool {
    let time = i128::from(time.0) * 1_000_000 + i128::from(time.1 / 1000);
    let distance = time.abs_diff(i128::from(unix_micros));
    distance < window.as_micros()
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(2);

    fn stat(mtime: FileTime, ctime: FileTime) -> FileStat {
        FileStat { device: 1, inode: 2, size: 3, mtime, ctime, executable: false, directory: false }
    }

    #[test]
    fn is_racy_with_recent_change_returns_true() {
        let now = 1_000_000_000;
        assert!(!stat((997, 0), (998, 0)).is_racy(now, WINDOW));
        assert!(stat((998, 1000), (900, 0)).is_racy(now, WINDOW));
        assert!(stat((900, 0), (999, 0)).is_racy(now, WINDOW), "a modification time that was set back");
        assert!(!stat((900, 0), (999, 0)).is_racy_after_own_write(now, WINDOW));
        assert!(stat((1001, 0), (900, 0)).is_racy(now, WINDOW), "a clock of a file server that runs ahead");
        assert!(!stat((4_000_000_000, 0), (900, 0)).is_racy(now, WINDOW), "a modification time in the far future");
        assert!(!stat((1000, 0), (1000, 0)).is_racy(now, Duration::ZERO));
    }

    #[test]
    fn mtime_micros_with_extreme_times_does_not_overflow() {
        assert_eq!(stat((-1, 999_999_000), (0, 0)).mtime_micros(), -1);
        assert_eq!(stat((i64::MAX, 0), (0, 0)).mtime_micros(), i64::MAX);
        assert!(!stat((i64::MIN, 0), (i64::MAX, 0)).is_racy(u64::MAX, WINDOW));
    }
}
