//! Start without the nameserver: asks the peers that this peer knew for the tracker.

use std::sync::Arc;

use futures::{StreamExt as _, stream};
use protocol::election::Event;
use shared::{contact::Contact, limits::CALL_DEADLINE, retry::Backoff, rpc::nameserver::SeatView};
use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{
    params::{MAX_ASKED, REJOIN_LONGEST, REJOIN_SHORTEST},
    registration::RegistrationState,
    rpc_client::RpcClient,
};
use crate::core_handle::CoreHandle;

/// Asks `known` peers for the seat. Returns the answers.
pub async fn ask(calls: &Arc<RpcClient>, known: &[Contact]) -> Vec<(Contact, SeatView)> {
    let calls = calls.clone();
    let answers = stream::iter(known.to_vec()).map(move |contact| {
        let calls = calls.clone();
        async move {
            match calls.seat_of(&contact, CALL_DEADLINE).await {
                Ok(seat) => Some((contact, seat)),
                Err(error) => {
                    tracing::debug!(%error, peer = %contact.peer, "a known peer does not answer");
                    None
                }
            }
        }
    });
    answers.buffer_unordered(MAX_ASKED).filter_map(std::future::ready).collect().await
}

/// Asks the `known` peers again and again until the nameserver has registered this peer, and reports their answers to
/// the core. Sets `joined` at the first answer.
pub async fn rejoin(
    known: Vec<Contact>,
    calls: Arc<RpcClient>,
    core: CoreHandle,
    mut registration: watch::Receiver<RegistrationState>,
    joined: watch::Sender<bool>,
    stop: CancellationToken,
) {
    let mut backoff = Backoff::new(REJOIN_SHORTEST, REJOIN_LONGEST);
    loop {
        let round = async {
            for (contact, view) in ask(&calls, &known).await {
                if core.send(Event::NoticeAnswered { from: contact.peer, view }).await.is_ok() {
                    joined.send_replace(true);
                }
            }
            sleep(backoff.pause()).await;
        };
        tokio::select! {
            () = round => {}
            // An error means that the registration has ended, and with it the peer.
            _ = registration.wait_for(|state| *state != RegistrationState::Waiting) => return,
            () = stop.cancelled() => return,
        }
    }
}
