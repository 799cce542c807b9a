//! Sets of a file's groups (16 KiB each), as ranges of group numbers.

use std::ops::Range;

use crate::limits::GROUP_BYTES;

/// Number of groups of a file of `size` bytes. The empty file has one empty group.
pub fn group_count(size: u64) -> u64 {
    size.div_ceil(GROUP_BYTES).max(1)
}

/// A set of groups: ascending, disjoint, non-empty ranges that do not touch.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GroupRanges(Vec<Range<u64>>);

/// Reason why ranges do not form a request for groups of a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRanges {
    /// A range is empty, overlaps the one before it or comes out of order.
    #[error("group ranges must be ascending, disjoint and not empty")]
    Disordered,
    /// A range goes beyond the file.
    #[error("group {asked} is beyond the file's {groups}")]
    BeyondEnd {
        /// End of the range.
        asked: u64,
        /// Groups the file has.
        groups: u64,
    },
}

impl GroupRanges {
    /// All groups of a file of `size` bytes.
    pub fn all(size: u64) -> Self {
        Self(std::iter::once(0..group_count(size)).collect())
    }

    /// The groups that a bulk request names, as half-open ranges; none stands for all of them.
    ///
    /// # Errors
    /// When a range is empty, out of order, or beyond the end of a file of `size` bytes.
    pub fn requested(ranges: &[(u64, u64)], size: u64) -> Result<Self, InvalidRanges> {
        if ranges.is_empty() {
            return Ok(Self::all(size));
        }
        let groups = group_count(size);
        let mut set = Self::default();
        let mut previous_end = 0;
        for &(start, end) in ranges {
            if start >= end || start < previous_end {
                return Err(InvalidRanges::Disordered);
            }
            if end > groups {
                return Err(InvalidRanges::BeyondEnd { asked: end, groups });
            }
            previous_end = end;
            set.insert(start..end);
        }
        Ok(set)
    }

    /// The ranges in the form of a bulk request.
    pub fn to_request(&self) -> Vec<(u64, u64)> {
        self.0.iter().map(|range| (range.start, range.end)).collect()
    }

    /// The ranges, ascending.
    pub fn iter(&self) -> impl Iterator<Item = Range<u64>> {
        self.0.iter().cloned()
    }

    /// True if the set has no group.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds the groups in `range`.
    pub fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let first = self.0.partition_point(|have| have.end < range.start);
        let last = self.0.partition_point(|have| have.start <= range.end);
        let merged = self.0[first..last]
            .iter()
            .fold(range, |merged, have| merged.start.min(have.start)..merged.end.max(have.end));
        self.0.splice(first..last, [merged]);
    }

    /// The groups of a file of `size` bytes that are not in this set.
    pub fn missing(&self, size: u64) -> Self {
        let mut missing = Vec::new();
        let mut next = 0;
        for have in &self.0 {
            if next < have.start {
                missing.push(next..have.start);
            }
            next = have.end;
        }
        let groups = group_count(size);
        if next < groups {
            missing.push(next..groups);
        }
        Self(missing)
    }

    /// The groups of this set that are not in `other`.
    pub fn without(&self, other: &Self) -> Self {
        let mut rest = Vec::new();
        let mut others = other.0.iter().peekable();
        for range in &self.0 {
            let mut next = range.start;
            while let Some(other) = others.peek() {
                if other.start >= range.end {
                    break;
                }
                if next < other.start {
                    rest.push(next..other.start);
                }
                next = next.max(other.end);
                if other.end > range.end {
                    break;
                }
                others.next();
            }
            if next < range.end {
                rest.push(next..range.end);
            }
        }
        Self(rest)
    }

    /// The first `groups` groups of this set, or all if there are fewer.
    pub fn first(&self, groups: u64) -> Self {
        let mut left = groups;
        let mut first = Vec::new();
        for range in &self.0 {
            if left == 0 {
                break;
            }
            let end = range.end.min(range.start.saturating_add(left));
            left -= end - range.start;
            first.push(range.start..end);
        }
        Self(first)
    }

    /// Number of ranges.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// True if any group of `range` is in the set.
    pub fn intersects(&self, range: Range<u64>) -> bool {
        let first = self.0.partition_point(|have| have.end <= range.start);
        self.0.get(first).is_some_and(|have| have.start < range.end)
    }

    /// True if all groups of `other` are in the set.
    pub fn covers(&self, other: &Self) -> bool {
        other.0.iter().all(|range| self.run_end(range.start) >= range.end)
    }

    /// End of the run of groups that contains `group`; `group` itself if it is not in the set.
    pub fn run_end(&self, group: u64) -> u64 {
        let first = self.0.partition_point(|have| have.end <= group);
        self.0.get(first).filter(|have| have.start <= group).map_or(group, |have| have.end)
    }

    /// Bytes of a file of `size` bytes that lie in these groups.
    pub fn bytes(&self, size: u64) -> u64 {
        let byte = |group: u64| group.saturating_mul(GROUP_BYTES).min(size);
        self.0.iter().map(|range| byte(range.end) - byte(range.start)).sum()
    }
}

/// In any order, overlapping or empty; sorted once, so that many ranges cost little more than their sorting.
impl FromIterator<Range<u64>> for GroupRanges {
    fn from_iter<T: IntoIterator<Item = Range<u64>>>(ranges: T) -> Self {
        let mut sorted: Vec<Range<u64>> = ranges.into_iter().filter(|range| !range.is_empty()).collect();
        sorted.sort_unstable_by_key(|range| range.start);
        let mut set: Vec<Range<u64>> = Vec::new();
        for range in sorted {
            match set.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => set.push(range),
            }
        }
        Self(set)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn request_with_disordered_or_excess_ranges_is_rejected() {
        let size = 10 * GROUP_BYTES;
        assert_eq!(GroupRanges::requested(&[], size), Ok(GroupRanges::all(size)));
        assert_eq!(GroupRanges::requested(&[(0, 10)], size), Ok(GroupRanges::all(size)));
        for disordered in [&[(3, 3)][..], &[(4, 3)], &[(2, 4), (3, 5)], &[(5, 6), (1, 2)]] {
            assert_eq!(GroupRanges::requested(disordered, size), Err(InvalidRanges::Disordered), "{disordered:?}");
        }
        let beyond = GroupRanges::requested(&[(9, 11)], size);
        assert_eq!(beyond, Err(InvalidRanges::BeyondEnd { asked: 11, groups: 10 }));
        assert!(GroupRanges::requested(&[(0, u64::MAX)], size).is_err());
        assert_eq!(GroupRanges::requested(&[(0, 1)], 0), Ok(GroupRanges::all(0)));
    }

    #[test]
    fn bytes_of_the_last_group_end_with_the_file() {
        assert_eq!(GroupRanges::all(GROUP_BYTES + 1).bytes(GROUP_BYTES + 1), GROUP_BYTES + 1);
        assert_eq!(GroupRanges::requested(&[(1, 2)], GROUP_BYTES + 1).unwrap().bytes(GROUP_BYTES + 1), 1);
        assert_eq!(GroupRanges::all(0).bytes(0), 0);
    }

    proptest! {
        #[test]
        fn inserted_ranges_form_a_set(ranges in prop::collection::vec((0u64..64, 0u64..8), 0..12)) {
            let mut set = GroupRanges::default();
            let mut model = [false; 80];
            for (start, len) in ranges {
                set.insert(start..start + len);
                model[start as usize..(start + len) as usize].fill(true);
            }
            for group in 0..80 {
                prop_assert_eq!(set.intersects(group..group + 1), model[group as usize]);
            }
            prop_assert!(set.0.windows(2).all(|pair| pair[0].end < pair[1].start), "{:?}", set);
            let size = 80 * GROUP_BYTES;
            let missing = set.missing(size);
            prop_assert_eq!(missing.bytes(size) + set.bytes(size), size);
            prop_assert_eq!(missing.missing(size), set);
        }

        #[test]
        fn collecting_and_subtracting_match_a_model(
            one in prop::collection::vec((0u64..64, 0u64..12), 0..12),
            other in prop::collection::vec((0u64..64, 0u64..12), 0..12),
        ) {
            let at_once = |ranges: &[(u64, u64)]| -> GroupRanges {
                ranges.iter().map(|&(start, len)| start..start + len).collect()
            };
            let (one_set, other_set) = (at_once(&one), at_once(&other));
            let mut one_by_one = GroupRanges::default();
            for &(start, len) in &one {
                one_by_one.insert(start..start + len);
            }
            prop_assert_eq!(&one_by_one, &one_set);
            let rest = one_set.without(&other_set);
            for group in 0..80 {
                let (in_one, in_other) = (one_set.intersects(group..group + 1), other_set.intersects(group..group + 1));
                prop_assert_eq!(rest.intersects(group..group + 1), in_one && !in_other);
            }
            prop_assert!(rest.0.windows(2).all(|pair| pair[0].end < pair[1].start), "{:?}", rest);
        }
    }
}
