//! UDP socket that splits batches of datagrams that are too large for one system call.

use std::{
    io::{self, IoSliceMut},
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{RecvMeta, Transmit},
};

/// Payload that the kernel accepts in one call, bytes: the 65,535 bytes of an IP packet less the longest headers, IPv6
/// (40) and UDP (8).
const MAX_CALL_BYTES: usize = 65_535 - 48;

/// Socket that splits a send batch into calls of at most [`MAX_CALL_BYTES`].
///
/// quinn batches ten datagrams of any size in one call (generic segmentation offload). The kernel rejects a batch that
/// does not fit in one IP packet, and quinn treats the rejection as packet loss. Splitting the batch permits datagrams
/// larger than a tenth of the limit, which cost less processor time per byte on a fast path.
#[derive(Debug)]
pub(super) struct GsoSocket {
    socket: Arc<dyn AsyncUdpSocket>,
}

impl GsoSocket {
    pub(super) fn new(socket: Arc<dyn AsyncUdpSocket>) -> Self {
        Self { socket }
    }
}

/// Returns the bytes of a batch of `segment`-byte datagrams to send in one call: whole datagrams, at least one.
fn call_bytes(segment: usize) -> usize {
    let segment = segment.max(1);
    (MAX_CALL_BYTES / segment).max(1) * segment
}

impl AsyncUdpSocket for GsoSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.socket).create_io_poller()
    }

    /// Sends a batch in one or more calls. If the socket's buffer takes only the first calls, the rest is dropped and
    /// QUIC recovers it as lost. Returning `WouldBlock` instead would repeat the first calls, and the whole batch may
    /// never fit.
    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let Some(segment) = transmit.segment_size.filter(|_| transmit.contents.len() > MAX_CALL_BYTES) else {
            return self.socket.try_send(transmit);
        };
        for (call, contents) in transmit.contents.chunks(call_bytes(segment)).enumerate() {
            let segment_size = (contents.len() > segment).then_some(segment);
            match self.socket.try_send(&Transmit { contents, segment_size, ..transmit.clone() }) {
                Err(error) if call > 0 && error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                sent => sent?,
            }
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.socket.poll_recv(context, buffers, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.socket.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.socket.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.socket.may_fragment()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Socket that records its calls and blocks after `capacity` of them.
    #[derive(Debug)]
    struct RecordingSocket {
        calls: Mutex<Vec<(Vec<u8>, Option<usize>)>>,
        capacity: usize,
    }

    impl RecordingSocket {
        fn wrapped(capacity: usize) -> (Arc<Self>, GsoSocket) {
            let socket = Arc::new(Self { calls: Mutex::default(), capacity });
            (Arc::clone(&socket), GsoSocket::new(socket))
        }
    }

    impl AsyncUdpSocket for RecordingSocket {
        fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
            unreachable!("the tests do not poll")
        }

        fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
            let mut calls = self.calls.lock().unwrap();
            if calls.len() == self.capacity {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            calls.push((transmit.contents.to_vec(), transmit.segment_size));
            Ok(())
        }

        fn poll_recv(
            &self,
            _: &mut Context<'_>,
            _: &mut [IoSliceMut<'_>],
            _: &mut [RecvMeta],
        ) -> Poll<io::Result<usize>> {
            Poll::Pending
        }

        fn local_addr(&self) -> io::Result<SocketAddr> {
            Ok(([127, 0, 0, 1], 1).into())
        }
    }

    fn transmit(contents: &[u8], segment_size: Option<usize>) -> Transmit<'_> {
        Transmit { destination: ([127, 0, 0, 1], 2).into(), ecn: None, contents, segment_size, src_ip: None }
    }

    #[test]
    fn batch_over_the_limit_is_split_between_datagrams_in_order() {
        for (segment, datagrams, last) in
            [(1200, 10, 700), (6500, 10, 6500), (9000, 10, 1), (32_000, 10, 32_000), (40_000, 3, 9)]
        {
            let contents: Vec<u8> = (0..segment * (datagrams - 1) + last).map(|i| (i % 251) as u8).collect();
            let (socket, gso) = RecordingSocket::wrapped(usize::MAX);
            gso.try_send(&transmit(&contents, Some(segment))).unwrap();
            let calls = socket.calls.lock().unwrap();
            let mut arrived = Vec::new();
            for (contents, segment_size) in calls.iter() {
                assert!(contents.len() <= MAX_CALL_BYTES, "{segment}: {} bytes in one call", contents.len());
                arrived.extend(contents.chunks(segment_size.unwrap_or(contents.len())).map(<[u8]>::to_vec));
            }
            let expected: Vec<_> = contents.chunks(segment).map(<[u8]>::to_vec).collect();
            assert!(arrived == expected, "datagrams of {segment} bytes are split, lost or reordered");
            let fit = MAX_CALL_BYTES / segment;
            assert_eq!(calls.len(), datagrams.div_ceil(fit), "{segment}: a call carries fewer datagrams than fit");
        }
    }

    #[test]
    fn single_datagram_is_passed_through_unchanged() {
        let (socket, gso) = RecordingSocket::wrapped(1);
        gso.try_send(&transmit(&[7; 1300], None)).unwrap();
        assert_eq!(*socket.calls.lock().unwrap(), [(vec![7; 1300], None)]);
    }

    #[test]
    fn full_socket_reports_would_block_only_before_the_first_call() {
        let batch = [7; 90_000];
        let (socket, gso) = RecordingSocket::wrapped(0);
        let full = gso.try_send(&transmit(&batch, Some(32_000))).unwrap_err();
        assert_eq!((full.kind(), socket.calls.lock().unwrap().len()), (io::ErrorKind::WouldBlock, 0));
        let (socket, gso) = RecordingSocket::wrapped(1);
        gso.try_send(&transmit(&batch, Some(32_000))).unwrap();
        assert_eq!(socket.calls.lock().unwrap().len(), 1);
    }
}
