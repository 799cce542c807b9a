//! What tells, without reading it, that a file changed.

use std::{fs::Metadata, os::unix::fs::MetadataExt, time::Duration};

use rustix::fs::FileType;

/// Seconds and nanoseconds since 1970.
pub(crate) type FileTime = (i64, u32);

/// Identity, size and times of a file: as long as they stay, its bytes do (but see [`FileStat::is_racy`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileStat {
    pub(crate) device: u64,
    pub(crate) inode: u64,
    /// Bytes.
    pub(crate) size: u64,
    /// Last write, which programs can set back.
    pub(crate) mtime: FileTime,
    /// Last change of anything, which they cannot.
    pub(crate) ctime: FileTime,
    /// Whether its owner may execute it. (A change of it changes `ctime`.)
    pub(crate) executable: bool,
    /// Whether it is a directory; it counts as one of no bytes that nobody executes.
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

    /// Device and inode.
    pub(crate) fn id(&self) -> (u64, u64) {
        (self.device, self.inode)
    }

    /// Whether nobody wrote to the file between this stamp and `other`. (It may have been renamed or linked.)
    pub(crate) fn is_same_write(&self, other: &Self) -> bool {
        (self.id(), self.size, self.mtime) == (other.id(), other.size, other.mtime)
    }

    /// Last modification in microseconds since 1970.
    pub(crate) fn mtime_micros(&self) -> i64 {
        self.mtime.0.saturating_mul(1_000_000).saturating_add(i64::from(self.mtime.1 / 1000))
    }

    /// Whether the file changed so shortly before `hashed_at` (microseconds since 1970; when hashing began) that it could
    /// have changed once more, unseen, within one tick of the file system's clock. ("Racy Git", in git's technical
    /// documentation, describes the problem.)
    pub(crate) fn is_racy(&self, hashed_at: u64, window: Duration) -> bool {
        is_near(self.mtime, hashed_at, window) || is_near(self.ctime, hashed_at, window)
    }

    /// The same for a file that this process wrote, hashed and put in place itself: the change time is its own
    /// doing, and any writer after it sets the modification time.
    pub(crate) fn is_racy_after_own_write(&self, hashed_at: u64, window: Duration) -> bool {
        is_near(self.mtime, hashed_at, window)
    }
}

/// The kernel's integers have other types on every platform; sizes and nanoseconds are never negative.
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
    fn what_changed_just_now_is_racy() {
        let now = 1_000_000_000;
        assert!(!stat((997, 0), (998, 0)).is_racy(now, WINDOW));
        assert!(stat((998, 1000), (900, 0)).is_racy(now, WINDOW));
        assert!(stat((900, 0), (999, 0)).is_racy(now, WINDOW), "a modification time set back hides nothing");
        assert!(!stat((900, 0), (999, 0)).is_racy_after_own_write(now, WINDOW));
        assert!(stat((1001, 0), (900, 0)).is_racy(now, WINDOW), "clocks of servers run ahead");
        assert!(!stat((4_000_000_000, 0), (900, 0)).is_racy(now, WINDOW), "a far future does not mean for ever");
        assert!(!stat((1000, 0), (1000, 0)).is_racy(now, Duration::ZERO));
    }

    #[test]
    fn times_before_1970_and_absurd_ones_do_not_overflow() {
        assert_eq!(stat((-1, 999_999_000), (0, 0)).mtime_micros(), -1);
        assert_eq!(stat((i64::MAX, 0), (0, 0)).mtime_micros(), i64::MAX);
        assert!(!stat((i64::MIN, 0), (i64::MAX, 0)).is_racy(u64::MAX, WINDOW));
    }
}
