//! Logs: to standard error, chosen by `BRASA_LOG`.

use tracing_subscriber::EnvFilter;

/// Name of the environment variable with the filter, for example `info` or `peer=debug,quinn=warn`.
pub const FILTER_VARIABLE: &str = "BRASA_LOG";

/// Without [`FILTER_VARIABLE`]: warnings and errors. What tarpc says of clients that
/// go and calls that are late is told by those who made the calls, with more sense.
const DEFAULT_FILTER: &str = "warn,tarpc=off";

/// Starts writing logs to standard error. Without `BRASA_LOG`: warnings and errors.
///
/// Called once, by `main`; a second call does nothing.
pub fn init() {
    init_to(std::io::stderr);
}

/// The same through writers that `make` gives, for programs whose standard error has a prompt on it.
pub fn init_to<W: std::io::Write>(make: impl Fn() -> W + Send + Sync + 'static) {
    let filter = EnvFilter::try_from_env(FILTER_VARIABLE).unwrap_or_else(|_| EnvFilter::new(DEFAULT_FILTER));
    let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(ansi).with_writer(make);
    // Only fails when there is a subscriber already, as in tests that share a process.
    let _ = subscriber.try_init();
}
