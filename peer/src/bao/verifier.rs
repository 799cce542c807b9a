//! Verified streaming: order and check of the bytes of an encoding. Pure.
//!
//! The leaves of a file's BLAKE3 tree (BLAKE3 paper, section 2.1) are groups of 16 KiB, its inner nodes pairs of
//! 32-byte chaining values. The encoding of a set of groups consists of these groups and the pairs that prove them,
//! in pre-order. An *outboard* consists of all pairs of a file in pre-order, without the groups. Both formats are
//! those of the crate `bao-tree` with a block size of 2^4 chunks, which the tests check. Brasa has its own tree walk
//! to read, hash and write in large blocks instead of single groups and pairs.

use blake3::hazmat::{self, ChainingValue, HasherExt, Mode};
use shared::{content::ContentHash, group_ranges::GroupRanges, limits::GROUP_BYTES};

/// Size of a pair of chaining values, bytes.
pub(crate) const PAIR_BYTES: usize = 64;

/// Next item of an encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// A pair of chaining values.
    Pair {
        /// Number of the pair in the outboard.
        index: u64,
    },
    /// Content of a group.
    Group {
        /// Offset in the file, bytes.
        offset: u64,
        /// Length, bytes. Only the last group of a file has less than 16 KiB.
        len: usize,
    },
}

/// Error: the bytes of the last [`Step`] do not match the hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("wrong bytes at offset {offset}")]
pub(crate) struct Mismatch {
    /// Offset of the first unproven byte of the file.
    pub(crate) offset: u64,
}

/// Subtree of `len` bytes at `start`, whose first pair has number `index` in the outboard.
#[derive(Debug, Clone, Copy)]
struct Subtree {
    start: u64,
    len: u64,
    index: u64,
}

/// Walks the tree in pre-order and checks each pair and group against the hash.
///
/// The caller alternates [`next`](Self::next), which returns the next step, and [`accept`](Self::accept), which
/// checks its bytes.
#[derive(Debug)]
pub(crate) struct Verifier {
    size: u64,
    ranges: GroupRanges,
    /// Subtrees not visited yet with their expected values, the next one last.
    expected: Vec<(Subtree, ChainingValue)>,
    current: Option<(Subtree, ChainingValue)>,
}

impl Verifier {
    /// Creates a verifier for the groups `ranges` of the file of `size` bytes with this hash.
    pub(crate) fn new(hash: ContentHash, size: u64, ranges: GroupRanges) -> Self {
        let root = Subtree { start: 0, len: size, index: 0 };
        let expected = if ranges.is_empty() { Vec::new() } else { vec![(root, hash.0)] };
        Self { size, ranges, expected, current: None }
    }

    /// Returns the next step, or `None` at the end.
    pub(crate) fn next(&mut self) -> Option<Step> {
        let (subtree, value) = self.expected.pop()?;
        self.current = Some((subtree, value));
        Some(if subtree.len <= GROUP_BYTES {
            let len = usize::try_from(subtree.len).expect("a group is 16 KiB at most");
            Step::Group { offset: subtree.start, len }
        } else {
            Step::Pair { index: subtree.index }
        })
    }

    /// Checks the bytes of the last step.
    ///
    /// # Errors
    /// If they do not match. The verifier then skips the subtree.
    pub(crate) fn accept(&mut self, bytes: &[u8]) -> Result<(), Mismatch> {
        let (subtree, value) = self.current.take().expect("`accept` follows `next`");
        let is_root = subtree.len == self.size;
        if subtree.len <= GROUP_BYTES {
            return if group_value(subtree.start, bytes, is_root) == value {
                Ok(())
            } else {
                Err(Mismatch { offset: subtree.start })
            };
        }
        let (left_value, right_value) = split_pair(bytes).ok_or(Mismatch { offset: subtree.start })?;
        if pair_value(&left_value, &right_value, is_root) != value {
            return Err(Mismatch { offset: subtree.start });
        }
        let (left, right) = subtree.children();
        for (child, value) in [(right, right_value), (left, left_value)] {
            if self.ranges.intersects(child.groups()) {
                self.expected.push((child, value));
            }
        }
        Ok(())
    }

    /// Completes the last step without a check of its group, which the caller leaves to another thread or peer.
    /// Returns the chaining value that the group must have.
    pub(crate) fn defer_group(&mut self) -> ChainingValue {
        let (subtree, value) = self.current.take().expect("`defer_group` follows `next`");
        debug_assert!(subtree.len <= GROUP_BYTES, "only groups are deferred");
        value
    }

    /// Returns the end of the run of wanted groups around `offset`, bytes.
    pub(crate) fn run_end(&self, offset: u64) -> u64 {
        self.ranges.run_end(offset / GROUP_BYTES).saturating_mul(GROUP_BYTES).min(self.size)
    }
}

impl Subtree {
    fn children(self) -> (Self, Self) {
        let left_len = hazmat::left_subtree_len(self.len);
        let left = Self { start: self.start, len: left_len, index: self.index + 1 };
        // A subtree of n groups has n - 1 pairs; the left one is followed by the right one.
        let right =
            Self { start: self.start + left_len, len: self.len - left_len, index: self.index + left_len / GROUP_BYTES };
        (left, right)
    }

    fn groups(self) -> std::ops::Range<u64> {
        self.start / GROUP_BYTES..(self.start + self.len).div_ceil(GROUP_BYTES)
    }
}

fn split_pair(bytes: &[u8]) -> Option<(ChainingValue, ChainingValue)> {
    let (left, right) = bytes.split_at_checked(PAIR_BYTES / 2)?;
    Some((left.try_into().ok()?, right.try_into().ok()?))
}

/// Returns the chaining value of a group at `offset` of its file.
pub(crate) fn group_value(offset: u64, bytes: &[u8], is_root: bool) -> ChainingValue {
    if is_root {
        return *blake3::hash(bytes).as_bytes();
    }
    blake3::Hasher::new().set_input_offset(offset).update(bytes).finalize_non_root()
}

/// Returns the chaining value of a pair.
pub(crate) fn pair_value(left: &ChainingValue, right: &ChainingValue, is_root: bool) -> ChainingValue {
    if is_root {
        *hazmat::merge_subtrees_root(left, right, Mode::Hash).as_bytes()
    } else {
        hazmat::merge_subtrees_non_root(left, right, Mode::Hash)
    }
}

/// Returns true if `pair`, the first one of an outboard, matches the hash of the file.
pub(crate) fn is_root_pair(pair: &[u8], hash: ContentHash) -> bool {
    split_pair(pair).is_some_and(|(left, right)| pair_value(&left, &right, true) == hash.0)
}

/// Returns the size of the outboard of a file of `size` bytes: one pair less than the file has groups.
pub(crate) fn outboard_bytes(size: u64) -> u64 {
    (shared::group_ranges::group_count(size) - 1) * PAIR_BYTES as u64
}

#[cfg(test)]
pub(crate) mod tests {
    use bao_tree::{BaoTree, BlockSize, ChunkNum, ChunkRanges, io::outboard::PreOrderMemOutboard};
    use proptest::prelude::*;
    use shared::limits::GROUP_CHUNK_LOG;

    use super::*;

    const G: usize = GROUP_BYTES as usize;

    /// Sizes around every boundary of the format.
    pub(crate) fn awkward_sizes() -> Vec<usize> {
        let edges = [0, 1024, G, 2 * G, 3 * G, 4 * G, 7 * G, 64 * G, 1024 * G];
        let mut sizes: Vec<usize> = edges.iter().flat_map(|edge| [edge.saturating_sub(1), *edge, edge + 1]).collect();
        sizes.dedup();
        sizes
    }

    pub(crate) fn noise(len: usize, seed: u64) -> Vec<u8> {
        let mut bytes = vec![0; len];
        fastrand::Rng::with_seed(seed).fill(&mut bytes);
        bytes
    }

    /// Encodes these groups with `bao-tree`.
    fn encoded_by_bao_tree(data: &[u8], ranges: &GroupRanges) -> Vec<u8> {
        let outboard = PreOrderMemOutboard::create(data, BlockSize::from_chunk_log(GROUP_CHUNK_LOG));
        let chunk = |group: u64| ChunkNum(group << GROUP_CHUNK_LOG);
        let mut chunks = ChunkRanges::empty();
        for range in ranges.iter() {
            chunks |= ChunkRanges::from(chunk(range.start)..chunk(range.end));
        }
        let mut encoded = Vec::new();
        bao_tree::io::sync::encode_ranges_validated(data, &outboard, &chunks, &mut encoded).unwrap();
        encoded
    }

    /// Returns the groups that `encoded` proves, or the mismatch; `None` if it is too short.
    pub(crate) fn decode(
        hash: ContentHash,
        size: usize,
        ranges: &GroupRanges,
        mut encoded: &[u8],
    ) -> Result<Vec<(u64, Vec<u8>)>, Option<Mismatch>> {
        let mut verifier = Verifier::new(hash, size as u64, ranges.clone());
        let mut groups = Vec::new();
        while let Some(step) = verifier.next() {
            let len = match step {
                Step::Pair { .. } => PAIR_BYTES,
                Step::Group { len, .. } => len,
            };
            let (bytes, rest) = encoded.split_at_checked(len).ok_or(None)?;
            verifier.accept(bytes).map_err(Some)?;
            encoded = rest;
            if let Step::Group { offset, .. } = step {
                groups.push((offset, bytes.to_vec()));
            }
        }
        assert!(encoded.is_empty(), "no bytes follow the last group");
        Ok(groups)
    }

    #[test]
    fn encoding_of_bao_tree_is_accepted() {
        for size in awkward_sizes() {
            let data = noise(size, size as u64);
            let hash = ContentHash(*blake3::hash(&data).as_bytes());
            let ranges = GroupRanges::all(size as u64);
            let groups = decode(hash, size, &ranges, &encoded_by_bao_tree(&data, &ranges)).unwrap();
            assert_eq!(groups.into_iter().flat_map(|(_, bytes)| bytes).collect::<Vec<_>>(), data, "{size}");
            let tree = BaoTree::new(size as u64, BlockSize::from_chunk_log(GROUP_CHUNK_LOG));
            assert_eq!(outboard_bytes(size as u64), tree.outboard_size(), "{size}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_groups_of_any_file_are_accepted(
            size in 0usize..40 * G,
            cuts in prop::collection::btree_set(0u64..40, 1..8),
            seed: u64,
        ) {
            let data = noise(size, seed);
            let hash = ContentHash(*blake3::hash(&data).as_bytes());
            let mut ranges = GroupRanges::default();
            for group in cuts {
                let group = group % shared::group_ranges::group_count(size as u64);
                ranges.insert(group..group + 1);
            }
            let groups = decode(hash, size, &ranges, &encoded_by_bao_tree(&data, &ranges)).unwrap();
            prop_assert_eq!(groups.iter().map(|(_, b)| b.len() as u64).sum::<u64>(), ranges.bytes(size as u64));
            for (offset, bytes) in groups {
                prop_assert_eq!(&bytes[..], &data[offset as usize..][..bytes.len()]);
            }
        }

        #[test]
        fn flipped_bit_is_reported_at_its_group(
            size in 1usize..20 * G,
            at: prop::sample::Index,
            bit in 0u8..8,
            seed: u64,
        ) {
            let data = noise(size, seed);
            let hash = ContentHash(*blake3::hash(&data).as_bytes());
            let ranges = GroupRanges::all(size as u64);
            let mut encoded = encoded_by_bao_tree(&data, &ranges);
            let at = at.index(encoded.len());
            encoded[at] ^= 1 << bit;
            let mismatch = decode(hash, size, &ranges, &encoded).unwrap_err().expect("the length is right");
            // The mismatch is not reported after the flipped bit.
            prop_assert!(mismatch.offset as usize <= at);
            prop_assert!((mismatch.offset as usize) < size);
        }

        #[test]
        fn wrong_size_is_rejected(size in 0usize..20 * G, claimed in 0usize..20 * G, seed: u64) {
            prop_assume!(size != claimed);
            let data = noise(size, seed);
            let hash = ContentHash(*blake3::hash(&data).as_bytes());
            let mut encoded = encoded_by_bao_tree(&data, &GroupRanges::all(size as u64));
            encoded.resize(encoded.len() + 2 * G, 0);
            let decoded = decode(hash, claimed, &GroupRanges::all(claimed as u64), &encoded);
            prop_assert!(matches!(decoded, Err(Some(_))), "{:?}", decoded.map(|groups| groups.len()));
        }
    }
}
