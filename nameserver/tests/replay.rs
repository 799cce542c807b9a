//! Random histories of the registry: a storage loads the state that the registry holds, a roll-back leaves no trace,
//! and the rules of `docs/names.md` and `docs/election.md` hold after every step.
#![expect(clippy::unwrap_used, reason = "an unexpected error fails the test")]

use std::{collections::BTreeMap, time::Duration};

use nameserver::{
    registry::{Change, Registry, Snapshot, lease::Lease},
    storage::{Storage, memory::MemoryStorage, redb::RedbStorage},
};
use proptest::{prelude::*, test_runner::FileFailurePersistence};
use shared::{
    epoch::Epoch,
    id::{Incarnation, PeerId, Role},
    name::Name,
    rpc::nameserver::{Claim, Condition, LeaseRequest, ListQuery, Register, Revision, Selector},
    time::Timestamp,
};

const PEERS: [&str; 4] = ["a", "b", "c", "d"];

#[derive(Debug, Clone)]
enum Step {
    Wait(u64),
    Register {
        caller: usize,
        name: usize,
        incarnation: u64,
        safe: bool,
        lease: u64,
    },
    Renew {
        caller: usize,
        name: usize,
        incarnation: u64,
    },
    Tags {
        caller: usize,
        name: usize,
        tag: u8,
    },
    Remove {
        caller: usize,
        name: usize,
    },
    RemoveAll {
        caller: usize,
    },
    Claim {
        caller: usize,
        ahead: u64,
        behind: u64,
        votes: u8,
        force: bool,
    },
    RenewSeat {
        caller: usize,
    },
    Resign {
        caller: usize,
    },
    Expire,
    /// The pending changes are committed, or the commit fails.
    Commit {
        fails: bool,
    },
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let caller = 0..=PEERS.len();
    let name = 0..6usize;
    let step = prop_oneof![
        2 => (0..1500u64).prop_map(Step::Wait),
        4 => (caller.clone(), name.clone(), 0..3u64, any::<bool>(), 0..4u64)
            .prop_map(|(caller, name, incarnation, safe, lease)| {
                Step::Register { caller, name, incarnation, safe, lease }
            }),
        2 => (caller.clone(), name.clone(), 0..3u64)
            .prop_map(|(caller, name, incarnation)| Step::Renew { caller, name, incarnation }),
        1 => (caller.clone(), name.clone(), 0..3u8).prop_map(|(caller, name, tag)| Step::Tags { caller, name, tag }),
        1 => (caller.clone(), name).prop_map(|(caller, name)| Step::Remove { caller, name }),
        1 => caller.clone().prop_map(|caller| Step::RemoveAll { caller }),
        4 => (caller.clone(), 0..3u64, 0..2u64, any::<u8>(), any::<bool>())
            .prop_map(|(caller, ahead, behind, votes, force)| Step::Claim { caller, ahead, behind, votes, force }),
        2 => caller.clone().prop_map(|caller| Step::RenewSeat { caller }),
        1 => caller.prop_map(|caller| Step::Resign { caller }),
        1 => Just(Step::Expire),
        4 => prop::bool::weighted(0.2).prop_map(|fails| Step::Commit { fails }),
        1 => Just(Step::Restart),
    ];
    prop::collection::vec(step, 1..80)
}

fn role(caller: usize) -> Role {
    PEERS.get(caller).map_or(Role::Admin, |id| Role::Peer(id.parse().unwrap()))
}

/// Names 0 and 1 are common; the others are the peers' own names.
fn name(number: usize) -> String {
    match number {
        0 | 1 => format!("service.{number}"),
        _ => format!("peer.{}", PEERS[number - 2]),
    }
}

fn step(registry: &mut Registry, now: Timestamp, step: Step) {
    let seat = registry.seat(now);
    // Errors are expected; the checks after the step inspect the resulting state.
    match step {
        Step::Register { caller, name: number, incarnation, safe, lease } => drop(registry.register(
            now,
            &role(caller),
            Register {
                name: name(number),
                uri: format!("quic://host:{}", 1 + incarnation),
                tags: None,
                lease: if lease == 0 { LeaseRequest::Permanent } else { LeaseRequest::For(Duration::from_secs(lease)) },
                condition: if safe { Condition::IfAbsent } else { Condition::Always },
                incarnation: Incarnation(incarnation),
            },
        )),
        Step::Renew { caller, name: number, incarnation } => {
            drop(registry.renew(now, &role(caller), &name(number), Incarnation(incarnation)));
        }
        Step::Tags { caller, name: number, tag } => {
            drop(registry.set_metadata(now, &role(caller), &name(number), vec![format!("t{tag}")]));
        }
        Step::Remove { caller, name: number } => {
            let selector = Selector { name: Some(name(number)), ..Selector::default() };
            drop(registry.remove(now, &role(caller), selector));
        }
        Step::RemoveAll { caller } => {
            let selector = Selector { regex: Some(".*".to_owned()), ..Selector::default() };
            drop(registry.remove(now, &role(caller), selector));
        }
        Step::Claim { caller, ahead, behind, votes, force } => {
            let votes = PEERS.iter().enumerate().filter(|(bit, _)| votes >> bit & 1 == 1);
            let claim = Claim {
                epoch: Epoch(seat.epoch_high.0 + ahead),
                expected_epoch: Epoch(seat.epoch_high.0.saturating_sub(behind)),
                endpoint: "quic://host:7".parse().unwrap(),
                votes: votes.map(|(_, id)| id.parse().unwrap()).collect(),
                force,
            };
            check_claim(registry, now, &role(caller), claim);
        }
        Step::RenewSeat { caller } => drop(registry.renew_seat(now, &role(caller), seat.epoch_high)),
        Step::Resign { caller } => drop(registry.resign(now, &role(caller), seat.epoch_high)),
        Step::Expire => registry.expire(now),
        Step::Wait(_) | Step::Commit { .. } | Step::Restart => {}
    }
}

/// Makes a claim and checks the properties S1, S2, S4 and S8 of `docs/election.md` through the public interface.
fn check_claim(registry: &mut Registry, now: Timestamp, caller: &Role, claim: Claim) {
    let before = registry.seat(now);
    let peers = live_peers(registry, now);
    let granted = registry.claim(now, caller, claim.clone());
    let after = registry.seat(now);
    let Ok(grant) = granted else {
        assert_eq!(after, before, "a refused claim changes nothing");
        return;
    };
    assert!(grant.epoch > before.epoch_high && claim.expected_epoch == before.epoch_high);
    assert_eq!(after.epoch_high, grant.epoch);
    assert_eq!(after.seat.as_ref().map(|seat| (seat.epoch, Some(&seat.peer))), Some((grant.epoch, caller.peer())));
    assert!(peers.contains(caller.peer().expect("only a peer is granted a seat")));
    if let Some(incumbent) = before.seat {
        let voters = peers.iter().filter(|id| claim.votes.contains(id)).count();
        let others = peers.iter().filter(|id| **id != incumbent.peer).count();
        assert!(voters * 2 > others, "{voters} of {others} others are no majority");
    }
}

fn live_peers(registry: &Registry, now: Timestamp) -> Vec<PeerId> {
    let query = ListQuery { prefix: Some("peer.".to_owned()), ..ListQuery::default() };
    let page = registry.page(now, &query.try_into().unwrap());
    page.records.iter().filter_map(|record| record.name.as_peer()).collect()
}

/// Checks the invariants of every state.
fn check(registry: &Registry, now: Timestamp) {
    let snapshot = registry.snapshot();
    for (name, row) in &snapshot.names {
        if let Some(id) = name.as_peer() {
            assert_eq!(row.owner, Role::Peer(id), "a peer's name belongs to another identity");
        }
        assert_eq!(row.lease == Lease::Seat, name.as_tracker().is_some());
        assert!(row.lease != Lease::Permanent || row.owner == Role::Admin);
        assert!(row.revision <= snapshot.revision);
    }
    let trackers: Vec<_> = snapshot.names.keys().filter_map(Name::as_tracker).collect();
    let seat: Vec<_> = snapshot.seat.iter().map(|seat| seat.epoch).collect();
    assert_eq!(trackers, seat, "the seat and the tracker's name differ");
    assert!(seat.iter().all(|epoch| *epoch == snapshot.epoch_high));
    let page = registry.page(now, &ListQuery::default().try_into().unwrap());
    assert_eq!(page.records.len() as u64, registry.count(now));
    for record in page.records {
        assert_eq!(registry.lookup(now, record.name.as_str()), Ok(record));
    }
}

fn run(mut storage: impl Storage, steps: Vec<Step>) {
    let mut now = Timestamp::from_origin(Duration::from_secs(5));
    let mut registry = Registry::restore(storage.load().unwrap(), now);
    let mut durable = Snapshot::default();
    let mut winners: BTreeMap<Epoch, PeerId> = BTreeMap::new();
    for next in steps {
        match next {
            Step::Wait(millis) => now += Duration::from_millis(millis),
            Step::Commit { fails: false } => {
                storage.commit(registry.pending(), durable.revision).unwrap();
                for mutation in registry.pending() {
                    if let Change::SeatTaken(seat) = &mutation.change {
                        assert!(seat.epoch > durable.epoch_high);
                        assert_eq!(winners.insert(seat.epoch, seat.peer.clone()), None, "an epoch was granted twice");
                    }
                    durable.apply(mutation);
                }
                registry.settle();
                assert_eq!(storage.load().unwrap(), durable);
                assert_eq!(registry.snapshot(), durable);
            }
            Step::Commit { fails: true } => {
                registry.roll_back();
                assert_eq!(registry.snapshot(), durable, "a rolled-back change is visible");
            }
            Step::Restart => {
                registry = Registry::restore(storage.load().unwrap(), now);
                assert_eq!(registry.snapshot(), durable);
            }
            other => step(&mut registry, now, other),
        }
        check(&registry, now);
        let numbers = registry.pending().iter().map(|mutation| mutation.revision.0);
        assert!(numbers.eq(durable.revision.0 + 1..=registry.revision().0), "revisions have no gaps");
    }
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config(400))]
    #[test]
    fn random_history_replays_from_memory(steps in steps()) {
        run(MemoryStorage::default(), steps);
    }
}

proptest! {
    #![proptest_config(config(12))]
    #[test]
    fn random_history_replays_from_redb(steps in steps()) {
        let folder = tempfile::tempdir().unwrap();
        run(RedbStorage::open(&folder.path().join("registry.redb")).unwrap(), steps);
    }
}

/// The steps of the histories are effective: majorities take seats, and names expire.
#[test]
fn steps_of_histories_change_the_registry() {
    let mut registry = Registry::restore(Snapshot::default(), Timestamp::ZERO);
    for caller in 0..3 {
        let register = Step::Register { caller, name: caller + 2, incarnation: 1, safe: false, lease: 3 };
        step(&mut registry, Timestamp::ZERO, register);
    }
    assert_eq!(live_peers(&registry, Timestamp::ZERO).len(), 3);
    let claim = |caller, votes, force| Step::Claim { caller, ahead: 1, behind: 0, votes, force };
    step(&mut registry, Timestamp::ZERO, claim(0, 0, false));
    step(&mut registry, Timestamp::ZERO, claim(1, 0b110, true));
    let silent = Timestamp::ZERO + nameserver::params::SEAT_SILENCE;
    step(&mut registry, silent, claim(2, 0b101, false));
    assert_eq!(registry.seat(silent).epoch_high, Epoch(3));
    step(&mut registry, Timestamp::from_origin(Duration::from_secs(4)), Step::Expire);
    assert!(registry.snapshot().names.is_empty());
    assert!(registry.revision() > Revision(10));
}
