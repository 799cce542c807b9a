//! A damaged resume file never claims a group that is not there.

use proptest::prelude::*;
use shared::limits::GROUP_BYTES;

use super::*;

const GROUPS: u64 = 40;
const BOOT: BootId = [7; 16];

fn header(nonce: u8) -> Header {
    let file = FileMeta {
        name: "docs/a.bin".parse().unwrap(),
        size: GROUPS * GROUP_BYTES - 100,
        hash: ContentHash([3; 32]),
        mtime_micros: -5,
        executable: true,
    };
    let goal = Goal::Outside(b"/else/where\xff".to_vec());
    Header { file, goal, boot: BOOT, nonce: [nonce; 16], data: (1, 2), outboard: (1, 3) }
}

fn set(ranges: &[(u64, u64)]) -> GroupRanges {
    ranges.iter().map(|&(start, end)| start..end).collect()
}

/// Resume file with records of all kinds, and the offset of its first record.
fn sample() -> (Vec<u8>, usize) {
    let mut log = ResumeLog::new(&header(1), set(&[(0, 3)]), set(&[(5, 6)])).unwrap();
    let mut bytes = log.compact();
    let begin = bytes.len() - 2 * RECORD_BYTES;
    log.mark(&set(&[(8, 12), (14, 15)]), &mut bytes);
    log.begin_checkpoint();
    log.mark(&set(&[(20, 21)]), &mut bytes);
    bytes.extend(log.end_checkpoint());
    bytes.extend(log.close(11, -12));
    (bytes, begin)
}

#[test]
fn parse_of_a_written_file_returns_its_groups() {
    let (bytes, _) = sample();
    let read = parse(&bytes).unwrap();
    assert_eq!(read.header, header(1));
    assert_eq!(read.durable, set(&[(0, 3), (5, 6), (8, 12), (14, 15)]));
    assert_eq!(read.written, set(&[(5, 6), (8, 12), (14, 15), (20, 21)]));
    assert_eq!(read.closed, Some((11, -12)));
    let all = set(&[(0, 3), (5, 6), (8, 12), (14, 15), (20, 21)]);
    assert_eq!(read.claims(&BOOT), (all, GroupRanges::default()));
    assert_eq!(read.claims(&[8; 16]), (read.durable.clone(), set(&[(20, 21)])), "in a later boot");
}

#[test]
fn encoding_matches_the_golden_hash() {
    let (bytes, begin) = sample();
    assert_eq!(bytes[..16], *b"brasa\0hv\x01\0\0\0\x62\0\0\0");
    assert_eq!(begin, 16 + 0x62 + 32);
    assert_eq!(blake3::hash(&bytes).to_hex().as_str(), GOLDEN);
}

const GOLDEN: &str = "444f40eb9df5f2b2f273746eb3fc49224a779d9af371a90624e76da6e48fd888";

#[test]
fn record_after_the_closed_record_cancels_it() {
    let (mut bytes, _) = sample();
    let mut log = ResumeLog::new(&header(1), GroupRanges::default(), GroupRanges::default()).unwrap();
    log.begin_checkpoint();
    bytes.extend(log.end_checkpoint());
    assert!(parse(&bytes).unwrap().closed.is_some());
    log.mark(&set(&[(1, 2)]), &mut bytes);
    assert_eq!(parse(&bytes).unwrap().closed, None);
}

#[test]
fn discard_unsynced_keeps_durable_groups_only() {
    let mut log = ResumeLog::new(&header(1), set(&[(0, 1)]), set(&[(1, 2)])).unwrap();
    log.begin_checkpoint();
    log.mark(&set(&[(4, 5)]), &mut Vec::new());
    log.discard_unsynced();
    assert_eq!(parse(&log.compact()).unwrap().claims(&BOOT).0, set(&[(0, 1)]));
    assert_eq!(log.unsynced_bytes(), 0);
}

#[test]
fn parse_of_foreign_bytes_returns_the_reason() {
    let (mut bytes, _) = sample();
    assert_eq!(parse(b""), Err(ResumeError::Foreign));
    assert_eq!(parse(&[0; 4096]), Err(ResumeError::Foreign));
    bytes[8] = 2;
    assert_eq!(parse(&bytes), Err(ResumeError::Version(2)));
    let too_long = [&MAGIC[..], &1u32.to_le_bytes(), &u32::MAX.to_le_bytes(), &[0; 100]].concat();
    assert_eq!(parse(&too_long), Err(ResumeError::Damaged));
}

#[test]
fn compaction_is_bounded_and_not_repeated() {
    let mut log = ResumeLog::new(&header(1), GroupRanges::default(), GroupRanges::default()).unwrap();
    assert!(!log.wants_compaction(RESUME_COMPACT_BYTES as u64));
    assert!(log.wants_compaction(RESUME_COMPACT_BYTES as u64 + 1));
    let mut large = header(1);
    large.file.size = u64::MAX;
    log = ResumeLog::new(&large, (0..200_000).map(|n| 2 * n..2 * n + 1).collect(), GroupRanges::default()).unwrap();
    let bytes = log.compact();
    assert!(bytes.len() <= MAX_RESUME_FILE_BYTES && bytes.len() + RECORD_BYTES > MAX_RESUME_FILE_BYTES);
    assert!(!log.wants_compaction(bytes.len() as u64), "compaction is not repeated");
    assert!(parse(&bytes).unwrap().durable.count() > 100_000);
}

/// Returns whether `less` claims no group that `more` does not claim.
fn claims_no_more(less: &ResumeContent, more: &ResumeContent) -> bool {
    less.durable.without(&more.durable).is_empty() && less.written.without(&more.written).is_empty()
}

proptest! {
    #[test]
    fn prefix_claims_no_more_than_the_whole(cut: prop::sample::Index) {
        let (bytes, begin) = sample();
        let whole = parse(&bytes).unwrap();
        let cut = cut.index(bytes.len());
        match parse(&bytes[..cut]) {
            Ok(part) => prop_assert!(claims_no_more(&part, &whole)),
            Err(_) => prop_assert!(cut < begin),
        }
    }

    #[test]
    fn flipped_bit_adds_no_claim(at: prop::sample::Index, bit in 0u8..8) {
        let (mut bytes, begin) = sample();
        let whole = parse(&bytes).unwrap();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        match parse(&bytes) {
            Ok(read) => prop_assert!(at >= begin && claims_no_more(&read, &whole)),
            Err(_) => prop_assert!(at < begin),
        }
    }

    #[test]
    fn garbage_adds_no_claim(garbage in prop::collection::vec(any::<u8>(), 0..400), kept: prop::sample::Index) {
        prop_assert!(parse(&garbage).is_err());
        // The same after valid records.
        let (bytes, begin) = sample();
        let whole = parse(&bytes).unwrap();
        let kept = begin + kept.index(bytes.len() - begin);
        let mixed = [&bytes[..kept], &garbage].concat();
        prop_assert!(claims_no_more(&parse(&mixed).unwrap(), &whole));
    }

    #[test]
    fn records_of_another_file_are_ignored(first in 0u64..GROUPS, len in 1u64..9) {
        let mut log = ResumeLog::new(&header(2), GroupRanges::default(), GroupRanges::default()).unwrap();
        let mut foreign = Vec::new();
        log.mark(&set(&[(first, first + len)]), &mut foreign);
        log.begin_checkpoint();
        foreign.extend(log.end_checkpoint());
        let (bytes, _) = sample();
        prop_assert_eq!(parse(&[bytes.clone(), foreign].concat()), parse(&bytes));
    }

    #[test]
    fn claim_beyond_the_end_of_the_file_is_ignored(first in 0..GROUPS, end: u64) {
        let mut bytes = ResumeLog::new(&header(1), GroupRanges::default(), GroupRanges::default()).unwrap().compact();
        let (_, key) = header(1).encode().unwrap();
        for record in [Record::Written(first..end), Record::Durable(first..end)] {
            bytes.extend(encode(&record, &key));
        }
        let read = parse(&bytes).unwrap();
        prop_assert!(read.durable.without(&GroupRanges::all(header(1).file.size)).is_empty());
        prop_assert_eq!(read.durable, read.written);
    }

    /// Runs the journal's sequence of writes on a disk that keeps, loses and reorders what is not synced.
    #[test]
    fn crash_never_leads_to_a_false_claim(seed: u64) {
        let mut world = World::new(seed);
        for _ in 0..4 {
            let life = world.random.usize(0..40);
            for _ in 0..life {
                world.step();
            }
            world.crash();
        }
    }
}

/// File in the page cache and on the disk, in units that reach the disk atomically.
#[derive(Debug, Clone)]
struct Stored<T> {
    cache: Vec<T>,
    disk: Vec<T>,
}

impl<T: Clone + Default> Stored<T> {
    fn new(cache: Vec<T>) -> Self {
        Self { disk: vec![T::default(); cache.len()], cache }
    }

    fn write(&mut self, at: usize, units: &[T]) {
        let end = at + units.len();
        self.cache.resize(self.cache.len().max(end), T::default());
        self.disk.resize(self.cache.len(), T::default());
        self.cache[at..end].clone_from_slice(units);
    }

    /// Writes a random part of the page cache to the disk.
    fn write_back(&mut self, random: &mut fastrand::Rng, unit: usize) {
        for (cached, on_disk) in self.cache.chunks(unit).zip(self.disk.chunks_mut(unit)) {
            if random.bool() {
                on_disk.clone_from_slice(cached);
            }
        }
    }

    fn sync(&mut self) {
        self.disk.clone_from(&self.cache);
    }
}

/// Download that is interrupted and resumed several times.
struct World {
    random: fastrand::Rng,
    boot: u8,
    log: ResumeLog,
    /// Groups whose data is right, and groups whose pairs are right.
    data: Stored<bool>,
    pairs: Stored<bool>,
    have: Stored<u8>,
    /// Offset of the next record.
    len: usize,
    /// Previous file, which a crash of the machine may bring back until the directory is synced.
    older: Option<Stored<u8>>,
    /// Groups that were marked, and groups of completed checkpoints.
    marked: GroupRanges,
    synced: GroupRanges,
}

impl World {
    fn new(seed: u64) -> Self {
        let log = ResumeLog::new(&header(0), GroupRanges::default(), GroupRanges::default()).unwrap();
        let content = log.compact();
        Self {
            random: fastrand::Rng::with_seed(seed),
            boot: BOOT[0],
            data: Stored::new(vec![false; GROUPS as usize]),
            pairs: Stored::new(vec![false; GROUPS as usize]),
            len: content.len(),
            have: Stored::new(content),
            log,
            older: None,
            marked: GroupRanges::default(),
            synced: GroupRanges::default(),
        }
    }

    fn append(&mut self, bytes: &[u8]) {
        self.have.write(self.len, bytes);
        self.len += bytes.len();
    }

    fn step(&mut self) {
        match self.random.u32(0..10) {
            0 => self.checkpoint(),
            1 => self.compact(),
            2 => self.write_back(),
            _ => self.receive(),
        }
    }

    fn write_back(&mut self) {
        self.data.write_back(&mut self.random, 1);
        self.pairs.write_back(&mut self.random, 1);
        self.have.write_back(&mut self.random, 16);
    }

    /// Writes a run of groups, up to a random step.
    fn receive(&mut self) {
        let start = self.random.usize(0..GROUPS as usize);
        let end = (start + self.random.usize(1..6)).min(GROUPS as usize);
        let steps = self.random.usize(0..8);
        let here = vec![true; end - start];
        if steps > 0 {
            self.pairs.write(start, &here);
        }
        if steps > 1 {
            self.data.write(start, &here);
        }
        if steps > 2 {
            let groups = set(&[(start as u64, end as u64)]);
            let mut records = Vec::new();
            self.log.mark(&groups, &mut records);
            self.append(&records);
            self.marked = self.marked.iter().chain(groups.iter()).collect();
        }
    }

    fn checkpoint(&mut self) {
        let steps = self.random.usize(0..6);
        // The journal syncs the directory after a compaction, before anything else.
        self.older = None;
        self.log.begin_checkpoint();
        let promised = self.log.syncing.clone();
        // The sync may or may not include a write that happens meanwhile.
        if steps > 0 {
            self.data.sync();
            self.pairs.sync();
            if self.random.bool() {
                self.receive();
            }
            let records = self.log.end_checkpoint();
            self.append(&records);
            if steps > 1 {
                self.have.sync();
                self.synced = self.synced.iter().chain(promised.iter()).collect();
            }
        }
    }

    fn compact(&mut self) {
        let content = self.log.compact();
        let mut new = Stored::new(content.clone());
        new.sync();
        // Records that are written meanwhile go to both files.
        let before = self.len;
        if self.random.bool() {
            self.receive();
        }
        let meanwhile = self.have.cache[before..self.len].to_vec();
        new.write(content.len(), &meanwhile);
        self.len = content.len() + meanwhile.len();
        self.older = Some(std::mem::replace(&mut self.have, new));
    }

    fn crash(&mut self) {
        let machine = self.random.bool();
        if machine {
            self.boot += 1;
            self.write_back();
            if let Some(older) = self.older.take().filter(|_| self.random.bool()) {
                self.have = older;
            }
            self.data.cache.clone_from(&self.data.disk);
            self.pairs.cache.clone_from(&self.pairs.disk);
            self.have.cache.clone_from(&self.have.disk);
        }
        let boot = [self.boot; 16];
        let (durable, sure, doubtful) = match parse(&self.have.cache) {
            Ok(read) => {
                let (sure, doubtful) = read.claims(&boot);
                (read.durable, sure, doubtful)
            }
            Err(_) => Default::default(),
        };
        let is_there = |group: u64| self.data.cache[group as usize] && self.pairs.cache[group as usize];
        for group in sure.iter().flatten() {
            assert!(is_there(group), "group {group} is claimed but not there");
        }
        if machine {
            for group in durable.iter().flatten() {
                assert!(self.data.disk[group as usize] && self.pairs.disk[group as usize]);
            }
            assert!(self.synced.without(&sure).is_empty(), "groups of a completed checkpoint are lost");
        } else {
            assert!(self.marked.without(&sure).is_empty(), "a killed process lost groups that it had marked");
        }
        // On resumption, doubtful groups are hashed and the new file replaces the old one durably.
        let written: GroupRanges =
            sure.iter().chain(doubtful.iter().flatten().filter(|g| is_there(*g)).map(|g| g..g + 1)).collect();
        let written = written.without(&durable);
        let header = Header { boot, nonce: [self.random.u8(..); 16], ..header(0) };
        self.marked = durable.iter().chain(written.iter()).collect();
        self.synced = durable.clone();
        self.log = ResumeLog::new(&header, durable, written).unwrap();
        let content = self.log.compact();
        self.len = content.len();
        self.have = Stored::new(content);
        self.have.sync();
        self.older = None;
    }
}
