//! Network impairments, and the verdict they give on each datagram. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::topology::Host;

/// Quality of every link, with the parameters of `tc-netem(8)`.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct LinkQuality {
    /// Fraction of datagrams that are lost, 0 to 1.
    pub loss: f64,
    /// Fraction of datagrams that arrive twice, 0 to 1.
    pub duplication: f64,
    /// Delay of every datagram.
    pub delay: Duration,
    /// Upper bound of the random delay on top, which reorders datagrams.
    pub jitter: Duration,
}

/// One impairment of the network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Impairment {
    /// Blocks all traffic between these hosts and all others, in both directions.
    Partition(BTreeSet<Host>),
    /// Blocks traffic from the first hosts to the second ones. Traffic in the other direction passes.
    OneWayCut(BTreeSet<Host>, BTreeSet<Host>),
    /// Degrades every link.
    Degraded(LinkQuality),
}

impl Impairment {
    fn blocks(&self, from: Host, to: Host) -> bool {
        match self {
            Self::Partition(side) => side.contains(&from) != side.contains(&to),
            Self::OneWayCut(senders, receivers) => senders.contains(&from) && receivers.contains(&to),
            Self::Degraded(_) => false,
        }
    }
}

/// Impairments in force, by the number of the fault that caused them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Impairments(pub BTreeMap<usize, Impairment>);

/// Decision on one datagram.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// A partition or a cut blocks it.
    Blocked,
    /// A link loses it.
    Lost,
    /// It arrives.
    Delivered {
        /// Delay of the datagram.
        after: Duration,
        /// Delay of its duplicate, if there is one.
        duplicate_after: Option<Duration>,
    },
}

impl Impairments {
    /// Decides on the next datagram from one host to another.
    pub fn verdict(&self, from: Host, to: Host, rng: &mut fastrand::Rng) -> Verdict {
        if self.0.values().any(|impairment| impairment.blocks(from, to)) {
            return Verdict::Blocked;
        }
        let qualities = || {
            self.0.values().filter_map(|impairment| match impairment {
                Impairment::Degraded(quality) => Some(*quality),
                _ => None,
            })
        };
        if qualities().any(|quality| rng.f64() < quality.loss) {
            return Verdict::Lost;
        }
        let delay = |rng: &mut fastrand::Rng| {
            qualities().map(|quality| quality.delay + quality.jitter.mul_f64(rng.f64())).sum::<Duration>()
        };
        let after = delay(rng);
        let is_duplicated = qualities().any(|quality| rng.f64() < quality.duplication);
        Verdict::Delivered { after, duplicate_after: is_duplicated.then(|| delay(rng)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdicts(impairments: &[Impairment], from: Host, to: Host) -> Vec<Verdict> {
        let all = Impairments(impairments.iter().cloned().enumerate().collect());
        let mut rng = fastrand::Rng::with_seed(7);
        (0..1000).map(|_| all.verdict(from, to, &mut rng)).collect()
    }

    #[test]
    fn partition_blocks_both_directions_and_one_way_cut_one() {
        let passes = |impairment: &Impairment, from, to| {
            verdicts(std::slice::from_ref(impairment), from, to).iter().all(|verdict| *verdict != Verdict::Blocked)
        };
        let partition = Impairment::Partition([1, 2].into());
        assert!(passes(&partition, 1, 2) && passes(&partition, 3, 4));
        assert!(!passes(&partition, 1, 3) && !passes(&partition, 3, 1));
        let cut = Impairment::OneWayCut([1, 2].into(), [3].into());
        assert!(!passes(&cut, 2, 3));
        assert!(passes(&cut, 3, 2) && passes(&cut, 2, 4) && passes(&cut, 1, 2));
    }

    #[test]
    fn degraded_link_loses_duplicates_and_delays_the_given_fractions() {
        let ms = Duration::from_millis;
        let quality = LinkQuality { loss: 0.1, duplication: 0.2, delay: ms(10), jitter: ms(5) };
        let verdicts = verdicts(&[Impairment::Degraded(quality)], 1, 2);
        let lost = verdicts.iter().filter(|verdict| **verdict == Verdict::Lost).count();
        assert!((60..140).contains(&lost), "{lost} of 1000 datagrams are lost");
        let duplicated =
            verdicts.iter().filter(|verdict| matches!(verdict, Verdict::Delivered { duplicate_after: Some(_), .. }));
        let duplicated = duplicated.count();
        assert!((130..230).contains(&duplicated), "{duplicated} of 900 datagrams are duplicated");
        for verdict in &verdicts {
            if let Verdict::Delivered { after, .. } = verdict {
                assert!((ms(10)..=ms(15)).contains(after), "{after:?}");
            }
        }
    }

    #[test]
    fn network_without_impairments_delivers_without_delay() {
        let delivered = Verdict::Delivered { after: Duration::ZERO, duplicate_after: None };
        assert!(verdicts(&[], 1, 2).iter().all(|verdict| *verdict == delivered));
    }
}
