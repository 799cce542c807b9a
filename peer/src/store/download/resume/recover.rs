//! What an earlier process left of a download.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, Read},
    os::fd::AsFd,
    sync::{LazyLock, atomic::AtomicBool},
};

use rustix::{
    fs::{AtFlags, Mode, OFlags, Stat},
    io::Errno,
};
use shared::{
    content::FileMeta,
    group_ranges::GroupRanges,
    limits::{MAX_RESUME_FILE_BYTES, RESUME_SLACK},
};
use tracing::info;

use super::format::{BootId, FileId, Recovered, parse};
use crate::{
    bao::{check::check, verifier::outboard_bytes},
    store::file_stat::FileStat,
};

/// What the name of a resume file ends with.
pub(crate) const RESUME_SUFFIX: &str = ".have";

/// Groups that are there, and how sure it is.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// On the disk.
    pub(crate) durable: GroupRanges,
    /// There as long as the machine runs.
    pub(crate) written: GroupRanges,
}

/// A resume file as it was found.
#[derive(Debug)]
pub(crate) struct ResumeFile {
    pub(crate) content: Vec<u8>,
    /// When it changed last, nanoseconds since 1970.
    changed: i64,
}

/// The run of the machine. Where the system does not say, every process counts as one: then more is hashed.
pub(crate) fn boot_id() -> BootId {
    static BOOT: LazyLock<BootId> = LazyLock::new(|| {
        let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
        u128::from_str_radix(&digits, 16).unwrap_or_else(|_| fastrand::u128(..)).to_le_bytes()
    });
    *BOOT
}

/// When a file changed last, nanoseconds since 1970.
pub(crate) fn changed(stat: &Stat) -> i64 {
    let (seconds, nanos) = FileStat::from_stat(stat).ctime;
    seconds.saturating_mul(1_000_000_000).saturating_add(i64::from(nanos))
}

/// Device and inode.
pub(crate) fn id(stat: &Stat) -> FileId {
    FileStat::from_stat(stat).id()
}

impl ResumeFile {
    /// Reads the resume file `name`, as far as one is long; `None` when there is none.
    pub(crate) fn read(dir: impl AsFd, name: &OsStr) -> io::Result<Option<Self>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(dir, name, flags, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(None),
            opened => File::from(opened?),
        };
        let changed = changed(&rustix::fs::fstat(&file)?);
        let mut content = Vec::new();
        file.take(MAX_RESUME_FILE_BYTES as u64).read_to_end(&mut content)?;
        Ok(Some(Self { content, changed }))
    }

    /// What it says of the file, if it is about these files and nobody else has written to them since.
    fn trusted(&self, file: &FileMeta, data: &Stat, outboard: &Stat) -> Option<Recovered> {
        let recovered = match parse(&self.content) {
            Ok(recovered) => recovered,
            Err(error) => {
                info!(%error, "a resume file is of no use");
                return None;
            }
        };
        let header = &recovered.header;
        let same_file = (header.file.hash, header.file.size) == (file.hash, file.size);
        let same_places = (header.data, header.outboard) == (id(data), id(outboard));
        let whole = i128::from(data.st_size) == i128::from(file.size)
            && i128::from(outboard.st_size) == i128::from(outboard_bytes(file.size));
        let times = (changed(data), changed(outboard));
        let untouched = match recovered.closed {
            Some(closed) => closed == times,
            None => {
                let slack = i64::try_from(RESUME_SLACK.as_nanos()).unwrap_or(i64::MAX);
                times.0.max(times.1) <= self.changed.saturating_add(slack)
            }
        };
        (same_file && same_places && whole && untouched).then_some(recovered)
    }
}

/// What is there of `file`. What its resume file cannot be trusted with is hashed, unless `stop` is set.
pub(crate) fn recover(
    have: Option<&ResumeFile>,
    file: &FileMeta,
    data: &File,
    outboard: &File,
    stop: &AtomicBool,
) -> io::Result<Found> {
    let (data_stat, outboard_stat) = (rustix::fs::fstat(data)?, rustix::fs::fstat(outboard)?);
    if data_stat.st_size == 0 || outboard_stat.st_size == 0 {
        return Ok(Found::default());
    }
    let recovered = have.and_then(|have| have.trusted(file, &data_stat, &outboard_stat));
    let (durable, sure, doubtful) = match &recovered {
        Some(recovered) => {
            let (sure, doubtful) = recovered.claims(&boot_id());
            (recovered.durable.clone(), sure.without(&recovered.durable), doubtful)
        }
        None => (GroupRanges::default(), GroupRanges::default(), GroupRanges::all(file.size)),
    };
    let mut written = sure;
    if !doubtful.is_empty() {
        info!(name = %file.name, bytes = doubtful.bytes(file.size), "hashing what is left of an earlier download");
        if recovered.is_none() {
            data.set_len(file.size)?;
            outboard.set_len(outboard_bytes(file.size))?;
        }
        for range in check(file.hash, file.size, data, outboard, doubtful, stop).iter() {
            written.insert(range);
        }
    }
    Ok(Found { durable, written })
}

/// Whether a name in the directory of partial files is that of a resume file, or of one that was being written.
pub(crate) fn is_resume_file(name: &OsStr) -> bool {
    name.as_encoded_bytes().ends_with(RESUME_SUFFIX.as_bytes())
}

/// What the resume file of the partial file `name` is called.
pub(crate) fn resume_name(name: &OsStr) -> OsString {
    let mut name = name.to_owned();
    name.push(RESUME_SUFFIX);
    name
}

/// Removes a file, if it is there, and makes that last.
pub(crate) fn remove_durably(dir: impl AsFd, name: &OsStr) -> io::Result<()> {
    match rustix::fs::unlinkat(&dir, name, AtFlags::empty()) {
        Ok(()) => Ok(rustix::fs::fsync(dir)?),
        Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::FileExt};

    use shared::{content::ContentHash, limits::GROUP_BYTES};

    use super::super::format::{Goal, Header, Log};
    use super::*;
    use crate::bao::tree_hash::hash_file;

    const GROUPS: u64 = 128;

    fn set(ranges: &[(u64, u64)]) -> GroupRanges {
        ranges.iter().map(|&(start, end)| start..end).collect()
    }

    /// What is found of a file of which half is durable and half was only written, and one group of each is wrong; in the
    /// same run of the machine or a later one.
    fn found(same_run: bool) -> Found {
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
        let stat = |file: &File| id(&rustix::fs::fstat(file).unwrap());
        let mut boot = boot_id();
        boot[0] ^= u8::from(!same_run);
        let (data_id, outboard_id) = (stat(&data), stat(&outboard));
        let goal = Goal::Share(file.name.clone());
        let header = Header { file: file.clone(), goal, boot, nonce: [0; 16], data: data_id, outboard: outboard_id };
        let log = Log::new(&header, set(&[(0, 64)]), set(&[(64, 128)])).unwrap();
        fs::write(folder.path().join("data.have"), log.compact()).unwrap();
        let have = ResumeFile::read(File::open(folder.path()).unwrap(), OsStr::new("data.have")).unwrap();
        recover(have.as_ref(), &file, &data, &outboard, &stop).unwrap()
    }

    #[test]
    fn after_a_killed_process_nothing_is_hashed() {
        let found = found(true);
        assert_eq!((found.durable, found.written), (set(&[(0, 64)]), set(&[(64, 128)])));
    }

    #[test]
    fn after_a_crash_of_the_machine_what_was_not_synced_is_hashed() {
        let found = found(false);
        assert_eq!((found.durable, found.written), (set(&[(0, 64)]), set(&[(64, 100), (101, 128)])));
    }
}
