//! Bounds and timings of `cli`, each with its unit and reason.

use std::time::Duration;

/// Longest line of commands on standard input, bytes.
pub const MAX_COMMAND_LINE_BYTES: usize = 64 << 10;
/// Largest frame on the control socket of a peer, bytes: above the arguments that Linux allows (`ARG_MAX`, 2 MiB),
/// with JSON quoting. Longer output is split.
pub const MAX_CONTROL_FRAME_BYTES: usize = 8 << 20;
/// Time for which a one-shot command waits for the running peer to accept it.
pub const CONTROL_SILENCE: Duration = Duration::from_secs(5);
/// Output in one frame on a control socket, bytes.
pub const CONTROL_OUTPUT_BYTES: usize = 64 << 10;
/// Control connections served at a time; more wait to be accepted.
pub const MAX_CONTROL_CLIENTS: usize = 64;
/// Interval at which progress is drawn or sent.
pub const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);
/// Time for which a one-shot command waits for a peer of its id that is starting or leaving.
pub const ONE_SHOT_WAIT: Duration = Duration::from_secs(5);
/// Interval at which it tries to connect.
pub const ONE_SHOT_POLL: Duration = Duration::from_millis(50);
/// Time for which `exit` and `kill` wait for the end of the peer: the bounds of its stop together, with a margin.
pub const END_WAIT: Duration = Duration::from_secs(20);
/// Shortest pause before a service that has no identity yet looks for the nameserver again, and before a control socket
/// that cannot be created is tried again.
pub const RETRY_SHORTEST: Duration = Duration::from_millis(250);
/// Longest such pause.
pub const RETRY_LONGEST: Duration = Duration::from_secs(5);
/// Interval of log lines about attempts that fail again and again.
pub const LOG_INTERVAL: Duration = Duration::from_secs(60);
/// Lines in the history of the prompt.
pub const MAX_HISTORY_LINES: usize = 1000;
/// File names kept for completion at the prompt.
pub const MAX_COMPLETIONS: usize = 10_000;
/// Longest unknown word for which similar commands are suggested, characters.
pub const MAX_SUGGESTED_CHARS: usize = 32;
