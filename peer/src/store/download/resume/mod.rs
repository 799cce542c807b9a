//! What is proven of a partial file, whatever ends the process: the format, the journal that writes it, and its recovery.

pub mod format;
pub(crate) mod journal;
pub(crate) mod recover;
