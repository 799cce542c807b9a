//! Owners that are not what they say: one that sends other bytes, one that accepts and stalls, one that lies about the
//! size. Each is a member with a proper certificate; the download must be right all the same, or fail and keep nothing.

use std::{fs, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use shared::{
    content::ContentHash,
    net::{
        StreamKind,
        bulk::{BULK_BEGINS, BulkAccepted, BulkRefusal, BulkRequest, read_header, write_header},
        serve::{Handler, Remote},
    },
    rpc::tracker::WireFile,
};
use tokio::time::sleep;

mod common;
use common::{
    Network,
    impostor::{self, Running},
};

const NAME: &str = "a.bin";

#[derive(Clone, Copy)]
enum Lie {
    /// Every byte is another.
    Bytes,
    /// Accepts, then says nothing.
    Stall,
    /// Another size than announced.
    Size,
}

struct Liar {
    lie: Lie,
    size: u64,
}

impl Handler for Liar {
    fn stream(
        self: Arc<Self>,
        _: Arc<Remote>,
        kind: StreamKind,
        mut send: quinn::SendStream,
        mut recv: quinn::RecvStream,
    ) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            if kind != StreamKind::Bulk {
                return;
            }
            let Ok(BulkRequest { .. }) = read_header(&mut recv).await else { return };
            let size = if let Lie::Size = self.lie { self.size / 2 } else { self.size };
            let accepted: Result<BulkAccepted, BulkRefusal> = Ok(BulkAccepted { size });
            if write_header(&mut send, &accepted).await.is_err() || send.write_all(&[BULK_BEGINS]).await.is_err() {
                return;
            }
            match self.lie {
                Lie::Stall => sleep(Duration::from_secs(60)).await,
                Lie::Bytes | Lie::Size => {
                    // Ends when the asker has seen enough.
                    while send.write_all(&[0x55; 64 << 10]).await.is_ok() {}
                }
            }
        })
    }
}

async fn start(network: &Network, id: &str, lie: Lie, size: u64, hash: ContentHash) -> Running {
    let file = WireFile { name: NAME.to_owned(), size, hash, mtime_micros: 0, executable: false };
    impostor::start(network, id, Liar { lie, size }, vec![file]).await
}

fn content() -> (Vec<u8>, ContentHash) {
    let mut content = vec![0; 6 << 20];
    fastrand::Rng::with_seed(11).fill(&mut content);
    let hash = ContentHash(*blake3::hash(&content).as_bytes());
    (content, hash)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bytes_are_right_although_three_of_four_owners_are_not() {
    let network = Network::start();
    let (content, hash) = content();
    network.put("peer1", NAME, &content);
    let _honest = network.headless("peer1");
    let _receiver = network.headless("peer2");
    let size = content.len() as u64;
    let _liars = [
        start(&network, "bytes", Lie::Bytes, size, hash).await,
        start(&network, "stall", Lie::Stall, size, hash).await,
        start(&network, "size", Lie::Size, size, hash).await,
    ];
    network.json_until("peer2", &["listAll"], |listing| {
        listing["files"][0]["owners"].as_array().is_some_and(|owners| owners.len() == 4)
    });
    let done = network.json("peer2", &["download", NAME]);
    assert!(fs::read(network.shared("peer2", NAME)).unwrap() == content);
    let sources = done["files"][0]["sources"].as_array().unwrap();
    assert_eq!(sources.len(), 1, "nothing of the liars counts: {done}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_liar_alone_is_named_and_nothing_is_kept() {
    let network = Network::start();
    let (content, hash) = content();
    let _tracker = network.headless("peer1");
    let _liar = start(&network, "bytes", Lie::Bytes, content.len() as u64, hash).await;
    network.json_until("peer1", &["listAll"], |listing| listing["files"][0]["name"] == NAME);
    let ended = network.run("peer1", &["download", NAME, "--json"]);
    assert_eq!(ended.status, Some(1), "{ended:?}");
    let error: serde_json::Value = serde_json::from_str(&ended.err).unwrap();
    assert_eq!(error["error"]["code"], "verification_failed", "{error}");
    assert!(error["error"]["message"].as_str().unwrap().contains("bytes: wrong bytes at offset 0"), "{error}");
    assert!(!network.shared("peer1", NAME).exists());
    assert_eq!(network.json("peer1", &["list"])["files"].as_array().unwrap().len(), 0);
}
