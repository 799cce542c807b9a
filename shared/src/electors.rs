//! Selection of the electors: at most [`MAX_ELECTORS`] peers. Members that know the same peers select the same
//! electors.

use std::collections::BTreeSet;

use crate::{id::PeerId, limits::MAX_ELECTORS};

/// Salt of the rendezvous hash that selects the electors. It is constant, so adding or removing one peer replaces at
/// most one elector.
const RENDEZVOUS_SALT: &[u8] = b"electors";

/// Returns the rendezvous hash of `peer`. Every member computes the same order for one `salt`; lower values come first
/// ("highest random weight", Thaler and Ravishankar 1998).
pub fn rendezvous(salt: &[u8], peer: &PeerId) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(salt.len() as u64).to_le_bytes()).update(salt).update(peer.as_str().as_bytes());
    let mut first = [0; 8];
    first.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    u64::from_le_bytes(first)
}

/// Returns the electors among `peers`: all of them, or the [`MAX_ELECTORS`] with the lowest rendezvous hashes. Computes
/// one hash per peer if there are more than [`MAX_ELECTORS`].
pub fn electors<'a>(peers: impl IntoIterator<Item = &'a PeerId>) -> BTreeSet<PeerId> {
    let mut ranked: Vec<(u64, &PeerId)> = peers.into_iter().map(|peer| (0, peer)).collect();
    if ranked.len() > MAX_ELECTORS {
        ranked.iter_mut().for_each(|(rank, peer)| *rank = rendezvous(RENDEZVOUS_SALT, peer));
        ranked.sort_unstable();
        ranked.truncate(MAX_ELECTORS);
    }
    ranked.into_iter().map(|(_, peer)| peer.clone()).collect()
}

/// Returns the number of votes that replaces a tracker with the nameserver's consent: more than half of the electors.
pub const fn majority(electors: usize) -> usize {
    electors / 2 + 1
}

/// Returns the number of votes that elects a tracker while the nameserver is unreachable.
///
/// Two quorums share a voter even if one candidate knows one peer more than the other. In a network with
/// [`MAX_ELECTORS`] or more peers that peer can replace an elector, so the quorum there is one vote above the majority.
pub const fn provisional_quorum(electors: usize) -> usize {
    if electors < MAX_ELECTORS { majority(electors) } else { majority(electors) + 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peers(count: usize) -> Vec<PeerId> {
        (0..count).map(|number| format!("peer{number}").parse().unwrap()).collect()
    }

    #[test]
    fn electors_of_a_large_network_are_limited_and_independent_of_order() {
        for count in [0, 1, 9, 10, 500] {
            assert_eq!(electors(&peers(count)).len(), count.min(MAX_ELECTORS));
        }
        let mut other_order = peers(500);
        other_order.reverse();
        assert_eq!(electors(&other_order), electors(&peers(500)));
    }

    #[test]
    fn provisional_quorums_before_and_after_a_join_share_a_voter() {
        for count in 1..200 {
            let (before, after) = (electors(&peers(count)), electors(&peers(count + 1)));
            let all = before.union(&after).count();
            assert!(all <= before.len() + 1);
            assert!(provisional_quorum(before.len()) + provisional_quorum(after.len()) > all, "{count}");
        }
    }
}
