//! Brings the faults of a plan about, and ends them.

use rustix::process::Signal;
use tokio::time::sleep;

use crate::{
    impair::Impairment,
    plan::{Fault, Harm, Peer, Who, host_of, peer_name},
    world::Shared,
};

/// Waits for a fault's time, lets it begin, last, and end. `number` is that of the fault.
///
/// # Errors
/// When what was harmed does not come back.
pub async fn inflict(world: Shared, number: usize, fault: Fault) -> Result<(), String> {
    sleep(fault.at).await;
    let kind = fault.harm.kind();
    let begin = |what: &str| {
        world.note(&format!("fault {number}: {kind}: {what}, {:.1} s", fault.lasts.as_secs_f64()));
        world.tally().count("fault", kind);
    };
    match &fault.harm {
        Harm::Kill(who) => {
            let Some(peer) = victim(&world, *who, kind) else { return Ok(()) };
            begin(&peer_name(peer));
            world.kill_peer(peer).await?;
            sleep(fault.lasts).await;
            world.start_peer(peer).await?;
        }
        Harm::Freeze(who) => {
            let Some(peer) = victim(&world, *who, kind) else { return Ok(()) };
            begin(&peer_name(peer));
            world.signal(peer, Signal::STOP);
            sleep(fault.lasts).await;
            world.signal(peer, Signal::CONT);
            world.release(peer);
        }
        Harm::Isolate(who) => {
            let Some(peer) = victim(&world, *who, kind) else { return Ok(()) };
            begin(&peer_name(peer));
            world.impair(number, Some(Impairment::Partition([host_of(peer)].into()))).await?;
            sleep(fault.lasts).await;
            world.impair(number, None).await?;
            world.release(peer);
        }
        Harm::Network(impairment) => {
            begin(&format!("{impairment:?}"));
            world.impair(number, Some(impairment.clone())).await?;
            sleep(fault.lasts).await;
            world.impair(number, None).await?;
        }
        Harm::KillNameserver => {
            begin("");
            world.kill_nameserver().await?;
            sleep(fault.lasts).await;
            world.start_nameserver().await?;
        }
    }
    world.note(&format!("fault {number} is over"));
    Ok(())
}

/// Takes who is to be hit; nobody when another fault has it, or when nobody is known to be tracker.
fn victim(world: &Shared, who: Who, kind: &str) -> Option<Peer> {
    let peer = match who {
        Who::Peer(peer) => Some(peer),
        Who::Tracker => world.tracker(),
    };
    let taken = peer.filter(|peer| world.hold(*peer));
    if taken.is_none() {
        world.tally().count("fault that found nobody", kind);
    }
    taken
}
