//! Who elects: at most [`MAX_ELECTORS`] peers, chosen so that all who know the same peers choose alike.

use std::collections::BTreeSet;

use crate::{id::PeerId, limits::MAX_ELECTORS};

/// What the electors are drawn with: the same at all times, so that one peer more or less changes at most one of them.
const KEY: &[u8] = b"electors";

/// Place of `peer` in an order that all compute alike and that differs by `key`: lowest first ("highest
/// random weight", Thaler and Ravishankar 1998).
pub fn rendezvous(key: &[u8], peer: &PeerId) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(key.len() as u64).to_le_bytes()).update(key).update(peer.as_str().as_bytes());
    let mut first = [0; 8];
    first.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    u64::from_le_bytes(first)
}

/// The electors among `peers`: all of them, or the [`MAX_ELECTORS`] that come first by rendezvous hash. Costs a hash a
/// peer where there are more.
pub fn electors<'a>(peers: impl IntoIterator<Item = &'a PeerId>) -> BTreeSet<PeerId> {
    let mut placed: Vec<(u64, &PeerId)> = peers.into_iter().map(|peer| (0, peer)).collect();
    if placed.len() > MAX_ELECTORS {
        placed.iter_mut().for_each(|(place, peer)| *place = rendezvous(KEY, peer));
        placed.sort_unstable();
        placed.truncate(MAX_ELECTORS);
    }
    placed.into_iter().map(|(_, peer)| peer.clone()).collect()
}

/// Votes that replace a tracker, with the nameserver's consent: more than half of the electors.
pub const fn majority(electors: usize) -> usize {
    electors / 2 + 1
}

/// Votes that make a tracker without the nameserver. So many that two winners have a voter in common even if one of them
/// knows of a peer more than the other: one more than a majority where that peer took an elector's place.
pub const fn majority_alone(electors: usize) -> usize {
    if electors < MAX_ELECTORS { majority(electors) } else { majority(electors) + 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peers(count: usize) -> Vec<PeerId> {
        (0..count).map(|number| format!("peer{number}").parse().unwrap()).collect()
    }

    #[test]
    fn all_elect_in_a_small_network_and_nine_in_a_large_one() {
        for count in [0, 1, 9, 10, 500] {
            assert_eq!(electors(&peers(count)).len(), count.min(MAX_ELECTORS));
        }
        let mut other_order = peers(500);
        other_order.reverse();
        assert_eq!(electors(&other_order), electors(&peers(500)));
    }

    #[test]
    fn two_majorities_without_the_nameserver_meet_although_a_peer_came_between() {
        for count in 1..200 {
            let (before, after) = (electors(&peers(count)), electors(&peers(count + 1)));
            let all = before.union(&after).count();
            assert!(all <= before.len() + 1);
            assert!(majority_alone(before.len()) + majority_alone(after.len()) > all, "{count}");
        }
    }
}
