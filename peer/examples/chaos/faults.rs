//! Injects the faults of a plan and ends them.

use std::sync::Arc;

use rustix::process::Signal;
use tokio::time::sleep;

use crate::{
    cluster::Cluster,
    impairment::Impairment,
    plan::{Fault, FaultKind, Target},
    topology::{PeerIndex, host_of, peer_name},
};

/// Waits for the start of fault number `number`, injects it, and ends it after its duration.
///
/// # Errors
/// When the disturbed process or network does not recover.
pub async fn inject(cluster: Arc<Cluster>, number: usize, fault: Fault) -> Result<(), String> {
    sleep(fault.at).await;
    let label = fault.kind.label();
    let begin = |details: &str| {
        cluster.note(&format!("fault {number}: {label}: {details}, {:.1} s", fault.lasts.as_secs_f64()));
        cluster.stats().count("fault", label);
    };
    match &fault.kind {
        FaultKind::Kill(target) => {
            let Some(peer) = reserve(&cluster, *target, label) else { return Ok(()) };
            begin(&peer_name(peer));
            cluster.kill_peer(peer).await?;
            sleep(fault.lasts).await;
            cluster.start_peer(peer).await?;
        }
        FaultKind::Freeze(target) => {
            let Some(peer) = reserve(&cluster, *target, label) else { return Ok(()) };
            begin(&peer_name(peer));
            cluster.signal(peer, Signal::STOP);
            sleep(fault.lasts).await;
            cluster.signal(peer, Signal::CONT);
            cluster.peer(peer).release();
        }
        FaultKind::Isolate(target) => {
            let Some(peer) = reserve(&cluster, *target, label) else { return Ok(()) };
            begin(&peer_name(peer));
            cluster.impair(number, Some(Impairment::Partition([host_of(peer)].into()))).await?;
            sleep(fault.lasts).await;
            cluster.impair(number, None).await?;
            cluster.peer(peer).release();
        }
        FaultKind::Network(impairment) => {
            begin(&format!("{impairment:?}"));
            cluster.impair(number, Some(impairment.clone())).await?;
            sleep(fault.lasts).await;
            cluster.impair(number, None).await?;
        }
        FaultKind::KillNameserver => {
            begin("nameserver");
            cluster.kill_nameserver().await?;
            sleep(fault.lasts).await;
            cluster.start_nameserver().await?;
        }
    }
    cluster.note(&format!("fault {number} ended"));
    Ok(())
}

/// Reserves the target of a fault. Returns `None` when it is not available, or when no tracker is known.
fn reserve(cluster: &Cluster, target: Target, label: &str) -> Option<PeerIndex> {
    let peer = match target {
        Target::Peer(peer) => Some(peer),
        Target::Tracker => cluster.tracker(),
    };
    let reserved = peer.filter(|peer| cluster.peer(*peer).reserve());
    if reserved.is_none() {
        cluster.stats().count("fault without target", label);
    }
    reserved
}
