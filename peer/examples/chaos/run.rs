//! One run: rounds of faults and operations, each followed by checks of the healed cluster.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    checker,
    cluster::{Cluster, CommandResult},
    deadline::{PROCESS_DEADLINE, within},
    faults, operations,
    plan::{Method, Operation, Plan, PlanConfig, content, draw_write},
    report::{Elections, Report},
    testbed::Testbed,
    topology::peer_name,
};

/// Duration of the faults of one round.
const ROUND: Duration = Duration::from_secs(45);
/// Peers that start at a time.
const CONCURRENT_STARTS: usize = 4;
/// Writes to each share before the first fault.
const INITIAL_FILES: usize = 3;
/// Interval at which processes are checked.
const MONITOR_INTERVAL: Duration = Duration::from_millis(250);
/// One of this many checks also asks a peer for the tracker.
const CHECKS_PER_POLL: u64 = 2;
/// Time after which the answer to a poll counts as missing.
const POLL_DEADLINE: Duration = Duration::from_secs(3);
/// Deadline for the operations of a round to complete after healing.
const OPERATIONS_DEADLINE: Duration = Duration::from_secs(60);
/// Upper bound of the faults and of the operations of a round: their numbers start at the round's number times this.
const NUMBERS_PER_ROUND: usize = 10_000;

/// Settings of a run.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Duration of the faults of all rounds together.
    pub duration: Duration,
    /// Seed of all random choices.
    pub seed: u64,
    /// Number of peers.
    pub peers: usize,
    /// Directory of the programs.
    pub programs: PathBuf,
}

/// Runs in `folder`. The report has the violations.
///
/// # Errors
/// When this machine cannot run it.
pub async fn run(settings: &Settings, folder: &Path) -> Result<Report, String> {
    let mut rng = fastrand::Rng::with_seed(settings.seed);
    let no_network = Testbed::unavailable();
    let testbed = match no_network {
        None => Some(Testbed::new(settings.peers, rng.u64(..)).await?),
        Some(_) => None,
    };
    let cluster = Arc::new(Cluster::new(folder, &settings.programs, settings.peers, testbed)?);
    start(&cluster, &mut rng).await?;
    let mut monitor_task = JoinSet::new();
    monitor_task.spawn(monitor(Arc::clone(&cluster), rng.fork()));

    let began = cluster.clock().now();
    let mut rounds = 0;
    let mut left = settings.duration;
    let mut is_healthy = true;
    while is_healthy && !left.is_zero() {
        // The last round takes a remainder that would be too short for a round of its own.
        let duration = if left < ROUND * 3 / 2 { left } else { ROUND };
        let config = PlanConfig { peers: settings.peers, duration, network_faults: cluster.has_testbed() };
        cluster.note(&format!("round {rounds}"));
        is_healthy = round(&cluster, rounds, Plan::new(rng.u64(..), config), duration).await?;
        if is_healthy {
            checker::index_and_files(&cluster, &mut rng).await?;
        }
        left -= duration;
        rounds += 1;
    }
    cluster.check_processes();
    monitor_task.shutdown().await;

    let traffic = cluster.heal_network().await?;
    let mut elections = Elections::default();
    cluster.peers().for_each(|peer| elections.read(peer, &cluster.log_file(peer)));
    elections.check();
    let mut stats = std::mem::take(&mut *cluster.stats());
    stats.traffic = traffic;
    let (seed, peers) = (settings.seed, settings.peers);
    let took = cluster.clock().now().since(began);
    Ok(Report { seed, peers, rounds, took, no_network, stats, elections })
}

/// Starts all processes with a few files in every share.
async fn start(cluster: &Cluster, rng: &mut fastrand::Rng) -> Result<(), String> {
    cluster.start_nameserver().await?;
    cluster.create_token().await?;
    for peer in cluster.peers() {
        for number in 0..INITIAL_FILES {
            let Operation::Write { name, content: content_number, size, .. } = draw_write(rng) else { continue };
            let bytes = content(content_number, size);
            operations::write(cluster, number, peer, &name, bytes, Method::Filesystem).await?;
        }
    }
    let start = |peer| cluster.start_peer(peer);
    stream::iter(cluster.peers()).map(start).buffer_unordered(CONCURRENT_STARTS).try_collect::<Vec<()>>().await?;
    Ok(())
}

/// Carries out a plan, heals the cluster, and waits for the operations to complete. Returns `false` when they do not,
/// or when a process does not recover.
async fn round(cluster: &Arc<Cluster>, number: usize, plan: Plan, duration: Duration) -> Result<bool, String> {
    cluster.set_healed(false);
    let first = number * NUMBERS_PER_ROUND;
    let (mut faults, mut operations) = (JoinSet::new(), JoinSet::new());
    for (number, fault) in (first..).zip(plan.faults) {
        faults.spawn(faults::inject(Arc::clone(cluster), number, fault));
    }
    for (number, operation) in (first..).zip(plan.operations) {
        operations.spawn(operations::carry_out(Arc::clone(cluster), number, operation));
    }
    sleep(duration).await;

    // All faults have ended. A restart may still be under way; from now on no failure of it is excused.
    cluster.heal_network().await?;
    cluster.set_healed(true);
    if !join_all(cluster, faults, PROCESS_DEADLINE * 2, "faults do not end").await? {
        return Ok(false);
    }
    for peer in cluster.peers() {
        if !cluster.peer(peer).is_ready() {
            cluster.start_peer(peer).await?;
        }
    }
    let healed = cluster.clock().now();
    cluster.note("healed");
    checker::one_tracker(cluster, healed).await;
    join_all(cluster, operations, OPERATIONS_DEADLINE, "operations do not complete").await
}

/// Waits for tasks, and records the errors that they return as violations. Returns `false` when they exceed the
/// limit, which is a violation with the text `late`.
async fn join_all(
    cluster: &Cluster,
    mut tasks: JoinSet<Result<(), String>>,
    limit: Duration,
    late: &str,
) -> Result<bool, String> {
    let all = async {
        while let Some(joined) = tasks.join_next().await {
            match joined {
                Ok(Ok(())) => {}
                Ok(Err(error)) => cluster.violation(&error),
                Err(error) => return Err(format!("a task of the run failed: {error}")),
            }
        }
        Ok(true)
    };
    let Some(result) = within(limit, all).await else {
        let in_flight: Vec<_> =
            cluster.model().in_flight().map(|(peer, name)| format!("{} {name}", peer_name(*peer))).collect();
        cluster.violation(&format!("{late} within {limit:?}: {} tasks; changes in flight: {in_flight:?}", tasks.len()));
        return Ok(false);
    };
    result
}

/// Checks the processes and polls random peers for the tracker.
async fn monitor(cluster: Arc<Cluster>, mut rng: fastrand::Rng) {
    for check in 0_u64.. {
        sleep(MONITOR_INTERVAL).await;
        cluster.check_processes();
        let peers = cluster.available_peers();
        if check % CHECKS_PER_POLL != 0 || peers.is_empty() {
            continue;
        }
        let polled = peers[rng.usize(..peers.len())];
        let was_healed = cluster.is_healed();
        let answer = timeout(POLL_DEADLINE, cluster.command(polled, &["tracker"])).await;
        let tracker = match &answer {
            Ok(CommandResult::Done(document)) => cluster.peers().find(|peer| document["peer"] == peer_name(*peer)),
            _ => None,
        };
        cluster.set_tracker(tracker);
        if !was_healed {
            let mut stats = cluster.stats();
            stats.asked += 1;
            stats.answered += u64::from(tracker.is_some());
        }
    }
}
