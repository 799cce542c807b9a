//! Index of the files of a share, and the comparison of a scan with it. Pure.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    ops::Bound,
    time::Duration,
};

use shared::{
    content::{ContentHash, DIRECTORY_HASH, FileMeta},
    file_name::FileName,
};

use super::{
    file_stat::{FileId, FileStat},
    scan::Scan,
};

/// Changes of a share.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    /// Files that are new or changed.
    pub upserts: Vec<FileMeta>,
    /// Names of files that are gone. For a short-lived file, the receiver may not have seen an upsert.
    pub removals: Vec<FileName>,
}

impl Changes {
    /// Returns true if nothing changed.
    pub fn is_empty(&self) -> bool {
        self.upserts.is_empty() && self.removals.is_empty()
    }
}

/// File with its hash, or empty directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct IndexEntry {
    pub(crate) meta: FileMeta,
    /// Stat of the file when it was hashed. A content whose file has another stat now is *in doubt*: it stays in the
    /// index, and is served with a check of each group, until the file is hashed again.
    pub(crate) stat: FileStat,
    /// Time at which the file was hashed, microseconds since 1970; `None` once the hash is final. Until then a change
    /// may have gone unnoticed ([`FileStat::is_racy`]), so the file is hashed a second time.
    pub(crate) unconfirmed_since: Option<u64>,
}

impl IndexEntry {
    /// Creates the entry of a file.
    pub(crate) fn new(name: FileName, stat: FileStat, hash: ContentHash, unconfirmed_since: Option<u64>) -> Self {
        let meta =
            FileMeta { name, size: stat.size, hash, mtime_micros: stat.mtime_micros(), executable: stat.executable };
        Self { meta, stat, unconfirmed_since }
    }

    /// Creates the entry of a file that has the stat `seen` now and had the hash when its stat was `proven`, an earlier
    /// one. The content is in doubt.
    pub(crate) fn in_doubt(name: FileName, seen: &FileStat, proven: FileStat, hash: ContentHash) -> Self {
        Self { stat: proven, ..Self::new(name, *seen, hash, None) }
    }

    /// Returns true if a file with the stat `seen` may still have the content, possibly followed by more.
    pub(crate) fn may_be_in(&self, seen: &FileStat) -> bool {
        self.stat.directory == seen.directory && seen.size >= self.meta.size
    }

    /// Creates the entry of an empty directory.
    pub(crate) fn directory(name: FileName, stat: FileStat) -> Self {
        Self::new(name, stat, DIRECTORY_HASH, None)
    }
}

/// Hashed files by name and by content. Contains a directory while it is empty; a directory has no content.
#[derive(Debug, Default)]
pub(crate) struct Index {
    files: BTreeMap<FileName, IndexEntry>,
    /// Number of directories in `files`.
    directories: usize,
    names: HashMap<ContentHash, BTreeSet<FileName>>,
}

/// Work that follows from a scan.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Files of the index that the scan did not find.
    pub(crate) gone: Vec<FileName>,
    /// Some of the unknown files, which cannot have their content of the index any more.
    pub(crate) outdated: Vec<FileName>,
    /// New or changed files: to be looked up in the hash cache or hashed.
    pub(crate) unknown: Vec<(FileName, FileStat)>,
    /// Entries of some of the unknown files: the content is known from before and in doubt.
    pub(crate) in_doubt: Vec<IndexEntry>,
    /// Files to be hashed a second time, even if the cache has a hash.
    pub(crate) unconfirmed: Vec<(FileName, FileStat)>,
    /// True if further files must be hashed a second time after the racy window.
    pub(crate) waiting: bool,
}

impl Index {
    pub(crate) fn files(&self) -> impl Iterator<Item = &IndexEntry> {
        self.files.values()
    }

    /// Returns the files after `after` in order of their names.
    pub(crate) fn files_after(&self, after: Option<&FileName>) -> impl Iterator<Item = &IndexEntry> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.files.range::<FileName, _>((from, Bound::Unbounded)).map(|(_, entry)| entry)
    }

    pub(crate) fn file(&self, name: &FileName) -> Option<&IndexEntry> {
        self.files.get(name)
    }

    /// Returns true if `name` is a directory that contains files or empty directories of the index.
    pub(crate) fn has_below(&self, name: &FileName) -> bool {
        let below = format!("{name}/");
        let mut from = self.files.range::<str, _>((Bound::Excluded(below.as_str()), Bound::Unbounded));
        from.next().is_some_and(|(file, _)| file.as_str().starts_with(&below))
    }

    /// Returns the files with this content.
    pub(crate) fn with_content(&self, hash: &ContentHash) -> impl Iterator<Item = &IndexEntry> {
        self.names.get(hash).into_iter().flatten().filter_map(|name| self.files.get(name))
    }

    /// Returns the contents of all files.
    pub(crate) fn contents(&self) -> HashSet<ContentHash> {
        self.names.keys().copied().collect()
    }

    /// Inserts entries and removes names. Returns the changes that other peers see.
    pub(crate) fn apply(&mut self, upserts: Vec<IndexEntry>, removals: Vec<FileName>) -> Changes {
        let mut changes = Changes::default();
        for name in removals {
            if self.take(name.as_str()).is_some() {
                changes.removals.push(name);
            }
        }
        // A file may have been added to a directory after the scan that found it empty, so files take precedence over
        // an empty directory above them.
        let (directories, files): (Vec<_>, Vec<_>) = upserts.into_iter().partition(|entry| entry.meta.is_directory());
        if self.directories > 0 {
            for entry in files.iter().chain(&directories) {
                for above in entry.meta.name.directories() {
                    if self.files.get(above).is_some_and(|above| above.meta.is_directory())
                        && let Some(above) = self.take(above)
                    {
                        changes.removals.push(above.meta.name);
                    }
                }
            }
        }
        for entry in files {
            self.put(entry, &mut changes);
        }
        for entry in directories {
            if !self.has_below(&entry.meta.name) {
                self.put(entry, &mut changes);
            }
        }
        changes
    }

    fn put(&mut self, entry: IndexEntry, changes: &mut Changes) {
        let before = self.take(entry.meta.name.as_str());
        if before.is_none_or(|before| before.meta != entry.meta) {
            changes.upserts.push(entry.meta.clone());
        }
        if entry.meta.is_directory() {
            self.directories += 1;
        } else {
            self.names.entry(entry.meta.hash).or_default().insert(entry.meta.name.clone());
        }
        self.files.insert(entry.meta.name.clone(), entry);
    }

    fn take(&mut self, name: &str) -> Option<IndexEntry> {
        let entry = self.files.remove(name)?;
        self.directories -= usize::from(entry.meta.is_directory());
        if let Some(names) = self.names.get_mut(&entry.meta.hash) {
            names.remove(name);
            if names.is_empty() {
                self.names.remove(&entry.meta.hash);
            }
        }
        Some(entry)
    }

    /// Compares the result `found` of a scan with the index at the time `now`, microseconds since 1970.
    ///
    /// Names in `touched` changed during the scan or are about to, so the scan is not valid for them. Names in
    /// `hashing` are being hashed with that stat.
    pub(crate) fn plan(
        &self,
        found: &Scan,
        touched: &HashSet<FileName>,
        hashing: &HashMap<FileName, FileStat>,
        now: u64,
        racy_window: Duration,
    ) -> Plan {
        let mut plan = Plan::default();
        let gone =
            |name: &&FileName| !found.files.contains_key(*name) && !touched.contains(*name) && !found.is_unread(name);
        plan.gone = self.files.keys().filter(gone).cloned().collect();
        for (name, stat) in &found.files {
            if touched.contains(name) || hashing.get(name) == Some(stat) {
                continue;
            }
            match self.files.get(name) {
                Some(entry) if entry.stat == *stat => {
                    let racy_micros = u64::try_from(racy_window.as_micros()).unwrap_or(u64::MAX);
                    match entry.unconfirmed_since {
                        Some(since) if now.abs_diff(since) < racy_micros => plan.waiting = true,
                        Some(_) => plan.unconfirmed.push((name.clone(), *stat)),
                        None => {}
                    }
                }
                known => {
                    match known {
                        // Another content for certain.
                        Some(entry) if !entry.may_be_in(stat) => plan.outdated.push(name.clone()),
                        // Other permissions, another link. The permission to execute is announced at once.
                        Some(entry) if stat.is_same_write(&entry.stat) && !stat.directory => {
                            plan.in_doubt.push(IndexEntry::in_doubt(name.clone(), stat, entry.stat, entry.meta.hash));
                        }
                        Some(_) | None => {}
                    }
                    plan.unknown.push((name.clone(), *stat));
                }
            }
        }
        plan
    }

    /// Returns entries, in doubt, of those `unknown` files that are in the index under another name: the same inode
    /// without a write in between. They were renamed, or are hard links.
    pub(crate) fn under_other_names(&self, unknown: &[(FileName, FileStat)]) -> Vec<IndexEntry> {
        let mut wanted: HashMap<FileId, Vec<&(FileName, FileStat)>> = HashMap::new();
        for file in unknown.iter().filter(|(name, stat)| {
            // A file under its earlier name is handled by `plan`.
            !stat.directory && self.files.get(name).is_none_or(|entry| entry.stat.id() != stat.id())
        }) {
            wanted.entry(file.1.id()).or_default().push(file);
        }
        if wanted.is_empty() {
            return Vec::new();
        }
        let mut known = Vec::new();
        for entry in self.files.values() {
            for (name, stat) in wanted.remove(&entry.stat.id()).unwrap_or_default() {
                if stat.is_same_write(&entry.stat) {
                    known.push(IndexEntry::in_doubt(name.clone(), stat, entry.stat, entry.meta.hash));
                }
            }
        }
        known
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
        index.with_content(&ContentHash([hash; 32])).map(|entry| entry.meta.name.as_str()).collect()
    }

    #[test]
    fn apply_returns_only_visible_changes() {
        let mut index = Index::default();
        let changes = index.apply(vec![known("a", 1, 1), known("b", 1, 1)], vec![name("nothing")]);
        assert_eq!((changes.upserts.len(), changes.removals.len()), (2, 0));
        assert_eq!(names_with(&index, 1), ["a", "b"]);
        assert!(index.apply(vec![known("a", 1, 1)], vec![]).is_empty(), "the same file again");
        let changes = index.apply(vec![known("a", 2, 2)], vec![name("b")]);
        assert_eq!(changes, Changes { upserts: vec![known("a", 2, 2).meta], removals: vec![name("b")] });
        assert_eq!((names_with(&index, 1).len(), names_with(&index, 2)), (0, vec!["a"]));
        assert_eq!(index.contents(), HashSet::from([ContentHash([2; 32])]));
    }

    #[test]
    fn apply_keeps_a_directory_while_it_is_empty() {
        let directory = |text| IndexEntry::directory(name(text), FileStat { directory: true, ..stat(0) });
        let mut index = Index::default();
        let changes = index.apply(vec![directory("a/b"), directory("a b")], vec![]);
        assert_eq!((changes.upserts.len(), changes.removals.len()), (2, 0));
        assert!(index.contents().is_empty() && index.with_content(&DIRECTORY_HASH).next().is_none(), "no content");
        // The scan found the directory empty and ended after a file was added to it.
        let changes = index.apply(vec![directory("a/b"), known("a/b/file", 1, 1)], vec![]);
        assert_eq!(changes, Changes { upserts: vec![known("a/b/file", 1, 1).meta], removals: vec![name("a/b")] });
        assert!(index.apply(vec![directory("a/b"), directory("a")], vec![]).is_empty());
        let changes = index.apply(vec![directory("a/b")], vec![name("a/b/file")]);
        assert_eq!(changes, Changes { upserts: vec![directory("a/b").meta], removals: vec![name("a/b/file")] });
        let changes = index.apply(vec![directory("a/b/c")], vec![]);
        assert_eq!(changes.removals, [name("a/b")], "a directory below it counts too");
        assert!(index.has_below(&name("a")) && !index.has_below(&name("a b")) && !index.has_below(&name("a/b/c")));
    }

    #[test]
    fn plan_ignores_touched_files_and_files_being_hashed() {
        let mut index = Index::default();
        index.apply(vec![known("kept", 1, 1), known("gone", 1, 1), known("adopted", 1, 1)], vec![]);
        let seen: BTreeMap<_, _> = [("kept", 1), ("new", 3), ("hashing", 4), ("hashing-old", 5), ("removed", 6)]
            .map(|(text, size)| (name(text), stat(size)))
            .into();
        let touched = HashSet::from([name("adopted"), name("removed")]);
        let hashing = HashMap::from([(name("hashing"), stat(4)), (name("hashing-old"), stat(1))]);
        let found = Scan { files: seen, ..Scan::default() };
        let plan = index.plan(&found, &touched, &hashing, 0, WINDOW);
        assert_eq!(plan.gone, [name("gone")]);
        assert_eq!(plan.unknown, [(name("hashing-old"), stat(5)), (name("new"), stat(3))]);
        assert_eq!(plan.unconfirmed, []);
    }

    #[test]
    fn plan_confirms_an_unconfirmed_hash_after_the_racy_window() {
        let mut index = Index::default();
        index.apply(vec![IndexEntry { unconfirmed_since: Some(10_000_000), ..known("a", 1, 1) }], vec![]);
        let seen = BTreeMap::from([(name("a"), stat(1))]);
        let found = Scan { files: seen, ..Scan::default() };
        let plan = |now| index.plan(&found, &HashSet::new(), &HashMap::new(), now, WINDOW);
        assert_eq!(plan(11_999_999), Plan { waiting: true, ..Plan::default() });
        assert_eq!(plan(12_000_000).unconfirmed, [(name("a"), stat(1))]);
        assert_eq!(plan(0).unconfirmed.len(), 1, "a clock that was set back");
    }

    fn plan_of(index: &Index, files: &[(&str, FileStat)], unread: &[&str]) -> Plan {
        let files = files.iter().map(|(text, stat)| (name(text), *stat)).collect();
        let unread = unread.iter().copied().map(name).collect();
        let found = Scan { files, unread, ..Scan::default() };
        index.plan(&found, &HashSet::new(), &HashMap::new(), 0, WINDOW)
    }

    #[test]
    fn plan_keeps_what_may_still_have_its_content_and_removes_what_cannot() {
        let mut index = Index::default();
        let all = ["chmod", "touched", "grown", "replaced", "shrunk", "directory"];
        index.apply(all.map(|text| known(text, 4, 1)).into(), vec![]);
        let chmod = FileStat { ctime: (7, 0), executable: true, ..stat(4) };
        let seen = [
            ("chmod", chmod),
            ("touched", FileStat { mtime: (7, 0), ctime: (7, 0), ..stat(4) }),
            ("grown", FileStat { size: 5, ..stat(4) }),
            ("replaced", FileStat { inode: 9, ..stat(4) }),
            ("shrunk", FileStat { size: 3, ..stat(4) }),
            ("directory", FileStat { directory: true, ..stat(4) }),
        ];
        let plan = plan_of(&index, &seen, &[]);
        assert_eq!((plan.gone, plan.outdated), (vec![], vec![name("directory"), name("shrunk")]));
        assert_eq!(plan.unknown.len(), seen.len(), "all are hashed");
        let [in_doubt] = &plan.in_doubt[..] else { panic!("{:?}", plan.in_doubt) };
        assert!(in_doubt.meta.executable && in_doubt.stat == stat(4) && in_doubt.meta.name == name("chmod"));
    }

    #[test]
    fn plan_keeps_files_below_an_unread_directory() {
        let mut index = Index::default();
        index.apply(["a/b/c", "a/bc", "a/b"].map(|text| known(text, 4, 1)).into(), vec![]);
        assert_eq!(plan_of(&index, &[], &["a/b"]).gone, [name("a/bc")]);
        assert_eq!(plan_of(&index, &[], &["a"]).gone, []);
        assert_eq!(plan_of(&index, &[], &[]).gone.len(), 3);
    }

    #[test]
    fn renamed_and_linked_files_are_known_unless_they_were_written_to() {
        let mut index = Index::default();
        index.apply(vec![known("a", 4, 1), known("b", 5, 2)], vec![]);
        let linked = FileStat { ctime: (9, 0), ..stat(4) };
        let written = FileStat { mtime: (9, 0), ctime: (9, 0), ..stat(5) };
        let unknown =
            [("x", linked), ("y", linked), ("z", written), ("a", linked)].map(|(text, stat)| (name(text), stat));
        let known = index.under_other_names(&unknown);
        let names: Vec<_> = known.iter().map(|entry| entry.meta.name.as_str()).collect();
        assert_eq!(names, ["x", "y"]);
        assert!(known.iter().all(|entry| entry.meta.hash == ContentHash([1; 32]) && entry.stat == stat(4)));
    }
}
