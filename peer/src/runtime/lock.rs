//! Lock of a peer's state directory, and the number of each run.

use std::{fs::File, io, path::Path};

use rustix::fs::{FlockOperation, flock};
use shared::{
    error::{Failure, FailureCode},
    id::{Incarnation, PeerId},
    time::{Clock, unix_micros},
};
use tokio::time::sleep;

use super::params::{LOCK_POLL, LOCK_WAIT};
use crate::diagnostics::warnings::{Topic, Warnings};

/// Name of the lock in a peer's state directory.
const LOCK: &str = "lock";

/// Creates the state directory and takes its lock, which the process holds until the file is dropped. Waits up to
/// [`LOCK_WAIT`] for a process that is ending.
///
/// # Errors
/// `AlreadyRunning` if another process holds the lock, `Io` if the directory cannot be used.
pub(super) async fn acquire(state_dir: &Path, id: &PeerId) -> Result<File, Failure> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(state_dir)
        .map_err(|error| Failure::unusable(state_dir, &error))?;
    let path = state_dir.join(LOCK);
    let file = open(&path).map_err(|error| Failure::unusable(&path, &error))?;
    let clock = Clock::start();
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) if clock.now().since_origin() < LOCK_WAIT => sleep(LOCK_POLL).await,
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(Failure::new(
                    FailureCode::AlreadyRunning,
                    format!("{id} is running already"),
                    format!("another process holds {}", path.display()),
                    format!("give it commands with `peer {id} COMMAND`, stop it, or take another peer id"),
                ));
            }
            Err(error) => return Err(Failure::unusable(&path, io::Error::from(error))),
        }
    }
}

/// True if a process holds the lock: a peer runs, starts or ends.
pub(crate) fn is_held(state_dir: &Path) -> bool {
    // Without the file no process has taken the lock.
    let Ok(file) = File::open(state_dir.join(LOCK)) else { return false };
    matches!(flock(&file, FlockOperation::NonBlockingLockShared), Err(rustix::io::Errno::WOULDBLOCK))
}

fn open(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let created = File::options().create(true).truncate(false).write(true).mode(0o600).open(path);
    match created {
        // An existing file can be locked on a disk that is mounted read-only.
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => File::open(path).map_err(|_| error),
        opened => opened,
    }
}

/// Determines and stores the incarnation of this run: the time, but above that of every earlier run, even if the clock
/// was set back.
///
/// A number that cannot be read or stored is replaced by the time, with a warning: it only matters when the clock is
/// set back.
///
/// # Errors
/// `Io` if the clock shows an earlier time than at the last run, and the number of this one cannot be stored.
pub(super) fn next_incarnation(file: &Path, warnings: &Warnings) -> Result<Incarnation, Failure> {
    let subject = file.to_string_lossy();
    let last = match read(file) {
        Ok(last) => last,
        Err(why) => {
            tracing::warn!(file = %subject, error = %why, "cannot read the number of the last run; using the time");
            None
        }
    };
    let now = unix_micros();
    let next = next(last, now);
    match certs::write_private(file, format!("{next}\n").as_bytes()) {
        Ok(()) => Ok(Incarnation(next)),
        Err(error) if next == now => {
            let text = format!(
                "cannot write {subject}: {error}; if the clock is set back before the next start, other peers take that \
                 one for an old run"
            );
            warnings.set(Topic::State, &subject, text);
            Ok(Incarnation(next))
        }
        Err(error) => {
            let mut failure = Failure::unusable(file, &error);
            failure.hint = format!("{}; or set the clock, which is earlier than at the last start", failure.hint);
            Err(failure)
        }
    }
}

/// Number of a run that begins at `now`, in microseconds since 1970, after the run `last`.
fn next(last: Option<u64>, now: u64) -> u64 {
    last.map_or(now, |last| now.max(last.saturating_add(1)))
}

fn read(file: &Path) -> Result<Option<u64>, String> {
    match std::fs::read_to_string(file) {
        Ok(text) => text.trim().parse().map(Some).map_err(|_| "it is not a number".to_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn incarnations_rise_even_if_the_clock_is_set_back() {
        assert_eq!(next(None, 100), 100);
        assert_eq!(next(Some(50), 100), 100);
        assert_eq!(next(Some(100), 100), 101);
        assert_eq!(next(Some(500), 100), 501);
    }

    #[test]
    fn damaged_incarnation_is_replaced_by_the_time() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("incarnation");
        for damaged in [&b""[..], b"\xff\xfe", b"12x"] {
            std::fs::write(&file, damaged).unwrap();
            let before = unix_micros();
            let warnings = Warnings::default();
            let first = next_incarnation(&file, &warnings).unwrap();
            assert!(first.0 >= before);
            assert!(next_incarnation(&file, &warnings).unwrap() > first, "the file is whole again");
            assert!(warnings.list().is_empty());
        }
    }

    #[test]
    fn incarnation_that_cannot_be_stored_is_used_unless_the_clock_was_set_back() {
        let folder = tempfile::tempdir().unwrap();
        // A folder of that name can be neither read nor replaced.
        let file = folder.path().join("incarnation");
        std::fs::create_dir(&file).unwrap();
        let warnings = Warnings::default();
        next_incarnation(&file, &warnings).unwrap();
        assert_eq!(warnings.list().len(), 1);
    }

    #[tokio::test]
    async fn lock_excludes_a_second_holder_until_it_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let id = "peer1".parse().unwrap();
        assert!(!is_held(folder.path()));
        let first = acquire(folder.path(), &id).await.unwrap();
        assert!(is_held(folder.path()));
        assert_eq!(acquire(folder.path(), &id).await.unwrap_err().code, FailureCode::AlreadyRunning);
        drop(first);
        assert!(!is_held(folder.path()));
        acquire(folder.path(), &id).await.unwrap();
    }
}
