//! Deadlines that do not count the time for which this process is suspended.

use std::{pin::pin, time::Duration};

use tokio::time::sleep;

/// Deadline of a process to start, to exit, or to answer a control message: many times what a busy machine needs.
pub const PROCESS_DEADLINE: Duration = Duration::from_secs(30);
/// Unit in which a wait is counted. However long this process is suspended, the suspension costs one unit.
const UNIT: Duration = Duration::from_millis(250);

/// Returns the output of `work`, or `None` when it takes longer than `limit`.
///
/// A machine that is suspended suspends the relay as well. The network under test is not at fault, so a suspension does
/// not use up the limit.
pub async fn within<T>(limit: Duration, work: impl Future<Output = T>) -> Option<T> {
    let mut work = pin!(work);
    let mut left = limit;
    loop {
        tokio::select! {
            biased;
            result = &mut work => return Some(result),
            () = sleep(UNIT.min(left)) => left = left.saturating_sub(UNIT),
        }
        if left.is_zero() {
            return None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn within_returns_the_output_or_none_at_the_limit() {
        assert_eq!(within(Duration::from_secs(30), async { 7 }).await, Some(7));
        let never = std::future::pending::<()>();
        assert_eq!(within(Duration::from_millis(300), never).await, None);
    }
}
