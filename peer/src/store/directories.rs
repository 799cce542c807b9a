//! Directories with nothing in them come in: nobody has to send anything for that.

use std::{
    io,
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::{
    fs::{AtFlags, FileType, Mode},
    io::Errno,
};
use shared::{
    error::{Failure, FailureCode},
    file_name::FileName,
};

use super::{
    destination::Destination,
    failure::io_failure,
    many::Directories,
    state::{Arrived, Arriving, Hashed, Shared},
};

/// Where each directory lies or why not, and what the index is to know of them.
type Made = (Vec<Result<PathBuf, Failure>>, Arrived);

/// Makes directories. See [`super::Share::make_directories`].
pub(super) fn make(shared: &Arc<Shared>, wanted: &[(FileName, Option<PathBuf>)]) -> Result<Made, Failure> {
    let resolve =
        |(name, to): &(FileName, Option<PathBuf>)| Destination::of_directory(&shared.root, name, to.as_deref());
    let wanted: Vec<Result<Destination, Failure>> = wanted.iter().map(resolve).collect();
    let names = wanted.iter().flatten().filter_map(|destination| destination.name().cloned()).collect();
    let arriving = Some(Arriving::new(shared, names));
    let mut parents = Directories::default();
    let mut files = Vec::new();
    let mut places = Vec::with_capacity(wanted.len());
    for destination in wanted {
        let made = destination.and_then(|destination| {
            make_one(shared, &mut parents, &destination)?;
            Ok(destination)
        });
        if let Ok(Some(name)) = made.as_ref().map(Destination::name)
            && let Hashed::Done(known) = shared.look_at(name)
        {
            files.push(known);
        }
        places.push(made.map(|destination| destination.path().to_path_buf()));
    }
    parents.sync().map_err(|error| io_failure("write to", shared.root.path(), &error))?;
    Ok((places, Arrived { files, arriving }))
}

fn make_one(shared: &Shared, parents: &mut Directories, destination: &Destination) -> Result<(), Failure> {
    let in_the_way =
        |error: &io::Error| matches!(error.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory);
    let made = parents.open(destination, shared).and_then(|dir| make_in(dir, Path::new(&destination.base())));
    made.map_err(|error| {
        if in_the_way(&error) {
            let what = format!("cannot make the directory {}", destination.path().display().to_string().escape_debug());
            let hint = "remove it or choose another place with --to";
            return Failure::new(FailureCode::Exists, what, "something else of that name is there", hint);
        }
        destination.cannot_complete(&error)
    })
}

/// Makes the directory `base` in `dir`, if it is not there.
///
/// # Errors
/// `AlreadyExists` when something else is there.
pub(super) fn make_in(dir: impl AsFd, base: &Path) -> io::Result<()> {
    match rustix::fs::mkdirat(&dir, base, Mode::from_raw_mode(0o777)) {
        Err(Errno::EXIST) => {
            let stat = rustix::fs::statat(&dir, base, AtFlags::SYMLINK_NOFOLLOW)?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory { Ok(()) } else { Err(Errno::EXIST.into()) }
        }
        made => Ok(made?),
    }
}
