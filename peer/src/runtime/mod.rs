//! A running peer, put together from the layers below.
//!
//! | module | contents |
//! |---|---|
//! | [`peer`] | the peer: started in order, stopped in order |
//! | [`core_task`] | the task that owns the election core |
//! | `api_impl` | what commands ask of a running peer |

mod api_impl;
pub mod core_task;
pub mod peer;
