//! Deterministic simulation of the election: cores of peers and the real nameserver registry under virtual clocks.
//!
//! One seed is one run: a few seconds of crashes, freezes, partitions, loss, duplication, reordering, drifting
//! clocks, slow disks and nameserver outages while shares change, then healing. The invariants of `docs/election.md`
//! are checked after every step, the liveness properties L1 to L6 after healing.
//!
//! | variable | does |
//! |---|---|
//! | `BRASA_SIM_SEED=S` | replays one seed and prints its events |
//! | `BRASA_SIM_SEEDS=N` | runs N seeds instead of the default |
//! | `BRASA_SIM_FIRST=S` | begins with seed S |
//! | `BRASA_SIM_DIGEST=1` | prints a digest of the trace of all seeds (`digest`) |
//!
//! | module | holds |
//! |---|---|
//! | `world` | machines with clocks and disks; the queue of events |
//! | `process` | processes: inputs, execution of actions, start and stop |
//! | `network` | messages, and the nameserver |
//! | `faults` | injected faults |
//! | `healing` | liveness after the faults end |
//! | `input` | inputs of a process and their outputs |
//! | `checks` | invariants |
//! | `exhaustive` | search of all short runs |
//! | `digest` | digest of a run, to compare two builds |

#![expect(clippy::print_stderr, reason = "the seed to replay, and the coverage")]

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

/// Seeds of an ordinary test run: about 60 s of one processor without optimisation.
const DEFAULT_SEEDS: u64 = 1000;

/// Situations that must occur in some seed: a test that never reaches them proves nothing.
const SOMETIMES: &[&str] = &[
    "campaign ended by a full disk",
    "claim accepted over a vacant seat",
    "claim accepted with a majority",
    "claim lost",
    "connection lost",
    "delta accepted by a standby",
    "delta accepted",
    "election without a majority",
    "failover to a complete standby",
    "failover without announcements",
    "forced election won",
    "granted after a probe",
    "isolated peer returned",
    "list of peers watched",
    "minority without a tracker",
    "nameserver crashed during a write",
    "nameserver found a closed port",
    "open port refused",
    "partition",
    "peer crashed during a write",
    "peer crashed with a full disk",
    "peer restarted",
    "peer with reduced heartbeat forgotten",
    "probe refused",
    "provisional tracker registered",
    "provisional tracker",
    "refused after a probe",
    "replaced without the nameserver",
    "silent peer forgotten",
    "snapshot accepted by a standby",
    "snapshot accepted",
    "snapshot requested",
    "stale epoch refused",
    "stepped down after a stall",
    "stepped down for a higher epoch",
    "stepped down isolated",
    "suspicion lifted",
    "tracker left gracefully",
    "vote given",
    "write failed",
    "write refused after a stall",
    "write succeeded again",
];

type Counters = BTreeMap<&'static str, u64>;

/// Runs one seed. Returns how often each situation occurred, and the digest of the run if requested.
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
fn seat_and_index_hold_their_invariants_under_faults() {
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
                        Ok((counters, of_seed)) => {
                            digest.fetch_add(of_seed, Ordering::Relaxed);
                            let mut sometimes = sometimes.lock().unwrap_or_else(PoisonError::into_inner);
                            for (what, count) in counters {
                                *sometimes.entry(what).or_default() += count;
                            }
                        }
                        Err(_) => {
                            failed.store(true, Ordering::Relaxed);
                            let replay = "cargo test -p protocol --test sim -- --nocapture";
                            eprintln!("seed {seed} fails; replay: BRASA_SIM_SEED={seed} {replay}");
                        }
                    }
                }
            });
        }
    });
    assert!(!failed.into_inner(), "an invariant is violated; the output above names the seed");
    let sometimes = sometimes.into_inner().unwrap_or_else(PoisonError::into_inner);
    eprintln!("{seeds} seeds: {sometimes:#?}");
    if with_digest {
        eprintln!("digest of seeds {first}..{}: {:016x}", first.saturating_add(seeds), digest.into_inner());
    }
    if seeds >= DEFAULT_SEEDS {
        for what in SOMETIMES {
            assert!(sometimes.contains_key(what), "no seed reaches: {what}");
        }
    }
}
