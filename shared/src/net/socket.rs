//! A UDP socket that takes any batch of datagrams, whatever their size.

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

/// What the kernel takes in one call, headers not counted, bytes: an IP packet's 65,535 less the longest headers (IPv6
/// and UDP; it segments only behind them).
const MAX_CALL_BYTES: usize = 65_535 - 48;

/// A socket that hands the kernel no more at a time than it takes.
///
/// QUIC's driver gathers ten datagrams for one call (generic segmentation offload), however large they are; the kernel
/// refuses what would not fit one IP packet, and the driver takes that for a loss. With this one datagrams may be larger
/// than a tenth of it, which is where a fast path spends less time on each byte.
#[derive(Debug)]
pub(super) struct Batching {
    socket: Arc<dyn AsyncUdpSocket>,
}

impl Batching {
    pub(super) fn new(socket: Arc<dyn AsyncUdpSocket>) -> Self {
        Self { socket }
    }
}

/// How much of a batch of datagrams of `segment` bytes goes in one call, bytes: whole datagrams, one at least.
fn call_bytes(segment: usize) -> usize {
    let segment = segment.max(1);
    (MAX_CALL_BYTES / segment).max(1) * segment
}

impl AsyncUdpSocket for Batching {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.socket).create_io_poller()
    }

    /// When the socket has room for the first part only, the rest counts as lost on the way: were all of it to wait, it might
    /// never fit at once, and the first part would be sent again and again.
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

    /// A socket that notes what it is given, and has room for so many calls.
    #[derive(Debug)]
    struct Noting {
        calls: Mutex<Vec<(Vec<u8>, Option<usize>)>>,
        room: usize,
    }

    impl Noting {
        fn batching(room: usize) -> (Arc<Self>, Batching) {
            let socket = Arc::new(Self { calls: Mutex::default(), room });
            (Arc::clone(&socket), Batching::new(socket))
        }
    }

    impl AsyncUdpSocket for Noting {
        fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
            unreachable!("nobody waits")
        }

        fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
            let mut calls = self.calls.lock().unwrap();
            if calls.len() == self.room {
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
    fn every_call_fits_a_packet_and_the_datagrams_stay_whole_and_in_order() {
        for (segment, datagrams, last) in
            [(1200, 10, 700), (6500, 10, 6500), (9000, 10, 1), (32_000, 10, 32_000), (40_000, 3, 9)]
        {
            let contents: Vec<u8> = (0..segment * (datagrams - 1) + last).map(|i| (i % 251) as u8).collect();
            let (socket, batching) = Noting::batching(usize::MAX);
            batching.try_send(&transmit(&contents, Some(segment))).unwrap();
            let calls = socket.calls.lock().unwrap();
            let mut arrived = Vec::new();
            for (contents, segment_size) in calls.iter() {
                assert!(contents.len() <= MAX_CALL_BYTES, "{segment}: {} bytes in one call", contents.len());
                arrived.extend(contents.chunks(segment_size.unwrap_or(contents.len())).map(<[u8]>::to_vec));
            }
            let expected: Vec<_> = contents.chunks(segment).map(<[u8]>::to_vec).collect();
            assert!(arrived == expected, "{segment} bytes a datagram");
            let fit = MAX_CALL_BYTES / segment;
            assert_eq!(calls.len(), datagrams.div_ceil(fit), "{segment}: as many in a call as fit");
        }
    }

    #[test]
    fn a_single_datagram_goes_as_it_is() {
        let (socket, batching) = Noting::batching(1);
        batching.try_send(&transmit(&[7; 1300], None)).unwrap();
        assert_eq!(*socket.calls.lock().unwrap(), [(vec![7; 1300], None)]);
    }

    #[test]
    fn a_full_socket_is_said_to_be_full_unless_some_went() {
        let batch = [7; 90_000];
        let (socket, batching) = Noting::batching(0);
        let full = batching.try_send(&transmit(&batch, Some(32_000))).unwrap_err();
        assert_eq!((full.kind(), socket.calls.lock().unwrap().len()), (io::ErrorKind::WouldBlock, 0));
        let (socket, batching) = Noting::batching(1);
        batching.try_send(&transmit(&batch, Some(32_000))).unwrap();
        assert_eq!(socket.calls.lock().unwrap().len(), 1);
    }
}
