//! Command line of `peer`: flags, then environment variables, then defaults.

use std::{
    ffi::OsString,
    fmt,
    num::NonZeroU64,
    path::{Path, PathBuf},
};

use certs::JoinToken;
use clap::Parser;
use protocol::upload::params::MAX_UPLOADS;
use shared::{
    error::{Failure, FailureCode},
    id::PeerId,
    limits::MIN_RATE,
    name::{Endpoint, Host},
    net::session::StateDir,
    settings::{Environment, parse_host},
};

const EXAMPLES: &str = "\
Examples:
  nameserver                           the nameserver, once a network
  peer peer1                           a peer with a prompt, sharing ./compartilhados/peer1
  peer peer1 add arquivo_teste.txt     one command, executed by the running peer1 or by a peer1 started for it
  peer peer2 download arquivo_teste.txt --to /tmp/
  peer peer2 listAll --json            JSON for scripts
  peer peer2 --headless                a service; SIGTERM ends it
  peer peer2 --join @token.txt         the first start on another machine (`nsc token` prints a token)
  peer --demo                          a demonstration of the whole system

Environment:
  BRASA_NAMESERVER  HOST[:PORT] of the nameserver
  BRASA_STATE_DIR   base folder of all state (default $XDG_STATE_HOME/brasa or ~/.local/state/brasa)
  BRASA_JOIN        join token, or @FILE
  BRASA_LOG         filter of the log on standard error, for example `info` or `peer=debug` (default `warn`)

`peer PEER_ID help` lists the commands, `peer PEER_ID help COMMAND` explains one.
Exit status: 0 done; 1 the command failed; 2 usage; 3 nameserver unreachable; 4 not authorised; 5 the peer does not
run; 130 interrupted.";

/// Arguments of the command line.
#[derive(Parser)]
#[command(
    name = "peer",
    version,
    about = "Shares a folder with other peers: encrypted, verified, without a central store",
    after_help = EXAMPLES,
    override_usage = "peer PEER_ID [OPTIONS] [COMMAND [ARG]...]\n       peer --demo",
    max_term_width = 100
)]
pub struct Args {
    /// Name of this peer: a-z, 0-9, '-' and '_'
    #[arg(value_name = "PEER_ID", required_unless_present = "demo")]
    id: Option<PeerId>,

    /// Host of the nameserver [default: that of $BRASA_NAMESERVER, else 127.0.0.1]
    #[arg(short = 'n', long = "host", value_name = "HOST", value_parser = parse_host)]
    host: Option<Host>,

    /// UDP port of the nameserver [default: that of $BRASA_NAMESERVER, else 9090]
    #[arg(short = 'p', long = "port", value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,

    /// Folder to share [default: compartilhados/PEER_ID]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,

    /// Base folder of all state
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,

    /// Join token of the network, or @FILE with a file that holds it, which keeps it out of the process list
    #[arg(long, value_name = "TOKEN")]
    join: Option<String>,

    /// Start a nameserver in this process if none answers at the address
    #[arg(long)]
    with_nameserver: bool,

    /// Limit of sent bytes a second, for example 20MB or 512KiB
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    limit_up: Option<NonZeroU64>,

    /// Limit of received bytes a second
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    limit_down: Option<NonZeroU64>,

    /// Number of requests served at a time; further requests are queued [default: 8]
    #[arg(long, value_name = "N", value_parser = parse_uploads)]
    max_uploads: Option<usize>,

    /// Read no standard input; run until SIGTERM
    #[arg(long)]
    headless: bool,

    /// Print one JSON document a command
    #[arg(long)]
    json: bool,

    /// Demonstrate the whole system in a temporary folder, then exit
    #[arg(long, exclusive = true)]
    demo: bool,

    /// Execute one command, then exit; `help` lists the commands. The words after it are its arguments
    #[arg(value_name = "COMMAND", trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// Parses a rate in bytes a second: a number with an optional unit. `k`, `M` and `G` are powers of 1000, `Ki`, `Mi` and
/// `Gi` powers of 1024 (IEC 80000-13). The `B` is optional, and case is ignored.
fn parse_rate(text: &str) -> Result<NonZeroU64, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim().to_ascii_lowercase();
    let factor = match unit.strip_suffix("/s").unwrap_or(&unit).trim_end_matches('b') {
        "" => 1.0,
        "k" => 1e3,
        "m" => 1e6,
        "g" => 1e9,
        "ki" => 1024.0,
        "mi" => 1024.0 * 1024.0,
        "gi" => 1024.0 * 1024.0 * 1024.0,
        _ => return Err("not a rate: a number with kB, MB, GB, KiB, MiB or GiB, for example 20MB".to_owned()),
    };
    let number: f64 = number.parse().map_err(|_| "not a rate: it begins with a number, for example 20MB".to_owned())?;
    // `as` saturates at the bounds of `u64`.
    let rate = NonZeroU64::new((number * factor) as u64).filter(|rate| rate.get() >= MIN_RATE);
    rate.ok_or_else(|| format!("at least {} KiB a second are needed", MIN_RATE >> 10))
}

fn parse_uploads(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("a number, at least 1".to_owned()),
        Ok(uploads) => Ok(uploads),
    }
}

/// Action of one run of the program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Invocation {
    /// `peer --demo`.
    Demo,
    /// `peer PEER_ID …`.
    Peer {
        /// Configuration of the peer.
        config: Box<PeerConfig>,
        /// Source of the peer's commands.
        mode: Mode,
        /// True if each command prints one JSON document.
        json: bool,
    },
    /// `--help` or `--version`: the text for standard output.
    Print(String),
}

/// Source of a peer's commands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mode {
    /// A prompt, or standard input.
    Interactive,
    /// None; the peer runs until a signal ends it.
    Headless,
    /// These words, as one command.
    OneShot(Vec<String>),
}

/// Purpose of a peer's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Purpose {
    /// A service or a prompt: without the nameserver it starts, joins the peers that it knows, and waits.
    Service,
    /// Commands on standard input: fails to start if neither the nameserver nor a known peer answers.
    #[default]
    Script,
    /// One command that changes something: like a script, but the peer does not stand for election.
    Command,
    /// One command that only asks: no peer starts.
    Query,
}

/// Configuration of a peer. `Debug` does not show the secret of the join token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerConfig {
    /// Id of the peer.
    pub id: PeerId,
    /// Nameserver that the flags or the environment name; `None` lets the session find it.
    pub nameserver: Option<Endpoint>,
    /// Folder that the peer shares, absolute; created when missing.
    pub share_dir: PathBuf,
    /// Base folder of all state on this machine, absolute; created when missing.
    pub state_dir: PathBuf,
    /// Token with which the peer joins the network.
    pub join: Option<JoinToken>,
    /// True if the peer starts a nameserver in its process if none answers.
    pub with_nameserver: bool,
    /// Limit of sent bytes a second.
    pub limit_up: Option<NonZeroU64>,
    /// Limit of received bytes a second.
    pub limit_down: Option<NonZeroU64>,
    /// Number of requests served at a time.
    pub max_uploads: usize,
    /// Purpose of the process.
    pub purpose: Purpose,
}

impl PeerConfig {
    /// Folder of this peer's own state: `<state>/peers/<id>`.
    pub fn peer_state_dir(&self) -> PathBuf {
        StateDir::new(&self.state_dir).peer(&self.id)
    }
}

impl Invocation {
    /// Parses a command line, which begins with the program's name.
    ///
    /// # Errors
    /// `usage` for invalid arguments or variables, `io` when a token file cannot be read.
    pub fn parse(words: impl IntoIterator<Item = OsString>, environment: &Environment) -> Result<Self, Failure> {
        let args = match Args::try_parse_from(words) {
            Ok(args) => args,
            Err(error) if !error.use_stderr() => return Ok(Self::Print(error.to_string())),
            Err(error) => {
                return Err(Failure::from_parser(
                    "peer",
                    &error.to_string(),
                    "the form is: peer PEER_ID [OPTIONS] [COMMAND [ARG]...]",
                ));
            }
        };
        args.resolve(environment)
    }
}

/// Removes `--json` from the words of a command, except after `--`. Returns the other words, and whether it was
/// present.
pub(crate) fn take_json_flag(words: Vec<String>) -> (Vec<String>, bool) {
    let mut found = false;
    let mut literal = false;
    let rest = words.into_iter().filter(|word| {
        literal |= word == "--";
        let flag = !literal && word == "--json";
        found |= flag;
        !flag
    });
    (rest.collect(), found)
}

impl Args {
    fn resolve(self, environment: &Environment) -> Result<Invocation, Failure> {
        let Some(id) = self.id else {
            // clap requires an id unless `--demo` is given.
            return Ok(Invocation::Demo);
        };
        // clap passes unknown flags on, because commands have flags of their own.
        if let Some(first) = self.command.first().filter(|first| first.starts_with('-')) {
            return Err(usage(format!("unknown option {first:?}"), "options before the command belong to the peer"));
        }
        let (words, json_in_command) = take_json_flag(self.command);
        let mode = match (self.headless, words.is_empty()) {
            (true, false) => {
                return Err(usage("--headless takes no command", "a headless peer runs until SIGTERM"));
            }
            (true, true) => Mode::Headless,
            (false, true) => Mode::Interactive,
            (false, false) => Mode::OneShot(words),
        };

        let absolute = |path: &Path| environment.working_dir.join(path);
        let share_dir = match &self.dir {
            Some(dir) => absolute(dir),
            None => absolute(Path::new("compartilhados")).join(id.as_str()),
        };
        let config = Box::new(PeerConfig {
            nameserver: environment.nameserver(self.host, self.port)?,
            share_dir,
            state_dir: environment.state_dir(self.state_dir.as_deref())?,
            join: environment.join_token(self.join.as_deref())?,
            with_nameserver: self.with_nameserver,
            limit_up: self.limit_up,
            limit_down: self.limit_down,
            max_uploads: self.max_uploads.unwrap_or(MAX_UPLOADS),
            purpose: Purpose::default(),
            id,
        });
        Ok(Invocation::Peer { config, mode, json: self.json || json_in_command })
    }
}

fn usage(why: impl fmt::Display, hint: &str) -> Failure {
    Failure::new(FailureCode::Usage, "wrong command line", why, format!("{hint}; `peer --help` explains all"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment() -> Environment {
        Environment { home: Some("/home/ana".into()), working_dir: "/casa".into(), ..Environment::default() }
    }

    fn parse_in(line: &str, environment: &Environment) -> Result<Invocation, Failure> {
        let words = ["peer"].into_iter().chain(line.split_whitespace());
        Invocation::parse(words.map(OsString::from), environment)
    }

    fn peer_in(line: &str, environment: &Environment) -> (PeerConfig, Mode, bool) {
        match parse_in(line, environment).unwrap() {
            Invocation::Peer { config, mode, json } => (*config, mode, json),
            other => panic!("{other:?}"),
        }
    }

    fn peer(line: &str) -> (PeerConfig, Mode, bool) {
        peer_in(line, &environment())
    }

    fn words(words: &[&str]) -> Mode {
        Mode::OneShot(words.iter().map(|word| (*word).to_owned()).collect())
    }

    #[test]
    fn command_line_with_an_id_only_yields_the_defaults() {
        let (config, mode, json) = peer("peer1");
        assert_eq!(config.share_dir, Path::new("/casa/compartilhados/peer1"));
        assert_eq!(config.state_dir, Path::new("/home/ana/.local/state/brasa"));
        assert_eq!(config.peer_state_dir(), Path::new("/home/ana/.local/state/brasa/peers/peer1"));
        assert_eq!((mode, json), (Mode::Interactive, false));
        assert_eq!(config.nameserver, None, "no nameserver is named");
    }

    #[test]
    fn nameserver_comes_from_flags_then_environment_then_default() {
        let resolved = |line: &str, variable: Option<&str>| {
            let environment = Environment { nameserver: variable.map(OsString::from), ..environment() };
            peer_in(line, &environment).0.nameserver.map_or_else(String::new, |endpoint| endpoint.host_port())
        };
        assert_eq!(resolved("peer1", None), "");
        assert_eq!(resolved("peer1", Some("10.0.0.1:5")), "10.0.0.1:5");
        assert_eq!(resolved("peer1", Some("lab")), "lab:9090");
        assert_eq!(resolved("peer1 -p 7", Some("10.0.0.1:5")), "10.0.0.1:7");
        assert_eq!(resolved("peer1 -n lab", Some("10.0.0.1:5")), "lab:5");
        assert_eq!(resolved("peer1 -n ::1 -p 7", Some("10.0.0.1:5")), "[::1]:7");
        assert_eq!(resolved("peer1 -p 7", None), "127.0.0.1:7");
    }

    #[test]
    fn state_dir_comes_from_flag_then_variable_then_xdg_then_home() {
        let mut environment = Environment { xdg_state_home: Some("/xdg".into()), ..environment() };
        assert_eq!(peer_in("peer1", &environment).0.state_dir, Path::new("/xdg/brasa"));
        environment.state_dir = Some("st".into());
        assert_eq!(peer_in("peer1", &environment).0.state_dir, Path::new("/casa/st"));
        assert_eq!(peer_in("peer1 --state-dir /s", &environment).0.state_dir, Path::new("/s"));
        let nowhere = Environment { working_dir: "/casa".into(), ..Environment::default() };
        assert_eq!(parse_in("peer1", &nowhere).unwrap_err().code, FailureCode::Usage);
    }

    #[test]
    fn json_flag_is_taken_from_the_words_before_two_dashes() {
        let take = |words: &[&str]| take_json_flag(words.iter().map(|word| (*word).to_owned()).collect());
        assert_eq!(take(&["list", "--json"]), (vec!["list".to_owned()], true));
        assert!(!take(&["add", "--", "--json"]).1);
        assert!(!take(&["list"]).1);
    }

    #[test]
    fn flags_after_the_command_belong_to_the_command() {
        let (config, mode, json) = peer("--dir share peer1 -p 7 --json download a.txt --to x -p");
        assert_eq!(config.share_dir, Path::new("/casa/share"));
        assert_eq!(mode, words(&["download", "a.txt", "--to", "x", "-p"]));
        assert!(json);
        assert_eq!(config.nameserver.unwrap().port, 7);
        let (_, mode, json) = peer("peer1 list --json");
        assert_eq!((mode, json), (words(&["list"]), true));
        let (_, mode, json) = peer("peer1 add -- --json");
        assert_eq!((mode, json), (words(&["add", "--", "--json"]), false));
        assert_eq!(peer("peer1 download --help").1, words(&["download", "--help"]));
        assert_eq!(peer("peer1 --headless").1, Mode::Headless);
    }

    #[test]
    fn invalid_command_line_is_a_one_line_failure_with_status_2() {
        for bad in [
            "",
            "Peer1",
            "../x",
            "peer1 -p 0",
            "peer1 -p 99999",
            "peer1 -n",
            "peer1 --frobnicate",
            "peer1 -x list",
            "peer1 --headless list",
            "--demo peer1",
            "peer1 --json=3",
            "peer1 -n a/b",
        ] {
            let failure = parse_in(bad, &environment()).unwrap_err();
            assert_eq!(failure.code.exit_status(), 2, "{bad}: {failure}");
            assert_eq!(failure.to_string().lines().count(), 1, "{bad}: {failure}");
        }
        let wrong = Environment { nameserver: Some("a b:1".into()), ..environment() };
        assert_eq!(parse_in("peer1", &wrong).unwrap_err().code, FailureCode::Usage);
    }

    #[test]
    fn help_version_and_demo_need_no_id() {
        assert_eq!(parse_in("--demo", &environment()).unwrap(), Invocation::Demo);
        for (line, expected) in [("--help", "Examples:"), ("--version", env!("CARGO_PKG_VERSION"))] {
            match parse_in(line, &environment()).unwrap() {
                Invocation::Print(text) => assert!(text.contains(expected), "{text}"),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn join_token_is_read_from_its_file_and_hidden_by_debug() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        let token = || JoinToken::new(certs::Fingerprint([7; 32]), Vec::new()).unwrap();
        let (in_file, in_variable) = (token(), token());
        std::fs::write(&file, format!("{in_file}\n")).unwrap();
        let (config, ..) = peer(&format!("peer1 --join @{}", file.display()));
        assert!(!format!("{config:?}").contains("brasa1"), "{config:?}");
        assert_eq!(config.join, Some(in_file));
        let variable = Environment { join: Some(in_variable.to_string().into()), ..environment() };
        assert_eq!(peer_in("peer1", &variable).0.join, Some(in_variable));
        assert_eq!(parse_in("peer1 --join @/nowhere/x", &environment()).unwrap_err().code, FailureCode::Io);
        assert_eq!(parse_in("peer1 --join brasa1-secret", &environment()).unwrap_err().code, FailureCode::Usage);
    }
}
