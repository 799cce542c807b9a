//! Sets of 4-byte ids in an order that the caller defines; about five bytes for each id.

use std::cmp::Ordering;

/// Largest number of ids in a block: an insertion moves at most 2 KiB, and the list of blocks stays short (2000 for a
/// million ids).
const BLOCK: usize = if cfg!(test) { 8 } else { 512 };

/// Ordered set of ids in blocks, like the leaves of a B-tree. The caller compares.
#[derive(Debug, Clone, Default)]
pub(crate) struct SortedIds {
    /// Blocks; none is empty.
    blocks: Vec<Vec<u32>>,
    len: usize,
}

/// Position of an id in the set, or at which it would be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Position {
    block: usize,
    at: usize,
}

impl SortedIds {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Finds the id for which `order` returns `Equal`, or the position at which it would be. `order` compares an id
    /// with the one looked for.
    pub(crate) fn find(&self, mut order: impl FnMut(u32) -> Ordering) -> Result<(u32, Position), Position> {
        let ends_before = |block: &Vec<u32>, order: &mut dyn FnMut(u32) -> Ordering| {
            block.last().is_some_and(|last| order(*last) == Ordering::Less)
        };
        let block = self.blocks.partition_point(|block| ends_before(block, &mut order));
        let Some(ids) = self.blocks.get(block) else {
            let last = self.blocks.len().saturating_sub(1);
            return Err(Position { block: last, at: self.blocks.last().map_or(0, Vec::len) });
        };
        match ids.binary_search_by(|id| order(*id)) {
            Ok(at) => Ok((ids[at], Position { block, at })),
            Err(at) => Err(Position { block, at }),
        }
    }

    /// Inserts `id` at the position that [`Self::find`] returned as an error.
    pub(crate) fn insert(&mut self, Position { block, at }: Position, id: u32) {
        self.len += 1;
        let count = self.blocks.len();
        let Some(ids) = self.blocks.get_mut(block) else {
            self.blocks.push(vec![id]);
            return;
        };
        if ids.len() < BLOCK {
            ids.insert(at, id);
        } else if block + 1 == count && at == BLOCK {
            // Ids that are inserted in order fill their blocks.
            self.blocks.push(vec![id]);
        } else {
            let mut upper = ids.split_off(BLOCK / 2);
            if at <= BLOCK / 2 {
                ids.insert(at, id);
            } else {
                upper.insert(at - BLOCK / 2, id);
            }
            self.blocks.insert(block + 1, upper);
        }
    }

    /// Removes the id at the position that [`Self::find`] returned.
    pub(crate) fn remove(&mut self, Position { block, at }: Position) {
        self.len -= 1;
        let ids = &mut self.blocks[block];
        ids.remove(at);
        let left = ids.len();
        if left == 0 {
            self.blocks.remove(block);
        } else if let Some(next) = self.blocks.get(block + 1)
            && left + next.len() <= BLOCK / 2
        {
            let next = self.blocks.remove(block + 1);
            self.blocks[block].extend(next);
        }
    }

    /// Ids from a position on, in order.
    pub(crate) fn from(&self, Position { block, at }: Position) -> impl Iterator<Item = u32> {
        let first = self.blocks.get(block).and_then(|ids| ids.get(at..)).unwrap_or_default();
        let rest = self.blocks.get(block + 1..).unwrap_or_default();
        first.iter().chain(rest.iter().flatten()).copied()
    }

    /// All ids in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = u32> {
        self.blocks.iter().flatten().copied()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn random_insertions_and_removals_keep_the_order() {
        for seed in 0..100 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let (mut ids, mut model) = (SortedIds::default(), BTreeSet::new());
            let most = rng.u32(1..300);
            for step in 0..1500 {
                // Ascending insertions at first, then random ones, then mostly removals.
                let id = if step < 100 { step } else { rng.u32(0..most) };
                match ids.find(|other| other.cmp(&id)) {
                    Ok((found, position)) => {
                        assert_eq!(found, id);
                        if step > 1000 || rng.bool() {
                            ids.remove(position);
                            model.remove(&id);
                        }
                    }
                    Err(position) => {
                        assert!(!model.contains(&id));
                        if step < 1000 || rng.u8(0..4) == 0 {
                            ids.insert(position, id);
                            model.insert(id);
                        }
                    }
                }
                assert_eq!(ids.len(), model.len(), "seed {seed}");
                assert!(ids.blocks.iter().all(|block| !block.is_empty() && block.len() <= BLOCK));
            }
            assert!(ids.iter().eq(model.iter().copied()), "seed {seed}");
            let start = rng.u32(0..most);
            let (Ok((_, position)) | Err(position)) = ids.find(|other| other.cmp(&start));
            assert!(ids.from(position).eq(model.range(start..).copied()), "seed {seed}");
        }
    }
}
