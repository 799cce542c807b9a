//! The table of files: names in order, and of each the contents and their owners.
//!
//! A file of one content and one owner, as nearly all are, costs 72 bytes in its row, its name and the name's
//! allocation, some 5 bytes in the order of names and as many in its owner's list.

use shared::{
    content::{ContentHash, FileMeta},
    digest::ShareDigest,
};

use super::{
    small_list::Few,
    sorted_ids::{Place, SortedIds},
};

/// A peer's number in the index: 4 bytes an owner instead of a name.
pub(crate) type Slot = u32;

/// A file's number in the index; used again when the file is gone.
pub(crate) type FileId = u32;

/// Rows that are allocated at a time: the table grows without being copied.
const ROWS: usize = if cfg!(test) { 4 } else { 1024 };

/// One owner of a content.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OwnerEntry {
    pub(crate) slot: Slot,
    pub(crate) executable: bool,
    pub(crate) mtime_micros: i64,
}

/// One content of a name and its owners by slot. The size belongs to it: who lies about the size of a hash
/// must not change what others said of it.
#[derive(Debug, Clone)]
pub(crate) struct Content {
    pub(crate) hash: ContentHash,
    pub(crate) size: u64,
    owners: Few<OwnerEntry>,
}

impl Content {
    pub(crate) fn owners(&self) -> &[OwnerEntry] {
        self.owners.as_slice()
    }
}

#[derive(Debug, Clone)]
struct File {
    name: Box<str>,
    /// By `(hash, size)`.
    contents: Few<Content>,
}

/// What [`Files::disown`] took away.
pub(crate) struct Disowned {
    /// The file's number; it is free when the file has no owner any more.
    pub(crate) id: FileId,
    hash: ContentHash,
    size: u64,
    owner: OwnerEntry,
}

impl Disowned {
    /// The file, by this name, is no part of what `digest` stands for any more.
    pub(crate) fn leave(&self, name: &str, digest: &mut ShareDigest) {
        digest.remove_fields(name, self.hash, self.size, self.owner.mtime_micros, self.owner.executable);
    }
}

/// All files.
#[derive(Debug, Clone, Default)]
pub(crate) struct Files {
    /// By number, `ROWS` a part.
    rows: Vec<Vec<Option<File>>>,
    free: Vec<FileId>,
    /// By name.
    order: SortedIds,
    contents: usize,
}

impl Files {
    /// Versions: contents of names.
    pub(crate) fn versions(&self) -> usize {
        self.contents
    }

    /// The contents of a name.
    pub(crate) fn find(&self, name: &str) -> Option<&[Content]> {
        let (id, _) = self.place(name).ok()?;
        Some(self.file(id)?.contents.as_slice())
    }

    /// The number of the file of this name, if `slot` owns a content of it.
    pub(crate) fn owned(&self, slot: Slot, name: &str) -> Option<FileId> {
        let (id, _) = self.place(name).ok()?;
        owner_place(self.file(id)?.contents.as_slice(), slot).map(|_| id)
    }

    /// Files with their contents, from the first name on that is not below `start`.
    pub(crate) fn from(&self, start: &str) -> impl Iterator<Item = (&str, &[Content])> {
        let (Ok((_, place)) | Err(place)) = self.place(start);
        let files = self.order.from(place).filter_map(|id| self.file(id));
        files.map(|file| (&*file.name, file.contents.as_slice()))
    }

    /// `slot` has `file`, instead of what it had by that name. The file's number, and what it had.
    pub(crate) fn own(&mut self, slot: Slot, file: &FileMeta) -> (FileId, Option<Disowned>) {
        let owner = OwnerEntry { slot, executable: file.executable, mtime_micros: file.mtime_micros };
        let content = || Content { hash: file.hash, size: file.size, owners: Few::One(owner) };
        let name = file.name.as_str();
        match self.place(name) {
            Ok((id, _)) => {
                let before = self.take_owner(slot, id);
                let Some(File { contents, .. }) = self.file_mut(id) else { return (id, before) };
                let key = (file.hash, file.size);
                match contents.as_slice().binary_search_by_key(&key, |content| (content.hash, content.size)) {
                    Ok(at) => {
                        if let Some(Content { owners, .. }) = contents.get_mut(at) {
                            owners.insert(owners.as_slice().partition_point(|other| other.slot < slot), owner);
                        }
                    }
                    Err(at) => {
                        contents.insert(at, content());
                        self.contents += 1;
                    }
                }
                (id, before)
            }
            Err(place) => {
                let id = self.insert(File { name: name.into(), contents: Few::One(content()) });
                self.order.insert(place, id);
                self.contents += 1;
                (id, None)
            }
        }
    }

    /// `slot` has the file of this name no more; what it had.
    pub(crate) fn disown(&mut self, slot: Slot, name: &str) -> Option<Disowned> {
        let (id, place) = self.place(name).ok()?;
        let before = self.take_owner(slot, id)?;
        if self.file(id).is_some_and(|file| file.contents.as_slice().is_empty()) {
            self.free_row(id, place);
        }
        Some(before)
    }

    /// `slot` has this file no more.
    pub(crate) fn forget(&mut self, slot: Slot, id: FileId) {
        self.take_owner(slot, id);
        let Some(file) = self.file(id) else { return };
        if file.contents.as_slice().is_empty()
            && let Ok((_, place)) = self.place(&file.name)
        {
            self.free_row(id, place);
        }
    }

    /// Takes the owner out; the file may have no content then.
    fn take_owner(&mut self, slot: Slot, id: FileId) -> Option<Disowned> {
        let contents = &mut self.file_mut(id)?.contents;
        let (at, owner_at) = owner_place(contents.as_slice(), slot)?;
        let content = contents.get_mut(at)?;
        let (hash, size) = (content.hash, content.size);
        let owner = content.owners.remove(owner_at)?;
        if content.owners().is_empty() {
            contents.remove(at);
            self.contents -= 1;
        }
        Some(Disowned { id, hash, size, owner })
    }

    /// Where a name is in the order, or would be.
    fn place(&self, name: &str) -> Result<(FileId, Place), Place> {
        self.order.find(|id| self.file(id).map_or("", |file| &*file.name).cmp(name))
    }

    fn file(&self, id: FileId) -> Option<&File> {
        self.rows.get(id as usize / ROWS)?.get(id as usize % ROWS)?.as_ref()
    }

    fn file_mut(&mut self, id: FileId) -> Option<&mut File> {
        self.rows.get_mut(id as usize / ROWS)?.get_mut(id as usize % ROWS)?.as_mut()
    }

    fn insert(&mut self, file: File) -> FileId {
        if let Some(id) = self.free.pop() {
            self.rows[id as usize / ROWS][id as usize % ROWS] = Some(file);
            return id;
        }
        if self.rows.last().is_none_or(|part| part.len() == ROWS) {
            self.rows.push(Vec::with_capacity(ROWS));
        }
        let before = (self.rows.len() - 1) * ROWS;
        let part = self.rows.last_mut().expect("one was just made if there was none");
        part.push(Some(file));
        FileId::try_from(before + part.len() - 1).expect("MAX_INDEX_ENTRIES is far below 2^32")
    }

    fn free_row(&mut self, id: FileId, place: Place) {
        self.order.remove(place);
        self.rows[id as usize / ROWS][id as usize % ROWS] = None;
        self.free.push(id);
        if self.order.len() == 0 {
            // Nothing is left: the memory goes back too.
            *self = Self::default();
        }
    }
}

/// Which content `slot` owns, and which of its owners that is. A peer has one content of a name.
fn owner_place(contents: &[Content], slot: Slot) -> Option<(usize, usize)> {
    contents.iter().enumerate().find_map(|(at, content)| {
        let owner = content.owners().binary_search_by_key(&slot, |owner| owner.slot).ok()?;
        Some((at, owner))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_one_owner_fits_its_row() {
        assert_eq!(size_of::<Option<File>>(), 72);
    }
}
