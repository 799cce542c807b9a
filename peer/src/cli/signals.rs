//! Signals that end the program cleanly.

use std::io;

use rustix::process::Signal;
use shared::error::{Failure, FailureCode};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Signals that end a peer and a one-shot command. SIGQUIT counts, since its default action dumps a core.
const ENDING: [SignalKind; 4] =
    [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup(), SignalKind::quit()];

/// Returns a token that the first signal to end the program cancels. The signals no longer end the process by
/// themselves. A signal that the starter of the process ignores, as `nohup` does with SIGHUP, stays ignored. At a
/// `prompt` SIGINT stops a command, not the program.
///
/// # Errors
/// `internal` when the process cannot listen for signals.
pub fn stop_on_signals(prompt: bool) -> Result<CancellationToken, Failure> {
    let no_signals = |error: io::Error| {
        Failure::new(FailureCode::Internal, "cannot listen for signals", error, "close other programs and try again")
    };
    // With a handler, a file over the process's size limit (`ulimit -f`) is an error of the write, not a fatal signal.
    drop(signal(SignalKind::from_raw(Signal::XFSZ.as_raw())).map_err(no_signals)?);
    // Only Linux tells; elsewhere no signal counts as ignored.
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = ignored_signals(&status);
    let stop = CancellationToken::new();
    for kind in ENDING {
        if (prompt && kind == SignalKind::interrupt()) || is_in(ignored, kind) {
            continue;
        }
        let mut signals = signal(kind).map_err(no_signals)?;
        let stop = stop.clone();
        tokio::spawn(async move {
            signals.recv().await;
            stop.cancel();
        });
    }
    Ok(stop)
}

/// Set of the ignored signals in the text of `/proc/PID/status` (proc(5)): bit N-1 is signal N.
fn ignored_signals(status: &str) -> u64 {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

fn is_in(set: u64, kind: SignalKind) -> bool {
    let bit = u32::try_from(kind.as_raw_value()).ok().and_then(|number| number.checked_sub(1));
    bit.and_then(|bit| set.checked_shr(bit)).is_some_and(|rest| rest & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_read_from_the_status_of_the_process() {
        let set = ignored_signals("Name:\tpeer\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000000001\nSigCgt:\t00\n");
        assert!(is_in(set, SignalKind::hangup()));
        assert!(!is_in(set, SignalKind::interrupt()) && !is_in(set, SignalKind::terminate()));
        assert_eq!(ignored_signals("Name:\tpeer\n"), 0);
    }
}
