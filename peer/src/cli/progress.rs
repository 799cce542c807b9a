//! Progress bar of a download, drawn on standard error if that is a terminal.

use std::{
    fmt::Write as _,
    io::IsTerminal as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::{
    api::{Progress, ProgressSink},
    diagnostics::params::{SHOWN_RATE_STEP, SHOWN_RATE_WINDOW},
};
use indicatif::{ProgressBar, ProgressFinish, ProgressState, ProgressStyle};
use shared::time::{Clock, Timestamp};

use super::output::{bytes, duration};

/// Layout of the line. The message shrinks on a narrow terminal, because a wrapped line cannot be redrawn.
const TEMPLATE: &str = "{wide_msg}  [{bar:16}]  {binary_bytes}/{binary_total_bytes}  {rate}";

/// Progress bar that appears with the first progress and is removed when dropped.
pub(crate) struct DownloadBar {
    bar: Option<ProgressBar>,
    clock: Clock,
    last: Arc<LastRate>,
}

/// Rate of the last progress. The bar is also redrawn between reports, because a stalled transfer reports nothing.
#[derive(Debug, Default)]
struct LastRate {
    bytes_per_second: AtomicU64,
    /// Time of the report, milliseconds of the bar's clock.
    at_millis: AtomicU64,
}

impl Drop for DownloadBar {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl DownloadBar {
    pub(crate) fn new() -> Self {
        Self { bar: None, clock: Clock::start(), last: Arc::default() }
    }

    /// Draws the progress.
    pub(crate) fn update(&mut self, progress: &Progress) {
        let now = self.clock.now();
        self.last.bytes_per_second.store(progress.bytes_per_second, Ordering::Relaxed);
        self.last.at_millis.store(millis(now), Ordering::Relaxed);
        let (clock, last) = (self.clock, &self.last);
        let bar = self.bar.get_or_insert_with(|| {
            let last = last.clone();
            let write_rate = move |state: &ProgressState, out: &mut dyn std::fmt::Write| {
                let left = state.len().unwrap_or(0).saturating_sub(state.pos());
                // A failed write only leaves the line incomplete.
                let _ = out.write_str(&last.describe(millis(clock.now()), left));
            };
            let style = ProgressStyle::with_template(TEMPLATE).expect("the template is a constant");
            let style = style.progress_chars("=> ").with_key("rate", write_rate);
            let bar = ProgressBar::new(progress.bytes_total)
                .with_style(style)
                .with_finish(ProgressFinish::AndClear)
                .with_message(message(progress))
                .with_position(progress.bytes_done);
            bar.enable_steady_tick(SHOWN_RATE_STEP);
            bar
        });
        bar.set_length(progress.bytes_total);
        bar.set_position(progress.bytes_done);
        bar.set_message(message(progress));
    }
}

impl LastRate {
    /// Formats rate and remaining time (`2.0 MiB/s  7 s left`), or a stall after [`SHOWN_RATE_WINDOW`] without a
    /// report.
    fn describe(&self, now_millis: u64, bytes_left: u64) -> String {
        let silence = now_millis.saturating_sub(self.at_millis.load(Ordering::Relaxed));
        let rate = self.bytes_per_second.load(Ordering::Relaxed);
        let is_stalled = u128::from(silence) >= SHOWN_RATE_WINDOW.as_millis();
        if rate == 0 || is_stalled {
            let mut text = "0 B/s".to_owned();
            if is_stalled {
                // Writing to a String cannot fail.
                let _ = write!(text, "  stalled for {} s", silence / 1000);
            }
            return text;
        }
        format!("{}/s  {} left", bytes(rate), duration(bytes_left as f64 / rate as f64))
    }
}

/// Returns true if a progress bar is visible, that is, if standard error is a terminal.
pub(crate) fn is_visible() -> bool {
    std::io::stderr().is_terminal()
}

/// Runs `work` and draws the progress that it reports, if a bar is visible.
pub(crate) async fn with_bar<T>(work: impl AsyncFnOnce(ProgressSink) -> T) -> T {
    if !is_visible() {
        return work(ProgressSink::none()).await;
    }
    let (sink, mut latest) = ProgressSink::channel();
    let mut work = std::pin::pin!(work(sink));
    let mut bar = DownloadBar::new();
    loop {
        tokio::select! {
            result = &mut work => return result,
            Ok(()) = latest.changed() => {
                if let Some(progress) = latest.borrow_and_update().as_ref() {
                    bar.update(progress);
                }
            }
        }
    }
}

fn millis(at: Timestamp) -> u64 {
    u64::try_from(at.since_origin().as_millis()).unwrap_or(u64::MAX)
}

fn message(progress: &Progress) -> String {
    let Progress { file, sources, files_done, files_total, .. } = progress;
    let peers = if *sources == 1 { "peer" } else { "peers" };
    if *files_total > 1 {
        format!("{file} ({files_done}/{files_total}) from {sources} {peers}")
    } else {
        format!("{file} from {sources} {peers}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_counts_files_only_when_there_are_several() {
        let mut progress = Progress {
            file: "a.bin".parse().unwrap(),
            bytes_done: 1,
            bytes_total: 2,
            bytes_per_second: 0,
            sources: 1,
            files_done: 0,
            files_total: 1,
        };
        assert_eq!(message(&progress), "a.bin from 1 peer");
        (progress.files_total, progress.sources) = (7, 2);
        assert_eq!(message(&progress), "a.bin (0/7) from 2 peers");
    }

    #[test]
    fn rate_is_the_last_reported_one_until_the_transfer_stalls() {
        let last = LastRate { bytes_per_second: (2 << 20).into(), at_millis: 1000.into() };
        assert_eq!(last.describe(1500, 20 << 20), "2.0 MiB/s  10 s left");
        assert_eq!(last.describe(4999, 400 << 20), "2.0 MiB/s  3:20 min left");
        assert_eq!(last.describe(6000, 20 << 20), "0 B/s  stalled for 5 s");
        assert_eq!(LastRate::default().describe(100, 1), "0 B/s");
    }

    #[tokio::test]
    async fn with_bar_returns_the_result_of_the_work() {
        assert_eq!(with_bar(async |_sink| 7).await, 7);
    }
}
