//! Which pieces somebody has whole, and which groups of the others.

use std::{collections::BTreeMap, ops::Range};

use super::piece::Layout;

/// The pieces and groups that one peer has. At most a bit a piece, and a bit a group for `max_begun` pieces.
#[derive(Debug, Clone)]
pub(crate) struct Have {
    layout: Layout,
    whole: Bits,
    /// Groups of the pieces that are begun and not whole.
    begun: BTreeMap<u32, Bits>,
    max_begun: usize,
}

impl Have {
    /// Nothing yet. Of pieces that are begun while `max_begun` others are, nothing is remembered.
    pub(crate) fn new(layout: Layout, max_begun: usize) -> Self {
        Self { layout, whole: Bits::new(u64::from(layout.pieces())), begun: BTreeMap::new(), max_begun }
    }

    pub(crate) fn has_piece(&self, piece: u32) -> bool {
        self.whole.has(u64::from(piece))
    }

    pub(crate) fn has_group(&self, group: u64) -> bool {
        let piece = self.layout.piece_of(group);
        self.has_piece(piece)
            || self.begun.get(&piece).is_some_and(|bits| bits.has(group - self.layout.groups_of(piece).start))
    }

    /// Whether some of its groups are there, and not all.
    pub(crate) fn is_begun(&self, piece: u32) -> bool {
        self.begun.contains_key(&piece)
    }

    /// Pieces that are begun and not whole, ascending.
    pub(crate) fn begun(&self) -> impl Iterator<Item = u32> {
        self.begun.keys().copied()
    }

    /// The whole pieces, ascending.
    pub(crate) fn whole(&self) -> impl Iterator<Item = u32> {
        (0..self.layout.pieces()).filter(|&piece| self.has_piece(piece))
    }

    /// Adds a run of groups; calls `completed` with each piece that became whole. Returns the bytes that are new.
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
            self.whole.set(u64::from(piece));
            completed(piece);
        }
        new_bytes
    }
}

/// A fixed number of bits.
#[derive(Debug, Clone)]
struct Bits {
    words: Box<[u64]>,
    count: u64,
}

impl Bits {
    fn new(len: u64) -> Self {
        let words = usize::try_from(len.div_ceil(64)).expect("pieces and groups of one piece fit memory");
        Self { words: vec![0; words].into(), count: 0 }
    }

    fn place(index: u64) -> (usize, u64) {
        (usize::try_from(index / 64).expect("indices are below the length"), 1 << (index % 64))
    }

    fn has(&self, index: u64) -> bool {
        let (word, bit) = Self::place(index);
        self.words[word] & bit != 0
    }

    /// Whether it was not set before.
    fn set(&mut self, index: u64) -> bool {
        let (word, bit) = Self::place(index);
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
        fn it_is_a_set_of_groups(runs in prop::collection::vec((0u64..70, 0u64..40), 0..12), short in 0..GROUP_BYTES) {
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
            prop_assert_eq!(&completed, &have.whole().collect::<Vec<_>>());
            for piece in 0..layout.pieces() {
                let has_all = layout.groups_of(piece).all(|group| model.contains(&group));
                let has_some = layout.groups_of(piece).any(|group| model.contains(&group));
                prop_assert_eq!(have.has_piece(piece), has_all);
                prop_assert_eq!(have.begun().any(|begun| begun == piece), has_some && !has_all);
            }
        }
    }

    #[test]
    fn what_is_remembered_of_fragments_is_bounded() {
        let layout = Layout::new(8 << 20);
        let mut have = Have::new(layout, 2);
        for piece in 0..8 {
            let first = layout.groups_of(piece).start;
            have.insert(first..first + 1, |_| {});
        }
        assert_eq!(have.begun().collect::<Vec<_>>(), [0, 1]);
        have.insert(0..layout.groups(), |_| {});
        assert_eq!(have.whole().count(), 32, "whole pieces are always known");
    }
}
