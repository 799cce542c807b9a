//! The files of this peer and the log of numbered changes from which announcements are made.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Bound,
};

use super::params::MAX_LOGGED_FILES;
use shared::{
    content::FileMeta,
    digest::ShareDigest,
    file_name::FileName,
    limits::{FILES_PER_PAGE, MAX_FILES_PER_PEER},
};

/// One numbered change of the share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Delta {
    /// Number of the change.
    pub(crate) seq: u64,
    /// Files added or replaced.
    pub(crate) upserts: Vec<FileMeta>,
    /// Names removed.
    pub(crate) removals: Vec<FileName>,
}

impl Delta {
    fn files(&self) -> usize {
        self.upserts.len() + self.removals.len()
    }
}

/// Effect of a change.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Changed {
    /// Files added or replaced.
    pub(crate) upserts: Vec<FileMeta>,
    /// Names removed.
    pub(crate) removals: Vec<FileName>,
    /// Count of files beyond `MAX_FILES_PER_PEER`, which are not shared.
    pub(crate) left_out: usize,
}

/// Files of this peer, and the log of their changes. This peer is the only writer of its entries in the index;
/// `(incarnation, seq)` orders its announcements.
#[derive(Debug, Clone)]
pub(crate) struct ShareLog {
    files: BTreeMap<FileName, FileMeta>,
    bytes: u64,
    digest: ShareDigest,
    /// Number of the last change. The empty share at the start is number 1.
    seq: u64,
    /// Latest changes up to `seq`, without gaps.
    log: VecDeque<Delta>,
    logged_files: usize,
}

impl Default for ShareLog {
    fn default() -> Self {
        Self {
            files: BTreeMap::new(),
            bytes: 0,
            digest: ShareDigest::default(),
            seq: 1,
            log: VecDeque::new(),
            logged_files: 0,
        }
    }
}

impl ShareLog {
    /// Applies a change. Returns its effect, without entries that change nothing.
    pub(crate) fn change(&mut self, upserts: Vec<FileMeta>, removals: Vec<FileName>) -> Changed {
        let mut changed = Changed { upserts: Vec::new(), removals: Vec::new(), left_out: 0 };
        for name in removals {
            if let Some(old) = self.files.remove(&name) {
                self.bytes = self.bytes.saturating_sub(old.size);
                self.digest.remove(&old);
                changed.removals.push(name);
            }
        }
        for file in upserts {
            let old = self.files.get(&file.name);
            if old == Some(&file) {
                continue;
            }
            if old.is_none() && self.files.len() >= MAX_FILES_PER_PEER {
                changed.left_out += 1;
                continue;
            }
            let old_size = old.map_or(0, |old| old.size);
            old.into_iter().for_each(|old| self.digest.remove(old));
            self.digest.add(&file);
            self.bytes = self.bytes.saturating_sub(old_size).saturating_add(file.size);
            self.files.insert(file.name.clone(), file.clone());
            changed.upserts.push(file);
        }
        self.log(&changed);
        changed
    }

    fn log(&mut self, changed: &Changed) {
        let files = changed.upserts.len() + changed.removals.len();
        if files > MAX_LOGGED_FILES {
            // A snapshot is cheaper: an empty log makes every receiver ask for one.
            self.log.clear();
            self.logged_files = 0;
            self.seq += 1;
            return;
        }
        // Removals first, as in the change itself: a name in both lists is present at the end.
        for removals in changed.removals.chunks(FILES_PER_PAGE) {
            self.push(Vec::new(), removals.to_vec());
        }
        for upserts in changed.upserts.chunks(FILES_PER_PAGE) {
            self.push(upserts.to_vec(), Vec::new());
        }
    }

    fn push(&mut self, upserts: Vec<FileMeta>, removals: Vec<FileName>) {
        self.seq += 1;
        let delta = Delta { seq: self.seq, upserts, removals };
        self.logged_files += delta.files();
        self.log.push_back(delta);
        while self.logged_files > MAX_LOGGED_FILES {
            let Some(oldest) = self.log.pop_front() else { break };
            self.logged_files -= oldest.files();
        }
    }

    /// Number of the last change.
    pub(crate) fn seq(&self) -> u64 {
        self.seq
    }

    /// Digest of the share as of [`Self::seq`].
    pub(crate) fn digest(&self) -> ShareDigest {
        self.digest
    }

    /// Change that follows number `seq`; `None` when there is none or the log does not reach back to it.
    pub(crate) fn delta_after(&self, seq: u64) -> Option<&Delta> {
        let first = self.log.front()?.seq;
        let wanted = seq.checked_add(1)?;
        self.log.get(usize::try_from(wanted.checked_sub(first)?).ok()?)
    }

    /// Up to `FILES_PER_PAGE` files after `after`, in order of names, and whether they are the last.
    pub(crate) fn page(&self, after: Option<&FileName>) -> (Vec<FileMeta>, bool) {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut rest = self.files.range::<FileName, _>((start, Bound::Unbounded)).map(|(_, file)| file);
        let page: Vec<FileMeta> = rest.by_ref().take(FILES_PER_PAGE).cloned().collect();
        (page, rest.next().is_none())
    }

    /// All files by name.
    pub(crate) fn files(&self) -> &BTreeMap<FileName, FileMeta> {
        &self.files
    }

    /// Sum of the sizes of all files, bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use shared::content::ContentHash;

    use super::*;

    fn file(name: &str, size: u64) -> FileMeta {
        let hash = ContentHash(*blake3::hash(&size.to_le_bytes()).as_bytes());
        FileMeta { name: name.parse().unwrap(), size, hash, mtime_micros: 0, executable: false }
    }

    #[test]
    fn changes_get_numbers_without_gaps_and_empty_changes_get_none() {
        let mut share = ShareLog::default();
        assert_eq!(share.seq(), 1);
        share.change(vec![file("a", 1), file("b", 2)], vec![]);
        share.change(vec![file("a", 1)], vec!["c".parse().unwrap()]);
        assert_eq!(share.seq(), 2);
        share.change(vec![file("a", 3)], vec!["b".parse().unwrap()]);
        assert_eq!(share.seq(), 4);
        assert_eq!(share.bytes(), 3);
        let numbers: Vec<u64> = (1..4).map(|seq| share.delta_after(seq).unwrap().seq).collect();
        assert_eq!(numbers, [2, 3, 4]);
        assert_eq!(share.delta_after(4), None);
        assert_eq!(share.delta_after(0), None);
    }

    #[test]
    fn log_is_bounded_and_large_change_forces_a_snapshot() {
        let mut share = ShareLog::default();
        let many: Vec<FileMeta> = (0..MAX_LOGGED_FILES + 1).map(|i| file(&format!("f{i}"), 1)).collect();
        share.change(many, vec![]);
        assert_eq!((share.seq(), share.delta_after(1)), (2, None));
        for size in 2..30 {
            let many: Vec<FileMeta> = (0..FILES_PER_PAGE).map(|i| file(&format!("f{i}"), size)).collect();
            share.change(many, vec![]);
        }
        assert!(share.logged_files <= MAX_LOGGED_FILES);
        assert_eq!(share.delta_after(2), None);
        assert_eq!(share.delta_after(share.seq() - 1).unwrap().seq, share.seq());
    }

    #[test]
    fn pages_hold_every_file_once_and_flag_the_last() {
        let mut share = ShareLog::default();
        assert_eq!(share.page(None), (vec![], true));
        let many: Vec<FileMeta> = (0..FILES_PER_PAGE * 2).map(|i| file(&format!("f{i:05}"), 1)).collect();
        share.change(many.clone(), vec![]);
        let (mut seen, last) = share.page(None);
        assert!(!last);
        let (second, last) = share.page(seen.last().map(|file| &file.name));
        assert!(last);
        seen.extend(second);
        assert_eq!(seen, many);
    }
}
