//! Format of the resume file, which records the verified groups of a download across restarts and crashes.
//! Pure. Described in `docs/transfer.md`.
//!
//! ```text
//! header:  magic, version, body length, body (postcard), BLAKE3 of all of these
//! records: 40 bytes each: kind, 7 zeros │ first group │ end of the groups │ 16 bytes of BLAKE3, keyed with the
//!          header's hash
//! ```
//!
//! Each record is valid independently of the others, so a crash that tears, loses or reorders records only removes
//! claims.

use std::{
    ffi::OsStr,
    ops::Range,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use crate::store::{
    file_stat::FileId,
    params::{MAX_RESUME_FILE_BYTES, MAX_RESUME_HEADER_BYTES, RESUME_COMPACT_BYTES},
};
use serde::{Deserialize, Serialize};
use shared::{
    content::{ContentHash, FileMeta},
    file_name::FileName,
    group_ranges::{GroupRanges, group_count},
};

/// Size of a record, bytes.
pub(crate) const RECORD_BYTES: usize = 40;

const MAGIC: [u8; 8] = *b"brasa\0hv";
const VERSION: u32 = 1;
/// Size of magic, version and body length, bytes.
const PREFIX_BYTES: usize = 16;
/// Size of a record's checksum, bytes.
const CHECK_BYTES: usize = 16;

const WRITTEN: u8 = 1;
const DURABLE: u8 = 2;
const CLOSED: u8 = 3;

/// Identifier of a boot of the machine. Writes of an earlier boot may not have reached the disk.
pub type BootId = [u8; 16];

/// Header of a resume file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// File that is being received.
    pub file: FileMeta,
    /// Destination of the file.
    pub goal: Goal,
    /// Boot of the machine in which the records are written.
    pub boot: BootId,
    /// Random number that keeps records of other resume files from being valid in this one.
    pub nonce: [u8; 16],
    /// Partial file.
    pub data: FileId,
    /// Outboard of the partial file.
    pub outboard: FileId,
}

/// Destination of a download.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Goal {
    /// Name in the share.
    Share(FileName),
    /// Bytes of an absolute path, which need not be UTF-8.
    Outside(Vec<u8>),
}

impl Goal {
    /// Returns the path, with `share` as the directory of the share.
    pub fn path(&self, share: &Path) -> PathBuf {
        match self {
            Self::Share(name) => name.below(share),
            Self::Outside(path) => PathBuf::from(OsStr::from_bytes(path)),
        }
    }
}

/// Body of the header. The order of the fields is part of the format.
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

/// Claim about groups of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// Groups and their pairs that are in the page cache: safe unless the machine crashes.
    Written(Range<u64>),
    /// Groups and their pairs that are on the disk.
    Durable(Range<u64>),
    /// The receiver closed the journal in an orderly way. Times of the last change of the files, nanoseconds since
    /// 1970.
    Closed {
        /// Time of the partial file.
        data: i64,
        /// Time of its outboard.
        outboard: i64,
    },
}

/// Content of a resume file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResumeContent {
    /// Header.
    pub header: Header,
    /// Groups that are on the disk.
    pub durable: GroupRanges,
    /// Groups that were written. Certain only in the boot that the header names.
    pub written: GroupRanges,
    /// Times of the last change of the files if the journal was closed, see [`Record::Closed`].
    pub closed: Option<(i64, i64)>,
}

/// Reason why bytes are not a resume file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ResumeError {
    /// The magic number is missing.
    #[error("not a resume file")]
    Foreign,
    /// Another version of the program wrote the file.
    #[error("resume file of version {0}")]
    Version(u32),
    /// The header is damaged.
    #[error("damaged header")]
    Damaged,
}

/// Parses a resume file. Skips damaged records and everything beyond [`MAX_RESUME_FILE_BYTES`].
///
/// # Errors
/// If the header is not valid. Then no group is verified.
pub fn parse(bytes: &[u8]) -> Result<ResumeContent, ResumeError> {
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
    Ok(ResumeContent { header, durable: durable.into_iter().collect(), written: written.into_iter().collect(), closed })
}

impl ResumeContent {
    /// Returns the groups that are certain in the boot `boot`, and further groups that must be hashed.
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

    /// Returns the encoded header and the key of the records. Returns `None` if a path in it is too long.
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

/// Returns the checksum of a record: the first 16 bytes of its keyed hash.
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

/// Verified groups of a running download and the records about them.
///
/// Groups go from *written* to *syncing* to *durable*. The caller appends the returned records to the file. A record
/// that is lost or late makes no other record wrong.
#[derive(Debug)]
pub(crate) struct ResumeLog {
    size: u64,
    head: Vec<u8>,
    key: [u8; blake3::OUT_LEN],
    written: GroupRanges,
    syncing: GroupRanges,
    durable: GroupRanges,
    unsynced_bytes: u64,
}

impl ResumeLog {
    /// Creates the log of a download that has these groups already. Returns `None` if the header cannot be encoded.
    pub(crate) fn new(header: &Header, durable: GroupRanges, written: GroupRanges) -> Option<Self> {
        let (head, key) = header.encode()?;
        let size = header.file.size;
        let unsynced_bytes = written.bytes(size);
        Some(Self { size, head, key, written, syncing: GroupRanges::default(), durable, unsynced_bytes })
    }

    /// Records groups whose data and pairs are written. Appends the records to `out`.
    pub(crate) fn mark(&mut self, groups: &GroupRanges, out: &mut Vec<u8>) {
        for range in groups.iter() {
            out.extend(encode(&Record::Written(range.clone()), &self.key));
            self.written.insert(range);
        }
        self.unsynced_bytes += groups.bytes(self.size);
    }

    /// Returns the number of bytes that may not be on the disk yet.
    pub(crate) fn unsynced_bytes(&self) -> u64 {
        self.unsynced_bytes
    }

    /// Marks all written groups as being synced.
    pub(crate) fn begin_checkpoint(&mut self) {
        for range in std::mem::take(&mut self.written).iter() {
            self.syncing.insert(range);
        }
    }

    /// Marks the groups being synced as durable. Returns their records.
    pub(crate) fn end_checkpoint(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        for range in std::mem::take(&mut self.syncing).iter() {
            out.extend(encode(&Record::Durable(range.clone()), &self.key));
            self.durable.insert(range);
        }
        self.unsynced_bytes = self.written.bytes(self.size);
        out
    }

    /// Drops all groups that are not durable, after the disk failed to sync.
    pub(crate) fn discard_unsynced(&mut self) {
        (self.written, self.syncing) = Default::default();
        self.unsynced_bytes = 0;
    }

    /// Returns the last record of an interrupted download, [`Record::Closed`].
    pub(crate) fn close(&self, data: i64, outboard: i64) -> [u8; RECORD_BYTES] {
        encode(&Record::Closed { data, outboard }, &self.key)
    }

    /// Returns the whole file without redundant records.
    pub(crate) fn compact(&self) -> Vec<u8> {
        let mut out = self.head.clone();
        let durable = self.durable.iter().map(Record::Durable);
        let written = self.written.iter().chain(self.syncing.iter()).map(Record::Written);
        let max_records = (MAX_RESUME_FILE_BYTES - out.len()) / RECORD_BYTES;
        for record in durable.chain(written).take(max_records) {
            out.extend(encode(&record, &self.key));
        }
        out
    }

    /// Returns true if a file of `len` bytes should be compacted.
    pub(crate) fn wants_compaction(&self, len: u64) -> bool {
        let records = self.durable.count() + self.written.count() + self.syncing.count();
        let needed = self.head.len() + records * RECORD_BYTES;
        len > RESUME_COMPACT_BYTES.max(2 * needed) as u64
    }
}

#[cfg(test)]
mod tests;
