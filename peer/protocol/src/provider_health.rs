//! Health of a provider: see the parameters.

use std::time::Duration;

/// Silence after which a provider that owes data counts as failed.
pub const PROVIDER_SILENCE: Duration = Duration::from_secs(2);
/// First wait after a failure or a refusal as busy. Doubles with each one in a row.
pub const PROVIDER_BACKOFF: Duration = Duration::from_millis(250);
/// Maximum wait after a failure or a refusal as busy.
pub const MAX_PROVIDER_BACKOFF: Duration = Duration::from_secs(8);
/// Number of consecutive failures after which a provider is dropped. A frozen one costs its silence each time.
pub const MAX_PROVIDER_FAILURES: u32 = 4;
