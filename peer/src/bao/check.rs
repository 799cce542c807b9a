//! Check of a file on disk against its outboard.

use std::{
    fs::File,
    sync::atomic::{AtomicBool, Ordering},
};

use super::{
    params::DISK_RUN_BYTES,
    read_ahead::RunReader,
    verifier::{PAIR_BYTES, Step, Verifier, outboard_bytes},
};
use shared::{content::ContentHash, group_ranges::GroupRanges};

/// Size of a read from an outboard, bytes.
pub(crate) const OUTBOARD_RUN_BYTES: usize = 64 << 10;

/// Hashes the groups `ranges` of a file and returns those that match the hash according to the outboard, which may
/// itself be damaged. Groups that cannot be read do not match. Returns early with the groups so far when `stop` is
/// set.
pub(crate) fn check(
    hash: ContentHash,
    size: u64,
    data: &File,
    outboard: &File,
    ranges: GroupRanges,
    stop: &AtomicBool,
) -> GroupRanges {
    let mut verifier = Verifier::new(hash, size, ranges);
    let mut data = RunReader::new(data, DISK_RUN_BYTES);
    let mut pairs = RunReader::new(outboard, OUTBOARD_RUN_BYTES);
    let pairs_end = outboard_bytes(size);
    let mut verified = GroupRanges::default();
    while let Some(step) = verifier.next() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let (reader, offset, len, run_end) = match step {
            Step::Group { offset, len } => (&mut data, offset, len, verifier.run_end(offset)),
            Step::Pair { index } => (&mut pairs, index * PAIR_BYTES as u64, PAIR_BYTES, pairs_end),
        };
        let read = reader.read(offset, len, run_end);
        // The verifier skips the subtree of a wrong pair.
        let accepted = read.is_ok_and(|at| verifier.accept(&reader.run()[at..at + len]).is_ok());
        if let (true, Step::Group { offset, .. }) = (accepted, step) {
            let group = offset / shared::limits::GROUP_BYTES;
            verified.insert(group..group + 1);
        }
    }
    verified
}
