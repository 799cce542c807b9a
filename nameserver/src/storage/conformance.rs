//! Conformance suite of storages. The tests of each storage call [`run`].

use std::sync::Arc;

use certs::{Fingerprint, JoinToken};
use shared::{
    epoch::Epoch,
    id::{Incarnation, Role},
    name::Name,
    rpc::nameserver::{Revision, Seat},
};

use super::{Storage, StorageError};
use crate::registry::{Change, EnrolmentRow, Mutation, NameRow, Snapshot, TokenRow, lease::Lease};

/// Runs the suite. `create` returns an empty storage; `reopen` closes a storage and opens it like a restart.
pub(super) fn run<S: Storage>(mut create: impl FnMut() -> S, mut reopen: impl FnMut(S) -> S) {
    new_storage_is_empty(create());
    commit_is_loaded_after_reopening(create(), &mut reopen);
    commit_after_another_revision_changes_nothing(create(), &mut reopen);
    long_history_is_loaded_after_reopening(create(), &mut reopen);
}

fn new_storage_is_empty(mut storage: impl Storage) {
    assert_eq!(storage.load().unwrap(), Snapshot::default());
    storage.commit(&[], Revision(0)).unwrap();
    assert_eq!(storage.load().unwrap(), Snapshot::default());
}

fn commit_is_loaded_after_reopening<S: Storage>(mut storage: S, reopen: &mut impl FnMut(S) -> S) {
    let (id, token) = token();
    let steps: Vec<Vec<Change>> = vec![
        vec![put("unicode\u{20ac}", 1), put("b", 2), put("a", 3)],
        vec![Change::SeatTaken(seat(7)), Change::TokenPut(id, token.clone())],
        vec![
            Change::NameRemoved(name("b")),
            Change::Enrolled("peer1".parse().unwrap(), EnrolmentRow { key: [9; 32], token: Some(id) }),
        ],
        vec![put("a", 4), Change::TokenPut(id, TokenRow { uses_left: 0, ..token })],
        vec![Change::SeatVacated(Epoch(7))],
        vec![Change::SeatTaken(seat(9)), Change::TokenRemoved(id)],
        // Removing a missing row is not an error: the registry decides, the storage only applies.
        vec![Change::NameRemoved(name("never there")), Change::SeatVacated(Epoch(9))],
    ];
    let mut expected = Snapshot::default();
    for changes in steps {
        let mutations = numbered(expected.revision, changes);
        storage.commit(&mutations, expected.revision).unwrap();
        mutations.iter().for_each(|mutation| expected.apply(mutation));
        assert_eq!(storage.load().unwrap(), expected);
        storage = reopen(storage);
        assert_eq!(storage.load().unwrap(), expected);
    }
    assert_eq!(expected.epoch_high, Epoch(9), "the highest epoch was lost with its seat");
}

fn commit_after_another_revision_changes_nothing<S: Storage>(mut storage: S, reopen: &mut impl FnMut(S) -> S) {
    let first = numbered(Revision(0), vec![put("a", 1), put("b", 2)]);
    storage.commit(&first, Revision(0)).unwrap();
    let before = storage.load().unwrap();

    let stale = numbered(Revision(0), vec![put("c", 1)]);
    let refused = storage.commit(&stale, Revision(0));
    assert!(matches!(refused, Err(StorageError::Conflict { actual: Revision(2), .. })), "{refused:?}");
    let ahead = numbered(Revision(5), vec![put("c", 6)]);
    assert!(matches!(storage.commit(&ahead, Revision(5)), Err(StorageError::Conflict { .. })));
    // The second change leaves a gap, so the first must not be applied either.
    let mut gap = numbered(Revision(2), vec![put("c", 3), put("d", 4)]);
    gap[1].revision = Revision(5);
    assert!(matches!(storage.commit(&gap, Revision(2)), Err(StorageError::Conflict { .. })));

    assert_eq!(storage.load().unwrap(), before);
    storage = reopen(storage);
    assert_eq!(storage.load().unwrap(), before);
    let next = numbered(Revision(2), vec![put("c", 3)]);
    storage.commit(&next, Revision(2)).unwrap();
}

fn long_history_is_loaded_after_reopening<S: Storage>(mut storage: S, reopen: &mut impl FnMut(S) -> S) {
    let mut random = fastrand::Rng::with_seed(1);
    let mut expected = Snapshot::default();
    for _ in 0..40 {
        let changes = (0..random.usize(1..50)).map(|_| {
            let text = format!("name{}", random.u8(0..40));
            if random.u8(0..3) == 0 { Change::NameRemoved(name(&text)) } else { put(&text, random.u64(..)) }
        });
        let mutations = numbered(expected.revision, changes.collect());
        storage.commit(&mutations, expected.revision).unwrap();
        mutations.iter().for_each(|mutation| expected.apply(mutation));
    }
    assert_eq!(reopen(storage).load().unwrap(), expected);
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn put(text: &str, incarnation: u64) -> Change {
    let row = NameRow {
        uri: "quic://[::1]:9090".parse().unwrap(),
        tags: vec!["a".parse().unwrap(), "b".parse().unwrap()],
        owner: Role::Peer("peer1".parse().unwrap()),
        lease: Lease::For(std::time::Duration::from_millis(1500)),
        incarnation: Incarnation(incarnation),
        revision: Revision(1),
    };
    Change::NamePut(name(text), Arc::new(row))
}

fn seat(epoch: u64) -> Seat {
    Seat { epoch: Epoch(epoch), peer: "peer1".parse().unwrap(), endpoint: "quic://10.0.0.1:1".parse().unwrap() }
}

fn token() -> (certs::TokenId, TokenRow) {
    let token = JoinToken::new(Fingerprint([1; 32]), Vec::new()).unwrap();
    let for_peer = Some("peer2".parse().unwrap());
    (token.id(), TokenRow { proof_key: token.proof_key(), expires_micros: u64::MAX, uses_left: 3, for_peer })
}

fn numbered(after: Revision, changes: Vec<Change>) -> Vec<Mutation> {
    let revisions = after.0 + 1..;
    changes.into_iter().zip(revisions).map(|(change, number)| Mutation { revision: Revision(number), change }).collect()
}
