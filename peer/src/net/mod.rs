//! Network side of a peer: outgoing and incoming calls, and the streams that other members open.
//!
//! | module | contents |
//! |---|---|
//! | [`rpc_server`] | RPC services, as messages to the core |
//! | [`rpc_client`] | calls that the core requests, with their results as events |
//! | [`router`] | dispatch of incoming streams |
//! | [`nameserver_watch`] | changes of the registered peers |
//! | [`registration`] | registration of this peer's name |
//! | [`known_peers`], [`rejoin`] | peers known from an earlier run, and joining them without the nameserver |
//! | `refusals` | pauses after a failed authentication |

pub mod known_peers;
pub mod nameserver_watch;
pub mod params;
mod refusals;
pub mod registration;
pub mod rejoin;
pub mod router;
pub mod rpc_client;
pub mod rpc_server;
