//! Whether the receiver of an upload is still there: a slot is not for those who went without a word.
//!
//! | what the connection counted since the last look | what it means |
//! |---|---|
//! | acknowledgements | it is there |
//! | nothing sent since it was last heard | nothing had to be answered: a low rate, a receiver that takes its time |
//! | sent, and not answered | a look more; after [`UNACKNOWLEDGED_SAMPLES`] of them it is not heard |
//!
//! A sender whose data are not acknowledged sends probes (RFC 9002 section 6.2), so that silence shows even when its
//! congestion window is full.

use crate::upload::params::UNACKNOWLEDGED_SAMPLES;

/// What was seen of one connection; look at it every [`LOOK`](shared::limits::LOOK).
#[derive(Debug, Default)]
pub struct Hearing {
    /// Acknowledgements at the last look.
    heard: u64,
    /// Frames sent when that count last changed.
    sent: u64,
    unanswered: u32,
}

impl Hearing {
    /// Takes what a connection counted so far: frames sent that must be acknowledged, and acknowledgements received.
    /// Tells whether its other end is not heard any more.
    ///
    /// Looks count, not time: a process that was stopped for a while has looked once.
    pub fn look(&mut self, sent: u64, heard: u64) -> bool {
        if heard != self.heard {
            *self = Self { heard, sent, unanswered: 0 };
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
    fn one_that_answers_is_heard_for_ever() {
        let mut hearing = Hearing::default();
        assert!((1..1000).all(|look| !hearing.look(look * 100, look)));
    }

    #[test]
    fn one_that_does_not_answer_is_not_heard_after_some_looks() {
        let mut hearing = Hearing::default();
        assert!(!hearing.look(100, 10));
        let looks = (1..100).find(|look| hearing.look(100 + look, 10));
        assert_eq!(looks, Some(u64::from(UNACKNOWLEDGED_SAMPLES)));
    }

    #[test]
    fn one_that_has_nothing_to_answer_is_heard() {
        let mut hearing = Hearing::default();
        assert!((0..1000).all(|_| !hearing.look(100, 10)));
    }

    #[test]
    fn a_late_answer_counts() {
        let mut hearing = Hearing::default();
        for look in 0..100 {
            for sent in 0..u64::from(UNACKNOWLEDGED_SAMPLES) {
                assert!(!hearing.look(look * 100 + sent, 10 + look), "look {look}, {sent}");
            }
        }
    }
}
