//! Logging to standard error, with a filter from `BRASA_LOG`.

use tracing_subscriber::EnvFilter;

/// Name of the environment variable with the filter, for example `info` or `peer=debug,quinn=warn`.
pub const FILTER_VARIABLE: &str = "BRASA_LOG";

/// Filter without [`FILTER_VARIABLE`]: warnings and errors. tarpc is off because the callers log lost connections and
/// missed deadlines themselves, with their context.
const DEFAULT_FILTER: &str = "warn,tarpc=off";

/// Starts logging to standard error; without `BRASA_LOG`, warnings and errors only.
///
/// `main` calls it once. A second call has no effect.
pub fn init() {
    init_to(std::io::stderr);
}

/// Starts logging through the writers that `make` returns, for a program that draws a prompt on standard error.
pub fn init_to<W: std::io::Write>(make: impl Fn() -> W + Send + Sync + 'static) {
    let filter = EnvFilter::try_from_env(FILTER_VARIABLE).unwrap_or_else(|_| EnvFilter::new(DEFAULT_FILTER));
    let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(ansi).with_writer(make);
    // Fails only if a subscriber is installed already, for example by another test in the same process.
    let _ = subscriber.try_init();
}
