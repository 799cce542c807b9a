//! What goes wrong: processes, shares, cuts, the nameserver.

use super::*;

impl World {
    pub(super) fn fault(&mut self) {
        let node = self.rng.usize(0..self.nodes.len());
        let tracker = self.nodes.iter().position(|n| n.core.as_ref().is_some_and(|core| core.role() == Role::Tracker));
        // Trackers are hit more often than their number suggests.
        let node = tracker.filter(|_| self.rng.u8(0..3) == 0).unwrap_or(node);
        match self.rng.u8(0..13) {
            0..=2 => self.change_share(node),
            3 | 4 => {
                self.crash(node);
                let back = Duration::from_millis(50) + self.random(Duration::from_millis(3000));
                self.push(back, Item::Restart(node));
            }
            5 | 6 => {
                if self.nodes[node].core.is_some() {
                    self.nodes[node].frozen = true;
                    let run = (node, self.nodes[node].incarnation);
                    let thaw = Duration::from_millis(100) + self.random(Duration::from_millis(2500));
                    self.push(thaw, Item::Thaw(run));
                }
            }
            7 => {
                if self.nodes[node].core.is_some() && !self.nodes[node].frozen && !self.nodes[node].leaving {
                    let was_tracker = tracker == Some(node);
                    self.nodes[node].leaving = true;
                    self.handle(node, Event::Shutdown);
                    if was_tracker {
                        self.checks.sometimes("tracker left in good order");
                    }
                }
            }
            8 => self.elect(node),
            9 => {
                // Several at once, and some of them again: rivals at every stage.
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
            11 => self.cuts.clear(),
            _ => {
                if self.nameserver_up {
                    self.nameserver_up = false;
                    let back = self.random(Duration::from_millis(2500));
                    self.push(back, Item::NameserverBack);
                }
            }
        }
    }

    pub(super) fn elect(&mut self, node: usize) {
        let run = (node, self.nodes[node].incarnation);
        let token = Token(u64::MAX - self.last_item);
        self.deliver(run, Event::ElectionRequested { token });
    }

    pub(super) fn change_share(&mut self, node: usize) {
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
        let run = (node, self.nodes[node].incarnation);
        self.deliver(run, Event::ShareChanged { upserts, removals });
    }

    pub(super) fn crash(&mut self, node: usize) {
        self.nodes[node].core = None;
        self.nodes[node].frozen = false;
        self.nodes[node].unread.clear();
        self.nodes[node].leaving = false;
    }

    pub(super) fn restart(&mut self, number: usize) {
        let seed = self.rng.u64(..);
        let now = self.now;
        let node = &mut self.nodes[number];
        node.incarnation.0 += 1;
        let config = CoreConfig {
            id: node.id.clone(),
            incarnation: node.incarnation,
            endpoint: node.endpoint.clone(),
            seed,
            durable: node.durable.clone(),
        };
        node.core = Some(Core::new(config, now));
        if node.incarnation.0 > 1 {
            self.checks.sometimes("run restarted");
        }
        let run = (number, self.nodes[number].incarnation);
        if self.nameserver_up && self.reaches(number, NAMESERVER) {
            self.register(number);
        }
        self.push(DEFAULT_LEASE / 6, Item::Renew(run));
        let upserts = self.nodes[number].files.values().cloned().collect();
        self.handle(number, Event::ShareChanged { upserts, removals: Vec::new() });
    }

    pub(super) fn thaw(&mut self, run: Run) {
        let (number, _) = run;
        if self.running(run).is_none() || !self.nodes[number].frozen {
            return;
        }
        self.nodes[number].frozen = false;
        let mut unread = std::mem::take(&mut self.nodes[number].unread);
        // The timer and the sockets are ready at once; which is looked at first is anybody's guess.
        let at = self.rng.usize(0..=unread.len());
        unread.insert(at, Event::Tick);
        for event in unread {
            self.handle(number, event);
        }
    }

    pub(super) fn nameserver_back(&mut self) {
        self.nameserver_up = true;
        self.registry = Registry::restore(self.registry.snapshot(), self.now);
        self.checks.registry(self.now, &self.registry);
    }
}
