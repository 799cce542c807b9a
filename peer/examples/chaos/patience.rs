//! Waiting with a deadline that a pause of the whole machine does not use up.

use std::{pin::pin, time::Duration};

use tokio::time::sleep;

/// Steps in which a wait is counted. Of a step in which this process itself was stopped, only so much counts.
const STEP: Duration = Duration::from_millis(250);

/// What `work` gives; `None` when it takes longer than `limit`. Whoever stops this process stops the network with it, which is
/// no fault of the network.
pub async fn within<T>(limit: Duration, work: impl Future<Output = T>) -> Option<T> {
    let mut work = pin!(work);
    let mut left = limit;
    loop {
        tokio::select! {
            biased;
            result = &mut work => return Some(result),
            () = sleep(STEP.min(left)) => left = left.saturating_sub(STEP),
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
    async fn a_wait_ends_with_the_work_or_at_the_limit() {
        assert_eq!(within(Duration::from_secs(30), async { 7 }).await, Some(7));
        let never = std::future::pending::<()>();
        assert_eq!(within(Duration::from_millis(300), never).await, None);
    }
}
