//! The progress of a download, drawn on standard error when that is a terminal.

use std::io::IsTerminal as _;

use indicatif::{ProgressBar, ProgressFinish, ProgressStyle};

use super::backend::{Progress, ProgressSink};

/// The message gives way on a narrow terminal: a line that wraps could not be drawn over.
const TEMPLATE: &str =
    "{wide_msg}  [{bar:16}]  {binary_bytes}/{binary_total_bytes}  {binary_bytes_per_sec}  {eta} left";

/// A bar that appears with the first progress and vanishes when it is dropped.
pub(crate) struct Bar(Option<ProgressBar>);

impl Bar {
    pub(crate) fn new() -> Self {
        Self(None)
    }

    pub(crate) fn show(&mut self, progress: &Progress) {
        let bar = self.0.get_or_insert_with(|| {
            let style = ProgressStyle::with_template(TEMPLATE).expect("the template is a constant");
            let style = style.progress_chars("=> ");
            // What is there already does not count as speed.
            ProgressBar::new(progress.bytes_total)
                .with_style(style)
                .with_finish(ProgressFinish::AndClear)
                .with_message(message(progress))
                .with_position(progress.bytes_done)
        });
        bar.set_length(progress.bytes_total);
        bar.set_position(progress.bytes_done);
        bar.set_message(message(progress));
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
            sources: 1,
            files_done: 0,
            files_total: 1,
        };
        assert_eq!(message(&progress), "a.bin from 1 peer");
        (progress.files_total, progress.sources) = (7, 2);
        assert_eq!(message(&progress), "a.bin (0/7) from 2 peers");
    }

    #[tokio::test]
    async fn work_is_done_whoever_watches() {
        assert_eq!(drawn(async |_sink| 7).await, 7);
    }
}
