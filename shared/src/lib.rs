//! What Brasa's programs have in common: the vocabulary, the tarpc services, and the QUIC transport.
//!
//! | room | what is in it |
//! |---|---|
//! | [`id`], [`name`], [`file_name`], [`content`], [`epoch`], [`time`] | vocabulary: parse, don't validate |
//! | [`electors`] | who elects the tracker |
//! | [`limits`] | every bound, with unit and reason |
//! | [`error`] | failures as users see them |
//! | [`rpc`] | the services and their messages |
//! | [`net`] | endpoint, connections, stream kinds |
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
pub mod rpc;
#[cfg(feature = "net")]
pub mod settings;
#[cfg(feature = "net")]
pub mod telemetry;
pub mod time;
