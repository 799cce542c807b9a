//! One file of a download, as planned.

use crate::download::params;
use std::{collections::BTreeMap, path::PathBuf};

use shared::{contact::Contact, content::FileMeta, id::PeerId, limits, name::Endpoint};

/// A file to fetch and its known providers.
pub(crate) struct Job {
    pub(crate) file: FileMeta,
    /// Known providers, in the order in which they are tried.
    pub(crate) providers: Vec<Contact>,
    /// Destination outside of the share.
    pub(crate) to: Option<PathBuf>,
    /// True if other receivers of the file may be asked too. False if the user names the provider.
    pub(crate) may_ask_receivers: bool,
}

/// Jobs with their positions in the request.
pub(crate) type NumberedJobs = Vec<(usize, Job)>;

/// Splits jobs into those that travel in packs and those that do not. A single small file travels like a large one.
pub(crate) fn split_by_size(jobs: NumberedJobs) -> (NumberedJobs, NumberedJobs) {
    let (packed, mut large): (NumberedJobs, NumberedJobs) =
        jobs.into_iter().partition(|(_, job)| job.file.size <= limits::MAX_PACKED_FILE_BYTES);
    if packed.len() >= params::MIN_PACKED_FILES {
        return (packed, large);
    }
    large.extend(packed);
    (Vec::new(), large)
}

/// Returns the providers in the order in which they are tried: shuffled, so that many receivers spread over them, and
/// this peer last.
pub(crate) fn shuffled(
    owners: Vec<PeerId>,
    only: Option<&PeerId>,
    endpoints: &BTreeMap<PeerId, Endpoint>,
    me: &PeerId,
) -> Vec<Contact> {
    let wanted = owners.into_iter().filter(|owner| only.is_none_or(|only| only == owner));
    let mut contacts: Vec<Contact> =
        wanted.filter_map(|peer| Some(Contact { endpoint: endpoints.get(&peer)?.clone(), peer })).collect();
    fastrand::shuffle(&mut contacts);
    contacts.sort_by_key(|contact| contact.peer == *me);
    contacts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(id: &str) -> PeerId {
        id.parse().unwrap()
    }

    #[test]
    fn providers_are_tried_once_each_and_this_peer_last() {
        let endpoint: Endpoint = "quic://127.0.0.1:1".parse().unwrap();
        let endpoints: BTreeMap<_, _> = ["a", "b", "c"].into_iter().map(|id| (peer(id), endpoint.clone())).collect();
        let owners = || vec![peer("a"), peer("b"), peer("c"), peer("gone")];
        for _ in 0..20 {
            let shuffled = shuffled(owners(), None, &endpoints, &peer("a"));
            let mut ids: Vec<_> = shuffled.into_iter().map(|contact| contact.peer).collect();
            assert_eq!(ids.pop(), Some(peer("a")));
            ids.sort();
            assert_eq!(ids, [peer("b"), peer("c")]);
        }
        assert_eq!(shuffled(owners(), Some(&peer("c")), &endpoints, &peer("a")).len(), 1);
    }
}
