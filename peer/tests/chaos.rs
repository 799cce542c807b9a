//! Short run of `examples/chaos`: four peers, faults of a fixed seed. Without root there are no network faults.
//!
//! The unit tests of the example's modules run here too, because cargo runs none of an example.

#![expect(unreachable_pub, reason = "modules of the example, which mark their interface with `pub`")]
#![expect(dead_code, reason = "the modules of the example that use these are not compiled here")]

#[path = "../examples/chaos/deadline.rs"]
mod deadline;
#[path = "../examples/chaos/impairment.rs"]
mod impairment;
#[path = "../examples/chaos/listing.rs"]
mod listing;
#[path = "../examples/chaos/model.rs"]
mod model;
#[path = "../examples/chaos/plan.rs"]
mod plan;
#[path = "../examples/chaos/relay.rs"]
mod relay;
#[path = "../examples/chaos/report.rs"]
mod report;
#[path = "../examples/chaos/topology.rs"]
mod topology;

#[path = "common/mod.rs"]
mod programs;

use std::{path::Path, process::Command};

/// Path of the example beside the programs. Builds it when only this test was built.
fn example() -> std::path::PathBuf {
    let beside = Path::new(programs::PEER).parent().expect("a program has a parent directory");
    let example = beside.join("examples").join("chaos");
    if !example.exists() {
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "-p", "peer", "--example", "chaos", "--target-dir"]);
        build.arg(beside.parent().expect("the profile's directory has a parent"));
        if beside.ends_with("release") {
            build.arg("--release");
        }
        assert!(build.status().expect("cargo runs").success(), "cannot build the example");
    }
    example
}

#[test]
fn four_peers_under_faults_end_without_violations() {
    let nameserver = programs::program("nameserver");
    let mut run = Command::new(example());
    run.args(["--minutes", "0.25", "--peers", "4", "--seed", "1", "--programs"]);
    run.arg(nameserver.parent().expect("a program has a parent directory"));
    let output = run.output().expect("the example runs");
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}");
    assert!(text.contains("violations: 0") && text.contains("fault: "), "{text}");
}
