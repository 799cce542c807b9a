//! Whole swarms in virtual time: every receiver runs the scheduler and serves what it has verified, over links with
//! rates and latencies. The tests assert the performance promises of the scheduler.
//!
//! With `--nocapture` they print the figures and a digest of all actions of each run: equal digests before and after a
//! change of the scheduler's structure show that it takes the same decisions. A failure names its seed;
//! `BRASA_SIM_SEED=<seed> cargo test -p protocol --test swarm_sim` replays it.
//!
//! | module | content |
//! |---|---|
//! | `world` | peers and their links, the queue of occurrences |
//! | `traffic` | requests, groups in flight, advertisements |

mod traffic;
mod world;

use std::{ops::Range, panic::AssertUnwindSafe, time::Duration};

use protocol::swarm::Dropped;

use world::{Behaviour, Link, Outcome, Setup, Sim};

const MBIT: f64 = 1e6 / 8.0;

/// Seeds to run: that of `BRASA_SIM_SEED`, or these.
fn seeds(usual: Range<u64>) -> Vec<u64> {
    match std::env::var("BRASA_SIM_SEED") {
        Ok(seed) => vec![seed.parse().expect("BRASA_SIM_SEED is a number")],
        Err(_) => usual.collect(),
    }
}

/// Runs one simulation; prints the seed of a failure.
#[expect(clippy::print_stderr, clippy::print_stdout, reason = "prints the digest, and how to replay a failure")]
fn simulate(setup: &Setup) -> Outcome {
    let sim = Sim::new(setup);
    let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| sim.run())).unwrap_or_else(|panic| {
        eprintln!("replay with BRASA_SIM_SEED={}", setup.seed);
        std::panic::resume_unwind(panic)
    });
    let (providers, receivers) = (setup.providers.len(), setup.receivers.len());
    println!("{providers}+{receivers}, {} bytes, seed {}: actions {:016x}", setup.size, setup.seed, outcome.digest);
    outcome
}

/// Runs one receiver whose own link is no limit.
fn from_providers(seed: u64, size: u64, providers: Vec<Link>) -> Outcome {
    simulate(&Setup { seed, size, providers, receivers: vec![Link::equal(10_000.0 * MBIT)], latency_ms: 1..20 })
}

fn swarm(seed: u64, size: u64, receivers: Vec<Link>) -> Outcome {
    simulate(&Setup { seed, size, providers: vec![Link::equal(100.0 * MBIT)], receivers, latency_ms: 1..20 })
}

/// `F / C * (1 + floor(log2 N) / M)`, seconds.
fn bound(size: u64, receivers: usize) -> f64 {
    let pieces = size.div_ceil(256 << 10) as f64;
    size as f64 / (100.0 * MBIT) * (1.0 + f64::from(receivers.ilog2()) / pieces)
}

#[test]
fn swarm_finishes_close_to_the_lower_bound() {
    let (size, receivers) = (128 << 20, 8);
    for seed in seeds(0..1) {
        let outcome = swarm(seed, size, vec![Link::equal(100.0 * MBIT); receivers]);
        let best = bound(size, receivers);
        let (median, last) = (outcome.median() / best, outcome.last() / best);
        let source = outcome.sent[0] as f64 / size as f64;
        println!("1+8, 128 MiB, seed {seed}: median {median:.3} T*, last {last:.3} T*, source sent {source:.3} times");
        assert!(median <= 1.15, "seed {seed}: median {median:.3}");
        assert!(last <= 1.30, "seed {seed}: last {last:.3}");
    }
}

#[test]
fn two_hundred_receivers_finish() {
    let (size, receivers) = (2 << 20, 200);
    for seed in seeds(0..1) {
        let outcome = swarm(seed, size, vec![Link::equal(100.0 * MBIT); receivers]);
        let best = bound(size, receivers);
        let (median, last) = (outcome.median() / best, outcome.last() / best);
        println!("1+200, 2 MiB, seed {seed}: median {median:.2} T*, last {last:.2} T*");
        // From the single provider in turn it would take 140 T*. Each doubling waits for an advertisement.
        assert!(last < 8.0, "seed {seed}: last {last:.2}");
    }
}

#[test]
fn rates_of_equal_providers_add_up() {
    let size = 128 << 20;
    for seed in seeds(0..4) {
        let take = |providers| from_providers(seed, size, vec![Link::equal(100.0 * MBIT); providers]).last();
        let one = take(1);
        println!("one provider, seed {seed}: {:.3} of its rate", size as f64 / (100.0 * MBIT) / one);
        for k in [2usize, 4] {
            let gain = one / take(k);
            println!("{k} equal providers, seed {seed}: {:.3} k times one", gain / k as f64);
            assert!(gain >= 0.95 * k as f64, "seed {seed}: {k} providers gain {gain:.3}");
        }
    }
}

#[test]
fn slow_providers_do_not_delay_fast_ones() {
    let size = 64 << 20;
    for seed in seeds(0..4) {
        let rates = [100.0, 50.0, 10.0, 1.0].map(|rate| rate * MBIT);
        let best = size as f64 / rates.iter().sum::<f64>();
        let took = from_providers(seed, size, rates.map(Link::equal).to_vec()).last() / best;
        println!("100, 50, 10 and 1 Mbit/s, seed {seed}: {took:.3} of the time of all together");
        assert!(took < 1.10, "seed {seed}: {took:.3}");
    }
}

#[test]
fn stalled_or_vanished_provider_costs_less_than_its_silence() {
    let (size, rate) = (64 << 20, 100.0 * MBIT);
    for seed in seeds(0..6) {
        let moment = Duration::from_millis(fastrand::Rng::with_seed(seed).u64(50..1800));
        for behaviour in [Behaviour::StallsAt(moment), Behaviour::VanishesAt(moment)] {
            let mut providers = vec![Link::equal(rate); 3];
            providers[1].behaviour = behaviour;
            // Three deliver until then, two the rest.
            let best = moment.as_secs_f64() + (size as f64 / rate - 3.0 * moment.as_secs_f64()).max(0.0) / 2.0;
            let cost = from_providers(seed, size, providers).last() - best;
            println!("1 of 3 {behaviour:?}, seed {seed}: costs {cost:.3} s");
            assert!(cost < 0.5, "seed {seed}: {behaviour:?} costs {cost:.3} s");
        }
        let mut providers = vec![Link::equal(rate); 2];
        providers[0].behaviour = Behaviour::StallsAt(moment);
        let best = moment.as_secs_f64() + size as f64 / rate - 2.0 * moment.as_secs_f64();
        let cost = from_providers(seed, size, providers).last() - best;
        println!("1 of 2 stalls at {moment:?}, seed {seed}: costs {cost:.3} s");
        assert!(cost < 0.5, "seed {seed}: costs {cost:.3} s");
    }
}

#[test]
fn providers_of_corrupt_data_are_dropped_and_cost_little() {
    let size = 64 << 20;
    for seed in seeds(0..4) {
        let honest = vec![Link::equal(100.0 * MBIT); 2];
        let mut mixed = honest.clone();
        mixed.extend([Link { behaviour: Behaviour::SendsCorruptData, ..honest[0] }; 2]);
        let outcome = from_providers(seed, size, mixed);
        let took = outcome.last() / from_providers(seed, size, honest).last();
        println!("2 of 4 send corrupt data, seed {seed}: {took:.3} times as long as from the honest ones");
        assert!(took < 1.5, "seed {seed}: {took:.3}");
        assert_eq!(outcome.dropped, [(2, Dropped::SentCorruptData), (3, Dropped::SentCorruptData)]);
    }
}

#[test]
fn swarm_with_faulty_members_finishes() {
    let size = 16 << 20;
    for seed in seeds(0..4) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut receivers = vec![Link::equal(100.0 * MBIT); 12];
        for (index, link) in receivers.iter_mut().enumerate() {
            let moment = Duration::from_millis(rng.u64(100..1500));
            link.behaviour = match index {
                0..2 => Behaviour::VanishesAt(moment),
                2..4 => Behaviour::StallsAt(moment),
                4..6 => Behaviour::SendsCorruptData,
                _ => Behaviour::Honest,
            };
        }
        let outcome = swarm(seed, size, receivers);
        let last = outcome.last() / bound(size, 12);
        println!("12 receivers, 2 vanish, 2 stall, 2 send corrupt data, seed {seed}: last {last:.2} T*");
        // The receivers that wait for one that stalls finish last.
        assert!(last < 3.0, "seed {seed}: last {last:.2}");
    }
}

#[test]
fn same_seed_gives_the_same_actions() {
    let run = |seed| swarm(seed, 4 << 20, vec![Link::equal(100.0 * MBIT); 3]).digest;
    assert_eq!(run(7), run(7));
    assert_ne!(run(7), run(8));
}
