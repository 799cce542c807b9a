//! The files of a share as they are known, and what a look at the share means for them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    ops::Bound,
    time::Duration,
};

use shared::{
    content::{ContentHash, DIRECTORY_HASH, FileMeta},
    file_name::FileName,
};

use super::{changes::Changes, file_stat::FileStat};

/// A file whose hash is known, or a directory with nothing in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct IndexEntry {
    pub(crate) meta: FileMeta,
    /// The stamp it had when it was hashed.
    pub(crate) stat: FileStat,
    /// When it was hashed, microseconds since 1970; `None` once the hash is final. Until then the file may have changed
    /// unseen ([`FileStat::is_racy`]) and is hashed once more.
    pub(crate) unconfirmed_since: Option<u64>,
}

impl IndexEntry {
    /// A file with this stamp and hash.
    pub(crate) fn new(name: FileName, stat: FileStat, hash: ContentHash, unconfirmed_since: Option<u64>) -> Self {
        let meta =
            FileMeta { name, size: stat.size, hash, mtime_micros: stat.mtime_micros(), executable: stat.executable };
        Self { meta, stat, unconfirmed_since }
    }

    /// A directory with nothing in it.
    pub(crate) fn directory(name: FileName, stat: FileStat) -> Self {
        Self::new(name, stat, DIRECTORY_HASH, None)
    }
}

/// All known files, by name and by content. A directory is in it as long as there is no file in it; it has no content.
#[derive(Debug, Default)]
pub(crate) struct Index {
    files: BTreeMap<FileName, IndexEntry>,
    /// How many of them are directories.
    directories: usize,
    names: HashMap<ContentHash, BTreeSet<FileName>>,
}

/// What is to be done after a look.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Files that are known and gone.
    pub(crate) gone: Vec<FileName>,
    /// Files that are new or changed: their hash is in the cache, or they are to be hashed.
    pub(crate) unknown: Vec<(FileName, FileStat)>,
    /// Files to be hashed again, whatever the cache says.
    pub(crate) unconfirmed: Vec<(FileName, FileStat)>,
    /// Whether other files are still to be hashed again, when the racy time is over.
    pub(crate) waiting: bool,
}

impl Index {
    pub(crate) fn files(&self) -> impl Iterator<Item = &IndexEntry> {
        self.files.values()
    }

    /// The files after `after`, by name.
    pub(crate) fn files_after(&self, after: Option<&FileName>) -> impl Iterator<Item = &IndexEntry> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.files.range::<FileName, _>((from, Bound::Unbounded)).map(|(_, known)| known)
    }

    pub(crate) fn file(&self, name: &FileName) -> Option<&IndexEntry> {
        self.files.get(name)
    }

    /// Whether `name` is a directory with files, or with directories that are known.
    pub(crate) fn has_below(&self, name: &FileName) -> bool {
        let below = format!("{name}/");
        let mut from = self.files.range::<str, _>((Bound::Excluded(below.as_str()), Bound::Unbounded));
        from.next().is_some_and(|(file, _)| file.as_str().starts_with(&below))
    }

    /// The files with this content.
    pub(crate) fn with_content(&self, hash: &ContentHash) -> impl Iterator<Item = &IndexEntry> {
        self.names.get(hash).into_iter().flatten().filter_map(|name| self.files.get(name))
    }

    /// Contents of all files.
    pub(crate) fn contents(&self) -> HashSet<ContentHash> {
        self.names.keys().copied().collect()
    }

    /// Takes what became known, and forgets names; returns what that changes for others.
    pub(crate) fn apply(&mut self, upserts: Vec<IndexEntry>, removals: Vec<FileName>) -> Changes {
        let mut changes = Changes::default();
        for name in removals {
            if self.take(name.as_str()).is_some() {
                changes.removals.push(name);
            }
        }
        // What lies in a directory may have come after the look that found nothing in it, so it decides, whatever the order.
        let (directories, files): (Vec<_>, Vec<_>) = upserts.into_iter().partition(|known| known.meta.is_directory());
        if self.directories > 0 {
            for known in files.iter().chain(&directories) {
                for above in known.meta.name.directories() {
                    if self.files.get(above).is_some_and(|above| above.meta.is_directory())
                        && let Some(above) = self.take(above)
                    {
                        changes.removals.push(above.meta.name);
                    }
                }
            }
        }
        for known in files {
            self.put(known, &mut changes);
        }
        for known in directories {
            if !self.has_below(&known.meta.name) {
                self.put(known, &mut changes);
            }
        }
        changes
    }

    fn put(&mut self, known: IndexEntry, changes: &mut Changes) {
        let before = self.take(known.meta.name.as_str());
        if before.is_none_or(|before| before.meta != known.meta) {
            changes.upserts.push(known.meta.clone());
        }
        if known.meta.is_directory() {
            self.directories += 1;
        } else {
            self.names.entry(known.meta.hash).or_default().insert(known.meta.name.clone());
        }
        self.files.insert(known.meta.name.clone(), known);
    }

    fn take(&mut self, name: &str) -> Option<IndexEntry> {
        let known = self.files.remove(name)?;
        self.directories -= usize::from(known.meta.is_directory());
        if let Some(names) = self.names.get_mut(&known.meta.hash) {
            names.remove(name);
            if names.is_empty() {
                self.names.remove(&known.meta.hash);
            }
        }
        Some(known)
    }

    /// What a look that found `seen` asks for, at the time `now` (microseconds since 1970). Names in `touched` changed while
    /// the look was under way or are about to, so it says nothing about them; those in `hashing` are being hashed with this stamp.
    pub(crate) fn plan(
        &self,
        seen: &BTreeMap<FileName, FileStat>,
        touched: &HashSet<FileName>,
        hashing: &HashMap<FileName, FileStat>,
        now: u64,
        racy_window: Duration,
    ) -> Plan {
        let mut plan = Plan::default();
        let gone = |name: &&FileName| !seen.contains_key(*name) && !touched.contains(*name);
        plan.gone = self.files.keys().filter(gone).cloned().collect();
        for (name, stat) in seen {
            if touched.contains(name) || hashing.get(name) == Some(stat) {
                continue;
            }
            match self.files.get(name) {
                Some(known) if known.stat == *stat => {
                    let racy_micros = u64::try_from(racy_window.as_micros()).unwrap_or(u64::MAX);
                    match known.unconfirmed_since {
                        Some(since) if now.abs_diff(since) < racy_micros => plan.waiting = true,
                        Some(_) => plan.unconfirmed.push((name.clone(), *stat)),
                        None => {}
                    }
                }
                _ => plan.unknown.push((name.clone(), *stat)),
            }
        }
        plan
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(2);

    fn name(text: &str) -> FileName {
        text.parse().unwrap()
    }

    fn stat(size: u64) -> FileStat {
        FileStat { device: 1, inode: size, size, mtime: (5, 0), ctime: (6, 0), executable: false, directory: false }
    }

    fn known(text: &str, size: u64, hash: u8) -> IndexEntry {
        IndexEntry::new(name(text), stat(size), ContentHash([hash; 32]), None)
    }

    fn names_with(index: &Index, hash: u8) -> Vec<&str> {
        index.with_content(&ContentHash([hash; 32])).map(|known| known.meta.name.as_str()).collect()
    }

    #[test]
    fn changes_say_what_others_have_to_know() {
        let mut index = Index::default();
        let changes = index.apply(vec![known("a", 1, 1), known("b", 1, 1)], vec![name("nothing")]);
        assert_eq!((changes.upserts.len(), changes.removals.len()), (2, 0));
        assert_eq!(names_with(&index, 1), ["a", "b"]);
        assert!(index.apply(vec![known("a", 1, 1)], vec![]).is_empty(), "nothing new");
        let changes = index.apply(vec![known("a", 2, 2)], vec![name("b")]);
        assert_eq!(changes, Changes { upserts: vec![known("a", 2, 2).meta], removals: vec![name("b")] });
        assert_eq!((names_with(&index, 1).len(), names_with(&index, 2)), (0, vec!["a"]));
        assert_eq!(index.contents(), HashSet::from([ContentHash([2; 32])]));
    }

    #[test]
    fn a_directory_is_known_as_long_as_nothing_is_in_it() {
        let directory = |text| IndexEntry::directory(name(text), FileStat { directory: true, ..stat(0) });
        let mut index = Index::default();
        let changes = index.apply(vec![directory("a/b"), directory("a b")], vec![]);
        assert_eq!((changes.upserts.len(), changes.removals.len()), (2, 0));
        assert!(index.contents().is_empty() && index.with_content(&DIRECTORY_HASH).next().is_none(), "no content");
        // A look that saw it empty ends after something came into it.
        let changes = index.apply(vec![directory("a/b"), known("a/b/file", 1, 1)], vec![]);
        assert_eq!(changes, Changes { upserts: vec![known("a/b/file", 1, 1).meta], removals: vec![name("a/b")] });
        assert!(index.apply(vec![directory("a/b"), directory("a")], vec![]).is_empty());
        let changes = index.apply(vec![directory("a/b")], vec![name("a/b/file")]);
        assert_eq!(changes, Changes { upserts: vec![directory("a/b").meta], removals: vec![name("a/b/file")] });
        let changes = index.apply(vec![directory("a/b/c")], vec![]);
        assert_eq!(changes.removals, [name("a/b")], "a directory in it counts too");
        assert!(index.has_below(&name("a")) && !index.has_below(&name("a b")) && !index.has_below(&name("a/b/c")));
    }

    #[test]
    fn a_plan_leaves_alone_what_changed_meanwhile_or_is_being_hashed() {
        let mut index = Index::default();
        index.apply(vec![known("kept", 1, 1), known("gone", 1, 1), known("adopted", 1, 1)], vec![]);
        let seen: BTreeMap<_, _> = [("kept", 1), ("new", 3), ("hashing", 4), ("hashing-old", 5), ("removed", 6)]
            .map(|(text, size)| (name(text), stat(size)))
            .into();
        let touched = HashSet::from([name("adopted"), name("removed")]);
        let hashing = HashMap::from([(name("hashing"), stat(4)), (name("hashing-old"), stat(1))]);
        let plan = index.plan(&seen, &touched, &hashing, 0, WINDOW);
        assert_eq!(plan.gone, [name("gone")]);
        assert_eq!(plan.unknown, [(name("hashing-old"), stat(5)), (name("new"), stat(3))]);
        assert_eq!(plan.unconfirmed, []);
    }

    #[test]
    fn an_unconfirmed_hash_is_checked_after_the_racy_time() {
        let mut index = Index::default();
        index.apply(vec![IndexEntry { unconfirmed_since: Some(10_000_000), ..known("a", 1, 1) }], vec![]);
        let seen = BTreeMap::from([(name("a"), stat(1))]);
        let plan = |now| index.plan(&seen, &HashSet::new(), &HashMap::new(), now, WINDOW);
        assert_eq!(plan(11_999_999), Plan { waiting: true, ..Plan::default() });
        assert_eq!(plan(12_000_000).unconfirmed, [(name("a"), stat(1))]);
        assert_eq!(plan(0).unconfirmed.len(), 1, "a clock set back confirms nothing");
    }
}
