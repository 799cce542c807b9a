//! Files that enter the share: copies, batches of small files, directories.
//!
//! | module | contents |
//! |---|---|
//! | `add` | copies of files and trees |
//! | `batch` | downloads of many small files |
//! | `staging` | hidden directories for files that are not complete yet |
//! | `directories` | creation of directories, their times and modes |
//! | `dir_journal` | record of the directories that a running download creates |

pub(crate) mod add;
pub(crate) mod batch;
pub(crate) mod dir_journal;
pub(crate) mod directories;
pub(crate) mod staging;
