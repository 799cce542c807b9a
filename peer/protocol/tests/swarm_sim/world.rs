//! Peers, their links, and the queue of occurrences.

use std::{
    cmp::{Ordering, Reverse},
    collections::{BTreeMap, BinaryHeap, VecDeque},
    hash::{DefaultHasher, Hasher as _},
    ops::Range,
    time::Duration,
};

use protocol::{
    swarm::{Dropped, Event, Has, ProviderId, RequestId, Swarm, SwarmConfig},
    upload::queue::{UploadId, UploadLimits, UploadQueue},
};
use shared::{
    group_ranges::{GroupRanges, group_count},
    time::Timestamp,
};

/// Maximum number of active uploads. With few, pieces complete sooner and can be passed on.
const UPLOADS: usize = 8;
/// Virtual time at which a simulation fails.
const GIVE_UP: Duration = Duration::from_secs(600);

/// Behaviour of a peer as a provider.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Behaviour {
    Honest,
    /// Flips a bit in each piece.
    SendsCorruptData,
    /// Sends nothing from then on and keeps its connections.
    StallsAt(Duration),
    /// Closes its connections then.
    VanishesAt(Duration),
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Link {
    pub(crate) up: f64,
    pub(crate) down: f64,
    pub(crate) behaviour: Behaviour,
}

impl Link {
    pub(crate) fn equal(rate: f64) -> Self {
        Self { up: rate, down: rate, behaviour: Behaviour::Honest }
    }
}

pub(crate) struct Setup {
    pub(crate) seed: u64,
    pub(crate) size: u64,
    pub(crate) providers: Vec<Link>,
    pub(crate) receivers: Vec<Link>,
    /// One way, milliseconds.
    pub(crate) latency_ms: Range<u64>,
}

#[derive(Debug)]
pub(crate) enum Occurrence {
    /// An event reaches a receiver.
    Event(usize, Event),
    Tick(usize),
    /// A request reaches a provider.
    Request {
        to: usize,
        from: usize,
        request: RequestId,
        groups: Range<u64>,
    },
    /// A truncation or cancellation reaches a provider.
    Truncate {
        to: usize,
        from: usize,
        request: RequestId,
        at_group: u64,
    },
    UplinkFree(usize),
    /// A group reaches the receiver's link.
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
    /// A receiver advertises what it gained.
    Advertise(usize),
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
    pub(crate) gained: GroupRanges,
    /// Groups still wanted of each request of this peer.
    pub(crate) wanted: BTreeMap<RequestId, Range<u64>>,
    pub(crate) dropped: BTreeMap<usize, Dropped>,
    pub(crate) finished: Option<Duration>,
    pub(crate) ticks_at: Option<Timestamp>,
    pub(crate) slots: UploadQueue<usize>,
    pub(crate) uploads: VecDeque<Upload>,
    pub(crate) uplink_is_busy: bool,
    pub(crate) downlink_free: Timestamp,
    pub(crate) in_flight: BTreeMap<usize, u64>,
    pub(crate) has_left: bool,
    pub(crate) bytes_sent: u64,
}

/// A scheduled occurrence. The earliest is the greatest, as the heap requires.
struct Queued {
    key: Reverse<(Timestamp, u64)>,
    occurrence: Occurrence,
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
    /// Number of receivers that are present and not finished.
    pub(crate) receiving: usize,
    /// Digest of all actions of all receivers, in order.
    pub(crate) digest: DefaultHasher,
}

impl Sim {
    pub(crate) fn new(setup: &Setup) -> Self {
        let mut rng = fastrand::Rng::with_seed(setup.seed);
        let count = setup.providers.len() + setup.receivers.len();
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
            gained: GroupRanges::default(),
            wanted: BTreeMap::new(),
            dropped: BTreeMap::new(),
            finished: None,
            ticks_at: None,
            slots: UploadQueue::new(UploadLimits { active: UPLOADS, ..UploadLimits::default() }),
            uploads: VecDeque::new(),
            uplink_is_busy: false,
            downlink_free: Timestamp::ZERO,
            in_flight: BTreeMap::new(),
            has_left: false,
            bytes_sent: 0,
        };
        let mut nodes: Vec<_> = setup.providers.iter().map(|&link| node(link, true, None)).collect();
        for &link in &setup.receivers {
            let config = SwarmConfig {
                size: setup.size,
                have: GroupRanges::default(),
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
            digest: DefaultHasher::new(),
        };
        let providers = setup.providers.len();
        for at in providers..count {
            for other in (0..count).filter(|&other| other != at) {
                let has = if other < providers { Has::All } else { Has::Groups(GroupRanges::default()) };
                // All peers learn of each other within 30 ms.
                let delay = Duration::from_micros(rng.u64(0..30_000));
                let event = Event::ProviderAdded { provider: id(other), has, rtt: Some(sim.latency[&(at, other)] * 2) };
                sim.after(delay, Occurrence::Event(at, event));
            }
            let place = Event::Ranked { rank: (at - providers) as u32, receivers: setup.receivers.len() as u32 };
            sim.after(Duration::from_micros(rng.u64(0..30_000)), Occurrence::Event(at, place));
            sim.after(Duration::from_micros(rng.u64(0..50_000)), Occurrence::Advertise(at));
        }
        for at in 0..count {
            if let Behaviour::VanishesAt(when) | Behaviour::StallsAt(when) = sim.nodes[at].link.behaviour {
                sim.after(when, Occurrence::Fault(at));
            }
        }
        sim
    }

    /// Runs until every receiver that is present has the whole version.
    pub(crate) fn run(mut self) -> Outcome {
        while let Some(Queued { key: Reverse((now, _)), occurrence }) = self.queue.pop() {
            self.now = now;
            assert!(now.since_origin() < GIVE_UP, "no end in sight: {:?}", self.progress());
            self.process(occurrence);
            if self.receiving == 0 {
                break;
            }
        }
        let receivers = || self.nodes.iter().filter(|node| node.swarm.is_some() && !node.has_left);
        for node in receivers() {
            assert!(
                node.finished.is_some(),
                "the queue is empty before the receiver is finished: {:?}",
                self.progress()
            );
            assert!(node.has.iter().all(|has| *has));
        }
        let mut seconds: Vec<f64> = receivers().filter_map(|node| node.finished).map(|at| at.as_secs_f64()).collect();
        seconds.sort_by(f64::total_cmp);
        Outcome {
            seconds,
            sent: self.nodes.iter().map(|node| node.bytes_sent).collect(),
            dropped: receivers().flat_map(|node| node.dropped.clone()).collect(),
            digest: self.digest.finish(),
        }
    }

    /// Verified bytes of each receiver.
    fn progress(&self) -> Vec<(usize, u64)> {
        let nodes = self.nodes.iter().enumerate();
        nodes.filter_map(|(at, node)| Some((at, node.swarm.as_ref()?.bytes_proven()))).collect()
    }

    pub(crate) fn at(&mut self, when: Timestamp, occurrence: Occurrence) {
        self.serial += 1;
        self.queue.push(Queued { key: Reverse((when, self.serial)), occurrence });
    }

    pub(crate) fn after(&mut self, delay: Duration, occurrence: Occurrence) {
        self.at(self.now + delay, occurrence);
    }
}

pub(crate) fn id(node: usize) -> ProviderId {
    ProviderId(u32::try_from(node).expect("few peers"))
}

pub(crate) struct Outcome {
    /// Times at which the receivers finished, ascending.
    pub(crate) seconds: Vec<f64>,
    /// Bytes sent by each peer.
    pub(crate) sent: Vec<u64>,
    pub(crate) dropped: Vec<(usize, Dropped)>,
    /// Digest of all actions of all receivers, in order.
    pub(crate) digest: u64,
}

impl Outcome {
    pub(crate) fn median(&self) -> f64 {
        self.seconds[self.seconds.len() / 2]
    }

    pub(crate) fn last(&self) -> f64 {
        *self.seconds.last().expect("there is a receiver")
    }
}
