//! Table of files: the names in order, and for each name its contents and their owners.
//!
//! Nearly every file has one content and one owner. It costs 72 bytes in its row, its name and the name's allocation,
//! about 5 bytes in the order of names, and as many in the owner's list.

use shared::{
    content::{ContentHash, FileMeta},
    digest::ShareDigest,
};

use super::{
    small_list::SmallList,
    sorted_ids::{Position, SortedIds},
};

/// Number of a peer in the index: 4 bytes for each owner instead of an id.
pub(crate) type Slot = u32;

/// Row number of a file, reused when the file is gone.
pub(crate) type FileId = u32;

/// Rows allocated at a time, so that the table grows without a copy.
const ROWS: usize = if cfg!(test) { 4 } else { 1024 };

/// Owner of a content.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OwnerEntry {
    pub(crate) slot: Slot,
    pub(crate) executable: bool,
    pub(crate) mtime_micros: i64,
}

/// Content of a name and its owners by slot. The size is part of the key, so that a peer that announces a wrong size
/// for a hash does not change what others announced.
#[derive(Debug, Clone)]
pub(crate) struct Content {
    pub(crate) hash: ContentHash,
    pub(crate) size: u64,
    owners: SmallList<OwnerEntry>,
}

impl Content {
    pub(crate) fn owners(&self) -> &[OwnerEntry] {
        self.owners.as_slice()
    }
}

#[derive(Debug, Clone)]
struct File {
    name: Box<str>,
    /// Contents by `(hash, size)`.
    contents: SmallList<Content>,
}

/// Ownership that [`Files::disown`] ended.
pub(crate) struct Disowned {
    /// Row of the file; it is free if the file has no other owner.
    pub(crate) id: FileId,
    hash: ContentHash,
    size: u64,
    owner: OwnerEntry,
}

impl Disowned {
    /// Removes the file of this name from `digest`.
    pub(crate) fn remove_from(&self, name: &str, digest: &mut ShareDigest) {
        digest.remove_fields(name, self.hash, self.size, self.owner.mtime_micros, self.owner.executable);
    }
}

/// All files.
#[derive(Debug, Clone, Default)]
pub(crate) struct Files {
    /// Rows by number, in parts of `ROWS`.
    rows: Vec<Vec<Option<File>>>,
    free: Vec<FileId>,
    /// Rows by name.
    order: SortedIds,
    contents: usize,
}

impl Files {
    /// Count of versions, that is of contents of names.
    pub(crate) fn versions(&self) -> usize {
        self.contents
    }

    /// Contents of a name.
    pub(crate) fn find(&self, name: &str) -> Option<&[Content]> {
        let (id, _) = self.position(name).ok()?;
        Some(self.file(id)?.contents.as_slice())
    }

    /// Row of the file of this name, if `slot` owns a content of it.
    pub(crate) fn owned(&self, slot: Slot, name: &str) -> Option<FileId> {
        let (id, _) = self.position(name).ok()?;
        owner_position(self.file(id)?.contents.as_slice(), slot).map(|_| id)
    }

    /// Files with their contents, in order of names from `start` on.
    pub(crate) fn from(&self, start: &str) -> impl Iterator<Item = (&str, &[Content])> {
        let (Ok((_, position)) | Err(position)) = self.position(start);
        let files = self.order.from(position).filter_map(|id| self.file(id));
        files.map(|file| (&*file.name, file.contents.as_slice()))
    }

    /// Makes `slot` an owner of `file`, in place of its previous content of that name. Returns the row, and the
    /// previous ownership.
    pub(crate) fn own(&mut self, slot: Slot, file: &FileMeta) -> (FileId, Option<Disowned>) {
        let owner = OwnerEntry { slot, executable: file.executable, mtime_micros: file.mtime_micros };
        let content = || Content { hash: file.hash, size: file.size, owners: SmallList::One(owner) };
        let name = file.name.as_str();
        match self.position(name) {
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
            Err(position) => {
                let id = self.insert(File { name: name.into(), contents: SmallList::One(content()) });
                self.order.insert(position, id);
                self.contents += 1;
                (id, None)
            }
        }
    }

    /// Ends the ownership of `slot` in the file of this name. Returns the ownership.
    pub(crate) fn disown(&mut self, slot: Slot, name: &str) -> Option<Disowned> {
        let (id, position) = self.position(name).ok()?;
        let before = self.take_owner(slot, id)?;
        if self.file(id).is_some_and(|file| file.contents.as_slice().is_empty()) {
            self.free_row(id, position);
        }
        Some(before)
    }

    /// Ends the ownership of `slot` in the file of this row.
    pub(crate) fn forget(&mut self, slot: Slot, id: FileId) {
        self.take_owner(slot, id);
        let Some(file) = self.file(id) else { return };
        if file.contents.as_slice().is_empty()
            && let Ok((_, position)) = self.position(&file.name)
        {
            self.free_row(id, position);
        }
    }

    /// Removes the owner; the file may be left without a content.
    fn take_owner(&mut self, slot: Slot, id: FileId) -> Option<Disowned> {
        let contents = &mut self.file_mut(id)?.contents;
        let (at, owner_at) = owner_position(contents.as_slice(), slot)?;
        let content = contents.get_mut(at)?;
        let (hash, size) = (content.hash, content.size);
        let owner = content.owners.remove(owner_at)?;
        if content.owners().is_empty() {
            contents.remove(at);
            self.contents -= 1;
        }
        Some(Disowned { id, hash, size, owner })
    }

    /// Row and position of a name in the order, or the position at which it would be.
    fn position(&self, name: &str) -> Result<(FileId, Position), Position> {
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

    fn free_row(&mut self, id: FileId, position: Position) {
        self.order.remove(position);
        self.rows[id as usize / ROWS][id as usize % ROWS] = None;
        self.free.push(id);
        if self.order.len() == 0 {
            // The last row is free: the memory is returned.
            *self = Self::default();
        }
    }
}

/// Position of the content that `slot` owns, and of `slot` among its owners. A peer has one content of a name.
fn owner_position(contents: &[Content], slot: Slot) -> Option<(usize, usize)> {
    contents.iter().enumerate().find_map(|(at, content)| {
        let owner = content.owners().binary_search_by_key(&slot, |owner| owner.slot).ok()?;
        Some((at, owner))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_of_a_file_with_one_owner_has_72_bytes() {
        assert_eq!(size_of::<Option<File>>(), 72);
    }
}
