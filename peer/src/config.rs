//! What the user wants: flags, then environment, then saved configuration, then defaults.

use std::{
    ffi::OsString,
    fmt,
    io::Read as _,
    num::NonZeroU64,
    path::{Path, PathBuf},
};

use clap::Parser;
use protocol::upload::params::MAX_UPLOADS;
use shared::{
    error::{Failure, FailureCode},
    id::PeerId,
    limits::{MAX_TOKEN_FILE_BYTES, MIN_RATE},
    name::{Endpoint, Host},
    net::session::{DEFAULT_PORT, StateDir},
};

const EXAMPLES: &str = "\
Examples:
  nameserver                           on one machine, once
  peer peer1                           a peer with a prompt, sharing ./compartilhados/peer1
  peer peer1 add arquivo_teste.txt     one command: by the running peer1, or by one started for it
  peer peer2 download arquivo_teste.txt --to /tmp/
  peer peer2 listAll --json            for scripts
  peer peer2 --headless                a service; ends with SIGTERM
  peer peer2 --join @token.txt         the first time on another machine (`nsc token` prints a token)
  peer --demo                          the whole system in one go

Environment:
  BRASA_NAMESERVER  HOST[:PORT] of the nameserver
  BRASA_STATE_DIR   base of all state (default $XDG_STATE_HOME/brasa or ~/.local/state/brasa)
  BRASA_JOIN        join token, or @FILE
  BRASA_LOG         what is logged on standard error, for example `info` or `peer=debug` (default `warn`)

`peer PEER_ID help` lists the commands, `peer PEER_ID help COMMAND` explains one.
Exit status: 0 done; 1 the command failed; 2 usage; 3 nameserver unreachable; 4 not authorised.";

/// The words on the command line.
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
    /// What this peer is called: a-z, 0-9, '-' and '_'
    #[arg(value_name = "PEER_ID", required_unless_present = "demo")]
    id: Option<PeerId>,

    /// Host of the nameserver [default: 127.0.0.1]
    #[arg(short = 'n', long = "host", value_name = "HOST", value_parser = parse_host)]
    host: Option<Host>,

    /// UDP port of the nameserver [default: 9090]
    #[arg(short = 'p', long = "port", value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,

    /// Folder to share [default: compartilhados/PEER_ID]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,

    /// Base of all state
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,

    /// Join token of the network, or @FILE that holds it (which keeps it out of `ps`)
    #[arg(long, value_name = "TOKEN")]
    join: Option<String>,

    /// Be the nameserver as well if none answers at the address
    #[arg(long)]
    with_nameserver: bool,

    /// Send at most so many bytes a second, for example 20MB or 512KiB
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    limit_up: Option<NonZeroU64>,

    /// Receive at most so many bytes a second
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    limit_down: Option<NonZeroU64>,

    /// Serve at most so many requests of others at a time; more wait for their turn [default: 8]
    #[arg(long, value_name = "N", value_parser = parse_uploads)]
    max_uploads: Option<usize>,

    /// No standard input; run until SIGTERM
    #[arg(long)]
    headless: bool,

    /// One JSON document a command
    #[arg(long)]
    json: bool,

    /// Show the whole system at work in a temporary folder, then exit
    #[arg(long, exclusive = true)]
    demo: bool,

    /// One command, then exit; `help` lists them. What stands after it belongs to it
    #[arg(value_name = "COMMAND", trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

fn parse_host(text: &str) -> Result<Host, String> {
    // A bare IPv6 address is unambiguous here, so it needs no brackets.
    if let Ok(ip) = text.parse() {
        return Ok(Host::Ip(ip));
    }
    text.parse().map_err(|_| "not a host name or address".to_owned())
}

/// Bytes a second: a number, perhaps with a unit. `k`, `M`, `G` count in thousands, `Ki`, `Mi`, `Gi` in 1024s, as
/// IEC 80000-13 has it; the `B` may be left out, and so may capitals.
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
    // `as` saturates.
    let rate = NonZeroU64::new((number * factor) as u64).filter(|rate| rate.get() >= MIN_RATE);
    rate.ok_or_else(|| format!("at least {} KiB a second are needed", MIN_RATE >> 10))
}

fn parse_uploads(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("a number, at least 1".to_owned()),
        Ok(uploads) => Ok(uploads),
    }
}

/// The parts of the surroundings that the configuration depends on.
#[derive(Clone, Default)]
pub struct Environment {
    /// `BRASA_NAMESERVER`.
    pub nameserver: Option<OsString>,
    /// `BRASA_STATE_DIR`.
    pub state_dir: Option<OsString>,
    /// `BRASA_JOIN`.
    pub join: Option<OsString>,
    /// `XDG_STATE_HOME`.
    pub xdg_state_home: Option<OsString>,
    /// `HOME`.
    pub home: Option<OsString>,
    /// The working directory.
    pub working_dir: PathBuf,
}

impl Environment {
    /// This process's surroundings. An empty variable counts as not set.
    ///
    /// # Errors
    /// When the process has no working directory (it was deleted).
    pub fn of_process() -> Result<Self, Failure> {
        let var = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let working_dir = std::env::current_dir().map_err(|error| {
            Failure::new(FailureCode::Io, "no working directory", error, "change to a folder that exists")
        })?;
        Ok(Self {
            nameserver: var("BRASA_NAMESERVER"),
            state_dir: var("BRASA_STATE_DIR"),
            join: var("BRASA_JOIN"),
            xdg_state_home: var("XDG_STATE_HOME"),
            home: var("HOME"),
            working_dir,
        })
    }
}

/// What a run of the program shall be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Invocation {
    /// `peer --demo`.
    Demo,
    /// `peer PEER_ID …`.
    Peer {
        /// The peer to be.
        config: PeerConfig,
        /// What it does.
        mode: Mode,
        /// One JSON document a command.
        json: bool,
    },
    /// `--help` or `--version`: the text for standard output.
    Print(String),
}

/// What a peer does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mode {
    /// Takes commands from a prompt or from standard input.
    Interactive,
    /// Takes no standard input, runs until it is told to end.
    Headless,
    /// Carries out these words as one command.
    OneShot(Vec<String>),
}

/// A peer to be.
#[derive(Clone, PartialEq, Eq)]
pub struct PeerConfig {
    /// Who it is.
    pub id: PeerId,
    /// The nameserver that flags or environment name; else the session finds it.
    pub nameserver: Option<Endpoint>,
    /// The folder it shares, absolute; made when missing.
    pub share_dir: PathBuf,
    /// Base of all state on this machine, absolute; made when missing.
    pub state_dir: PathBuf,
    /// Token to join the network with. A secret: never to be logged.
    pub join: Option<String>,
    /// Be the nameserver as well if none answers.
    pub with_nameserver: bool,
    /// Bytes a second that it sends at most.
    pub limit_up: Option<NonZeroU64>,
    /// Bytes a second that it receives at most.
    pub limit_down: Option<NonZeroU64>,
    /// Requests of others that it serves at a time.
    pub max_uploads: usize,
}

impl fmt::Debug for PeerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, nameserver, share_dir, state_dir, join, with_nameserver, limit_up, limit_down, max_uploads } =
            self;
        f.debug_struct("PeerConfig")
            .field("id", id)
            .field("nameserver", nameserver)
            .field("share_dir", share_dir)
            .field("state_dir", state_dir)
            .field("join", &join.as_ref().map(|_| "(secret)"))
            .field("with_nameserver", with_nameserver)
            .field("limit_up", limit_up)
            .field("limit_down", limit_down)
            .field("max_uploads", max_uploads)
            .finish()
    }
}

impl PeerConfig {
    /// The state of this peer alone: `<state>/peers/<id>`.
    pub fn peer_state_dir(&self) -> PathBuf {
        StateDir::new(&self.state_dir).peer(&self.id)
    }
}

fn default_nameserver() -> Endpoint {
    Endpoint { host: Host::Ip(std::net::Ipv4Addr::LOCALHOST.into()), port: DEFAULT_PORT }
}

impl Invocation {
    /// Reads the words of a command line (the program's name first) in their surroundings.
    ///
    /// # Errors
    /// `usage` for wrong words or variables, `io` when a token file cannot be read.
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

impl Args {
    fn resolve(self, environment: &Environment) -> Result<Invocation, Failure> {
        let Some(id) = self.id else {
            // clap demands an id unless there is `--demo`.
            return Ok(Invocation::Demo);
        };
        // clap hands every word on that it does not know, so that commands have flags of their own.
        if let Some(first) = self.command.first().filter(|first| first.starts_with('-')) {
            return Err(usage(format!("unknown option {first:?}"), "what stands before the command is the peer's"));
        }
        let (words, json_in_command) = crate::cli::take_json_flag(self.command);
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
        let config = PeerConfig {
            nameserver: explicit_nameserver(self.host, self.port, environment)?,
            share_dir,
            state_dir: state_dir(self.state_dir.as_deref(), environment)?,
            join: join_token(self.join, environment)?,
            with_nameserver: self.with_nameserver,
            limit_up: self.limit_up,
            limit_down: self.limit_down,
            max_uploads: self.max_uploads.unwrap_or(MAX_UPLOADS),
            id,
        };
        Ok(Invocation::Peer { config, mode, json: self.json || json_in_command })
    }
}

/// Each part that a flag leaves open comes from the environment, then from the defaults; `None` when neither
/// flags nor environment say anything.
fn explicit_nameserver(
    host: Option<Host>,
    port: Option<u16>,
    environment: &Environment,
) -> Result<Option<Endpoint>, Failure> {
    let from_environment = match &environment.nameserver {
        None => None,
        Some(text) => {
            let wrong = || {
                usage(
                    format!("BRASA_NAMESERVER is {:?}", text.to_string_lossy()),
                    "it has the form HOST:PORT, an IPv6 host in brackets",
                )
            };
            let text = text.to_str().ok_or_else(wrong)?;
            let endpoint = Endpoint::from_host_port(text)
                .or_else(|_| parse_host(text).map(|host| Endpoint { host, port: DEFAULT_PORT }).map_err(|_| wrong()))?;
            Some(endpoint)
        }
    };
    if host.is_none() && port.is_none() {
        return Ok(from_environment);
    }
    let base = from_environment.unwrap_or_else(default_nameserver);
    Ok(Some(Endpoint { host: host.unwrap_or(base.host), port: port.unwrap_or(base.port) }))
}

fn state_dir(flag: Option<&Path>, environment: &Environment) -> Result<PathBuf, Failure> {
    let said = flag.or(environment.state_dir.as_deref().map(Path::new));
    if let Some(said) = said {
        return Ok(environment.working_dir.join(said));
    }
    // XDG Base Directory Specification: a relative path there is to be ignored.
    let xdg = environment.xdg_state_home.as_deref().map(Path::new).filter(|path| path.is_absolute());
    if let Some(xdg) = xdg {
        return Ok(xdg.join("brasa"));
    }
    match environment.home.as_deref().map(Path::new).filter(|path| path.is_absolute()) {
        Some(home) => Ok(home.join(".local/state/brasa")),
        None => Err(Failure::new(
            FailureCode::Usage,
            "there is no place for this peer's state",
            "HOME is not set",
            "say --state-dir DIR or set BRASA_STATE_DIR",
        )),
    }
}

fn join_token(flag: Option<String>, environment: &Environment) -> Result<Option<String>, Failure> {
    let said = match (flag, &environment.join) {
        (Some(flag), _) => flag,
        (None, Some(text)) => text
            .to_str()
            .ok_or_else(|| usage("BRASA_JOIN is not a token", "`nsc token` prints one, beginning with brasa1-"))?
            .to_owned(),
        (None, None) => return Ok(None),
    };
    let token = match said.strip_prefix('@') {
        Some(file) => read_token(&environment.working_dir.join(file))?,
        None => said,
    };
    let token = token.trim();
    if token.is_empty() {
        return Err(usage("the join token is empty", "`nsc token` prints one, beginning with brasa1-"));
    }
    Ok(Some(token.to_owned()))
}

fn read_token(path: &Path) -> Result<String, Failure> {
    let mut text = String::new();
    std::fs::File::open(path).and_then(|file| file.take(MAX_TOKEN_FILE_BYTES).read_to_string(&mut text)).map_err(
        |error| {
            Failure::new(
                FailureCode::Io,
                format!("no join token in {}", path.display()),
                error,
                "write --join @FILE with a file that holds what `nsc token` printed",
            )
        },
    )?;
    Ok(text)
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
            Invocation::Peer { config, mode, json } => (config, mode, json),
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
    fn saying_nothing_gives_the_defaults() {
        let (config, mode, json) = peer("peer1");
        assert_eq!(config.share_dir, Path::new("/casa/compartilhados/peer1"));
        assert_eq!(config.state_dir, Path::new("/home/ana/.local/state/brasa"));
        assert_eq!(config.peer_state_dir(), Path::new("/home/ana/.local/state/brasa/peers/peer1"));
        assert_eq!((mode, json), (Mode::Interactive, false));
        assert_eq!(config.nameserver, None, "the session finds it");
    }

    #[test]
    fn flags_beat_environment_beats_default() {
        let asked = |line: &str, variable: Option<&str>| {
            let environment = Environment { nameserver: variable.map(OsString::from), ..environment() };
            peer_in(line, &environment).0.nameserver.map_or_else(String::new, |endpoint| endpoint.host_port())
        };
        assert_eq!(asked("peer1", None), "");
        assert_eq!(asked("peer1", Some("10.0.0.1:5")), "10.0.0.1:5");
        assert_eq!(asked("peer1", Some("lab")), "lab:9090");
        assert_eq!(asked("peer1 -p 7", Some("10.0.0.1:5")), "10.0.0.1:7");
        assert_eq!(asked("peer1 -n lab", Some("10.0.0.1:5")), "lab:5");
        assert_eq!(asked("peer1 -n ::1 -p 7", Some("10.0.0.1:5")), "[::1]:7");
        assert_eq!(asked("peer1 -p 7", None), "127.0.0.1:7");
    }

    #[test]
    fn the_state_lies_where_flag_variable_xdg_or_home_say() {
        let mut environment = Environment { xdg_state_home: Some("/xdg".into()), ..environment() };
        assert_eq!(peer_in("peer1", &environment).0.state_dir, Path::new("/xdg/brasa"));
        environment.state_dir = Some("st".into());
        assert_eq!(peer_in("peer1", &environment).0.state_dir, Path::new("/casa/st"));
        assert_eq!(peer_in("peer1 --state-dir /s", &environment).0.state_dir, Path::new("/s"));
        let nowhere = Environment { working_dir: "/casa".into(), ..Environment::default() };
        assert_eq!(parse_in("peer1", &nowhere).unwrap_err().code, FailureCode::Usage);
    }

    #[test]
    fn flags_stand_before_or_after_the_id_but_after_the_command_they_are_its_own() {
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
    fn wrong_words_are_one_line_with_status_2() {
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
    fn a_token_is_read_from_its_file_and_never_shown() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        std::fs::write(&file, "brasa1-secret\n").unwrap();
        let (config, ..) = peer(&format!("peer1 --join @{}", file.display()));
        assert_eq!(config.join.as_deref(), Some("brasa1-secret"));
        assert!(!format!("{config:?}").contains("brasa1"), "{config:?}");
        let variable = Environment { join: Some("brasa1-other".into()), ..environment() };
        assert_eq!(peer_in("peer1", &variable).0.join.as_deref(), Some("brasa1-other"));
        assert_eq!(parse_in("peer1 --join @/nowhere/x", &environment()).unwrap_err().code, FailureCode::Io);
    }
}
