//! Logs: to standard error, chosen by `BRASA_LOG`.

use tracing_subscriber::EnvFilter;

/// Name of the environment variable with the filter, for example `info` or `peer=debug,quinn=warn`.
pub const FILTER_VARIABLE: &str = "BRASA_LOG";

/// Starts writing logs to standard error. Without `BRASA_LOG`: warnings and errors.
///
/// Called once, by `main`; a second call does nothing.
pub fn init() {
    let filter = EnvFilter::try_from_env(FILTER_VARIABLE).unwrap_or_else(|_| EnvFilter::new("warn"));
    let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(ansi).with_writer(std::io::stderr);
    // Only fails when there is a subscriber already, as in tests that share a process.
    let _ = subscriber.try_init();
}
