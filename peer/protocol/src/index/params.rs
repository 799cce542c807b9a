//! Bounds and timings of `index`, each with its unit and reason.

/// Versions of one name in an answer to `who_has`; those with most owners come first.
pub const MAX_VERSIONS_PER_ANSWER: usize = 32;
