//! Detection of receivers that are so slow that their slot is of more use to waiting requests.
//!
//! | progress over the last [`SLOW_RECEIVER_SAMPLES`] samples | meaning |
//! |---|---|
//! | none | the receiver does not read, or has granted no flow-control credit for a while |
//! | less than the average of all uploads divided by [`SLOW_RECEIVER_FRACTION`] | the path or the receiver is slow |
//! | more | the receiver uses its slot |
//!
//! A receiver grants credit in steps of an eighth of a window, so the samples must cover several steps.
//!
//! A sender cannot tell a receiver that reads slowly on purpose from one on a bad link. It therefore takes nothing from
//! either but the slot ([`UploadQueue::demote`](super::queue::UploadQueue::demote)): the upload continues beside the
//! others. The measure is the progress of other uploads, not a rate: where this peer's own uplink or cap is slow, all
//! uploads are, and more of them at a time would not help.

use std::collections::VecDeque;

use super::params::{SLOW_RECEIVER_FRACTION, SLOW_RECEIVER_SAMPLES};

/// Detector for one upload, to be sampled every [`MONITOR_INTERVAL`](super::params::MONITOR_INTERVAL).
#[derive(Debug, Default)]
pub struct SlowReceiverDetector {
    /// Bytes of this upload and of all uploads at the last samples, the oldest first.
    samples: VecDeque<(u64, u64)>,
}

impl SlowReceiverDetector {
    /// Takes the totals of bytes that the streams of this upload and of all uploads accepted, and the number of
    /// uploads. Returns whether this upload is too slow for a slot that others wait for.
    pub fn sample(&mut self, bytes: u64, all_bytes: u64, uploads: u64) -> bool {
        self.samples.push_back((bytes, all_bytes));
        if self.samples.len() <= SLOW_RECEIVER_SAMPLES {
            return false;
        }
        let Some((bytes_then, all_bytes_then)) = self.samples.pop_front() else { return false };
        let progress = bytes.saturating_sub(bytes_then);
        let average = all_bytes.saturating_sub(all_bytes_then) / uploads.max(1);
        progress == 0 || progress < average / SLOW_RECEIVER_FRACTION
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLES: u64 = SLOW_RECEIVER_SAMPLES as u64;

    /// Index of the first of a hundred samples at which an upload of `own` bytes per sample is slow, beside seven
    /// others of `theirs`.
    fn slow_at(own: impl Fn(u64) -> u64, theirs: u64) -> Option<u64> {
        let mut detector = SlowReceiverDetector::default();
        let mut bytes = 0;
        (0..100).find(|&sample| {
            bytes += own(sample);
            detector.sample(bytes, bytes + 7 * theirs * sample, 8)
        })
    }

    #[test]
    fn receiver_without_progress_is_slow_even_when_all_stand_still() {
        assert_eq!(slow_at(|_| 0, 0), Some(SAMPLES));
        assert_eq!(slow_at(|_| 0, 1 << 20), Some(SAMPLES));
        // Once less than a sixteenth of the earlier progress is left in the window.
        let stops = slow_at(|sample| if sample < 50 { 1 << 20 } else { 0 }, 1 << 20);
        assert!(stops.is_some_and(|sample| (50 + SAMPLES - 3..50 + SAMPLES).contains(&sample)), "{stops:?}");
    }

    #[test]
    fn receiver_far_below_the_average_is_slow() {
        assert_eq!(slow_at(|sample| u64::from(sample % 10 == 0), 1 << 20), Some(SAMPLES));
        assert_eq!(slow_at(|_| 4 << 10, 1 << 20), Some(SAMPLES));
    }

    #[test]
    fn receiver_near_the_average_is_not_slow() {
        assert_eq!(slow_at(|_| 500, 500), None, "a slow uplink");
        assert_eq!(slow_at(|_| 100 << 10, 1 << 20), None);
        // In steps, as flow-control windows open.
        assert_eq!(slow_at(|sample| if sample % (SAMPLES / 2) == 0 { 3 << 19 } else { 0 }, 1 << 20), None);
    }
}
