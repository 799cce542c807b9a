//! Bounds and timings of connections, streams and enrolment, each with its unit and reason.

use std::time::Duration;

/// Time for which the nameserver waits for the refusal of a port probe. On a path with a longer round-trip time, the
/// silence of the incumbent decides instead.
pub const PROBE_TIMEOUT: Duration = Duration::from_millis(50);
/// Longest deadline accepted from a caller; later ones are shortened to it, because timers cannot hold every 64-bit
/// number of seconds.
pub const MAX_CALL_DEADLINE: Duration = Duration::from_secs(600);
/// Deadline of the handshake of a dialled connection.
pub const DIAL_DEADLINE: Duration = Duration::from_secs(2);
/// Addresses of one host name that are dialled in turn.
pub const MAX_DIAL_ADDRESSES: usize = 4;
/// Calls in flight on one connection; more wait in the stream's flow control.
pub const MAX_CALLS_IN_FLIGHT: usize = 256;
/// Bidirectional streams that one connection may have open.
pub const MAX_STREAMS_PER_CONNECTION: u32 = 256;
/// Connections that one process accepts at a time.
pub const MAX_CONNECTIONS: usize = 4096;
/// Connections without a completed handshake that one process accepts at a time.
pub const MAX_HANDSHAKES: usize = 256;
/// Handshakes of one address at a time once there are [`MAX_HANDSHAKES`] in total, so that one host does not exclude
/// the others.
pub const MAX_HANDSHAKES_PER_ADDRESS: usize = 64;
/// Connections that one identity may hold to one process.
pub const MAX_CONNECTIONS_PER_IDENTITY: usize = 32;
/// Call streams that one connection may have open. Clients need one per service; each buffers up to one incomplete
/// frame.
pub const MAX_CALL_STREAMS: usize = 16;
/// Connections of applicants at a time; every host that reaches the port can be one.
pub const MAX_APPLICANTS: usize = 64;
/// Streams that an applicant may have open; it needs one.
pub const MAX_APPLICANT_STREAMS: usize = 4;
/// Maximum life of an applicant's connection: the time of one call, for which a person waits.
pub const ENROLMENT_TIMEOUT: Duration = Duration::from_secs(10);
/// Silence after which a connection is closed.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// Interval of keep-alives on an otherwise silent connection.
pub const KEEP_ALIVE: Duration = Duration::from_secs(3);
/// Receive window of an accepted connection until the other side is known to be a member, bytes: enough for a signing
/// request.
pub const APPLICANT_WINDOW_BYTES: u32 = 64 << 10;
/// Bytes that a connection keeps for retransmission.
pub const SEND_WINDOW_BYTES: u64 = 16 << 20;
/// UDP socket buffers requested from the kernel, bytes. A clamped buffer is reported.
pub const SOCKET_BUFFER_BYTES: usize = 7 << 20;
/// Largest datagram, bytes of UDP payload, where the path carries it (loopback, jumbo frames): the kernel accepts two
/// of them per call. 1 GiB over loopback takes a tenth less time than with 6500. The receive buffer of an endpoint
/// reserves address space for 2048 of them (66 MB) and touches 2 MB.
pub const MAX_DATAGRAM_BYTES: u16 = 32_000;
/// Time for which datagrams stay small after repeated loss of only large ones. A receiver that does not read loses
/// them as a path with a small MTU does; quinn's default of a minute would double the time of every transfer in that
/// minute.
pub const MTU_SEARCH_PAUSE: Duration = Duration::from_secs(1);
/// Datagrams that the other side may leave unacknowledged within its acknowledgement delay (25 ms).
pub const DATAGRAMS_PER_ACK: u32 = 9;
/// Time for which a program waits for the local token of a nameserver on this machine that is just starting.
pub const LOCAL_TOKEN_WAIT: Duration = Duration::from_secs(1);
/// Interval at which the program looks for the local token.
pub const LOCAL_TOKEN_POLL: Duration = Duration::from_millis(20);
