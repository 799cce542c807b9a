//! Writing past the page cache (`O_DIRECT`, open(2)).
//!
//! A large file that comes in fast is not read again soon, or not by who wrote it; yet the page cache takes a page for each 4 KiB of it, copies it
//! there, and puts out of memory what others use. Without the page cache the disk fetches the bytes from where they were hashed.
//! That is worth it only while the disk keeps up: a slow one does better with many writes to put in order.

use std::{
    ffi::OsStr,
    fs::File,
    io,
    os::{fd::OwnedFd, unix::fs::FileExt},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rustix::{
    fs::{AtFlags, FallocateFlags, Mode, OFlags, StatxFlags},
    io::Errno,
};
use shared::{
    limits::{
        DIRECT_ALIGNMENT, DIRECT_MIN_FILE_BYTES, DIRECT_MIN_RUN_BYTES, DIRECT_REST_BYTES, DIRECT_TRIAL_BYTES,
        DIRECT_TRIAL_TIME,
    },
    time::{Clock, Timestamp},
};

use super::resume::recover::id;

/// A second handle of a file, for large writes.
#[derive(Debug)]
pub(crate) struct DirectWriter {
    file: File,
    clock: Clock,
    pace: Mutex<Pace>,
}

impl DirectWriter {
    /// For a file of `size` bytes that is called `name` in `dir` and open as `cached`. `None` when it is a small one, or when its file system does not say that it can do
    /// this (`STATX_DIOALIGN`, statx(2), since Linux 6.1) with addresses and offsets that are multiples of `DIRECT_ALIGNMENT`.
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
        let [theirs, ours] = [cached, &file].map(|file| rustix::fs::fstat(file).ok().map(|stat| id(&stat)));
        (ours.is_some() && ours == theirs).then(|| Self { file, clock: Clock::start(), pace: Mutex::default() })
    }

    /// Reserves the file's room, so that it lies in few pieces: each large write would else be given a piece of its own (XFS).
    ///
    /// # Errors
    /// `StorageFull`, or that the file system cannot do it.
    pub(crate) fn reserve(&self, size: u64) -> io::Result<()> {
        Ok(rustix::fs::fallocate(&self.file, FallocateFlags::empty(), 0, size)?)
    }

    /// Writes the beginning of `data` and returns how many bytes; the rest is left to the page cache: all of it if
    /// it is not much, does not begin at a multiple of `DIRECT_ALIGNMENT` in memory and in the file, or as long as the disk seems too slow for this.
    ///
    /// # Errors
    /// What the disk says.
    pub(crate) fn write_at(&self, data: &[u8], offset: u64) -> io::Result<usize> {
        let len = data.len() - data.len() % DIRECT_ALIGNMENT;
        let begins =
            data.as_ptr().addr().is_multiple_of(DIRECT_ALIGNMENT) && offset.is_multiple_of(DIRECT_ALIGNMENT as u64);
        if len < DIRECT_MIN_RUN_BYTES || !begins || !self.pace().begin(len as u64, self.clock.now()) {
            return Ok(0);
        }
        let (written, result) = self.write_blocks(&data[..len], offset);
        self.pace().end(written as u64, self.clock.now());
        match result {
            // It said it could. Whatever is wrong, the page cache takes everything from here on.
            Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => self.pace().give_up(),
            result => result?,
        }
        Ok(written)
    }

    /// How much was written before the end, a write that ended between two blocks, or an error.
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

    fn pace(&self) -> MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a disk is fast enough to be waited for at each write. One that takes longer than `DIRECT_TRIAL_TIME` for
/// `DIRECT_TRIAL_BYTES`, however many write at once, gets the next `DIRECT_REST_BYTES` through the page cache; then it is tried again.
#[derive(Debug)]
struct Pace {
    trial_time: Duration,
    /// Writes that are under way.
    writers: usize,
    /// Until when `took` is counted, while anybody writes.
    counted: Timestamp,
    bytes: u64,
    /// Time in which anybody wrote.
    took: Duration,
    /// Bytes until the next trial.
    rest: u64,
}

impl Default for Pace {
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

impl Pace {
    /// Somebody wants to write so many bytes: whether past the page cache. Then [`end`](Self::end) must follow.
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

    /// For good.
    fn give_up(&mut self) {
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
        /// However slow the disk is.
        fn patiently(&self) {
            self.pace().trial_time = Duration::MAX;
        }

        /// Bytes that were written this way, up to the end of a trial.
        pub(in crate::store) fn written(&self) -> u64 {
            self.pace().bytes
        }
    }

    /// Whether it is there, which it must be if the file system of `file` says that it can. If not, that is said past the capture of the
    /// tests' output: nobody is to take this for a test that passed.
    pub(in crate::store) fn is_there(direct: Option<&DirectWriter>, file: &File) -> bool {
        let stat = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).unwrap();
        let can = stat.stx_dio_offset_align > 0 && stat.stx_dio_offset_align.max(stat.stx_dio_mem_align) <= 4096;
        assert_eq!(direct.is_some(), can, "as the file system says");
        if let Some(direct) = direct {
            direct.patiently();
        } else {
            let why = "the file system of temporary files has a page cache that cannot be passed by";
            let _ = writeln!(io::stderr(), "\nSKIPPED a test of writing past the page cache: {why}");
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
            if !is_there(direct.as_ref(), &cached) {
                return None;
            }
            assert!(open(&another, DIRECT_MIN_FILE_BYTES).is_none(), "its name is another file's");
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

        /// Whether the page cache has the byte at `offset` (preadv2(2), `RWF_NOWAIT`); `None` where the file system cannot tell.
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
    fn large_runs_go_past_the_page_cache_and_are_there() {
        let Some(opened) = Opened::new() else { return };
        let data = noise(2 * RUN + 100);
        let len = data.bytes().len();
        // Looking has the kernel read, so now and then what is not there is there a moment later.
        let cached = (0..3).filter(|attempt| {
            let offset = (16 << 10) + attempt * 8 * RUN as u64;
            assert_eq!(opened.write(data.bytes(), offset), 2 * RUN, "no more than whole blocks");
            let cached = opened.is_cached(offset + RUN as u64);
            opened.cached.write_all_at(&data.bytes()[2 * RUN..], offset + 2 * RUN as u64).unwrap();
            assert!(opened.read(offset, len) == data.bytes(), "what went both ways is one file");
            cached == Some(true)
        });
        assert!(cached.count() < 3, "past the page cache");
    }

    #[test]
    fn what_was_read_before_is_not_seen_any_more() {
        let Some(opened) = Opened::new() else { return };
        assert!(opened.read(0, RUN).iter().all(|byte| *byte == 0));
        let data = noise(RUN);
        assert_eq!(opened.write(data.bytes(), 0), RUN);
        assert!(opened.read(0, RUN) == data.bytes());
    }

    #[test]
    fn room_is_reserved_without_touching_what_is_there() {
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
    fn what_does_not_fit_is_left_to_the_page_cache() {
        let Some(opened) = Opened::new() else { return };
        let data = noise(RUN + 1);
        assert_eq!(opened.write(&data.bytes()[..RUN - DIRECT_ALIGNMENT], 0), 0, "little");
        assert_eq!(opened.write(&data.bytes()[..RUN], 512), 0, "a place between two blocks");
        assert_eq!(opened.write(&data.bytes()[1..], 0), 0, "memory that no disk can fetch from");
        assert_eq!(opened.write(&data.bytes()[..RUN], 0), RUN);
        opened.direct.pace().give_up();
        assert_eq!(opened.write(&data.bytes()[..RUN], 0), 0, "a slow disk");
    }

    #[test]
    fn a_refusal_is_no_error_and_an_error_stays_one() {
        let Some(mut opened) = Opened::new() else { return };
        let data = noise(RUN);
        opened.direct.file = OpenOptions::new().read(true).open("/dev/null").unwrap();
        assert!(opened.direct.write_at(data.bytes(), 0).is_err(), "not open for writing");
        assert_eq!(opened.direct.pace().rest, 0);
        // Refuses what is not a number with the error that says that a disk cannot do it.
        opened.direct.file = OpenOptions::new().write(true).open("/proc/self/oom_score_adj").unwrap();
        assert_eq!(opened.write(data.bytes(), 0), 0);
        let pace = opened.direct.pace();
        assert_eq!((pace.rest, pace.writers), (u64::MAX, 0));
    }

    /// A disk that takes a time for each write, however many there are at once.
    struct Disk {
        pace: Pace,
        now: Timestamp,
    }

    const UNIT: u64 = DIRECT_TRIAL_BYTES / 64;
    /// Good enough for a fifth of the rate that is wanted more.
    const GOOD: Duration = DIRECT_TRIAL_TIME.checked_div(80).unwrap();

    impl Disk {
        fn new() -> Self {
            Self { pace: Pace::default(), now: Timestamp::ZERO }
        }

        /// So many at once, which end one after the other in this time; how many of them passed by the page cache.
        fn write(&mut self, at_once: u32, each: Duration) -> u32 {
            let begun = (0..at_once).filter(|_| self.pace.begin(UNIT, self.now)).count();
            for _ in 0..begun {
                self.now += each;
                self.pace.end(UNIT, self.now);
            }
            // Between two writes nobody waits for the disk.
            self.now += DIRECT_TRIAL_TIME;
            u32::try_from(begun).unwrap()
        }
    }

    #[test]
    fn a_fast_disk_is_used_for_ever_however_many_write() {
        for at_once in [1, 2, 16] {
            let mut disk = Disk::new();
            for _ in 0..1000 {
                assert_eq!(disk.write(at_once, GOOD), at_once);
            }
        }
    }

    #[test]
    fn one_stumble_is_forgiven() {
        let mut disk = Disk::new();
        disk.write(1, DIRECT_TRIAL_TIME * 3 / 4);
        for _ in 0..4 {
            assert_eq!(disk.write(1, GOOD), 1);
        }
    }

    #[test]
    fn a_slow_disk_gets_its_rest_and_another_trial() {
        let mut disk = Disk::new();
        for _ in 0..3 {
            let tried = (0..100).take_while(|_| disk.write(2, GOOD * 2) == 2).count();
            assert!(
                (10..32).contains(&tried),
                "given up before the trial's bytes are written, and not at once: {tried}"
            );
            // Two more when it was given up.
            let rested = 2 + (0..10_000).take_while(|_| disk.write(1, GOOD * 2) == 0).count() as u64;
            assert_eq!(rested * UNIT, DIRECT_REST_BYTES);
        }
    }
}
