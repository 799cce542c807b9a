//! Text of the warning about directories that cannot be watched.

use std::time::Duration;

use super::watch::{WatchOutcome, WatchProblem};
use crate::diagnostics::warnings::{Topic, Warnings};

/// Sets or clears the warning after an update of the watches. `rescan` is the interval of the scans that find changes
/// without them.
pub(crate) fn report(warnings: &Warnings, outcome: &WatchOutcome, rescan: Duration) {
    let Some(problem) = &outcome.problem else {
        warnings.clear(Topic::Watch, "");
        return;
    };
    let (why, remedy) = match problem {
        WatchProblem::Watches => {
            ("the limit of watches is reached".to_owned(), "raise it with `sysctl fs.inotify.max_user_watches=1048576`")
        }
        WatchProblem::Instances => (
            "too many notification queues or open files".to_owned(),
            "raise `sysctl fs.inotify.max_user_instances` or the limit of open files (`ulimit -n`)",
        ),
        WatchProblem::Other(error) => (error.clone(), "look at the permissions of the folders"),
    };
    let text = format!(
        "{} folders of the share are not watched ({why}): changes in them are found by the scan every {} s only; {remedy}; \
         it is tried again",
        outcome.unwatched,
        rescan.as_secs()
    );
    warnings.set(Topic::Watch, "", text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warning_about_watches_names_the_setting_and_ends() {
        let warnings = Warnings::default();
        let at_limit = WatchOutcome { added: 0, unwatched: 3, problem: Some(WatchProblem::Watches) };
        report(&warnings, &at_limit, Duration::from_secs(30));
        let [text] = &warnings.list()[..] else { panic!("one warning") };
        assert!(text.starts_with("3 folders") && text.contains("max_user_watches") && text.contains("30 s"), "{text}");
        report(&warnings, &WatchOutcome::default(), Duration::from_secs(30));
        assert_eq!(warnings.list(), Vec::<String>::new());
    }
}
