//! Tests of the network layer over real sockets on loopback.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod abuse;
mod calls;
mod datagrams;
mod harness;
mod trust;
