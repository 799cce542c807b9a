//! System calls on files that several modules of the store make.

use std::{
    ffi::{OsStr, OsString},
    fs::{File, Permissions},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{FileExt, PermissionsExt},
    },
    time::{Duration, SystemTime},
};

use rustix::{
    fs::{AtFlags, Mode, OFlags, RenameFlags},
    io::Errno,
};

/// Infix in the name of a file that [`create_beside`] has created and that is not renamed yet.
pub(crate) const TEMPORARY: &str = ".new-";

/// Sets the modification time, microseconds since 1970. With `executable`, adds the execute permission wherever the
/// file has read permission.
///
/// A time that the system cannot represent is ignored.
pub(crate) fn set_attributes(file: &File, mtime_micros: i64, executable: bool) -> io::Result<()> {
    if executable {
        let mode = file.metadata()?.permissions().mode();
        file.set_permissions(Permissions::from_mode(mode | (mode & 0o444) >> 2))?;
    }
    let distance = Duration::from_micros(mtime_micros.unsigned_abs());
    let mtime = if mtime_micros >= 0 {
        SystemTime::UNIX_EPOCH.checked_add(distance)
    } else {
        SystemTime::UNIX_EPOCH.checked_sub(distance)
    };
    match mtime {
        Some(mtime) => file.set_modified(mtime),
        None => Ok(()),
    }
}

/// Renames a file. Neither directory is synced.
///
/// # Errors
/// Without `overwrite`, `AlreadyExists` if the target exists.
pub(crate) fn rename(
    from: impl AsFd,
    from_name: &OsStr,
    to: impl AsFd,
    to_name: &OsStr,
    overwrite: bool,
) -> io::Result<()> {
    if overwrite {
        return Ok(rustix::fs::renameat(&from, from_name, &to, to_name)?);
    }
    match rustix::fs::renameat_with(&from, from_name, &to, to_name, RenameFlags::NOREPLACE) {
        // The file system does not support the flag. A hard link has the same effect in two steps.
        Err(Errno::INVAL | Errno::NOSYS) => {
            rustix::fs::linkat(&from, from_name, &to, to_name, AtFlags::empty())?;
            Ok(rustix::fs::unlinkat(&from, from_name, AtFlags::empty())?)
        }
        renamed => Ok(renamed?),
    }
}

/// Creates a file with `content` that only this user may read, to be renamed to `name`. Returns it with its temporary
/// name, which is unique even if several processes write the same file.
pub(crate) fn create_beside(
    dir: &OwnedFd,
    name: &OsStr,
    content: &[u8],
    durably: bool,
) -> io::Result<(File, OsString)> {
    let mut beside = name.to_owned();
    beside.push(format!("{TEMPORARY}{:016x}", fastrand::u64(..)));
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::openat(dir, &beside, flags, Mode::from_raw_mode(0o600))?);
    let written = file.write_all_at(content, 0).and_then(|()| if durably { file.sync_data() } else { Ok(()) });
    if let Err(error) = written {
        let _removed = rustix::fs::unlinkat(dir, &beside, AtFlags::empty());
        return Err(error);
    }
    Ok((file, beside))
}

/// Removes a file if it exists and syncs the directory.
pub(crate) fn remove_durably(dir: impl AsFd, name: &OsStr) -> io::Result<()> {
    match rustix::fs::unlinkat(&dir, name, AtFlags::empty()) {
        Ok(()) => Ok(rustix::fs::fsync(dir)?),
        Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
