//! The network layer over real sockets on loopback, from a call between two members to attacks on the door.

#![expect(clippy::unwrap_used, reason = "tests, helpers included, end where something is not as it should be")]

mod abuse;
mod calls;
mod datagrams;
mod harness;
mod trust;
