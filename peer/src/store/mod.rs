//! The share on the disk: which files there are, what is in them, and how new ones come in.
//!
//! | room | what is in it |
//! |---|---|
//! | [`Share`] | the handle that the rest of the peer uses |
//! | [`changes`] | what differs between two looks at the share (pure) |
//! | `index` | the files of the share, and what a look at it means for them (pure) |
//! | `state` | what the handle and the threads behind it have in common |
//! | `indexer` | the task that owns the index of the share |
//! | `scan` | one look at the share |
//! | `watch` | notices of the file system |
//! | `root` | opening files below a folder and nowhere else |
//! | `stamp` | what tells that a file changed |
//! | `tree_hash` | hashing |
//! | `hash_cache`, `outboards` | what a restart need not hash again |
//! | `add` | copies into the share |
//! | `stage` | hidden directories in which many files lie until they are complete |
//! | `directories` | making directories with nothing in them; times and modes of all |
//! | `making` | which directories a download is making, for when its process is killed |
//! | `many` | downloads of many small files, made durable in groups |
//! | [`partial`], [`destination`] | downloads: until they are complete, and where they go |
//! | `direct` | writing past the page cache |
//! | [`resume`] | what is proven of a download, whatever ends the process (pure) |
//! | `recorder`, `recovery` | writing that down, and finding it again |
//! | [`unfinished`] | downloads that can be continued |
//! | [`failure`] | errors of the file system as users see them |

mod add;
pub mod changes;
pub mod destination;
mod direct;
mod directories;
pub mod failure;
mod hash_cache;
mod index;
mod indexer;
mod making;
mod many;
mod outboards;
pub mod partial;
mod recorder;
mod recovery;
pub mod resume;
pub(crate) mod root;
mod scan;
mod share;
pub mod source;
mod stage;
pub(crate) mod stamp;
mod state;
pub mod unfinished;
mod watch;

pub use changes::{Changes, diff};
pub use destination::Destination;
pub(crate) use directories::Described;
pub(crate) use index::Known;
pub(crate) use many::{Looked, Many, Staged};
pub use partial::Partial;
pub use share::{OpenError, Share, ShareOptions, ShareStats};
pub use source::Source;
pub use unfinished::{Discarded, Unfinished};
