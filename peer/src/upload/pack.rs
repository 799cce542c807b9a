//! Packs of small files that this peer serves to others; they take the same slots as files do.

use std::sync::atomic::{AtomicU64, Ordering};

use shared::{
    id::PeerId,
    limits,
    net::{
        bulk::{BulkRefusal, read_header, write_header},
        pack::{ItemRefusal, PACKS_HASH, PackAccepted, PackRequest},
    },
};
use tokio::time::timeout;

use super::{Uploads, refuse, until_taken, wait_for};
use crate::{
    diagnostics::gauge::GaugeGuard,
    store::OpenError,
    transfer::{
        ServeError,
        metered::{NetworkMeteredSink, UploadMeteredSink},
        serve_pack,
        throttle::ThrottledSink,
    },
};

impl Uploads {
    /// Serves one stream of `peer`: reads the request, answers it, and sends what it asks for.
    pub async fn serve_pack(
        &self,
        peer: &PeerId,
        connection: &quinn::Connection,
        mut send: quinn::SendStream,
        mut recv: quinn::RecvStream,
    ) {
        let request: PackRequest = match timeout(limits::STREAM_HEADER_DEADLINE, read_header(&mut recv)).await {
            Ok(Ok(request)) => request,
            Ok(Err(error)) => return tracing::debug!(%error, "an unreadable request for a pack"),
            Err(_) => return tracing::debug!("a request for a pack did not come"),
        };
        let contents = match request.contents() {
            Ok(contents) => contents.to_vec(),
            Err(error) => {
                tracing::debug!(%error, "a request for a pack that is none");
                return refuse(&mut send, BulkRefusal::BadRanges).await;
            }
        };
        let Some((slot, turn)) = self.ask(peer, connection) else {
            return refuse(&mut send, BulkRefusal::Busy).await;
        };
        if let Err(error) = write_header(&mut send, &Ok::<_, BulkRefusal>(PackAccepted)).await {
            return tracing::debug!(%error, "an asker went away");
        }
        let clock = self.reports.clock();
        let asked = clock.now();
        if let Err(error) = wait_for(turn, &mut send).await {
            return tracing::debug!(%error, "an asker went away while it waited");
        }
        let reported = self.reports.begin(peer, PACKS_HASH, connection);
        let meter = &reported.meter;
        meter.slot_wait.add(clock.now().since(asked));
        let running = GaugeGuard::new(&self.active);
        let (share, suspected) = (self.share.clone(), self.share.clone());
        let open = move |hash: &_| {
            share.open_content(hash).map_err(|error| match error {
                OpenError::NotHere => ItemRefusal::NotHere,
                OpenError::Unreadable(error) => {
                    tracing::warn!(%error, ?hash, "a shared file cannot be read");
                    ItemRefusal::Unreadable
                }
            })
        };
        let changed = move |hash: &_| {
            tracing::warn!(?hash, "a shared file is not what it was");
            suspected.suspect(hash);
        };
        let network = NetworkMeteredSink { sink: send, meter: meter.clone(), clock };
        let mut sink =
            UploadMeteredSink::new(ThrottledSink { sink: network, pace: self.pace.clone() }, meter.clone(), clock);
        let sent = AtomicU64::new(0);
        let upload = serve_pack(contents, open, changed, &mut sink, self.silence, |bytes| {
            sent.fetch_add(bytes, Ordering::Relaxed);
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
        });
        let Some(ended) = self.while_heard(connection, &slot, &sent, upload).await else { return };
        let mut send = sink.into_inner().sink.sink;
        drop(reported);
        match ended {
            Ok(_) => {
                // Fails only when the asker stopped the stream, having all it wants.
                let _ = send.finish();
                // The next request need not wait for the acknowledgements.
                drop((slot, running));
                until_taken(send).await;
            }
            Err(ServeError::Stream(error)) => tracing::debug!(%error, "an asker went away"),
            Err(error) => {
                tracing::warn!(%error, "a pack could not be sent to its end");
                let _ = send.reset(error.abort().to_varint());
            }
        }
    }
}
