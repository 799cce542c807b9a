//! Seeded simulation of peers' cores and the real nameserver registry under a virtual clock.
//!
//! One seed is one run: a few seconds of crashes, freezes, cuts, loss, duplication, reordering and nameserver
//! outages while shares change, then healing. The invariants of `docs/election.md` are checked after every step,
//! L1 and L2 after healing. `BRASA_SIM_SEEDS=N` runs N seeds, `BRASA_SIM_SEED=S` replays one and prints what
//! happens in it.

#![expect(clippy::print_stderr, reason = "the seed to replay and what the runs covered")]

#[path = "core_sim/checks.rs"]
mod checks;
#[path = "core_sim/world.rs"]
mod world;

use std::collections::BTreeMap;

use world::World;

const DEFAULT_SEEDS: u64 = 300;

fn run(seed: u64, trace: bool) -> BTreeMap<&'static str, u64> {
    let outcome = std::panic::catch_unwind(|| {
        let mut world = World::new(seed, trace);
        world.chaos();
        world.heal();
        world.checks.sometimes
    });
    outcome.unwrap_or_else(|panic| {
        eprintln!("replay: BRASA_SIM_SEED={seed} cargo test -p peer --test core_sim -- --nocapture");
        std::panic::resume_unwind(panic)
    })
}

#[test]
fn the_seat_and_the_index_survive_what_happens_to_processes_and_networks() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    if let Some(seed) = number("BRASA_SIM_SEED") {
        eprintln!("{:#?}", run(seed, true));
        return;
    }
    let seeds = number("BRASA_SIM_SEEDS").unwrap_or(DEFAULT_SEEDS);
    let mut sometimes: BTreeMap<&'static str, u64> = BTreeMap::new();
    for seed in 0..seeds {
        for (what, count) in run(seed, false) {
            *sometimes.entry(what).or_default() += count;
        }
    }
    eprintln!("{seeds} seeds: {sometimes:#?}");
    if seeds >= DEFAULT_SEEDS {
        // A run in which none of this happens proves nothing.
        for what in [
            "claim accepted over a vacant seat",
            "claim accepted with a majority",
            "claim lost",
            "election without a majority",
            "forced election won",
            "stepped down after a sleep",
            "stepped down alone",
            "stepped down for a higher epoch",
            "suspicion lifted",
            "tracker left in good order",
            "stale epoch refused",
            "delta taken",
            "snapshot taken",
            "snapshot asked for",
            "silent peer forgotten",
            "run restarted",
        ] {
            assert!(sometimes.contains_key(what), "never happened: {what}");
        }
    }
}
