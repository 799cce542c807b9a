//! File-system notifications about changes in the share.

use std::path::{Path, PathBuf};

use notify::{
    Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode},
};
use tokio::sync::mpsc;
use tracing::warn;

/// Watches the tree `dir` until the returned watcher is dropped. Sends to `notices`, a channel of capacity 1, for every
/// change that can affect the share.
///
/// # Errors
/// If the watch limit is reached or the file system has no notifications. Only the periodic rescan finds changes then.
pub(crate) fn watch(dir: &Path, notices: mpsc::Sender<()>) -> notify::Result<RecommendedWatcher> {
    let root = dir.to_path_buf();
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| match event {
        Ok(event) if !matters(&event, &root) => {}
        // After an error of the watcher, notifications may be lost.
        Ok(_) | Err(_) => {
            let _already_pending = notices.try_send(());
        }
    })?;
    watcher.watch(dir, RecursiveMode::Recursive)?;
    Ok(watcher)
}

/// Logs that only the periodic rescan finds changes.
pub(crate) fn report_unwatched(dir: &Path, error: &notify::Error) {
    warn!(%error, share = %dir.display(), "cannot watch the share; the periodic rescan finds changes");
}

fn matters(event: &Event, root: &Path) -> bool {
    let kind = match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => true,
        // Hashing and serving also cause access events.
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
    fn matters_ignores_reads_and_hidden_files() {
        let root = Path::new("/.state/share");
        let event = |kind, path: &str| Event::new(kind).add_path(root.join(path));
        let create = EventKind::Create(CreateKind::File);
        assert!(matters(&event(create, "a/b"), root));
        assert!(matters(&event(EventKind::Access(AccessKind::Close(AccessMode::Write)), "a"), root));
        assert!(!matters(&event(EventKind::Access(AccessKind::Open(AccessMode::Any)), "a"), root));
        assert!(!matters(&event(EventKind::Modify(ModifyKind::Any), ".brasa/partial/x"), root));
        // A download ends with a rename out of the hidden directory.
        assert!(matters(&event(create, ".brasa/partial/x").add_path(root.join("x")), root));
        assert!(matters(&Event::new(EventKind::Other).set_flag(Flag::Rescan), root));
    }
}
