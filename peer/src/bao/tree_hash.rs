//! BLAKE3 hash and outboard of a file in one pass and constant memory. Large files are hashed by several threads.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

use super::{
    params::{HASH_BLOCK_BYTES, HASH_PART_BYTES},
    verifier::{PAIR_BYTES, group_value, pair_value},
};
use blake3::hazmat::{ChainingValue, left_subtree_len};
use shared::{content::ContentHash, limits::GROUP_BYTES};

/// Hashes the first `size` bytes of `file` and writes their outboard to `outboard` (format: `docs/transfer.md`).
///
/// Writes nothing for a file of one group, which has no outboard.
///
/// # Errors
/// `UnexpectedEof` if the file is shorter, an error within 1 MiB after `stop` is set, or the error of a read or write.
pub(crate) fn hash_file(file: &File, size: u64, outboard: Option<&File>, stop: &AtomicBool) -> io::Result<ContentHash> {
    if size <= HASH_PART_BYTES {
        let (value, pairs) = hash_part(&mut BlockReader::new(file, stop), 0, size, true)?;
        if let (Some(outboard), false) = (outboard, pairs.is_empty()) {
            outboard.write_all_at(&pairs, 0)?;
        }
        return Ok(ContentHash(value));
    }
    let parts = hash_parts(file, size, outboard, stop)?;
    Ok(ContentHash(merge(&parts, 0, size, 0, outboard)?))
}

/// Returns the values of all parts of [`HASH_PART_BYTES`]. Each part is a subtree whose pairs are contiguous in the
/// outboard.
fn hash_parts(file: &File, size: u64, outboard: Option<&File>, stop: &AtomicBool) -> io::Result<Vec<ChainingValue>> {
    let parts = size.div_ceil(HASH_PART_BYTES);
    let threads = thread::available_parallelism().map_or(1, |cores| cores.get() as u64).min(parts);
    let next = AtomicU64::new(0);
    let values = Mutex::new(vec![[0; 32]; usize::try_from(parts).map_err(io::Error::other)?]);
    let work = || -> io::Result<()> {
        let mut reader = BlockReader::new(file, stop);
        loop {
            let part = next.fetch_add(1, Ordering::Relaxed);
            if part >= parts {
                return Ok(());
            }
            let start = part * HASH_PART_BYTES;
            let len = HASH_PART_BYTES.min(size - start);
            let (value, pairs) = hash_part(&mut reader, start, len, false).inspect_err(|_| {
                next.store(parts, Ordering::Relaxed);
            })?;
            if let Some(outboard) = outboard {
                outboard.write_all_at(&pairs, pair_offset(size, start, len))?;
            }
            values.lock().expect("no holder panics")[usize::try_from(part).map_err(io::Error::other)?] = value;
        }
    };
    thread::scope(|scope| {
        let helpers: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let own = work();
        let joined = helpers.into_iter().map(|helper| helper.join().expect("hashing does not panic"));
        joined.fold(own, io::Result::and)
    })?;
    Ok(values.into_inner().expect("no holder panics"))
}

/// Returns the offset in the outboard of the pairs of the subtree of `len` bytes at `start`, bytes.
fn pair_offset(size: u64, start: u64, len: u64) -> u64 {
    let (mut at, mut rest, mut index) = (0, size, 0);
    while rest > len {
        let left = left_subtree_len(rest);
        if start < at + left {
            index += 1;
            rest = left;
        } else {
            // A subtree of n groups has n - 1 pairs.
            index += left / GROUP_BYTES;
            at += left;
            rest -= left;
        }
    }
    index * PAIR_BYTES as u64
}

/// Merges the parts of the subtree of `len` bytes at `start`, whose first pair has number `index`.
fn merge(
    parts: &[ChainingValue],
    start: u64,
    len: u64,
    index: u64,
    outboard: Option<&File>,
) -> io::Result<ChainingValue> {
    if len <= HASH_PART_BYTES {
        return Ok(parts[usize::try_from(start / HASH_PART_BYTES).map_err(io::Error::other)?]);
    }
    let left_len = left_subtree_len(len);
    let left = merge(parts, start, left_len, index + 1, outboard)?;
    let right = merge(parts, start + left_len, len - left_len, index + left_len / GROUP_BYTES, outboard)?;
    if let Some(outboard) = outboard {
        outboard.write_all_at(&[left, right].concat(), index * PAIR_BYTES as u64)?;
    }
    Ok(pair_value(&left, &right, index == 0))
}

/// File with the read buffer of one thread.
struct BlockReader<'a> {
    file: &'a File,
    block: Vec<u8>,
    stop: &'a AtomicBool,
}

impl<'a> BlockReader<'a> {
    fn new(file: &'a File, stop: &'a AtomicBool) -> Self {
        Self { file, block: Vec::new(), stop }
    }
}

/// Returns the value of a subtree of at most [`HASH_PART_BYTES`] and its pairs in pre-order.
fn hash_part(
    reader: &mut BlockReader<'_>,
    start: u64,
    len: u64,
    is_root: bool,
) -> io::Result<(ChainingValue, Vec<u8>)> {
    let mut pairs = Vec::with_capacity(usize::try_from(len / GROUP_BYTES).map_err(io::Error::other)? * PAIR_BYTES);
    let value = hash_subtree(reader, start, len, is_root, &mut pairs)?;
    Ok((value, pairs))
}

fn hash_subtree(
    reader: &mut BlockReader<'_>,
    start: u64,
    len: u64,
    is_root: bool,
    pairs: &mut Vec<u8>,
) -> io::Result<ChainingValue> {
    if len <= HASH_BLOCK_BYTES {
        if reader.stop.load(Ordering::Relaxed) {
            return Err(io::Error::other("the share is being closed"));
        }
        let len = usize::try_from(len).map_err(io::Error::other)?;
        if reader.block.len() < len {
            reader.block.resize(len, 0);
        }
        let bytes = &mut reader.block[..len];
        reader.file.read_exact_at(bytes, start)?;
        return Ok(hash_bytes(bytes, start, is_root, pairs));
    }
    let at = open_pair(pairs);
    let left_len = left_subtree_len(len);
    let left = hash_subtree(reader, start, left_len, false, pairs)?;
    let right = hash_subtree(reader, start + left_len, len - left_len, false, pairs)?;
    Ok(close_pair(pairs, at, left, right, is_root))
}

fn hash_bytes(bytes: &[u8], start: u64, is_root: bool, pairs: &mut Vec<u8>) -> ChainingValue {
    if bytes.len() as u64 <= GROUP_BYTES {
        return group_value(start, bytes, is_root);
    }
    let at = open_pair(pairs);
    let left_len = left_subtree_len(bytes.len() as u64);
    let (left, right) = bytes.split_at(usize::try_from(left_len).expect("it is less than the slice"));
    let left = hash_bytes(left, start, false, pairs);
    let right = hash_bytes(right, start + left_len, false, pairs);
    close_pair(pairs, at, left, right, is_root)
}

/// Reserves a pair whose halves follow later and returns its position.
fn open_pair(pairs: &mut Vec<u8>) -> usize {
    let at = pairs.len();
    pairs.extend_from_slice(&[0; PAIR_BYTES]);
    at
}

fn close_pair(pairs: &mut [u8], at: usize, left: ChainingValue, right: ChainingValue, is_root: bool) -> ChainingValue {
    let (left_half, right_half) = pairs[at..at + PAIR_BYTES].split_at_mut(PAIR_BYTES / 2);
    left_half.copy_from_slice(&left);
    right_half.copy_from_slice(&right);
    pair_value(&left, &right, is_root)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use bao_tree::{BlockSize, io::outboard::PreOrderMemOutboard};
    use shared::limits::GROUP_CHUNK_LOG;

    use super::super::verifier::tests::{awkward_sizes, noise};
    use super::*;

    static NEVER: AtomicBool = AtomicBool::new(false);

    /// Compares hash and outboard with those of `bao-tree`.
    fn compare(data: &[u8]) {
        let file = tempfile::tempfile().unwrap();
        let outboard = tempfile::tempfile().unwrap();
        (&file).write_all(data).unwrap();
        let hash = hash_file(&file, data.len() as u64, Some(&outboard), &NEVER).unwrap();
        assert_eq!(hash.0, *blake3::hash(data).as_bytes(), "{}", data.len());
        let expected = PreOrderMemOutboard::create(data, BlockSize::from_chunk_log(GROUP_CHUNK_LOG));
        let mut pairs = vec![0; usize::try_from(outboard.metadata().unwrap().len()).unwrap()];
        outboard.read_exact_at(&mut pairs, 0).unwrap();
        assert!(pairs == expected.data, "the outboard of {} bytes differs from bao-tree's", data.len());
    }

    #[test]
    fn hash_file_matches_bao_tree() {
        for size in awkward_sizes() {
            compare(&noise(size, 1));
        }
    }

    #[test]
    fn hash_file_of_several_parts_matches_bao_tree() {
        let part = usize::try_from(HASH_PART_BYTES).unwrap();
        for size in [part, part + 1, 2 * part, 2 * part + 12_345] {
            compare(&noise(size, 2));
        }
    }

    #[test]
    fn hash_file_of_a_short_file_fails() {
        let file = tempfile::tempfile().unwrap();
        (&file).write_all(&[1; 1000]).unwrap();
        assert_eq!(hash_file(&file, 1001, None, &NEVER).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn hash_file_with_stop_fails() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(2 * HASH_PART_BYTES).unwrap();
        assert!(hash_file(&file, 2 * HASH_PART_BYTES, None, &AtomicBool::new(true)).is_err());
    }
}
