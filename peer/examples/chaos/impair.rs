//! What happens to a datagram on its way from one machine to another. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde::{Deserialize, Serialize};

/// A machine's number: the last part of its address.
pub type Host = u8;

/// The nameserver's machine; the peers' follow.
pub const NAMESERVER: Host = 1;

/// How the network is, the same between all machines.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Weather {
    /// Share of the datagrams that are lost.
    pub loss: f64,
    /// Share of the datagrams that arrive twice.
    pub twice: f64,
    /// How long each is under way.
    pub delay: Duration,
    /// How much longer some are, at most: these are overtaken by later ones.
    pub jitter: Duration,
}

/// Something that is wrong with the network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Impairment {
    /// Nothing passes between these machines and all others.
    Partition(BTreeSet<Host>),
    /// Nothing passes from the first to the second; all passes from the second to the first.
    Cut(BTreeSet<Host>, BTreeSet<Host>),
    /// Nothing is safe on its way.
    Weather(Weather),
}

impl Impairment {
    fn blocks(&self, from: Host, to: Host) -> bool {
        match self {
            Self::Partition(side) => side.contains(&from) != side.contains(&to),
            Self::Cut(senders, receivers) => senders.contains(&from) && receivers.contains(&to),
            Self::Weather(_) => false,
        }
    }
}

/// All that is wrong at present, by the number of the fault.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Impairments(pub BTreeMap<usize, Impairment>);

/// What becomes of a datagram.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// It meets a cut.
    Cut,
    /// It is lost on its way.
    Lost,
    /// It arrives after this time, perhaps again after the other.
    Arrives(Duration, Option<Duration>),
}

impl Impairments {
    /// The fate of the next datagram from one machine to another.
    pub fn fate(&self, from: Host, to: Host, random: &mut fastrand::Rng) -> Fate {
        if self.0.values().any(|impairment| impairment.blocks(from, to)) {
            return Fate::Cut;
        }
        let weather = || {
            self.0.values().filter_map(|impairment| match impairment {
                Impairment::Weather(weather) => Some(*weather),
                _ => None,
            })
        };
        if weather().any(|weather| random.f64() < weather.loss) {
            return Fate::Lost;
        }
        let travel = |random: &mut fastrand::Rng| {
            weather().map(|weather| weather.delay + weather.jitter.mul_f64(random.f64())).sum::<Duration>()
        };
        let first = travel(random);
        let is_doubled = weather().any(|weather| random.f64() < weather.twice);
        Fate::Arrives(first, is_doubled.then(|| travel(random)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fates(impairments: &[Impairment], from: Host, to: Host) -> Vec<Fate> {
        let all = Impairments(impairments.iter().cloned().enumerate().collect());
        let mut random = fastrand::Rng::with_seed(7);
        (0..1000).map(|_| all.fate(from, to, &mut random)).collect()
    }

    #[test]
    fn a_partition_cuts_both_ways_and_a_cut_one() {
        let passes = |impairment: &Impairment, from, to| {
            fates(std::slice::from_ref(impairment), from, to).iter().all(|fate| *fate != Fate::Cut)
        };
        let partition = Impairment::Partition([1, 2].into());
        assert!(passes(&partition, 1, 2) && passes(&partition, 3, 4));
        assert!(!passes(&partition, 1, 3) && !passes(&partition, 3, 1));
        let cut = Impairment::Cut([1, 2].into(), [3].into());
        assert!(!passes(&cut, 2, 3));
        assert!(passes(&cut, 3, 2) && passes(&cut, 2, 4) && passes(&cut, 1, 2));
    }

    #[test]
    fn weather_loses_doubles_and_delays_the_share_it_says() {
        let ms = Duration::from_millis;
        let weather = Weather { loss: 0.1, twice: 0.2, delay: ms(10), jitter: ms(5) };
        let fates = fates(&[Impairment::Weather(weather)], 1, 2);
        let lost = fates.iter().filter(|fate| **fate == Fate::Lost).count();
        assert!((60..140).contains(&lost), "{lost} of 1000");
        let doubled = fates.iter().filter(|fate| matches!(fate, Fate::Arrives(_, Some(_)))).count();
        assert!((130..230).contains(&doubled), "{doubled} of 900");
        for fate in &fates {
            if let Fate::Arrives(first, _) = fate {
                assert!((ms(10)..=ms(15)).contains(first), "{first:?}");
            }
        }
    }

    #[test]
    fn without_impairments_all_arrives_at_once() {
        assert!(fates(&[], 1, 2).iter().all(|fate| *fate == Fate::Arrives(Duration::ZERO, None)));
    }
}
