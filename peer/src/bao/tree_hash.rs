//! Hashing: a file's BLAKE3 hash and its outboard in one pass, in constant memory, large files by several threads.

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

use blake3::hazmat::{ChainingValue, left_subtree_len};
use shared::{
    content::ContentHash,
    limits::{GROUP_BYTES, HASH_BLOCK_BYTES, HASH_PART_BYTES},
};

use super::verifier::{PAIR_BYTES, group_value, pair_value};

/// Hashes the first `size` bytes of `file` and writes their outboard to `outboard` (format: `docs/transfer.md`).
///
/// A file of one group has no outboard, so nothing is written for it.
///
/// # Errors
/// `UnexpectedEof` when the file is shorter, an error within 1 MiB after `stop` is set, or what reading and writing gives.
pub(crate) fn hash_file(file: &File, size: u64, outboard: Option<&File>, stop: &AtomicBool) -> io::Result<ContentHash> {
    if size <= HASH_PART_BYTES {
        let (value, pairs) = hash_part(&mut Reading::new(file, stop), 0, size, true)?;
        if let (Some(outboard), false) = (outboard, pairs.is_empty()) {
            outboard.write_all_at(&pairs, 0)?;
        }
        return Ok(ContentHash(value));
    }
    let parts = hash_parts(file, size, outboard, stop)?;
    Ok(ContentHash(join(&parts, 0, size, 0, outboard)?))
}

/// The values of all parts of [`HASH_PART_BYTES`], each a whole subtree, whose pairs lie together in the outboard.
fn hash_parts(file: &File, size: u64, outboard: Option<&File>, stop: &AtomicBool) -> io::Result<Vec<ChainingValue>> {
    let parts = size.div_ceil(HASH_PART_BYTES);
    let threads = thread::available_parallelism().map_or(1, |cores| cores.get() as u64).min(parts);
    let next = AtomicU64::new(0);
    let values = Mutex::new(vec![[0; 32]; usize::try_from(parts).map_err(io::Error::other)?]);
    let work = || -> io::Result<()> {
        let mut reading = Reading::new(file, stop);
        loop {
            let part = next.fetch_add(1, Ordering::Relaxed);
            if part >= parts {
                return Ok(());
            }
            let start = part * HASH_PART_BYTES;
            let len = HASH_PART_BYTES.min(size - start);
            let (value, pairs) = hash_part(&mut reading, start, len, false).inspect_err(|_| {
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

/// Where in the outboard of a file the pairs of the subtree of `len` bytes at `start` begin, bytes.
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

/// Joins the parts of the subtree of `len` bytes at `start`, whose first pair has number `index`.
fn join(
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
    let left = join(parts, start, left_len, index + 1, outboard)?;
    let right = join(parts, start + left_len, len - left_len, index + left_len / GROUP_BYTES, outboard)?;
    if let Some(outboard) = outboard {
        outboard.write_all_at(&[left, right].concat(), index * PAIR_BYTES as u64)?;
    }
    Ok(pair_value(&left, &right, index == 0))
}

/// A file and one thread's buffer for it.
struct Reading<'a> {
    file: &'a File,
    block: Vec<u8>,
    stop: &'a AtomicBool,
}

impl<'a> Reading<'a> {
    fn new(file: &'a File, stop: &'a AtomicBool) -> Self {
        Self { file, block: Vec::new(), stop }
    }
}

/// The value of a subtree of at most [`HASH_PART_BYTES`], and its pairs in pre-order.
fn hash_part(reading: &mut Reading<'_>, start: u64, len: u64, is_root: bool) -> io::Result<(ChainingValue, Vec<u8>)> {
    let mut pairs = Vec::with_capacity(usize::try_from(len / GROUP_BYTES).map_err(io::Error::other)? * PAIR_BYTES);
    let value = hash_subtree(reading, start, len, is_root, &mut pairs)?;
    Ok((value, pairs))
}

fn hash_subtree(
    reading: &mut Reading<'_>,
    start: u64,
    len: u64,
    is_root: bool,
    pairs: &mut Vec<u8>,
) -> io::Result<ChainingValue> {
    if len <= HASH_BLOCK_BYTES {
        if reading.stop.load(Ordering::Relaxed) {
            return Err(io::Error::other("the share is being closed"));
        }
        let len = usize::try_from(len).map_err(io::Error::other)?;
        if reading.block.len() < len {
            reading.block.resize(len, 0);
        }
        let bytes = &mut reading.block[..len];
        reading.file.read_exact_at(bytes, start)?;
        return Ok(hash_bytes(bytes, start, is_root, pairs));
    }
    let place = open_pair(pairs);
    let left_len = left_subtree_len(len);
    let left = hash_subtree(reading, start, left_len, false, pairs)?;
    let right = hash_subtree(reading, start + left_len, len - left_len, false, pairs)?;
    Ok(close_pair(pairs, place, left, right, is_root))
}

fn hash_bytes(bytes: &[u8], start: u64, is_root: bool, pairs: &mut Vec<u8>) -> ChainingValue {
    if bytes.len() as u64 <= GROUP_BYTES {
        return group_value(start, bytes, is_root);
    }
    let place = open_pair(pairs);
    let left_len = left_subtree_len(bytes.len() as u64);
    let (left, right) = bytes.split_at(usize::try_from(left_len).expect("it is less than the slice"));
    let left = hash_bytes(left, start, false, pairs);
    let right = hash_bytes(right, start + left_len, false, pairs);
    close_pair(pairs, place, left, right, is_root)
}

/// Keeps the place of a pair whose halves come later.
fn open_pair(pairs: &mut Vec<u8>) -> usize {
    let place = pairs.len();
    pairs.extend_from_slice(&[0; PAIR_BYTES]);
    place
}

fn close_pair(
    pairs: &mut [u8],
    place: usize,
    left: ChainingValue,
    right: ChainingValue,
    is_root: bool,
) -> ChainingValue {
    let (left_place, right_place) = pairs[place..place + PAIR_BYTES].split_at_mut(PAIR_BYTES / 2);
    left_place.copy_from_slice(&left);
    right_place.copy_from_slice(&right);
    pair_value(&left, &right, is_root)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use bao_tree::{BlockSize, io::outboard::PreOrderMemOutboard};
    use shared::limits::GROUP_CHUNK_LOG;

    use super::super::verifier::tests::{awkward_sizes, noise};
    use super::*;

    static GO_ON: AtomicBool = AtomicBool::new(false);

    /// Hash and outboard by this module and by `bao-tree`.
    fn compare(data: &[u8]) {
        let file = tempfile::tempfile().unwrap();
        let outboard = tempfile::tempfile().unwrap();
        (&file).write_all(data).unwrap();
        let hash = hash_file(&file, data.len() as u64, Some(&outboard), &GO_ON).unwrap();
        assert_eq!(hash.0, *blake3::hash(data).as_bytes(), "{}", data.len());
        let expected = PreOrderMemOutboard::create(data, BlockSize::from_chunk_log(GROUP_CHUNK_LOG));
        let mut pairs = vec![0; usize::try_from(outboard.metadata().unwrap().len()).unwrap()];
        outboard.read_exact_at(&mut pairs, 0).unwrap();
        assert!(pairs == expected.data, "the outboard of {} bytes differs from bao-tree's", data.len());
    }

    #[test]
    fn hash_and_outboard_are_those_of_bao_tree() {
        for size in awkward_sizes() {
            compare(&noise(size, 1));
        }
    }

    #[test]
    fn files_of_several_parts_too() {
        let part = usize::try_from(HASH_PART_BYTES).unwrap();
        for size in [part, part + 1, 2 * part, 2 * part + 12_345] {
            compare(&noise(size, 2));
        }
    }

    #[test]
    fn a_file_that_is_too_short_is_an_error() {
        let file = tempfile::tempfile().unwrap();
        (&file).write_all(&[1; 1000]).unwrap();
        assert_eq!(hash_file(&file, 1001, None, &GO_ON).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn it_can_be_stopped() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(2 * HASH_PART_BYTES).unwrap();
        assert!(hash_file(&file, 2 * HASH_PART_BYTES, None, &AtomicBool::new(true)).is_err());
    }
}
