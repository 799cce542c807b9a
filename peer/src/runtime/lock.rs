//! Lock of a peer's state directory, and the number of each run.

use std::{fs::File, io, path::Path};

use shared::{
    error::{Failure, FailureCode},
    id::{Incarnation, PeerId},
    time::unix_micros,
};

/// Creates the state directory and takes its lock, which the process holds until the file is dropped.
///
/// # Errors
/// `AlreadyRunning` if another process holds the lock, `Io` if the directory cannot be used.
pub(super) fn acquire(state_dir: &Path, id: &PeerId) -> Result<File, Failure> {
    use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(state_dir)
        .map_err(|error| Failure::unusable(state_dir, &error))?;
    let path = state_dir.join("lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(|error| Failure::unusable(&path, &error))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Failure::new(
            FailureCode::AlreadyRunning,
            format!("{id} is running already"),
            format!("another process holds {}", path.display()),
            format!("give it commands with `peer {id} COMMAND`, stop it, or take another peer id"),
        )),
        Err(error) => Err(Failure::unusable(&path, io::Error::from(error))),
    }
}

/// Determines and stores the incarnation of this run: the time, but above that of every earlier run, even if the clock
/// was set back.
///
/// # Errors
/// Fails if `file` cannot be read or written, or holds no number.
pub(super) fn next_incarnation(file: &Path) -> io::Result<Incarnation> {
    let last = match std::fs::read_to_string(file) {
        Ok(text) => text.trim().parse().map_err(|_| io::Error::other("the incarnation is not a number"))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(error),
    };
    let next = unix_micros().max(last + 1);
    certs::write_private(file, format!("{next}\n").as_bytes())?;
    Ok(Incarnation(next))
}
