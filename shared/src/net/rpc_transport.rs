//! tarpc over a bidirectional stream: postcard messages in frames with a length prefix (4 bytes, big endian).

use crate::net::params;
use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use futures::{Sink, SinkExt, Stream, StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tarpc::{
    ClientMessage, Request, Response, ServerError,
    client::NewClient,
    context,
    server::{BaseChannel, Channel, Serve},
    trace,
};
use tokio::io::Join;
use tokio_util::codec::{Framed, LengthDelimitedCodec};

use super::stream_kind::StreamKind;
use crate::{
    limits,
    rpc::{
        enrol::EnrolServiceClient, nameserver::NameServiceClient, peer::PeerServiceClient,
        tracker::TrackerServiceClient,
    },
};

/// tarpc transport over a bidirectional stream.
pub type Transport<Item, SinkItem> =
    tarpc::serde_transport::Transport<Join<quinn::RecvStream, quinn::SendStream>, Item, SinkItem, Postcard>;

/// Postcard encoding of frames.
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

/// Creates a transport with frames of at most [`limits::MAX_FRAME_BYTES`] on a stream whose kind byte has been sent.
pub fn transport<Item, SinkItem>(send: quinn::SendStream, recv: quinn::RecvStream) -> Transport<Item, SinkItem>
where
    Item: DeserializeOwned,
    SinkItem: Serialize,
{
    let codec = LengthDelimitedCodec::builder().max_frame_length(limits::MAX_FRAME_BYTES).new_codec();
    tarpc::serde_transport::new(Framed::new(tokio::io::join(recv, send), codec), Postcard)
}

/// Serves the calls on a stream until it ends.
///
/// At most [`crate::net::params::MAX_CALLS_IN_FLIGHT`] calls run at a time. Flow control of the stream holds further
/// calls at the caller.
pub async fn serve_calls<S>(send: quinn::SendStream, recv: quinn::RecvStream, service: S)
where
    S: Serve + Clone,
    S::Req: DeserializeOwned + Send + 'static,
    S::Resp: Serialize + Send + 'static,
{
    BaseChannel::with_defaults(ServerTransport { inner: transport(send, recv) })
        .execute(service)
        .for_each_concurrent(params::MAX_CALLS_IN_FLIGHT, |call| call)
        .await;
}

/// Server side of a [`Transport`], hardened against hostile frames and against an answer that exceeds the frame limit.
struct ServerTransport<Req, Resp> {
    inner: Transport<WireCall<Req>, Response<Resp>>,
}

/// Wire form of [`ClientMessage`]. tarpc's decoder adds the caller's deadline to the clock, and its timer uses the
/// result; both panic on overflow.
#[derive(Deserialize)]
enum WireCall<Req> {
    Request { context: WireContext, id: u64, message: Req },
    Cancel { trace_context: trace::Context, request_id: u64 },
}

#[derive(Deserialize)]
struct WireContext {
    deadline: Duration,
    trace_context: trace::Context,
}

impl<Req> WireCall<Req> {
    #[expect(clippy::disallowed_methods, reason = "tarpc takes deadlines of the real clock")]
    fn into_message(self) -> ClientMessage<Req> {
        match self {
            Self::Request { context: WireContext { deadline, trace_context }, id, message } => {
                let mut context = context::current();
                context.deadline = Instant::now() + deadline.min(params::MAX_CALL_DEADLINE);
                context.trace_context = trace_context;
                ClientMessage::Request(Request { context, id, message })
            }
            Self::Cancel { trace_context, request_id } => ClientMessage::Cancel { trace_context, request_id },
        }
    }
}

impl<Req: DeserializeOwned, Resp: Serialize> Stream for ServerTransport<Req, Resp> {
    type Item = io::Result<ClientMessage<Req>>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().inner.try_poll_next_unpin(cx).map_ok(WireCall::into_message)
    }
}

impl<Req: DeserializeOwned, Resp: Serialize> Sink<Response<Resp>> for ServerTransport<Req, Resp> {
    type Error = io::Error;

    fn poll_ready(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().inner.poll_ready_unpin(cx)
    }

    fn start_send(self: Pin<&mut Self>, response: Response<Resp>) -> io::Result<()> {
        let request_id = response.request_id;
        let inner = &mut self.get_mut().inner;
        inner.start_send_unpin(response).or_else(|error| {
            // No byte of the answer was written. Its caller gets the error; the other calls on the stream continue.
            tracing::error!(%request_id, %error, "cannot send an answer");
            let message = Err(ServerError::new(io::ErrorKind::Other, format!("the answer cannot be sent: {error}")));
            inner.start_send_unpin(Response { request_id, message })
        })
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().inner.poll_flush_unpin(cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().inner.poll_close_unpin(cx)
    }
}

/// Generated client of a tarpc service.
pub trait ServiceClient: Clone + Send + Sync + 'static {
    /// Kind of the service's streams.
    const KIND: StreamKind;

    /// Creates a client on a stream whose kind byte has been sent. Spawns a task that transfers the frames.
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
                        // Each call in flight has returned its own error; this is the cause.
                        tracing::debug!(kind = ?StreamKind::$kind, %error, "a call stream failed");
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
