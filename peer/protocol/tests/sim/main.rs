//! Deterministic simulation of peers' cores and the real nameserver registry under virtual clocks.
//!
//! One seed is one run: a few seconds of crashes, freezes, partitions, loss, duplication, reordering, drifting clocks,
//! slow disks and nameserver outages while shares change, then healing. The invariants of `docs/election.md` are checked
//! after every step, the liveness properties L1 to L6 after healing.
//!
//! | variable | does |
//! |---|---|
//! | `BRASA_SIM_SEED=S` | replays one seed and prints what happens in it |
//! | `BRASA_SIM_SEEDS=N` | runs N seeds instead of the default |
//! | `BRASA_SIM_FIRST=S` | ... beginning with S |
//! | `BRASA_SIM_DIGEST=1` | prints a digest of everything that all seeds did (`digest`) |
//!
//! | room | what is in it |
//! |---|---|
//! | `world` | machines with clocks and disks, the order of events |
//! | `process` | what runs on a machine: events in, actions carried out |
//! | `network` | messages, and the nameserver's side of its calls |
//! | `faults` | what goes wrong |
//! | `healing` | what must become true when it stops going wrong |
//! | `input` | what a process receives, and what comes of it |
//! | `checks` | what must be true always |
//! | `exhaustive` | every short run instead of many at random |

#![expect(clippy::print_stderr, reason = "the seed to replay and what the runs covered")]

mod checks;
mod digest;
mod exhaustive;
mod faults;
mod healing;
mod input;
mod network;
mod process;
mod world;

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use digest::Digest;
use world::World;

/// Seeds of an ordinary test run: some 60 s of one core without optimisation.
const DEFAULT_SEEDS: u64 = 1000;

/// What must have happened somewhere: a run in which none of this happens proves nothing.
const SOMETIMES: &[&str] = &[
    "agreed after a look",
    "claim accepted over a vacant seat",
    "claim accepted with a majority",
    "claim lost",
    "connection lost",
    "crashed while the disk was written",
    "delta taken",
    "delta taken by a standby",
    "disagreed after a look",
    "election without a majority",
    "failover that announced nothing again",
    "failover to a standby that had everything",
    "forced election won",
    "isolated peer came back",
    "knock refused",
    "nameserver died while it wrote",
    "nameserver saw a closed port",
    "orphans",
    "partition",
    "provisional tracker",
    "provisional tracker registered",
    "refused by mistake",
    "replaced without the nameserver",
    "resting peer forgotten",
    "run restarted",
    "silent peer forgotten",
    "snapshot asked for",
    "snapshot taken",
    "snapshot taken by a standby",
    "stale epoch refused",
    "stepped down after a sleep",
    "stepped down alone",
    "stepped down for a higher epoch",
    "suspicion lifted",
    "tracker left in good order",
    "vote given",
    "watched",
    "write refused after a sleep",
];

type Counters = BTreeMap<&'static str, u64>;

/// Runs one seed to its end; returns how often each interesting thing happened, and the digest of the run if asked for.
fn run(seed: u64, trace: bool, digest: bool) -> (Counters, u64) {
    let mut world = World::new(seed, trace);
    world.digest = digest.then(Digest::default);
    world.chaos();
    world.heal();
    (world.checks.sometimes, world.digest.map_or(0, |digest| digest.of_seed(seed)))
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

#[test]
fn the_seat_and_the_index_survive_what_happens_to_processes_and_networks() {
    if let Some(seed) = number("BRASA_SIM_SEED") {
        eprintln!("{:#?}", run(seed, true, false).0);
        return;
    }
    let (first, seeds) = (number("BRASA_SIM_FIRST").unwrap_or(0), number("BRASA_SIM_SEEDS").unwrap_or(DEFAULT_SEEDS));
    let (next, failed) = (AtomicU64::new(first), AtomicBool::new(false));
    let with_digest = number("BRASA_SIM_DIGEST").is_some();
    let digest = AtomicU64::new(0);
    let sometimes = Mutex::new(Counters::new());
    std::thread::scope(|threads| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            threads.spawn(|| {
                while !failed.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first.saturating_add(seeds) {
                        return;
                    }
                    match catch_unwind(AssertUnwindSafe(|| run(seed, false, with_digest))) {
                        Ok((happened, of_seed)) => {
                            digest.fetch_add(of_seed, Ordering::Relaxed);
                            let mut sometimes = sometimes.lock().unwrap_or_else(PoisonError::into_inner);
                            for (what, count) in happened {
                                *sometimes.entry(what).or_default() += count;
                            }
                        }
                        Err(_) => {
                            failed.store(true, Ordering::Relaxed);
                            eprintln!("seed {seed} fails; replay: BRASA_SIM_SEED={seed} cargo test -p peer --test sim -- --nocapture");
                        }
                    }
                }
            });
        }
    });
    assert!(!failed.into_inner(), "an invariant does not hold: the seed and how to replay it are above");
    let sometimes = sometimes.into_inner().unwrap_or_else(PoisonError::into_inner);
    eprintln!("{seeds} seeds: {sometimes:#?}");
    if with_digest {
        eprintln!("digest of seeds {first}..{}: {:016x}", first.saturating_add(seeds), digest.into_inner());
    }
    if seeds >= DEFAULT_SEEDS {
        for what in SOMETIMES {
            assert!(sometimes.contains_key(what), "never happened: {what}");
        }
    }
}
