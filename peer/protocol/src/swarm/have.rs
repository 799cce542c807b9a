//! Pieces that a peer has complete, and groups of the others.

use std::{collections::BTreeMap, ops::Range};

use super::piece::Layout;

/// Pieces and groups of one peer. Memory: one bit per piece, and one bit per group of at most `max_begun` pieces.
#[derive(Debug, Clone)]
pub(crate) struct Have {
    layout: Layout,
    complete: Bits,
    /// Groups of pieces that are begun and not complete.
    begun: BTreeMap<u32, Bits>,
    max_begun: usize,
}

impl Have {
    /// An empty set. While `max_begun` pieces are begun, groups of further incomplete pieces are not recorded.
    pub(crate) fn new(layout: Layout, max_begun: usize) -> Self {
        Self { layout, complete: Bits::new(u64::from(layout.pieces())), begun: BTreeMap::new(), max_begun }
    }

    pub(crate) fn has_piece(&self, piece: u32) -> bool {
        self.complete.has(u64::from(piece))
    }

    pub(crate) fn has_group(&self, group: u64) -> bool {
        let piece = self.layout.piece_of(group);
        self.has_piece(piece)
            || self.begun.get(&piece).is_some_and(|bits| bits.has(group - self.layout.groups_of(piece).start))
    }

    /// True if the set has some groups of the piece, and not all.
    pub(crate) fn is_begun(&self, piece: u32) -> bool {
        self.begun.contains_key(&piece)
    }

    /// Pieces that are begun and not complete, ascending.
    pub(crate) fn begun(&self) -> impl Iterator<Item = u32> {
        self.begun.keys().copied()
    }

    /// Complete pieces, ascending.
    pub(crate) fn complete(&self) -> impl Iterator<Item = u32> {
        (0..self.layout.pieces()).filter(|&piece| self.has_piece(piece))
    }

    /// Adds a run of groups; calls `completed` with each piece that became complete. Returns the bytes that are new.
    pub(crate) fn insert(&mut self, groups: Range<u64>, mut completed: impl FnMut(u32)) -> u64 {
        let groups = groups.start..groups.end.min(self.layout.groups());
        let mut new_bytes = 0;
        for piece in self.layout.pieces_of(&groups) {
            if self.has_piece(piece) {
                continue;
            }
            let all = self.layout.groups_of(piece);
            let part = groups.start.max(all.start)..groups.end.min(all.end);
            if part == all && !self.begun.contains_key(&piece) {
                new_bytes += self.layout.bytes(&part);
            } else {
                if !self.begun.contains_key(&piece) && self.begun.len() >= self.max_begun {
                    continue;
                }
                let bits = self.begun.entry(piece).or_insert_with(|| Bits::new(all.end - all.start));
                for group in part {
                    if bits.set(group - all.start) {
                        new_bytes += self.layout.bytes(&(group..group + 1));
                    }
                }
                if bits.count < all.end - all.start {
                    continue;
                }
            }
            self.begun.remove(&piece);
            self.complete.set(u64::from(piece));
            completed(piece);
        }
        new_bytes
    }
}

/// Fixed number of bits.
#[derive(Debug, Clone)]
struct Bits {
    words: Box<[u64]>,
    /// Number of bits that are set.
    count: u64,
}

impl Bits {
    fn new(len: u64) -> Self {
        let words = usize::try_from(len.div_ceil(64)).expect("pieces and groups of one piece fit memory");
        Self { words: vec![0; words].into(), count: 0 }
    }

    /// Index of the word, and the bit within it.
    fn position(index: u64) -> (usize, u64) {
        (usize::try_from(index / 64).expect("indices are below the length"), 1 << (index % 64))
    }

    fn has(&self, index: u64) -> bool {
        let (word, bit) = Self::position(index);
        self.words[word] & bit != 0
    }

    /// Sets a bit; returns whether it was clear.
    fn set(&mut self, index: u64) -> bool {
        let (word, bit) = Self::position(index);
        let is_new = self.words[word] & bit == 0;
        self.words[word] |= bit;
        self.count += u64::from(is_new);
        is_new
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use shared::limits::GROUP_BYTES;

    use super::*;

    proptest! {
        #[test]
        fn insert_of_any_runs_matches_a_set_of_groups(
            runs in prop::collection::vec((0u64..70, 0u64..40), 0..12),
            short in 0..GROUP_BYTES,
        ) {
            let layout = Layout::new(70 * GROUP_BYTES - short);
            let mut have = Have::new(layout, usize::MAX);
            let mut model = BTreeSet::new();
            let mut completed = Vec::new();
            for (start, len) in runs {
                let before: u64 = model.iter().map(|&group| layout.bytes(&(group..group + 1))).sum();
                let new = have.insert(start..start + len, |piece| completed.push(piece));
                model.extend(start..(start + len).min(layout.groups()));
                let after: u64 = model.iter().map(|&group| layout.bytes(&(group..group + 1))).sum();
                prop_assert_eq!(before + new, after);
            }
            for group in 0..layout.groups() {
                prop_assert_eq!(have.has_group(group), model.contains(&group));
            }
            completed.sort_unstable();
            prop_assert_eq!(&completed, &have.complete().collect::<Vec<_>>());
            for piece in 0..layout.pieces() {
                let has_all = layout.groups_of(piece).all(|group| model.contains(&group));
                let has_some = layout.groups_of(piece).any(|group| model.contains(&group));
                prop_assert_eq!(have.has_piece(piece), has_all);
                prop_assert_eq!(have.begun().any(|begun| begun == piece), has_some && !has_all);
            }
        }
    }

    #[test]
    fn begun_pieces_over_the_limit_are_not_recorded() {
        let layout = Layout::new(8 << 20);
        let mut have = Have::new(layout, 2);
        for piece in 0..8 {
            let first = layout.groups_of(piece).start;
            have.insert(first..first + 1, |_| {});
        }
        assert_eq!(have.begun().collect::<Vec<_>>(), [0, 1]);
        have.insert(0..layout.groups(), |_| {});
        assert_eq!(have.complete().count(), 32, "complete pieces are always recorded");
    }
}
