//! Recovery of the verified groups that an earlier process left of a download.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Read},
    os::fd::AsFd,
    sync::{LazyLock, atomic::AtomicBool},
};

use crate::{
    bao::{check::check, verifier::outboard_bytes},
    store::{
        file_stat::FileStat,
        params::{MAX_RESUME_FILE_BYTES, RESUME_SLACK},
    },
};
use rustix::{
    fs::{Mode, OFlags, Stat},
    io::Errno,
};
use shared::{content::FileMeta, group_ranges::GroupRanges};
use tracing::info;

use super::format::{BootId, ResumeContent, parse};

/// Verified groups of a partial file.
#[derive(Debug, Default)]
pub(crate) struct Recovered {
    /// Groups that are on the disk.
    pub(crate) durable: GroupRanges,
    /// Groups that are safe unless the machine crashes.
    pub(crate) written: GroupRanges,
}

/// Resume file as read from the disk.
#[derive(Debug)]
pub(crate) struct ResumeFile {
    pub(crate) content: Vec<u8>,
    /// Time of its last change, nanoseconds since 1970.
    changed: i64,
}

/// Returns the identifier of the current boot. On a system without one, every process counts as a boot, so resumed
/// downloads hash more.
pub(crate) fn boot_id() -> BootId {
    static BOOT: LazyLock<BootId> = LazyLock::new(|| {
        let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
        u128::from_str_radix(&digits, 16).unwrap_or_else(|_| fastrand::u128(..)).to_le_bytes()
    });
    *BOOT
}

/// Returns the time of the last change of a file, nanoseconds since 1970.
pub(crate) fn changed_at(stat: &Stat) -> i64 {
    let (seconds, nanos) = FileStat::from_stat(stat).ctime;
    seconds.saturating_mul(1_000_000_000).saturating_add(i64::from(nanos))
}

impl ResumeFile {
    /// Reads the resume file `name`, at most `MAX_RESUME_FILE_BYTES`. Returns `None` if there is none.
    pub(crate) fn read(dir: impl AsFd, name: &OsStr) -> io::Result<Option<Self>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(dir, name, flags, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(None),
            opened => File::from(opened?),
        };
        let changed = changed_at(&rustix::fs::fstat(&file)?);
        let mut content = Vec::new();
        file.take(MAX_RESUME_FILE_BYTES as u64).read_to_end(&mut content)?;
        Ok(Some(Self { content, changed }))
    }

    /// Returns the content if it describes these files and no other program has written to them since.
    fn trusted(&self, file: &FileMeta, data: &Stat, outboard: &Stat) -> Option<ResumeContent> {
        let recovered = match parse(&self.content) {
            Ok(recovered) => recovered,
            Err(error) => {
                info!(%error, "ignoring a resume file");
                return None;
            }
        };
        let header = &recovered.header;
        let same_file = (header.file.hash, header.file.size) == (file.hash, file.size);
        let same_ids =
            (header.data, header.outboard) == (FileStat::from_stat(data).id(), FileStat::from_stat(outboard).id());
        let whole = i128::from(data.st_size) == i128::from(file.size)
            && i128::from(outboard.st_size) == i128::from(outboard_bytes(file.size));
        let times = (changed_at(data), changed_at(outboard));
        let untouched = match recovered.closed {
            Some(closed) => closed == times,
            None => {
                let slack = i64::try_from(RESUME_SLACK.as_nanos()).unwrap_or(i64::MAX);
                times.0.max(times.1) <= self.changed.saturating_add(slack)
            }
        };
        (same_file && same_ids && whole && untouched).then_some(recovered)
    }
}

/// Returns the verified groups of `file`. Hashes groups that the resume file does not prove, unless `stop` is set.
pub(crate) fn recover(
    resume_file: Option<&ResumeFile>,
    file: &FileMeta,
    data: &File,
    outboard: &File,
    stop: &AtomicBool,
) -> io::Result<Recovered> {
    let (data_stat, outboard_stat) = (rustix::fs::fstat(data)?, rustix::fs::fstat(outboard)?);
    if data_stat.st_size == 0 || outboard_stat.st_size == 0 {
        return Ok(Recovered::default());
    }
    let recovered = resume_file.and_then(|resume_file| resume_file.trusted(file, &data_stat, &outboard_stat));
    let (durable, sure, doubtful) = match &recovered {
        Some(recovered) => {
            let (sure, doubtful) = recovered.claims(&boot_id());
            (recovered.durable.clone(), sure.without(&recovered.durable), doubtful)
        }
        None => (GroupRanges::default(), GroupRanges::default(), GroupRanges::all(file.size)),
    };
    let mut written = sure;
    if !doubtful.is_empty() {
        info!(file = %file.name, bytes = doubtful.bytes(file.size), "hashing the groups of an interrupted download");
        if recovered.is_none() {
            data.set_len(file.size)?;
            outboard.set_len(outboard_bytes(file.size))?;
        }
        for range in check(file.hash, file.size, data, outboard, doubtful, stop).iter() {
            written.insert(range);
        }
    }
    Ok(Recovered { durable, written })
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::FileExt};

    use shared::{content::ContentHash, limits::GROUP_BYTES};

    use super::super::format::{Goal, Header, ResumeLog};
    use super::*;
    use crate::bao::tree_hash::hash_file;

    const GROUPS: u64 = 128;

    fn set(ranges: &[(u64, u64)]) -> GroupRanges {
        ranges.iter().map(|&(start, end)| start..end).collect()
    }

    /// Recovers a file of which one half is durable and the other one written, with one wrong group in each, in the
    /// same boot or a later one.
    fn recovered(same_boot: bool) -> Recovered {
        let folder = tempfile::tempdir().unwrap();
        let mut content = vec![0; (GROUPS * GROUP_BYTES) as usize];
        fastrand::Rng::with_seed(1).fill(&mut content);
        let open = |name: &str| {
            File::options().read(true).write(true).create(true).truncate(false).open(folder.path().join(name)).unwrap()
        };
        let (data, outboard) = (open("data"), open("data.outboard"));
        data.write_all_at(&content, 0).unwrap();
        let stop = AtomicBool::new(false);
        let hash: ContentHash = hash_file(&data, content.len() as u64, Some(&outboard), &stop).unwrap();
        for wrong in [10, 100] {
            data.write_all_at(b"wrong", wrong * GROUP_BYTES).unwrap();
        }
        let file = FileMeta {
            name: "f".parse().unwrap(),
            size: content.len() as u64,
            hash,
            mtime_micros: 0,
            executable: false,
        };
        let id = |file: &File| FileStat::from_stat(&rustix::fs::fstat(file).unwrap()).id();
        let mut boot = boot_id();
        boot[0] ^= u8::from(!same_boot);
        let (data_id, outboard_id) = (id(&data), id(&outboard));
        let goal = Goal::Share(file.name.clone());
        let header = Header { file: file.clone(), goal, boot, nonce: [0; 16], data: data_id, outboard: outboard_id };
        let log = ResumeLog::new(&header, set(&[(0, 64)]), set(&[(64, 128)])).unwrap();
        fs::write(folder.path().join("data.have"), log.compact()).unwrap();
        let resume_file = ResumeFile::read(File::open(folder.path()).unwrap(), OsStr::new("data.have")).unwrap();
        recover(resume_file.as_ref(), &file, &data, &outboard, &stop).unwrap()
    }

    #[test]
    fn recover_in_the_same_boot_hashes_nothing() {
        let found = recovered(true);
        assert_eq!((found.durable, found.written), (set(&[(0, 64)]), set(&[(64, 128)])));
    }

    #[test]
    fn recover_in_a_later_boot_hashes_unsynced_groups() {
        let found = recovered(false);
        assert_eq!((found.durable, found.written), (set(&[(0, 64)]), set(&[(64, 100), (101, 128)])));
    }
}
