//! Resumption of downloads: records the verified groups of a partial file, so that they survive a crash of the process
//! or the machine.
//!
//! | module | contents |
//! |---|---|
//! | [`format`](mod@format) | the resume file and its records (pure) |
//! | `journal` | writes the resume file of a running download |
//! | `recover` | verified groups that an earlier process left |

pub mod format;
pub(crate) mod journal;
pub(crate) mod recover;
