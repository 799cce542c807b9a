//! Injected faults of processes, links and the nameserver, and changes of shares.

use std::time::Duration;

use protocol::election::{Event, Token};
use shared::{
    content::{ContentHash, FileMeta},
    file_name::FileName,
};

use crate::world::{Item, NAMESERVER, World};

impl World {
    pub(crate) fn fault(&mut self) {
        let node = self.rng.usize(0..self.nodes.len());
        // A tracker is chosen more often than by chance.
        let tracker = self.tracker();
        let node = tracker.filter(|_| self.rng.u8(0..3) == 0).unwrap_or(node);
        match self.rng.u8(0..20) {
            0..=2 => self.change_share(node),
            3 | 4 => {
                self.crash(node);
                let back = Duration::from_millis(50) + self.random(Duration::from_millis(3000));
                self.push(back, Item::Restart(node));
            }
            5 | 6 => self.freeze(node),
            7 => self.leave(node),
            8 => self.elect(node),
            9 => {
                // Several forced elections at once: rivals in every stage.
                for _ in 0..self.rng.usize(2..6) {
                    let (node, wait) = (self.rng.usize(0..self.nodes.len()), self.random(Duration::from_millis(250)));
                    self.push(wait, Item::Elect(node));
                }
            }
            10 => {
                let other = self.rng.usize(0..=self.nodes.len());
                let other = if other == self.nodes.len() { NAMESERVER } else { other };
                if self.rng.bool() {
                    self.cuts.insert((node, other));
                }
                self.cuts.insert((other, node));
            }
            11 => self.split(),
            12 => self.isolate(node),
            13 | 14 => {
                self.note("all links work");
                self.cuts.clear();
                self.false_refusals.clear();
            }
            15 => {
                let other = self.rng.usize(0..self.nodes.len());
                if other != node {
                    self.lose_connection(node, other);
                }
            }
            16 => {
                // A firewall, or a forger, refuses probes of an open port.
                let from = self.rng.usize(0..=self.nodes.len());
                let from = if from == self.nodes.len() { NAMESERVER } else { from };
                self.false_refusals.insert((from, node));
            }
            17 => self.fill_disk(node),
            _ => self.nameserver_dies(),
        }
    }

    fn freeze(&mut self, node: usize) {
        if self.nodes[node].core.is_some() {
            self.note(&format!("peer{node} freezes"));
            self.nodes[node].frozen = true;
            let thaw = Duration::from_millis(100) + self.random(Duration::from_millis(2500));
            self.push(thaw, Item::Thaw(self.run_of(node)));
        }
    }

    fn fill_disk(&mut self, node: usize) {
        self.note(&format!("the disk of peer{node} is full"));
        self.nodes[node].disk_full = true;
        let freed = Duration::from_millis(200) + self.random(Duration::from_millis(4000));
        self.push(freed, Item::DiskFreed(node));
    }

    fn leave(&mut self, node: usize) {
        let process = &self.nodes[node];
        if process.core.is_some() && !process.frozen && process.syncing.is_none() && !process.leaving {
            let was_tracker = self.tracker() == Some(node);
            self.note(&format!("peer{node} leaves"));
            self.nodes[node].leaving = true;
            self.handle(node, Event::Shutdown);
            if was_tracker {
                self.checks.sometimes("tracker left gracefully");
            }
        }
    }

    /// Cuts the network into two parts, in one direction or both.
    fn split(&mut self) {
        let members = (0..self.nodes.len()).chain([NAMESERVER]);
        let (left, right): (Vec<usize>, Vec<usize>) = members.partition(|_| self.rng.bool());
        let one_way = self.rng.u8(0..4) == 0;
        self.note(&format!("{left:?} and {right:?} are cut apart{}", if one_way { " one way" } else { "" }));
        self.checks.sometimes("partition");
        for a in &left {
            for b in &right {
                self.cuts.insert((*a, *b));
                if !one_way {
                    self.cuts.insert((*b, *a));
                }
            }
        }
    }

    /// Cuts all links of this machine.
    pub(crate) fn isolate(&mut self, node: usize) {
        self.note(&format!("peer{node} is isolated"));
        for other in (0..self.nodes.len()).chain([NAMESERVER]).filter(|other| *other != node) {
            self.cuts.insert((node, other));
            self.cuts.insert((other, node));
        }
    }

    pub(crate) fn elect(&mut self, node: usize) {
        let token = Token(u64::MAX - self.last_item);
        self.deliver(self.run_of(node), Event::ElectionRequested { token });
    }

    pub(crate) fn change_share(&mut self, node: usize) {
        let mut upserts = Vec::new();
        let mut removals = Vec::new();
        for _ in 0..self.rng.usize(1..6) {
            let name: FileName = format!("f{}", self.rng.u8(0..20)).parse().expect("a file's name");
            if self.rng.u8(0..3) == 0 {
                removals.push(name);
            } else {
                let size = u64::from(self.rng.u8(0..4));
                let mut hash = [0; 32];
                hash[0] = u8::try_from(size).expect("small");
                let mtime_micros = i64::from(self.rng.u8(..));
                let hash = ContentHash(hash);
                upserts.push(FileMeta { name, size, hash, mtime_micros, executable: false });
            }
        }
        let files = &mut self.nodes[node].files;
        for name in &removals {
            files.remove(name);
        }
        for file in &upserts {
            files.insert(file.name.clone(), file.clone());
        }
        self.deliver(self.run_of(node), Event::ShareChanged { upserts, removals });
    }

    pub(crate) fn thaw(&mut self, run: (usize, shared::id::Incarnation)) {
        let (number, _) = run;
        if self.running(run).is_none() || !self.nodes[number].frozen {
            return;
        }
        self.note(&format!("peer{number} thaws"));
        self.nodes[number].frozen = false;
        if self.nodes[number].syncing.is_some() {
            // The write has ended meanwhile.
            self.synced(number);
            return;
        }
        // The timer and the sockets are ready at once; either may be handled first.
        let unread = &mut self.nodes[number].unread;
        let at = self.rng.usize(0..=unread.len());
        unread.insert(at, Event::Tick.into());
        if at > 0 {
            let first = self.nodes[number].unread.pop_front().expect("it was just filled");
            self.handle(number, first);
        }
        self.catch_up(number);
    }
}
