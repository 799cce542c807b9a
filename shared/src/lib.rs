//! Vocabulary, tarpc services and QUIC transport shared by all programs of Brasa.
//!
//! | module | contents |
//! |---|---|
//! | [`id`], [`name`], [`contact`], [`file_name`], [`content`], [`group_ranges`], [`digest`], [`epoch`], [`time`] | types that are valid by construction |
//! | [`electors`] | choice of the peers whose votes count |
//! | [`limits`] | bounds of the wire and of several crates, with unit and reason |
//! | [`error`] | failures as users see them |
//! | [`rpc`] | the services and their messages |
//! | [`net`] | endpoint, connections, stream kinds |
//! | [`retry`] | pauses between attempts, limits of repeated log lines |
//! | [`settings`] | nameserver address, state folder and join token from flags and environment |
//! | [`telemetry`] | logs |

pub mod contact;
pub mod content;
pub mod digest;
pub mod electors;
pub mod epoch;
pub mod error;
pub mod file_name;
pub mod group_ranges;
pub mod id;
pub mod limits;
pub mod name;
#[cfg(feature = "net")]
pub mod net;
#[cfg(feature = "net")]
pub mod retry;
pub mod rpc;
#[cfg(feature = "net")]
pub mod settings;
#[cfg(feature = "net")]
pub mod telemetry;
pub mod time;
