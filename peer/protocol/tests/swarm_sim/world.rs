//! Peers and their links, and the order in which things happen.

use std::{
    cmp::{Ordering, Reverse},
    collections::{BTreeMap, BinaryHeap, VecDeque},
    ops::Range,
    time::Duration,
};

use protocol::{
    swarm::{Dropped, Event, Has, ProviderId, PickerKind, RequestId, Standing, Swarm, SwarmConfig},
    upload::queue::{UploadId, UploadLimits, UploadQueue},
};
use shared::{
    group_ranges::{GroupRanges, group_count},
    time::Timestamp,
};

/// Uploads at a time: with few, pieces become whole sooner and can be passed on.
const UPLOADS: usize = 8;
/// When a simulation is given up, in its own time.
const GIVE_UP: Duration = Duration::from_secs(600);

/// How a peer behaves as an owner.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Manner {
    Honest,
    /// Flips a bit in each piece.
    Lies,
    /// Sends nothing any more from then on, without a word.
    StallsAt(Duration),
    /// Is gone from then on, and its connections with it.
    VanishesAt(Duration),
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Link {
    pub(crate) up: f64,
    pub(crate) down: f64,
    pub(crate) manner: Manner,
}

impl Link {
    pub(crate) fn equal(rate: f64) -> Self {
        Self { up: rate, down: rate, manner: Manner::Honest }
    }
}

pub(crate) struct Setup {
    pub(crate) seed: u64,
    pub(crate) size: u64,
    pub(crate) owners: Vec<Link>,
    pub(crate) receivers: Vec<Link>,
    /// One way, milliseconds.
    pub(crate) latency_ms: Range<u64>,
    pub(crate) picker: PickerKind,
}

#[derive(Debug)]
pub(crate) enum What {
    /// A receiver hears of something.
    Tell(usize, Event),
    Tick(usize),
    /// A request reaches an owner.
    Ask {
        to: usize,
        from: usize,
        request: RequestId,
        groups: Range<u64>,
    },
    Cut {
        to: usize,
        from: usize,
        request: RequestId,
        at_group: u64,
    },
    UplinkFree(usize),
    /// A group has crossed the network and queues at the receiver's link.
    Arrives {
        at: usize,
        from: usize,
        request: RequestId,
        group: u64,
    },
    Received {
        at: usize,
        from: usize,
        request: RequestId,
        group: u64,
    },
    Acknowledged {
        to: usize,
        from: usize,
    },
    News(usize),
    Fault(usize),
}

pub(crate) struct Upload {
    pub(crate) to: usize,
    pub(crate) request: RequestId,
    pub(crate) next: u64,
    pub(crate) end: u64,
    pub(crate) slot: UploadId,
    pub(crate) is_active: bool,
}

pub(crate) struct Node {
    pub(crate) link: Link,
    pub(crate) swarm: Option<Swarm>,
    pub(crate) has: Vec<bool>,
    pub(crate) news: GroupRanges,
    /// Requests as this peer made them, as far as it still wants them.
    pub(crate) wanted: BTreeMap<RequestId, Range<u64>>,
    pub(crate) dropped: BTreeMap<usize, Dropped>,
    pub(crate) finished: Option<Duration>,
    pub(crate) ticks_at: Option<Timestamp>,
    pub(crate) slots: UploadQueue<usize>,
    pub(crate) uploads: VecDeque<Upload>,
    pub(crate) uplink_is_busy: bool,
    pub(crate) downlink_free: Timestamp,
    pub(crate) in_flight: BTreeMap<usize, u64>,
    pub(crate) is_gone: bool,
    pub(crate) bytes_sent: u64,
}

/// Something that will happen; the earliest is the greatest, as a heap wants it.
struct Queued {
    key: Reverse<(Timestamp, u64)>,
    what: What,
}

impl PartialEq for Queued {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

impl Eq for Queued {}

impl PartialOrd for Queued {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Queued {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key.cmp(&other.key)
    }
}

pub(crate) struct Sim {
    pub(crate) now: Timestamp,
    serial: u64,
    queue: BinaryHeap<Queued>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) latency: BTreeMap<(usize, usize), Duration>,
    pub(crate) size: u64,
    /// Receivers that are there and not finished.
    pub(crate) receiving: usize,
}

impl Sim {
    pub(crate) fn new(setup: &Setup) -> Self {
        let mut rng = fastrand::Rng::with_seed(setup.seed);
        let count = setup.owners.len() + setup.receivers.len();
        let groups = group_count(setup.size);
        let mut latency = BTreeMap::new();
        for (a, b) in (0..count).flat_map(|a| (0..a).map(move |b| (a, b))) {
            let one_way = Duration::from_micros(rng.u64(setup.latency_ms.start * 1000..setup.latency_ms.end * 1000));
            latency.extend([((a, b), one_way), ((b, a), one_way)]);
        }
        let node = |link: Link, has: bool, swarm| Node {
            link,
            swarm,
            has: vec![has; groups as usize],
            news: GroupRanges::default(),
            wanted: BTreeMap::new(),
            dropped: BTreeMap::new(),
            finished: None,
            ticks_at: None,
            slots: UploadQueue::new(UploadLimits { active: UPLOADS, ..UploadLimits::default() }),
            uploads: VecDeque::new(),
            uplink_is_busy: false,
            downlink_free: Timestamp::ZERO,
            in_flight: BTreeMap::new(),
            is_gone: false,
            bytes_sent: 0,
        };
        let mut nodes: Vec<_> = setup.owners.iter().map(|&link| node(link, true, None)).collect();
        for &link in &setup.receivers {
            let config = SwarmConfig {
                size: setup.size,
                have: GroupRanges::default(),
                picker: setup.picker,
                expects_receivers: setup.receivers.len() > 1,
                seed: rng.u64(..),
            };
            nodes.push(node(link, false, Some(Swarm::new(config, Timestamp::ZERO))));
        }
        let mut sim = Self {
            now: Timestamp::ZERO,
            serial: 0,
            queue: BinaryHeap::new(),
            nodes,
            latency,
            size: setup.size,
            receiving: setup.receivers.len(),
        };
        let owners = setup.owners.len();
        for at in owners..count {
            for other in (0..count).filter(|&other| other != at) {
                let has = if other < owners { Has::All } else { Has::Groups(GroupRanges::default()) };
                // Everybody comes to know of everybody within some ten milliseconds.
                let delay = Duration::from_micros(rng.u64(0..30_000));
                let event = Event::ProviderAdded { owner: id(other), has, rtt: Some(sim.latency[&(at, other)] * 2) };
                sim.after(delay, What::Tell(at, event));
            }
            let place = Event::Placed { place: (at - owners) as u32, receivers: setup.receivers.len() as u32 };
            sim.after(Duration::from_micros(rng.u64(0..30_000)), What::Tell(at, place));
            sim.after(Duration::from_micros(rng.u64(0..50_000)), What::News(at));
        }
        for at in 0..count {
            if let Manner::VanishesAt(when) | Manner::StallsAt(when) = sim.nodes[at].link.manner {
                sim.after(when, What::Fault(at));
            }
        }
        sim
    }

    /// Until every receiver that is still there has everything; when each of them had.
    pub(crate) fn run(mut self) -> Outcome {
        while let Some(Queued { key: Reverse((now, _)), what }) = self.queue.pop() {
            self.now = now;
            assert!(now.since_origin() < GIVE_UP, "it does not end: {:?}", self.progress());
            self.happen(what);
            if self.receiving == 0 {
                break;
            }
        }
        let receivers = || self.nodes.iter().filter(|node| node.swarm.is_some() && !node.is_gone);
        for node in receivers() {
            assert!(node.finished.is_some(), "it ended without being finished: {:?}", self.progress());
            assert!(node.has.iter().all(|has| *has));
        }
        let mut seconds: Vec<f64> = receivers().filter_map(|node| node.finished).map(|at| at.as_secs_f64()).collect();
        seconds.sort_by(f64::total_cmp);
        Outcome {
            seconds,
            sent: self.nodes.iter().map(|node| node.bytes_sent).collect(),
            dropped: receivers().flat_map(|node| node.dropped.clone()).collect(),
        }
    }

    fn progress(&self) -> Vec<(usize, Standing, u64)> {
        let swarms = self.nodes.iter().enumerate().filter_map(|(at, node)| Some((at, node.swarm.as_ref()?.progress())));
        swarms.map(|(at, progress)| (at, progress.standing, progress.bytes_proven)).collect()
    }

    pub(crate) fn at(&mut self, when: Timestamp, what: What) {
        self.serial += 1;
        self.queue.push(Queued { key: Reverse((when, self.serial)), what });
    }

    pub(crate) fn after(&mut self, delay: Duration, what: What) {
        self.at(self.now + delay, what);
    }
}

pub(crate) fn id(node: usize) -> ProviderId {
    ProviderId(u32::try_from(node).expect("few nodes"))
}

pub(crate) struct Outcome {
    /// Of the receivers, ascending.
    pub(crate) seconds: Vec<f64>,
    pub(crate) sent: Vec<u64>,
    pub(crate) dropped: Vec<(usize, Dropped)>,
}

impl Outcome {
    pub(crate) fn median(&self) -> f64 {
        self.seconds[self.seconds.len() / 2]
    }

    pub(crate) fn last(&self) -> f64 {
        *self.seconds.last().expect("somebody receives")
    }
}
