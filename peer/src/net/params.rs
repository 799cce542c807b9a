//! Parameters of `net`, each with its unit and reason.

/// Renewals in the term of a lease. With 3, two of them may be lost.
pub const LEASE_RENEWALS_PER_TERM: u32 = 3;
