//! A short run of `examples/chaos`: four peers, faults of a fixed seed, and everything is right again. Without root the network
//! itself is not harmed. The run's own parts have their tests here, too: cargo runs none of an example.

#![expect(unreachable_pub, reason = "rooms of another program")]
#![expect(dead_code, reason = "each room is used by others that are not here")]

#[path = "../examples/chaos/impair.rs"]
mod impair;
#[path = "../examples/chaos/ledger.rs"]
mod ledger;
#[path = "../examples/chaos/listing.rs"]
mod listing;
#[path = "../examples/chaos/patience.rs"]
mod patience;
#[path = "../examples/chaos/plan.rs"]
mod plan;
#[path = "../examples/chaos/relay.rs"]
mod relay;
#[path = "../examples/chaos/report.rs"]
mod report;

#[path = "common/mod.rs"]
mod programs;

use std::{path::Path, process::Command};

/// The example: beside the programs, built if only this test was asked for.
fn example() -> std::path::PathBuf {
    let beside = Path::new(programs::PEER).parent().expect("programs lie in a folder");
    let example = beside.join("examples").join("chaos");
    if !example.exists() {
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "-p", "peer", "--example", "chaos", "--target-dir"]);
        build.arg(beside.parent().expect("the profile's folder lies in the target folder"));
        if beside.ends_with("release") {
            build.arg("--release");
        }
        assert!(build.status().expect("cargo runs").success(), "the example is built");
    }
    example
}

#[test]
fn four_peers_survive_a_short_storm() {
    let nameserver = programs::program("nameserver");
    let mut run = Command::new(example());
    run.args(["--minutes", "0.25", "--peers", "4", "--seed", "1", "--programs"]);
    run.arg(nameserver.parent().expect("programs lie in a folder"));
    let output = run.output().expect("the example runs");
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}");
    assert!(said.contains("violations: 0") && said.contains("fault: "), "{said}");
}
