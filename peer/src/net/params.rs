//! Bounds and timings of `net`, each with its unit and reason.

/// Renewals in the term of a lease: with 3, two renewals may be lost.
pub const LEASE_RENEWALS_PER_TERM: u32 = 3;
