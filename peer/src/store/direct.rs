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
    sync::{Mutex, PoisonError},
    time::Duration,
};

use rustix::{
    fs::{AtFlags, Mode, OFlags, StatxFlags},
    io::Errno,
};
use shared::{
    limits::{DIRECT_ALIGNMENT, DIRECT_MIN_FILE_BYTES, DIRECT_MIN_RUN_BYTES, DIRECT_TRIAL_BYTES, DIRECT_TRIAL_TIME},
    time::Clock,
};

use super::recovery::id;

/// A second handle of a file, for large writes.
#[derive(Debug)]
pub(super) struct Direct {
    file: File,
    clock: Clock,
    pace: Mutex<Pace>,
}

impl Direct {
    /// For a file of `size` bytes that is called `name` in `dir` and open as `cached`. `None` when it is a small one, or when its file system does not say that it can do
    /// this (`STATX_DIOALIGN`, statx(2), since Linux 6.1) with addresses and offsets that are multiples of `DIRECT_ALIGNMENT`.
    pub(super) fn open(dir: &OwnedFd, name: &OsStr, cached: &File, size: u64) -> Option<Self> {
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

    /// Writes the beginning of `data` and returns how many bytes; the rest is left to the page cache: all of it if
    /// it is not much, does not begin at a multiple of `DIRECT_ALIGNMENT` in memory and in the file, or if the disk has turned out to be too slow for this.
    ///
    /// # Errors
    /// What the disk says.
    pub(super) fn write_at(&self, data: &[u8], offset: u64) -> io::Result<usize> {
        let len = data.len() - data.len() % DIRECT_ALIGNMENT;
        let begins =
            data.as_ptr().addr().is_multiple_of(DIRECT_ALIGNMENT) && offset.is_multiple_of(DIRECT_ALIGNMENT as u64);
        if len < DIRECT_MIN_RUN_BYTES || !begins || !self.pace().is_good() {
            return Ok(0);
        }
        let begun = self.clock.now();
        let mut written = 0;
        while written < len && written.is_multiple_of(DIRECT_ALIGNMENT) {
            match self.file.write_at(&data[written..len], offset + written as u64) {
                Ok(0) => break,
                Ok(more) => written += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
                    // It said it could. Whatever is wrong, the page cache takes everything.
                    self.pace().give_up();
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        self.pace().note(written as u64, self.clock.now().since(begun));
        Ok(written)
    }

    fn pace(&self) -> std::sync::MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a disk is fast enough to be waited for at each write: one that takes longer than `DIRECT_TRIAL_TIME` for
/// `DIRECT_TRIAL_BYTES` is not, and is not tried again for this file.
#[derive(Debug, Default)]
struct Pace {
    bytes: u64,
    took: Duration,
    is_bad: bool,
}

impl Pace {
    fn is_good(&self) -> bool {
        !self.is_bad
    }

    fn give_up(&mut self) {
        self.is_bad = true;
    }

    fn note(&mut self, bytes: u64, took: Duration) {
        self.bytes += bytes;
        self.took += took;
        if self.took > DIRECT_TRIAL_TIME {
            self.is_bad = true;
        } else if self.bytes >= DIRECT_TRIAL_BYTES {
            (self.bytes, self.took) = (0, Duration::ZERO);
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::{
        fs::OpenOptions,
        io::{IoSliceMut, Write as _},
    };

    use rustix::io::ReadWriteFlags;

    use super::*;
    use crate::transfer::aligned::AlignedBuffer;

    const RUN: usize = DIRECT_MIN_RUN_BYTES;

    struct Opened {
        _folder: tempfile::TempDir,
        cached: File,
        direct: Direct,
    }

    impl Opened {
        /// `None`, with a word, where the file system of temporary files cannot do it.
        fn new() -> Option<Self> {
            let folder = tempfile::tempdir().unwrap();
            let dir = OwnedFd::from(File::open(folder.path()).unwrap());
            let path = folder.path().join("file");
            let cached = OpenOptions::new().read(true).write(true).create_new(true).open(path).unwrap();
            cached.set_len(DIRECT_MIN_FILE_BYTES).unwrap();
            assert!(Direct::open(&dir, "file".as_ref(), &cached, DIRECT_MIN_FILE_BYTES - 1).is_none(), "a small file");
            let Some(direct) = Direct::open(&dir, "file".as_ref(), &cached, DIRECT_MIN_FILE_BYTES) else {
                say_skipped();
                return None;
            };
            let another = OpenOptions::new().read(true).open("/proc/self/status").unwrap();
            assert!(Direct::open(&dir, "file".as_ref(), &another, DIRECT_MIN_FILE_BYTES).is_none(), "another file");
            Some(Self { _folder: folder, cached, direct })
        }
    }

    /// Past the capture of the tests' output: nobody is to take this for a test that passed.
    pub(in crate::store) fn say_skipped() {
        let why = "the file system of temporary files has a page cache that cannot be passed by";
        let _ = writeln!(io::stderr(), "\nSKIPPED a test of writing past the page cache: {why}");
    }

    impl Direct {
        /// Bytes that were written this way, up to the end of a trial.
        pub(in crate::store) fn written(&self) -> u64 {
            self.pace().bytes
        }
    }

    /// Whether the page cache has the byte at `offset` (preadv2(2), `RWF_NOWAIT`).
    fn is_cached(file: &File, offset: u64) -> bool {
        let mut byte = [0];
        let mut place = [IoSliceMut::new(&mut byte)];
        match rustix::io::preadv2(file, &mut place, offset, ReadWriteFlags::NOWAIT) {
            Ok(read) => read == 1,
            Err(error) => {
                assert_eq!(error, Errno::AGAIN);
                false
            }
        }
    }

    pub(in crate::store) fn noise(len: usize) -> AlignedBuffer {
        let mut buffer = AlignedBuffer::new(len);
        fastrand::Rng::with_seed(1).fill(buffer.bytes_mut());
        buffer
    }

    #[test]
    fn large_runs_go_past_the_page_cache_and_are_there() {
        let Some(opened) = Opened::new() else { return };
        let data = noise(2 * RUN + 100);
        let len = data.bytes().len() as u64;
        // Looking has the kernel read, so now and then what is not there is there a moment later.
        let cached = (0..3).filter(|attempt| {
            let offset = (16 << 10) + attempt * 8 * RUN as u64;
            assert_eq!(opened.direct.write_at(data.bytes(), offset).unwrap(), 2 * RUN, "no more than whole blocks");
            let cached = is_cached(&opened.cached, offset + RUN as u64);
            opened.cached.write_all_at(&data.bytes()[2 * RUN..], offset + 2 * RUN as u64).unwrap();
            let mut read = vec![0; data.bytes().len()];
            opened.cached.read_exact_at(&mut read, offset).unwrap();
            assert!(read == data.bytes(), "what went both ways is one file");
            assert!(is_cached(&opened.cached, offset + len - 1), "what was read is there");
            cached
        });
        assert!(cached.count() < 3, "past the page cache");
    }

    #[test]
    fn what_was_read_before_is_not_seen_any_more() {
        let Some(opened) = Opened::new() else { return };
        let mut before = vec![1; RUN];
        opened.cached.read_exact_at(&mut before, 0).unwrap();
        assert!(before.iter().all(|byte| *byte == 0) && is_cached(&opened.cached, 0));
        let data = noise(RUN);
        assert_eq!(opened.direct.write_at(data.bytes(), 0).unwrap(), RUN);
        opened.cached.read_exact_at(&mut before, 0).unwrap();
        assert!(before == data.bytes());
    }

    #[test]
    fn what_does_not_fit_is_left_to_the_page_cache() {
        let Some(opened) = Opened::new() else { return };
        let data = noise(RUN + 1);
        let write = |data: &[u8], offset| opened.direct.write_at(data, offset).unwrap();
        assert_eq!(write(&data.bytes()[..RUN - DIRECT_ALIGNMENT], 0), 0, "little");
        assert_eq!(write(&data.bytes()[..RUN], 512), 0, "a place between two blocks");
        assert_eq!(write(&data.bytes()[1..], 0), 0, "memory that no disk can fetch from");
        assert_eq!(write(&data.bytes()[..RUN], 0), RUN);
        opened.direct.pace().give_up();
        assert_eq!(write(&data.bytes()[..RUN], 0), 0, "a slow disk");
    }

    #[test]
    fn a_refusal_is_no_error_and_an_error_stays_one() {
        let Some(mut opened) = Opened::new() else { return };
        let data = noise(RUN);
        opened.direct.file = OpenOptions::new().read(true).open("/dev/null").unwrap();
        assert!(opened.direct.write_at(data.bytes(), 0).is_err(), "not open for writing");
        assert!(opened.direct.pace().is_good());
        // Refuses what is not a number with the error that says that a disk cannot do it.
        opened.direct.file = OpenOptions::new().write(true).open("/proc/self/oom_score_adj").unwrap();
        assert_eq!(opened.direct.write_at(data.bytes(), 0).unwrap(), 0);
        assert!(!opened.direct.pace().is_good());
    }

    #[test]
    fn a_disk_is_given_up_when_it_is_slow_over_a_while_and_not_for_one_slow_write() {
        let unit = DIRECT_TRIAL_BYTES / 64;
        let good = DIRECT_TRIAL_TIME / 80;
        let mut pace = Pace::default();
        for _ in 0..1000 {
            pace.note(unit, good);
            assert!(pace.is_good());
        }
        pace = Pace::default();
        pace.note(unit, DIRECT_TRIAL_TIME * 3 / 4);
        for _ in 0..4 {
            pace.note(unit, good);
        }
        assert!(pace.is_good(), "one stumble");
        pace = Pace::default();
        let mut writes = 0;
        while pace.is_good() {
            pace.note(unit, good * 2);
            writes += 1;
        }
        assert!(writes < 64, "{writes}: before the trial is over");
        pace = Pace::default();
        pace.note(0, DIRECT_TRIAL_TIME * 2);
        assert!(!pace.is_good(), "one that hangs");
    }
}
