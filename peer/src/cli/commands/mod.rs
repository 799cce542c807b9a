//! One file a verb: how it is read, and what it does with a [`PeerApi`](crate::api::PeerApi).

pub(crate) mod add;
pub(crate) mod download;
pub(crate) mod elect;
pub(crate) mod exit;
pub(crate) mod help;
pub(crate) mod list;
pub(crate) mod list_all;
pub(crate) mod peers;
pub(crate) mod remove;
pub(crate) mod status;
pub(crate) mod tracker;
