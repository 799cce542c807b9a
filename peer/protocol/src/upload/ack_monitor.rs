//! Detection of receivers that are gone although their connection is still open.
//!
//! | counters of the connection since the last sample | meaning |
//! |---|---|
//! | acknowledgements arrived | the receiver responds |
//! | nothing was sent since the last acknowledgement | nothing to acknowledge: a low rate, or a slow reader |
//! | data was sent and not acknowledged | unanswered; after [`UNACKNOWLEDGED_SAMPLES`] of them the receiver is gone |
//!
//! A sender whose data is not acknowledged sends probes (RFC 9002 section 6.2), so a missing receiver shows even when
//! the congestion window is full.

use super::params::UNACKNOWLEDGED_SAMPLES;

/// Monitor of one connection, to be sampled every [`MONITOR_INTERVAL`](super::params::MONITOR_INTERVAL).
#[derive(Debug, Default)]
pub struct AckMonitor {
    /// Acknowledgements received by the last sample.
    acknowledged: u64,
    /// Frames sent when that count last changed.
    sent: u64,
    unanswered: u32,
}

impl AckMonitor {
    /// Takes the connection's totals: ack-eliciting frames sent and acknowledgements received. Returns whether the
    /// receiver is gone.
    ///
    /// Counts samples, not time: a process that was suspended has sampled once since, so the pause is no silence of the
    /// receiver.
    pub fn sample(&mut self, sent: u64, acknowledged: u64) -> bool {
        if acknowledged != self.acknowledged {
            *self = Self { acknowledged, sent, unanswered: 0 };
        } else if sent > self.sent {
            self.unanswered += 1;
        }
        self.unanswered >= UNACKNOWLEDGED_SAMPLES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn receiver_that_acknowledges_is_never_gone() {
        let mut monitor = AckMonitor::default();
        assert!((1..1000).all(|sample| !monitor.sample(sample * 100, sample)));
    }

    #[test]
    fn receiver_that_acknowledges_nothing_is_gone_after_the_limit() {
        let mut monitor = AckMonitor::default();
        assert!(!monitor.sample(100, 10));
        let samples = (1..100).find(|sample| monitor.sample(100 + sample, 10));
        assert_eq!(samples, Some(u64::from(UNACKNOWLEDGED_SAMPLES)));
    }

    #[test]
    fn receiver_with_nothing_to_acknowledge_is_never_gone() {
        let mut monitor = AckMonitor::default();
        assert!((0..1000).all(|_| !monitor.sample(100, 10)));
    }

    #[test]
    fn late_acknowledgement_restarts_the_count() {
        let mut monitor = AckMonitor::default();
        for round in 0..100 {
            for sent in 0..u64::from(UNACKNOWLEDGED_SAMPLES) {
                assert!(!monitor.sample(round * 100 + sent, 10 + round), "round {round}, {sent}");
            }
        }
    }
}
