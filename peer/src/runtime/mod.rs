//! Running peer, composed of the layers below.
//!
//! | module | contents |
//! |---|---|
//! | [`peer`] | the running peer and its stop |
//! | `start` | the start, step by step |
//! | `lock`, `durable_file` | the lock of the state directory and the number of each run; the file of the votes |
//! | [`core_task`] | the task that owns the election core |
//! | `api_impl` | the commands of a running peer |
//! | [`observer`] | queries without a running peer |

mod api_impl;
pub mod core_task;
mod durable_file;
pub(crate) mod lock;
pub mod observer;
pub mod params;
pub mod peer;
mod start;
