//! The progress of a download, drawn on standard error when that is a terminal.

use std::{
    fmt::Write as _,
    io::IsTerminal as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use indicatif::{ProgressBar, ProgressFinish, ProgressState, ProgressStyle};
use shared::{
    limits::{SHOWN_RATE_STEP, SHOWN_RATE_WINDOW},
    time::{Clock, Timestamp},
};

use super::output::{bytes, whole_time};
use crate::api::{Progress, ProgressSink};

/// The message gives way on a narrow terminal: a line that wraps could not be drawn over.
const TEMPLATE: &str = "{wide_msg}  [{bar:16}]  {binary_bytes}/{binary_total_bytes}  {pace}";

/// A bar that appears with the first progress and vanishes when it is dropped.
pub(crate) struct Bar {
    bar: Option<ProgressBar>,
    clock: Clock,
    told: Arc<Told>,
}

/// The rate as it was told last. The bar is drawn in between, too: a transfer that stands still says nothing.
#[derive(Debug, Default)]
struct Told {
    bytes_per_second: AtomicU64,
    /// When, milliseconds of the bar's clock.
    at_millis: AtomicU64,
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Bar {
    pub(crate) fn new() -> Self {
        Self { bar: None, clock: Clock::start(), told: Arc::default() }
    }

    pub(crate) fn show(&mut self, progress: &Progress) {
        let now = self.clock.now();
        self.told.bytes_per_second.store(progress.bytes_per_second, Ordering::Relaxed);
        self.told.at_millis.store(millis(now), Ordering::Relaxed);
        let (clock, told) = (self.clock, &self.told);
        let bar = self.bar.get_or_insert_with(|| {
            let told = told.clone();
            let write = move |state: &ProgressState, out: &mut dyn std::fmt::Write| {
                let left = state.len().unwrap_or(0).saturating_sub(state.pos());
                // A narrow line that cannot be written is not drawn.
                let _ = out.write_str(&told.shown(millis(clock.now()), left));
            };
            let style = ProgressStyle::with_template(TEMPLATE).expect("the template is a constant");
            let style = style.progress_chars("=> ").with_key("pace", write);
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

fn millis(at: Timestamp) -> u64 {
    u64::try_from(at.since_origin().as_millis()).unwrap_or(u64::MAX)
}

impl Told {
    /// `2.0 MiB/s  0:07 left`; that it stands still when nothing was told for long.
    fn shown(&self, now_millis: u64, bytes_left: u64) -> String {
        let silence = now_millis.saturating_sub(self.at_millis.load(Ordering::Relaxed));
        let rate = self.bytes_per_second.load(Ordering::Relaxed);
        let is_old = u128::from(silence) >= SHOWN_RATE_WINDOW.as_millis();
        if rate == 0 || is_old {
            let mut text = "0 B/s".to_owned();
            if is_old {
                // Writing to a String cannot fail.
                let _ = write!(text, "  nothing for {} s", silence / 1000);
            }
            return text;
        }
        format!("{}/s  {} left", bytes(rate), whole_time(bytes_left as f64 / rate as f64))
    }
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

/// Whether somebody would see a bar.
pub(crate) fn is_visible() -> bool {
    std::io::stderr().is_terminal()
}

/// Runs `work` with a sink whose progress is drawn, if somebody sees it.
pub(crate) async fn drawn<T>(work: impl AsyncFnOnce(ProgressSink) -> T) -> T {
    if !is_visible() {
        return work(ProgressSink::none()).await;
    }
    let (sink, mut latest) = ProgressSink::channel();
    let mut work = std::pin::pin!(work(sink));
    let mut bar = Bar::new();
    loop {
        tokio::select! {
            result = &mut work => return result,
            Ok(()) = latest.changed() => {
                if let Some(progress) = latest.borrow_and_update().as_ref() {
                    bar.show(progress);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_counts_files_only_when_there_are_several() {
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
    fn the_rate_is_as_told_until_nothing_is_told_for_long() {
        let told = Told { bytes_per_second: (2 << 20).into(), at_millis: 1000.into() };
        assert_eq!(told.shown(1500, 20 << 20), "2.0 MiB/s  10 s left");
        assert_eq!(told.shown(4999, 400 << 20), "2.0 MiB/s  3:20 min left");
        assert_eq!(told.shown(6000, 20 << 20), "0 B/s  nothing for 5 s");
        assert_eq!(Told::default().shown(100, 1), "0 B/s");
    }

    #[tokio::test]
    async fn work_is_done_whoever_watches() {
        assert_eq!(drawn(async |_sink| 7).await, 7);
    }
}
