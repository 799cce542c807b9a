//! What differs between two looks at a share.

use std::collections::BTreeMap;

use shared::{content::FileMeta, file_name::FileName};

/// Files that came or changed, and files that went.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    /// Files that are there now, or in this form.
    pub upserts: Vec<FileMeta>,
    /// Names of files that are there no more. A listener may not have heard of one that came and went quickly.
    pub removals: Vec<FileName>,
}

impl Changes {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.upserts.is_empty() && self.removals.is_empty()
    }
}

/// What turns `old` into `new`; both lists in order of the names.
pub fn diff(old: &BTreeMap<FileName, FileMeta>, new: &BTreeMap<FileName, FileMeta>) -> Changes {
    Changes {
        upserts: new.values().filter(|meta| old.get(&meta.name) != Some(meta)).cloned().collect(),
        removals: old.keys().filter(|name| !new.contains_key(*name)).cloned().collect(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use shared::content::ContentHash;

    use super::*;

    fn files(list: &[(u8, u8)]) -> BTreeMap<FileName, FileMeta> {
        list.iter()
            .map(|(name, hash)| {
                let name: FileName = format!("f{name}").parse().unwrap();
                let hash = ContentHash([*hash; 32]);
                (name.clone(), FileMeta { name, size: 1, hash, mtime_micros: 0, executable: false })
            })
            .collect()
    }

    proptest! {
        #[test]
        fn applied_to_the_old_it_gives_the_new(
            old in prop::collection::vec((0u8..12, 0u8..3), 0..12),
            new in prop::collection::vec((0u8..12, 0u8..3), 0..12),
        ) {
            let (mut old, new) = (files(&old), files(&new));
            let changes = diff(&old, &new);
            prop_assert_eq!(changes.is_empty(), old == new);
            for name in &changes.removals {
                prop_assert!(old.remove(name).is_some());
            }
            for meta in changes.upserts {
                prop_assert_ne!(old.insert(meta.name.clone(), meta.clone()), Some(meta));
            }
            prop_assert_eq!(old, new);
        }
    }
}
