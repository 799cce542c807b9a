//! tarpc over a bidirectional stream: length-delimited frames (4 bytes, big endian) of postcard.

use std::{io, pin::Pin};

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use serde::{Serialize, de::DeserializeOwned};
use tarpc::{
    ClientMessage, Response,
    client::NewClient,
    server::{BaseChannel, Channel, Serve},
};
use tokio::io::Join;
use tokio_util::codec::{Framed, LengthDelimitedCodec};

use super::StreamKind;
use crate::{
    limits,
    rpc::{
        enrol::EnrolServiceClient, nameserver::NameServiceClient, peer::PeerServiceClient,
        tracker::TrackerServiceClient,
    },
};

/// A stream as tarpc sees it.
pub type Transport<Item, SinkItem> =
    tarpc::serde_transport::Transport<Join<quinn::RecvStream, quinn::SendStream>, Item, SinkItem, Postcard>;

/// The postcard encoding of frames.
#[derive(Debug, Clone, Copy)]
pub struct Postcard;

impl<Item: Serialize> tokio_serde::Serializer<Item> for Postcard {
    type Error = io::Error;

    fn serialize(self: Pin<&mut Self>, item: &Item) -> io::Result<Bytes> {
        postcard::to_stdvec(item).map(Bytes::from).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }
}

impl<Item: DeserializeOwned> tokio_serde::Deserializer<Item> for Postcard {
    type Error = io::Error;

    fn deserialize(self: Pin<&mut Self>, frame: &BytesMut) -> io::Result<Item> {
        postcard::from_bytes(frame).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }
}

/// Frames of at most [`limits::MAX_FRAME_BYTES`] on a stream whose kind has been told already.
pub fn transport<Item, SinkItem>(send: quinn::SendStream, recv: quinn::RecvStream) -> Transport<Item, SinkItem>
where
    Item: DeserializeOwned,
    SinkItem: Serialize,
{
    let codec = LengthDelimitedCodec::builder().max_frame_length(limits::MAX_FRAME_BYTES).new_codec();
    tarpc::serde_transport::new(Framed::new(tokio::io::join(recv, send), codec), Postcard)
}

/// Answers the calls on a stream until it ends. At most [`limits::MAX_CALLS_IN_FLIGHT`] are worked on at a time;
/// more wait in the stream's flow control, that is, at the caller.
pub async fn serve_calls<S>(send: quinn::SendStream, recv: quinn::RecvStream, service: S)
where
    S: Serve + Clone,
    S::Req: DeserializeOwned + Send + 'static,
    S::Resp: Serialize + Send + 'static,
{
    let transport: Transport<ClientMessage<S::Req>, Response<S::Resp>> = transport(send, recv);
    BaseChannel::with_defaults(transport)
        .execute(service)
        .for_each_concurrent(limits::MAX_CALLS_IN_FLIGHT, |call| call)
        .await;
}

/// A tarpc service's generated client, and the kind of stream that it talks on.
pub trait ServiceClient: Clone + Send + Sync + 'static {
    /// First byte of its streams.
    const KIND: StreamKind;

    /// A client on a stream whose kind has been told; a task of its own moves the frames.
    fn on(send: quinn::SendStream, recv: quinn::RecvStream) -> Self;
}

macro_rules! service_clients {
    ($($client:ty => $kind:ident),+ $(,)?) => {$(
        impl ServiceClient for $client {
            const KIND: StreamKind = StreamKind::$kind;

            fn on(send: quinn::SendStream, recv: quinn::RecvStream) -> Self {
                let config = tarpc::client::Config::default();
                let NewClient { client, dispatch } = Self::new(config, transport(send, recv));
                tokio::spawn(async move {
                    if let Err(error) = dispatch.await {
                        // Calls in flight have got their own error; this is why.
                        tracing::debug!(%error, "a call stream ended");
                    }
                });
                client
            }
        }
    )+};
}

service_clients! {
    NameServiceClient => Names,
    TrackerServiceClient => Tracker,
    PeerServiceClient => Peer,
    EnrolServiceClient => Enrol,
}
