//! Notices of the file system that something in the share changed.

use std::path::{Path, PathBuf};

use notify::{
    Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode},
};
use tokio::sync::mpsc;
use tracing::warn;

/// Watches `folder`; a notice goes to `notices` (of room 1: more while one waits say nothing new) for every
/// change below it that can matter. Watching ends with the watcher.
///
/// # Errors
/// When the system cannot watch (no more watches, no such service on this file system). The periodic rescan is left.
pub(crate) fn watch(folder: &Path, notices: mpsc::Sender<()>) -> notify::Result<RecommendedWatcher> {
    let root = folder.to_path_buf();
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| match event {
        Ok(event) if !matters(&event, &root) => {}
        // An error of the watcher may mean that notices were lost, so it is one too.
        Ok(_) | Err(_) => {
            let _already_waiting = notices.try_send(());
        }
    })?;
    watcher.watch(folder, RecursiveMode::Recursive)?;
    Ok(watcher)
}

/// Says, once, that only the periodic rescan is left.
pub(crate) fn report_unwatched(folder: &Path, error: &notify::Error) {
    warn!(%error, folder = %folder.display(), "the share cannot be watched; changes show with the next rescan");
}

fn matters(event: &Event, root: &Path) -> bool {
    let kind = match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => true,
        // Hashing and serving open and read files too.
        EventKind::Access(_) => false,
        _ => true,
    };
    let hidden = |path: &PathBuf| {
        path.strip_prefix(root)
            .is_ok_and(|path| path.components().any(|part| part.as_os_str().as_encoded_bytes().starts_with(b".")))
    };
    kind && (event.paths.is_empty() || event.need_rescan() || !event.paths.iter().all(hidden))
}

#[cfg(test)]
mod tests {
    use notify::event::{CreateKind, Flag, ModifyKind};

    use super::*;

    #[test]
    fn reading_and_hidden_files_do_not_matter() {
        let root = Path::new("/.state/share");
        let event = |kind, path: &str| Event::new(kind).add_path(root.join(path));
        let create = EventKind::Create(CreateKind::File);
        assert!(matters(&event(create, "a/b"), root));
        assert!(matters(&event(EventKind::Access(AccessKind::Close(AccessMode::Write)), "a"), root));
        assert!(!matters(&event(EventKind::Access(AccessKind::Open(AccessMode::Any)), "a"), root));
        assert!(!matters(&event(EventKind::Modify(ModifyKind::Any), ".brasa/partial/x"), root));
        // A rename out of the hidden directory is what completes a download.
        assert!(matters(&event(create, ".brasa/partial/x").add_path(root.join("x")), root));
        assert!(matters(&Event::new(EventKind::Other).set_flag(Flag::Rescan), root));
    }
}
