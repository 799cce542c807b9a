//! The resume file of a download: what is proven of it, whatever ended the process. PURE; the format is described in
//! `docs/transfer.md`.
//!
//! ```text
//! header: magic, version, length, body (postcard), BLAKE3 of all that ─ then records of 40 bytes, in any number:
//!         kind, 7 x 0 │ first group │ group behind the last │ 16 bytes of BLAKE3, keyed with the header's hash
//! ```
//!
//! Each record is a claim that is true by itself: what a crash tears, loses or mixes up can only take claims away.

use std::{
    ffi::OsStr,
    ops::Range,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use shared::{
    content::{ContentHash, FileMeta},
    file_name::FileName,
    group_ranges::{GroupRanges, group_count},
    limits::{MAX_RESUME_FILE_BYTES, MAX_RESUME_HEADER_BYTES, RESUME_COMPACT_BYTES},
};

/// Bytes of a record.
pub(crate) const RECORD_BYTES: usize = 40;

const MAGIC: [u8; 8] = *b"brasa\0hv";
const VERSION: u32 = 1;
/// Magic, version and length of the body.
const PREFIX_BYTES: usize = 16;
const CHECK_BYTES: usize = 16;

const WRITTEN: u8 = 1;
const DURABLE: u8 = 2;
const CLOSED: u8 = 3;

/// What tells one run of the machine from another; what was written in an earlier one may not have reached the disk.
pub type BootId = [u8; 16];

/// Device and inode.
pub type FileId = (u64, u64);

/// What a resume file is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The file that is being received.
    pub file: FileMeta,
    /// Where it goes.
    pub goal: Goal,
    /// The run of the machine in which the records are written.
    pub boot: BootId,
    /// Random: no record of another resume file is ever taken for one of this.
    pub nonce: [u8; 16],
    /// The partial file that it speaks of.
    pub data: FileId,
    /// That one's outboard.
    pub outboard: FileId,
}

/// Where a download goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Goal {
    /// Into the share, under this name.
    Share(FileName),
    /// To this path, absolute; its bytes, for it need not be a text.
    Outside(Vec<u8>),
}

impl Goal {
    /// The path, for a share that lies at `share`.
    pub fn path(&self, share: &Path) -> PathBuf {
        match self {
            Self::Share(name) => name.below(share),
            Self::Outside(path) => PathBuf::from(OsStr::from_bytes(path)),
        }
    }
}

/// The body of the header; what stands here in this order is the format.
#[derive(Serialize, Deserialize)]
struct Body {
    hash: ContentHash,
    size: u64,
    name: FileName,
    mtime_micros: i64,
    executable: bool,
    goal: Goal,
    boot: BootId,
    nonce: [u8; 16],
    data: FileId,
    outboard: FileId,
}

/// One claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// These groups and what proves them were handed to the operating system: there as long as the machine runs.
    Written(Range<u64>),
    /// They are on the disk.
    Durable(Range<u64>),
    /// The receiver stopped in good order, and the files changed at these times (nanoseconds since 1970) for the last time.
    Closed {
        /// Of the partial file.
        data: i64,
        /// Of its outboard.
        outboard: i64,
    },
}

/// What a resume file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// What it is about.
    pub header: Header,
    /// Groups that are on the disk.
    pub durable: GroupRanges,
    /// Groups that were written, most of them durable by now; sure only in the run of the machine that the header names.
    pub written: GroupRanges,
    /// When the files changed last, if the receiver lived to say so: see [`Record::Closed`].
    pub closed: Option<(i64, i64)>,
}

/// Why bytes are no resume file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ResumeError {
    /// It does not begin like one.
    #[error("it is no resume file")]
    Foreign,
    /// Another version of the program wrote it.
    #[error("it is of version {0}")]
    Version(u32),
    /// Its header is not whole.
    #[error("its header is damaged")]
    Damaged,
}

/// Reads a resume file, however damaged: what cannot be trusted is left out. At most [`MAX_RESUME_FILE_BYTES`] are looked at.
///
/// # Errors
/// When it cannot be told what it is about; then nothing is proven.
pub fn parse(bytes: &[u8]) -> Result<Recovered, ResumeError> {
    let bytes = &bytes[..bytes.len().min(MAX_RESUME_FILE_BYTES)];
    let (prefix, _) = bytes.split_first_chunk::<PREFIX_BYTES>().ok_or(ResumeError::Foreign)?;
    if prefix[..8] != MAGIC {
        return Err(ResumeError::Foreign);
    }
    let number = |at: usize| u32::from_le_bytes([prefix[at], prefix[at + 1], prefix[at + 2], prefix[at + 3]]);
    if number(8) != VERSION {
        return Err(ResumeError::Version(number(8)));
    }
    let body_len = usize::try_from(number(12)).unwrap_or(usize::MAX);
    if body_len > MAX_RESUME_HEADER_BYTES {
        return Err(ResumeError::Damaged);
    }
    let (checked, rest) = bytes.split_at_checked(PREFIX_BYTES + body_len).ok_or(ResumeError::Damaged)?;
    let (key, records) = rest.split_first_chunk::<{ blake3::OUT_LEN }>().ok_or(ResumeError::Damaged)?;
    if blake3::hash(checked).as_bytes() != key {
        return Err(ResumeError::Damaged);
    }
    let header = Header::from_body(&checked[PREFIX_BYTES..]).ok_or(ResumeError::Damaged)?;

    let groups = group_count(header.file.size);
    let (mut durable, mut written, mut closed) = (Vec::new(), Vec::new(), None);
    for record in records.chunks_exact(RECORD_BYTES) {
        match decode(record, key) {
            Some(Record::Written(range)) if range.end <= groups => {
                closed = None;
                written.push(range);
            }
            Some(Record::Durable(range)) if range.end <= groups => durable.push(range),
            Some(Record::Closed { data, outboard }) => closed = Some((data, outboard)),
            Some(Record::Written(_) | Record::Durable(_)) | None => {}
        }
    }
    Ok(Recovered { header, durable: durable.into_iter().collect(), written: written.into_iter().collect(), closed })
}

impl Recovered {
    /// Groups that are certainly there in the run `boot` of the machine, and further ones that may be: to be hashed.
    pub fn claims(&self, boot: &BootId) -> (GroupRanges, GroupRanges) {
        if self.header.boot == *boot {
            let all = self.durable.iter().chain(self.written.iter()).collect();
            return (all, GroupRanges::default());
        }
        (self.durable.clone(), self.written.without(&self.durable))
    }
}

impl Header {
    fn from_body(body: &[u8]) -> Option<Self> {
        let (body, rest): (Body, _) = postcard::take_from_bytes(body).ok()?;
        let Body { hash, size, name, mtime_micros, executable, goal, boot, nonce, data, outboard } = body;
        let file = FileMeta { name, size, hash, mtime_micros, executable };
        rest.is_empty().then_some(Self { file, goal, boot, nonce, data, outboard })
    }

    /// The header's bytes, and the key of the records after it; `None` when a path in it is too long.
    fn encode(&self) -> Option<(Vec<u8>, [u8; blake3::OUT_LEN])> {
        let Self { file, goal, boot, nonce, data, outboard } = self.clone();
        let FileMeta { name, size, hash, mtime_micros, executable } = file;
        let body = Body { hash, size, name, mtime_micros, executable, goal, boot, nonce, data, outboard };
        let body = postcard::to_stdvec(&body).ok().filter(|body| body.len() <= MAX_RESUME_HEADER_BYTES)?;
        let mut bytes = MAGIC.to_vec();
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(u32::try_from(body.len()).ok()?.to_le_bytes());
        bytes.extend(body);
        let key = *blake3::hash(&bytes).as_bytes();
        bytes.extend(key);
        Some((bytes, key))
    }
}

/// The first 16 bytes of a record's keyed hash.
fn check(content: &[u8], key: &[u8; blake3::OUT_LEN]) -> [u8; CHECK_BYTES] {
    let hash = blake3::keyed_hash(key, content);
    let (check, _) = hash.as_bytes().split_first_chunk().expect("a hash has 32 bytes");
    *check
}

fn encode(record: &Record, key: &[u8; blake3::OUT_LEN]) -> [u8; RECORD_BYTES] {
    let (kind, first, second) = match record {
        Record::Written(groups) => (WRITTEN, groups.start.to_le_bytes(), groups.end.to_le_bytes()),
        Record::Durable(groups) => (DURABLE, groups.start.to_le_bytes(), groups.end.to_le_bytes()),
        Record::Closed { data, outboard } => (CLOSED, data.to_le_bytes(), outboard.to_le_bytes()),
    };
    let mut bytes = [0; RECORD_BYTES];
    bytes[0] = kind;
    bytes[8..16].copy_from_slice(&first);
    bytes[16..24].copy_from_slice(&second);
    let check = check(&bytes[..24], key);
    bytes[24..].copy_from_slice(&check);
    bytes
}

fn decode(bytes: &[u8], key: &[u8; blake3::OUT_LEN]) -> Option<Record> {
    let (content, found) = bytes.split_at_checked(24)?;
    if check(content, key) != *found {
        return None;
    }
    let word = |at: usize| content[at..].first_chunk::<8>().copied();
    let (first, second) = (word(8)?, word(16)?);
    let groups = u64::from_le_bytes(first)..u64::from_le_bytes(second);
    match content[0] {
        WRITTEN if !groups.is_empty() => Some(Record::Written(groups)),
        DURABLE if !groups.is_empty() => Some(Record::Durable(groups)),
        CLOSED => Some(Record::Closed { data: i64::from_le_bytes(first), outboard: i64::from_le_bytes(second) }),
        _ => None,
    }
}

/// What is proven of a download that runs, and what its resume file has to say of it.
///
/// Groups go from *written* to *syncing* to *durable*. What the methods return is to be appended to the file; nothing
/// in it becomes untrue when it is not, or only later.
#[derive(Debug)]
pub(crate) struct Log {
    size: u64,
    head: Vec<u8>,
    key: [u8; blake3::OUT_LEN],
    written: GroupRanges,
    syncing: GroupRanges,
    durable: GroupRanges,
    unsynced_bytes: u64,
}

impl Log {
    /// The log of a download of which these groups are there already; `None` when the header cannot be written down.
    pub(crate) fn new(header: &Header, durable: GroupRanges, written: GroupRanges) -> Option<Self> {
        let (head, key) = header.encode()?;
        let size = header.file.size;
        let unsynced_bytes = written.bytes(size);
        Some(Self { size, head, key, written, syncing: GroupRanges::default(), durable, unsynced_bytes })
    }

    /// These groups, and what proves them, were written. Their records go to `out`.
    pub(crate) fn mark(&mut self, groups: &GroupRanges, out: &mut Vec<u8>) {
        for range in groups.iter() {
            out.extend(encode(&Record::Written(range.clone()), &self.key));
            self.written.insert(range);
        }
        self.unsynced_bytes += groups.bytes(self.size);
    }

    /// Bytes that are not known to be on the disk.
    pub(crate) fn unsynced_bytes(&self) -> u64 {
        self.unsynced_bytes
    }

    /// All that is written so far is about to be synced.
    pub(crate) fn begin_checkpoint(&mut self) {
        for range in std::mem::take(&mut self.written).iter() {
            self.syncing.insert(range);
        }
    }

    /// It was.
    pub(crate) fn end_checkpoint(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        for range in std::mem::take(&mut self.syncing).iter() {
            out.extend(encode(&Record::Durable(range.clone()), &self.key));
            self.durable.insert(range);
        }
        self.unsynced_bytes = self.written.bytes(self.size);
        out
    }

    /// The disk failed: nothing counts but what it had before.
    pub(crate) fn distrust(&mut self) {
        (self.written, self.syncing) = Default::default();
        self.unsynced_bytes = 0;
    }

    /// The last record of a download that stops in good order.
    pub(crate) fn close(&self, data: i64, outboard: i64) -> [u8; RECORD_BYTES] {
        encode(&Record::Closed { data, outboard }, &self.key)
    }

    /// The whole file, as short as it can be.
    pub(crate) fn compact(&self) -> Vec<u8> {
        let mut out = self.head.clone();
        let durable = self.durable.iter().map(Record::Durable);
        let written = self.written.iter().chain(self.syncing.iter()).map(Record::Written);
        let room = (MAX_RESUME_FILE_BYTES - out.len()) / RECORD_BYTES;
        for record in durable.chain(written).take(room) {
            out.extend(encode(&record, &self.key));
        }
        out
    }

    /// Whether a file that has grown to this length should be written anew.
    pub(crate) fn wants_compaction(&self, len: u64) -> bool {
        let records = self.durable.count() + self.written.count() + self.syncing.count();
        let needed = self.head.len() + records * RECORD_BYTES;
        len > RESUME_COMPACT_BYTES.max(2 * needed) as u64
    }
}

#[cfg(test)]
mod tests;
