//! How files come into the share: copies, batches of small files, directories with their times and modes.

pub(crate) mod add;
pub(crate) mod batch;
pub(crate) mod dir_journal;
pub(crate) mod directories;
pub(crate) mod staging;
