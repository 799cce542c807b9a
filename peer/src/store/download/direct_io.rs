//! Writes that bypass the page cache (`O_DIRECT`, open(2)).
//!
//! A large file that is received is rarely read again soon. The page cache copies each of its 4 KiB pages and evicts
//! pages that other programs use; direct I/O writes from the buffer in which the bytes were hashed. It pays off only
//! on a fast disk: a slow one benefits from the many queued writes that the page cache gives it to reorder.

use std::{
    ffi::OsStr,
    fs::File,
    io,
    os::{fd::OwnedFd, unix::fs::FileExt},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::{
    bao::params::DIRECT_ALIGNMENT,
    store::{
        file_stat::FileStat,
        params::{
            DIRECT_MIN_FILE_BYTES, DIRECT_MIN_RUN_BYTES, DIRECT_REST_BYTES, DIRECT_TRIAL_BYTES, DIRECT_TRIAL_TIME,
        },
    },
};
use rustix::{
    fs::{AtFlags, FallocateFlags, Mode, OFlags, StatxFlags},
    io::Errno,
};
use shared::time::{Clock, Timestamp};

/// Second handle of a file, for direct writes of large runs.
#[derive(Debug)]
pub(crate) struct DirectWriter {
    file: File,
    clock: Clock,
    trial: Mutex<SpeedTrial>,
}

impl DirectWriter {
    /// Opens the file of `size` bytes that is `name` in `dir` and open as `cached`.
    ///
    /// Returns `None` for a small file, and if the file system does not report support for direct I/O
    /// (`STATX_DIOALIGN`, statx(2), since Linux 6.1) at multiples of `DIRECT_ALIGNMENT`.
    pub(crate) fn open(dir: &OwnedFd, name: &OsStr, cached: &File, size: u64) -> Option<Self> {
        if size < DIRECT_MIN_FILE_BYTES {
            return None;
        }
        let stat = rustix::fs::statx(cached, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).ok()?;
        let fits = |unit: u32| unit > 0 && DIRECT_ALIGNMENT.is_multiple_of(unit as usize);
        let says = stat.stx_mask & StatxFlags::DIOALIGN.bits() != 0;
        if !says || !fits(stat.stx_dio_mem_align) || !fits(stat.stx_dio_offset_align) {
            return None;
        }
        let flags = OFlags::WRONLY | OFlags::DIRECT | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::openat(dir, name, flags, Mode::empty()).ok()?);
        let ids = [cached, &file].map(|file| rustix::fs::fstat(file).ok().map(|stat| FileStat::from_stat(&stat).id()));
        (ids[1].is_some() && ids[0] == ids[1]).then(|| Self { file, clock: Clock::start(), trial: Mutex::default() })
    }

    /// Reserves disk space for the file. Without it, XFS allocates a separate extent for each large write.
    ///
    /// # Errors
    /// `StorageFull`, or an error if the file system has no reservations.
    pub(crate) fn reserve(&self, size: u64) -> io::Result<()> {
        Ok(rustix::fs::fallocate(&self.file, FallocateFlags::empty(), 0, size)?)
    }

    /// Writes the beginning of `data` and returns the number of bytes written. The caller writes the rest through the
    /// page cache: all of it if the run is short, not aligned to `DIRECT_ALIGNMENT` in memory and in the file, or the
    /// disk is slow.
    ///
    /// # Errors
    /// The error of the disk.
    pub(crate) fn write_at(&self, data: &[u8], offset: u64) -> io::Result<usize> {
        let len = data.len() - data.len() % DIRECT_ALIGNMENT;
        let begins =
            data.as_ptr().addr().is_multiple_of(DIRECT_ALIGNMENT) && offset.is_multiple_of(DIRECT_ALIGNMENT as u64);
        if len < DIRECT_MIN_RUN_BYTES || !begins || !self.trial().begin(len as u64, self.clock.now()) {
            return Ok(0);
        }
        let (written, result) = self.write_blocks(&data[..len], offset);
        self.trial().end(written as u64, self.clock.now());
        match result {
            // The file system does not support what it reported. Use the page cache from now on.
            Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => self.trial().disable(),
            result => result?,
        }
        Ok(written)
    }

    /// Returns the number of bytes written, and the error that ended the writes, if any. Also ends early after a write
    /// that ended within a block.
    fn write_blocks(&self, data: &[u8], offset: u64) -> (usize, io::Result<()>) {
        let mut written = 0;
        while written < data.len() && written.is_multiple_of(DIRECT_ALIGNMENT) {
            match self.file.write_at(&data[written..], offset + written as u64) {
                Ok(0) => break,
                Ok(more) => written += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return (written, Err(error)),
            }
        }
        (written, Ok(()))
    }

    fn trial(&self) -> MutexGuard<'_, SpeedTrial> {
        self.trial.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Measures whether the disk is fast enough for direct writes. If `DIRECT_TRIAL_BYTES` take longer than
/// `DIRECT_TRIAL_TIME`, whatever the number of concurrent writers, the next `DIRECT_REST_BYTES` go through the page
/// cache before the next trial.
#[derive(Debug)]
struct SpeedTrial {
    trial_time: Duration,
    /// Number of writes in progress.
    writers: usize,
    /// Time up to which `took` has been updated.
    counted: Timestamp,
    bytes: u64,
    /// Time with at least one write in progress.
    took: Duration,
    /// Bytes that still go through the page cache before the next trial.
    rest: u64,
}

impl Default for SpeedTrial {
    fn default() -> Self {
        Self {
            trial_time: DIRECT_TRIAL_TIME,
            writers: 0,
            counted: Timestamp::ZERO,
            bytes: 0,
            took: Duration::ZERO,
            rest: 0,
        }
    }
}

impl SpeedTrial {
    /// Returns true if a write of `bytes` may bypass the page cache. If so, [`end`](Self::end) must follow.
    fn begin(&mut self, bytes: u64, now: Timestamp) -> bool {
        if self.rest > 0 {
            self.rest = self.rest.saturating_sub(bytes);
            return false;
        }
        self.count(now);
        self.writers += 1;
        true
    }

    fn end(&mut self, bytes: u64, now: Timestamp) {
        self.count(now);
        self.writers = self.writers.saturating_sub(1);
        self.bytes += bytes;
        if self.took > self.trial_time {
            self.rest = self.rest.max(DIRECT_REST_BYTES);
        }
        if self.rest > 0 || self.bytes >= DIRECT_TRIAL_BYTES {
            (self.bytes, self.took) = (0, Duration::ZERO);
        }
    }

    /// Ends all trials.
    fn disable(&mut self) {
        self.rest = u64::MAX;
    }

    fn count(&mut self, now: Timestamp) {
        if self.writers > 0 {
            self.took += now.since(self.counted);
        }
        self.counted = now;
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::{
        fs::OpenOptions,
        io::{IoSliceMut, Write as _},
    };

    use rustix::io::ReadWriteFlags;

    use super::*;
    use crate::bao::aligned::AlignedBuffer;

    const RUN: usize = DIRECT_MIN_RUN_BYTES;

    impl DirectWriter {
        /// Accepts a disk of any speed.
        fn accept_any_speed(&self) {
            self.trial().trial_time = Duration::MAX;
        }

        /// Returns the bytes written directly since the start of the trial.
        pub(in crate::store) fn written(&self) -> u64 {
            self.trial().bytes
        }
    }

    /// Returns true if direct I/O is available, and asserts that the file system of `file` reports the same. Otherwise
    /// prints, bypassing the output capture of the test harness, that the test is skipped.
    pub(in crate::store) fn is_available(direct: Option<&DirectWriter>, file: &File) -> bool {
        let stat = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).unwrap();
        let can = stat.stx_dio_offset_align > 0 && stat.stx_dio_offset_align.max(stat.stx_dio_mem_align) <= 4096;
        assert_eq!(direct.is_some(), can, "as the file system reports");
        if let Some(direct) = direct {
            direct.accept_any_speed();
        } else {
            let why = "the file system of temporary files has no direct I/O";
            let _ = writeln!(io::stderr(), "\nSKIPPED a test of direct I/O: {why}");
        }
        can
    }

    pub(in crate::store) fn noise(len: usize) -> AlignedBuffer {
        let mut buffer = AlignedBuffer::new(len);
        fastrand::Rng::with_seed(1).fill(buffer.bytes_mut());
        buffer
    }

    struct Opened {
        _folder: tempfile::TempDir,
        cached: File,
        direct: DirectWriter,
    }

    impl Opened {
        fn new() -> Option<Self> {
            let folder = tempfile::tempdir().unwrap();
            let dir = OwnedFd::from(File::open(folder.path()).unwrap());
            let [cached, another] = ["file", "another"].map(|name| {
                let path = folder.path().join(name);
                OpenOptions::new().read(true).write(true).create_new(true).open(path).unwrap()
            });
            cached.set_len(DIRECT_MIN_FILE_BYTES).unwrap();
            let open = |cached, size| DirectWriter::open(&dir, "file".as_ref(), cached, size);
            assert!(open(&cached, DIRECT_MIN_FILE_BYTES - 1).is_none(), "a small file");
            let direct = open(&cached, DIRECT_MIN_FILE_BYTES);
            if !is_available(direct.as_ref(), &cached) {
                return None;
            }
            assert!(open(&another, DIRECT_MIN_FILE_BYTES).is_none(), "the name belongs to another file");
            direct.map(|direct| Self { _folder: folder, cached, direct })
        }

        fn write(&self, data: &[u8], offset: u64) -> usize {
            self.direct.write_at(data, offset).unwrap()
        }

        fn read(&self, offset: u64, len: usize) -> Vec<u8> {
            let mut bytes = vec![0; len];
            self.cached.read_exact_at(&mut bytes, offset).unwrap();
            bytes
        }

        /// Returns true if the page cache has the byte at `offset` (preadv2(2), `RWF_NOWAIT`); `None` if the file
        /// system does not support the query.
        fn is_cached(&self, offset: u64) -> Option<bool> {
            let mut byte = [0];
            let mut place = [IoSliceMut::new(&mut byte)];
            match rustix::io::preadv2(&self.cached, &mut place, offset, ReadWriteFlags::NOWAIT) {
                Ok(read) => Some(read == 1),
                Err(Errno::AGAIN) => Some(false),
                Err(Errno::OPNOTSUPP) => None,
                Err(error) => panic!("{error}"),
            }
        }
    }

    #[test]
    fn write_at_of_a_large_run_bypasses_the_page_cache() {
        let Some(opened) = Opened::new() else { return };
        let data = noise(2 * RUN + 100);
        let len = data.bytes().len();
        // The query itself triggers read-ahead, so a byte may be in the page cache a moment later.
        let cached = (0..3).filter(|attempt| {
            let offset = (16 << 10) + attempt * 8 * RUN as u64;
            assert_eq!(opened.write(data.bytes(), offset), 2 * RUN, "whole blocks only");
            let cached = opened.is_cached(offset + RUN as u64);
            opened.cached.write_all_at(&data.bytes()[2 * RUN..], offset + 2 * RUN as u64).unwrap();
            assert!(opened.read(offset, len) == data.bytes(), "both writes are in the file");
            cached == Some(true)
        });
        assert!(cached.count() < 3, "the page cache is bypassed");
    }

    #[test]
    fn write_at_invalidates_cached_pages() {
        let Some(opened) = Opened::new() else { return };
        assert!(opened.read(0, RUN).iter().all(|byte| *byte == 0));
        let data = noise(RUN);
        assert_eq!(opened.write(data.bytes(), 0), RUN);
        assert!(opened.read(0, RUN) == data.bytes());
    }

    #[test]
    fn reserve_keeps_the_content() {
        let Some(opened) = Opened::new() else { return };
        let data = noise(RUN);
        assert_eq!(opened.write(data.bytes(), 0), RUN);
        match opened.direct.reserve(DIRECT_MIN_FILE_BYTES) {
            Err(error) => assert_eq!(error.raw_os_error(), Some(Errno::OPNOTSUPP.raw_os_error()), "{error}"),
            Ok(()) => {
                let blocks = rustix::fs::fstat(&opened.cached).unwrap().st_blocks;
                assert!(u64::try_from(blocks).unwrap() * 512 >= DIRECT_MIN_FILE_BYTES);
            }
        }
        assert!(opened.read(0, RUN) == data.bytes());
        assert!(opened.read(RUN as u64, RUN).iter().all(|byte| *byte == 0));
    }

    #[test]
    fn write_at_of_unsuitable_runs_writes_nothing() {
        let Some(opened) = Opened::new() else { return };
        let data = noise(RUN + 1);
        assert_eq!(opened.write(&data.bytes()[..RUN - DIRECT_ALIGNMENT], 0), 0, "a short run");
        assert_eq!(opened.write(&data.bytes()[..RUN], 512), 0, "an unaligned offset");
        assert_eq!(opened.write(&data.bytes()[1..], 0), 0, "unaligned memory");
        assert_eq!(opened.write(&data.bytes()[..RUN], 0), RUN);
        opened.direct.trial().disable();
        assert_eq!(opened.write(&data.bytes()[..RUN], 0), 0, "a slow disk");
    }

    #[test]
    fn write_at_with_einval_falls_back_and_other_errors_are_returned() {
        let Some(mut opened) = Opened::new() else { return };
        let data = noise(RUN);
        opened.direct.file = OpenOptions::new().read(true).open("/dev/null").unwrap();
        assert!(opened.direct.write_at(data.bytes(), 0).is_err(), "not open for writing");
        assert_eq!(opened.direct.trial().rest, 0);
        // Rejects text that is not a number with `EINVAL`, as a file system without direct I/O does.
        opened.direct.file = OpenOptions::new().write(true).open("/proc/self/oom_score_adj").unwrap();
        assert_eq!(opened.write(data.bytes(), 0), 0);
        let trial = opened.direct.trial();
        assert_eq!((trial.rest, trial.writers), (u64::MAX, 0));
    }

    /// Disk that takes a fixed time for each write, however many are concurrent.
    struct Disk {
        trial: SpeedTrial,
        now: Timestamp,
    }

    const UNIT: u64 = DIRECT_TRIAL_BYTES / 64;
    /// Time of a write at 1.25 times the required rate.
    const GOOD: Duration = DIRECT_TRIAL_TIME.checked_div(80).unwrap();

    impl Disk {
        fn new() -> Self {
            Self { trial: SpeedTrial::default(), now: Timestamp::ZERO }
        }

        /// Starts `at_once` writes that end one after the other, `each` apart. Returns the number of direct ones.
        fn write(&mut self, at_once: u32, each: Duration) -> u32 {
            let begun = (0..at_once).filter(|_| self.trial.begin(UNIT, self.now)).count();
            for _ in 0..begun {
                self.now += each;
                self.trial.end(UNIT, self.now);
            }
            // Idle time between writes does not count.
            self.now += DIRECT_TRIAL_TIME;
            u32::try_from(begun).unwrap()
        }
    }

    #[test]
    fn fast_disk_passes_every_trial() {
        for at_once in [1, 2, 16] {
            let mut disk = Disk::new();
            for _ in 0..1000 {
                assert_eq!(disk.write(at_once, GOOD), at_once);
            }
        }
    }

    #[test]
    fn single_slow_write_does_not_fail_the_trial() {
        let mut disk = Disk::new();
        disk.write(1, DIRECT_TRIAL_TIME * 3 / 4);
        for _ in 0..4 {
            assert_eq!(disk.write(1, GOOD), 1);
        }
    }

    #[test]
    fn slow_disk_is_tried_again_after_the_rest() {
        let mut disk = Disk::new();
        for _ in 0..3 {
            let tried = (0..100).take_while(|_| disk.write(2, GOOD * 2) == 2).count();
            assert!((10..32).contains(&tried), "the trial fails early, but not at once: {tried}");
            // Two more writes were rejected when the trial failed.
            let rested = 2 + (0..10_000).take_while(|_| disk.write(1, GOOD * 2) == 0).count() as u64;
            assert_eq!(rested * UNIT, DIRECT_REST_BYTES);
        }
    }
}
