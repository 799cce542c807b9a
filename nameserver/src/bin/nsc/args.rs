//! Command line of `nsc`.

use std::{path::PathBuf, time::Duration};

use clap::{Parser, Subcommand};
use shared::{id::PeerId, name::Host, settings::parse_host};

/// Name server control.
#[derive(Parser)]
#[command(name = "nsc", version)]
pub(crate) struct Arguments {
    /// Host of the nameserver [default: that of $BRASA_NAMESERVER, else the nameserver of this machine]
    #[arg(short = 'n', long, value_parser = parse_host)]
    pub(crate) host: Option<Host>,
    /// Port of the nameserver [default: that of $BRASA_NAMESERVER, else 9090]
    #[arg(short, long, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) port: Option<u16>,
    /// Base folder of all state [default: $BRASA_STATE_DIR, $XDG_STATE_HOME/brasa or ~/.local/state/brasa]
    #[arg(long)]
    pub(crate) state_dir: Option<PathBuf>,
    /// Report progress
    #[arg(short, long)]
    pub(crate) verbose: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Checks that the nameserver answers
    Ping,
    /// Lists all names, or those that begin with PREFIX
    List {
        /// Literal, case-sensitive
        prefix: Option<String>,
    },
    /// Lists names whose beginning matches a regular expression
    Listmatching {
        /// Regular expression
        pattern: String,
    },
    /// Lists names like `list`, then prints every change until interrupted
    Watch {
        /// Literal, case-sensitive
        prefix: Option<String>,
    },
    /// Prints the endpoint and metadata of a name
    Lookup {
        /// The name
        name: String,
    },
    /// Registers a name permanently, unless it exists
    Register {
        /// The name
        name: String,
        /// Endpoint: quic://HOST:PORT
        uri: String,
        /// Metadata tags
        tags: Vec<String>,
    },
    /// Removes a name
    Remove {
        /// The name
        name: String,
    },
    /// Removes names whose beginning matches a regular expression, after a confirmation
    Removematching {
        /// Regular expression
        pattern: String,
    },
    /// Replaces the metadata tags of a name
    Setmeta {
        /// The name
        name: String,
        /// New tags; none removes all
        tags: Vec<String>,
    },
    /// Lists names that have all of the tags
    #[command(name = "yplookup_all")]
    YplookupAll {
        /// Metadata tags
        #[arg(required = true)]
        tags: Vec<String>,
    },
    /// Lists names that have any of the tags
    #[command(name = "yplookup_any")]
    YplookupAny {
        /// Metadata tags
        #[arg(required = true)]
        tags: Vec<String>,
    },
    /// Prints a token with which peers on other machines join the network
    Token {
        /// Life of the token: seconds, or a number with s, m, h or d
        #[arg(long, value_parser = parse_duration, default_value = "1h")]
        ttl: Duration,
        /// Number of uses
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        uses: u32,
        /// Restrict the token to this peer; its id may then be bound to a new key
        #[arg(long = "for", value_name = "PEER")]
        for_peer: Option<PeerId>,
    },
}

/// Parses a duration such as `90`, `90s`, `15m`, `1h` or `7d`.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        _ => return Err("write seconds, or a number with s, m, h or d".to_owned()),
    };
    let number: u64 = digits.parse().map_err(|_| "write seconds, or a number with s, m, h or d".to_owned())?;
    number.checked_mul(unit).map(Duration::from_secs).ok_or_else(|| "too long".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn duration_parses_with_and_without_a_unit() {
        assert_eq!(parse_duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("15m"), Ok(Duration::from_secs(900)));
        assert_eq!(parse_duration("1h"), Ok(Duration::from_secs(3600)));
        assert_eq!(parse_duration("7d"), Ok(Duration::from_secs(7 * 24 * 3600)));
        for bad in ["", "h", "1w", "-1", "1.5h", "99999999999999999999", "9999999999999999999d"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn command_line_definition_is_consistent() {
        Arguments::command().debug_assert();
    }
}
