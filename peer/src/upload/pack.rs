//! Uploads of packs of small files. They use the same slots as bulk uploads.

use shared::{
    content::ContentHash,
    id::PeerId,
    net::{
        bulk::BulkRefusal,
        pack::{ItemRefusal, PACKS_HASH, PackAccepted, PackRequest},
    },
};

use super::{Receiver, Uploads, read_request, stream_of};
use crate::{store::OpenError, transfer::serve_pack};

impl Uploads {
    /// Serves a pack stream of `peer`: reads the request, answers it, and sends the contents.
    pub async fn serve_pack(
        &self,
        peer: &PeerId,
        connection: &quinn::Connection,
        send: quinn::SendStream,
        mut recv: quinn::RecvStream,
    ) {
        let receiver = Receiver { peer, connection };
        let Some(request) = read_request::<PackRequest>(peer, &mut recv).await else { return };
        let contents = match request.contents() {
            Ok(contents) => contents.to_vec(),
            Err(error) => {
                tracing::debug!(%peer, %error, "refusing an invalid pack request");
                return self.refuse(send, BulkRefusal::BadRanges).await;
            }
        };
        let Some((admitted, send)) = self.admit(receiver, send, PackAccepted).await else { return };
        let (opened, suspected) = (self.share.clone(), self.share.clone());
        let open = move |hash: &ContentHash| {
            opened.open_content(hash).map_err(|error| match error {
                // A pack needs no outboard, so nothing has to be hashed first.
                OpenError::NotHere | OpenError::Hashing => ItemRefusal::NotHere,
                OpenError::Unreadable(error) => {
                    tracing::warn!(%error, ?hash, "cannot read a shared file");
                    ItemRefusal::Unreadable
                }
            })
        };
        let changed = move |hash: &ContentHash| {
            tracing::warn!(?hash, "a shared file has changed");
            suspected.invalidate(hash);
        };
        let mut upload = self.begin(receiver, PACKS_HASH, admitted, send);
        let transfer = async {
            self.write(stream_of(&mut upload.sink), &upload.opening).await?;
            let count = |bytes| self.count(&upload.sent, bytes);
            serve_pack(contents, open, changed, &mut upload.sink, self.silence, count).await
        };
        let Some(result) = self.monitored(receiver, &upload.slot, &upload.sent, transfer).await else { return };
        // Each content is hashed before it is sent, so a complaint about the data is no evidence against a file.
        let _ = upload.end(receiver, &PACKS_HASH, result).await;
    }
}
