//! A run: rounds of faults, each followed by checks of all that must hold when nothing is wrong any more.

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
    checker, deeds, faults,
    lab::Lab,
    patience::within,
    plan::{Act, Bounds, Plan, Way, content, draw_write, peer_name},
    report::{Elections, Report},
    world::{Answer, STEP, Shared, World},
};

/// How long faults last until all is mended and checked.
const ROUND: Duration = Duration::from_secs(45);
/// Peers that start at a time.
const STARTS_AT_A_TIME: usize = 4;
/// Files that each peer has before the first fault.
const FIRST_FILES: usize = 3;
/// How often processes are looked after.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// In every so many looks somebody is asked for the tracker.
const LOOKS_A_QUESTION: u64 = 2;
/// A question that takes longer is no answer.
const ANSWER: Duration = Duration::from_secs(3);
/// How long what users do may go on when all is mended.
const REST: Duration = Duration::from_secs(60);
/// Numbers of the faults and of the deeds of one round.
const NUMBERS_A_ROUND: usize = 10_000;

/// What a run is.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How long faults last, all rounds together.
    pub time: Duration,
    /// Of all that is drawn.
    pub seed: u64,
    /// How many peers.
    pub peers: usize,
    /// Where the programs are.
    pub programs: PathBuf,
}

/// Runs it in a folder.
///
/// # Errors
/// When the machine does not do what is needed; what the network does wrong is in the report.
pub async fn run(settings: &Settings, folder: &Path) -> Result<Report, String> {
    let mut random = fastrand::Rng::with_seed(settings.seed);
    let no_network = Lab::missing();
    let lab = match no_network {
        None => Some(Lab::new(settings.peers, random.u64(..)).await?),
        Some(_) => None,
    };
    let world = Arc::new(World::new(folder, &settings.programs, settings.peers, lab)?);
    begin(&world, &mut random).await?;
    let mut watch = JoinSet::new();
    watch.spawn(look_after(Arc::clone(&world), random.fork()));

    let began = world.clock().now();
    let mut rounds = 0;
    let mut left = settings.time;
    let mut is_at_rest = true;
    while is_at_rest && !left.is_zero() {
        // No round that is too short for anything to happen.
        let time = if left < ROUND * 3 / 2 { left } else { ROUND };
        let bounds = Bounds { peers: settings.peers, time, network: world.has_network() };
        world.note(&format!("round {rounds}"));
        is_at_rest = round(&world, rounds, Plan::new(random.u64(..), bounds), time).await?;
        if is_at_rest {
            checker::index_and_files(&world, &mut random).await?;
        }
        left -= time;
        rounds += 1;
    }
    world.find_dead();
    watch.shutdown().await;

    let traffic = world.mend_network().await?;
    let mut elections = Elections::default();
    world.peers().for_each(|peer| elections.read(peer, &world.log_file(peer)));
    elections.judge();
    let mut tally = std::mem::take(&mut *world.tally());
    tally.traffic = traffic;
    let (seed, peers) = (settings.seed, settings.peers);
    let took = world.clock().now().since(began);
    Ok(Report { seed, peers, rounds, took, no_network, tally, elections })
}

async fn begin(world: &Shared, random: &mut fastrand::Rng) -> Result<(), String> {
    world.start_nameserver().await?;
    world.make_token().await?;
    for peer in world.peers() {
        for file in 0..FIRST_FILES {
            let Act::Write { name, content: drawn, size, .. } = draw_write(random) else { continue };
            deeds::write(world, file, peer, &name, content(drawn, size), Way::Folder).await?;
        }
    }
    let start = |peer| world.start_peer(peer);
    stream::iter(world.peers()).map(start).buffer_unordered(STARTS_AT_A_TIME).try_collect::<Vec<()>>().await?;
    Ok(())
}

/// Lets a plan happen, mends everything, and waits until all is at rest; `false` when it does not come to rest.
async fn round(world: &Shared, number: usize, plan: Plan, time: Duration) -> Result<bool, String> {
    world.set_calm(false);
    let first = number * NUMBERS_A_ROUND;
    let (mut harm, mut work) = (JoinSet::new(), JoinSet::new());
    for (number, fault) in (first..).zip(plan.faults) {
        harm.spawn(faults::inflict(Arc::clone(world), number, fault));
    }
    for (number, deed) in (first..).zip(plan.deeds) {
        work.spawn(deeds::carry_out(Arc::clone(world), number, deed));
    }
    sleep(time).await;

    // All faults end by then; only who must start again may still be at it, and now has no excuse.
    world.mend_network().await?;
    world.set_calm(true);
    if !finish(world, harm, STEP * 2, "what was harmed is not back").await? {
        return Ok(false);
    }
    for peer in world.peers() {
        if !world.is_up(peer) {
            world.start_peer(peer).await?;
        }
    }
    let mended = world.clock().now();
    world.note("all is mended");
    checker::one_tracker(world, mended).await;
    finish(world, work, REST, "what users began does not end").await
}

/// Waits until tasks are over; `false` when they are not in time. One that fails has met something that must not be.
async fn finish(
    world: &Shared,
    mut tasks: JoinSet<Result<(), String>>,
    wait: Duration,
    late: &str,
) -> Result<bool, String> {
    let all = async {
        while let Some(ended) = tasks.join_next().await {
            match ended {
                Ok(Ok(())) => {}
                Ok(Err(why)) => world.violation(&why),
                Err(error) => return Err(format!("a task of the run itself failed: {error}")),
            }
        }
        Ok(true)
    };
    let Some(result) = within(wait, all).await else {
        let busy: Vec<_> = world.ledger().busy().map(|(peer, name)| format!("{} {name}", peer_name(*peer))).collect();
        world.violation(&format!("{late} after {wait:?}: {} tasks; changes under way: {busy:?}", tasks.len()));
        return Ok(false);
    };
    result
}

/// Looks after the processes, and asks now and then for the tracker.
async fn look_after(world: Shared, mut random: fastrand::Rng) {
    for look in 0_u64.. {
        sleep(LOOK_EVERY).await;
        world.find_dead();
        let running = world.running();
        if look % LOOKS_A_QUESTION != 0 || running.is_empty() {
            continue;
        }
        let asked = running[random.usize(..running.len())];
        let was_calm = world.is_calm();
        let answer = timeout(ANSWER, world.command(asked, &["tracker"])).await;
        let named = match &answer {
            Ok(Answer::Done(document)) => world.peers().find(|peer| document["peer"] == peer_name(*peer)),
            _ => None,
        };
        world.set_tracker(named);
        if !was_calm {
            let mut tally = world.tally();
            tally.asked += 1;
            tally.answered += u64::from(named.is_some());
        }
    }
}
