//! Liveness after the faults end, and the effects of single faults after that.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use protocol::{
    election::{
        Core, Role,
        params::{INDEX_SETTLE, PEER_SILENCE},
    },
    params::REDUCED_HEARTBEAT,
};
use shared::{
    content::ContentHash, electors::provisional_quorum, epoch::Epoch, id::PeerId, limits::HEARTBEAT,
    rpc::tracker::ListAll,
};

use crate::world::{NAMESERVER, Node, World};

/// Longest time after healing until all peers know one tracker.
const L1_BOUND: Duration = Duration::from_secs(4);
/// Longest time after healing until the index is the union of the shares.
const L2_BOUND: Duration = Duration::from_secs(6);
/// Longest time after the crash of a tracker in a healed network until all peers know another.
const FAILOVER_BOUND: Duration = Duration::from_millis(1500);
/// Longest time without the nameserver until a majority knows a provisional tracker, and with it until that is
/// registered.
const PROVISIONAL_BOUND: Duration = Duration::from_secs(2);
/// Time for which probes of the tracker's open port are refused.
const MISLED: Duration = Duration::from_secs(1);
/// Time for which a peer is isolated.
const ISOLATION: Duration = Duration::from_secs(3);

impl World {
    /// Ends all faults and restarts the crashed peers but one. Then L1 and L2 hold within their bounds, a peer that
    /// was isolated disturbs no other when it returns (L4), and a tracker that crashes is replaced.
    pub(crate) fn heal(&mut self) {
        self.note("all faults end");
        self.calm = true;
        self.cuts.clear();
        self.false_refusals.clear();
        (self.loss, self.duplication) = (0.0, 0.0);
        self.latency = self.latency.min(Duration::from_millis(20));
        self.disk = self.disk.min(Duration::from_millis(4));
        if !self.nameserver_up {
            self.nameserver_back();
        }
        let stay_dead = self.rng.usize(0..self.nodes.len());
        for node in 0..self.nodes.len() {
            self.nodes[node].disk_full = false;
            if self.nodes[node].frozen {
                self.thaw(self.run_of(node));
            }
            self.disk_freed(node);
            if self.nodes[node].leaving {
                self.crash(node);
            }
            if self.nodes[node].core.is_none() && (node != stay_dead || self.nodes.len() < 3) {
                self.restart(node);
            }
        }
        let healed = self.now;
        self.run_until(healed + L1_BOUND);
        self.check_one_tracker();
        self.run_until(healed + L2_BOUND);
        self.check_one_tracker();
        self.check_index();
        self.isolate_one_for_a_while();
        self.mislead_one_at_a_time();
        if self.rng.bool() {
            self.kill_a_follower();
            self.kill_the_tracker();
        }
        self.do_without_the_nameserver();
    }

    fn run_for(&mut self, time: Duration) {
        self.run_until(self.now + time);
    }

    fn follower(&self) -> Option<usize> {
        let role = |node: &Node| node.core.as_ref().map(Core::role);
        self.nodes.iter().position(|node| role(node) == Some(Role::Follower))
    }

    fn isolate_one_for_a_while(&mut self) {
        let Some(follower) = self.follower() else { return };
        let before = self.registry.seat(self.now);
        let epochs = self.durable_epochs();
        self.isolate(follower);
        self.run_for(ISOLATION);
        self.cuts.clear();
        self.note("the isolated peer returns");
        self.run_for(ISOLATION);
        assert_eq!(self.registry.seat(self.now), before, "L4: a peer that was isolated raised the epoch");
        assert_eq!(self.durable_epochs(), epochs, "L4: a peer that was isolated stood for election");
        self.check_one_tracker();
        self.check_index();
        self.checks.sometimes("isolated peer returned");
    }

    /// Probes of the tracker's open port are refused, first to one peer, then to the nameserver: the tracker keeps
    /// its seat (L5).
    fn mislead_one_at_a_time(&mut self) {
        let (Some(tracker), Some(follower)) = (self.tracker(), self.follower()) else { return };
        let before = self.registry.seat(self.now);
        for misled in [follower, NAMESERVER] {
            self.note("probes of an open port are refused");
            self.false_refusals.insert((misled, tracker));
            self.run_for(MISLED);
            self.false_refusals.clear();
            assert_eq!(self.registry.seat(self.now), before, "L5: a living tracker lost its seat to refused probes");
        }
        self.run_for(HEARTBEAT * 2);
        self.check_one_tracker();
    }

    /// Epochs of votes and seats on the machines' disks.
    fn durable_epochs(&self) -> Vec<(Option<Epoch>, Epoch)> {
        let of = |node: &Node| (node.durable.voted.as_ref().map(|vote| vote.epoch), node.durable.epoch_high);
        self.nodes.iter().map(of).collect()
    }

    /// Crashes a follower, whose files go after the silence allowed to it. That is longer for a peer with a reduced
    /// heartbeat, and at standbys, to which all heartbeats are reduced.
    fn kill_a_follower(&mut self) {
        let reduced = self.reduced_follower();
        let Some(follower) = reduced.or_else(|| self.follower()) else { return };
        self.crash(follower);
        self.run_for(PEER_SILENCE + HEARTBEAT * 2);
        if reduced.is_none() {
            self.check_index();
        }
        self.run_for(REDUCED_HEARTBEAT - HEARTBEAT);
        self.check_index();
        if reduced.is_some() {
            self.checks.sometimes("peer with reduced heartbeat forgotten");
        }
    }

    /// A follower that does not elect.
    fn reduced_follower(&self) -> Option<usize> {
        let electors = self.nodes[self.tracker()?].core.as_ref()?.electors();
        let is_reduced = |node: &Node| {
            node.core.as_ref().is_some_and(|core| core.role() == Role::Follower) && !electors.contains(&node.id)
        };
        self.nodes.iter().position(is_reduced)
    }

    fn kill_the_tracker(&mut self) {
        if self.alive() > 1 {
            let tracker = self.tracker().expect("there is one");
            let named = self.nodes[tracker].core.as_ref().expect("it runs").standbys().to_vec();
            let complete: Vec<PeerId> =
                named.into_iter().filter(|standby| self.is_complete_standby(standby, tracker)).collect();
            self.crash(tracker);
            self.run_for(FAILOVER_BOUND);
            self.check_one_tracker();
            self.run_for(L1_BOUND - FAILOVER_BOUND);
            self.check_index();
            let seat = self.registry.seat(self.now).seat.expect("checked before");
            if complete.contains(&seat.peer) {
                self.checks.complete_standby_took_seat(&seat.peer, seat.epoch);
            } else {
                self.checks.sometimes("failover to a peer without the index");
            }
        }
    }

    /// True if a standby has the shares of all peers but the tracker.
    fn is_complete_standby(&self, standby: &PeerId, tracker: usize) -> bool {
        let others = self.nodes.iter().enumerate().filter(|(number, node)| *number != tracker && node.id != *standby);
        let others: Vec<&Node> = others.map(|(_, node)| node).filter(|node| node.core.is_some()).collect();
        let files: BTreeSet<_> =
            others.iter().flat_map(|node| node.files.values()).map(|f| (&f.name, f.hash, f.size)).collect();
        let core = self.nodes.iter().find(|node| node.id == *standby).and_then(|node| node.core.as_ref());
        core.and_then(Core::standby_size) == Some((others.len(), files.len()))
    }

    /// The nameserver is away and the tracker crashes: a majority elects a provisional one and keeps it when the
    /// nameserver is back. A minority knows all living peers (L3), and finds a tracker when the nameserver is back.
    fn do_without_the_nameserver(&mut self) {
        self.note("the nameserver is away");
        self.nameserver_up = false;
        self.run_for(HEARTBEAT * 5);
        let tracker = self.tracker().expect("a living tracker with a majority, or alone, goes on");
        self.crash(tracker);
        self.run_for(PROVISIONAL_BOUND);
        let cores: Vec<&Core> = self.nodes.iter().filter_map(|node| node.core.as_ref()).collect();
        let is_enough = |core: &&Core| {
            let alive = |elector: &&PeerId| cores.iter().any(|core| core.id() == *elector);
            core.electors().iter().filter(alive).count() >= provisional_quorum(core.electors().len())
        };
        let majority = !cores.is_empty() && cores.iter().all(is_enough);
        let minority = !cores.iter().any(is_enough);
        for core in &cores {
            let knows = |other: &&Core| core.id() == other.id() || core.members().contains_key(other.id());
            assert!(cores.iter().all(knows), "L3: {} does not know all living peers", core.id());
            if majority {
                let seat = core.tracker().unwrap_or_else(|| panic!("L1: {} knows no provisional tracker", core.id()));
                assert!(
                    seat.epoch.is_provisional() && cores[0].tracker() == Some(seat),
                    "L1: {} follows another",
                    core.id()
                );
            }
            if minority {
                assert_eq!(core.tracker(), None, "S4: a minority has a tracker");
            }
        }
        let provisional = self.tracker();
        if majority {
            self.checks.sometimes("replaced without the nameserver");
            self.run_for(INDEX_SETTLE + HEARTBEAT * 2);
            self.check_index();
        } else if minority {
            self.checks.sometimes("minority without a tracker");
        }
        self.nameserver_back();
        if self.alive() > 0 {
            self.run_for(if majority { PROVISIONAL_BOUND } else { L1_BOUND });
            self.check_one_tracker();
            if majority {
                assert_eq!(self.tracker(), provisional, "L1: the provisional tracker was not kept");
            }
            self.run_for(INDEX_SETTLE + HEARTBEAT * 2);
            self.check_index();
        }
    }

    fn check_one_tracker(&self) {
        let seat = self.registry.seat(self.now).seat.expect("L1: the seat is vacant after healing");
        for core in self.nodes.iter().filter_map(|node| node.core.as_ref()) {
            assert_eq!(core.tracker(), Some(&seat), "L1: {} in {:?} does not know the tracker", core.id(), core.role());
        }
    }

    fn check_index(&mut self) {
        let mut expected: BTreeMap<(String, ContentHash), Vec<PeerId>> = BTreeMap::new();
        for node in self.nodes.iter().filter(|node| node.core.is_some()) {
            for file in node.files.values() {
                expected.entry((file.name.to_string(), file.hash)).or_default().push(node.id.clone());
            }
        }
        // In order of ids, not of numbers.
        expected.values_mut().for_each(|owners| owners.sort());
        let tracker = self.tracker().expect("checked before");
        let now = self.nodes[tracker].clock.local(self.now);
        let core = self.nodes[tracker].core.as_mut().expect("a tracker runs");
        let mut found = BTreeMap::new();
        let mut after = None;
        loop {
            let query = ListAll { epoch: core.seat_view().epoch_high, prefix: String::new(), after };
            let page = core.list_all(now, &query, &mut Vec::new()).expect("L2: the tracker does not list");
            found.extend(page.files.into_iter().map(|f| ((f.file.name.to_string(), f.file.hash), f.owners)));
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        assert_eq!(found, expected, "L2: the index is not the union of the shares");
    }
}
