//! `certs`: shows identities, and issues them on the authority's machine without the network.

use std::{
    fmt, fs,
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use certs::{
    Authority, CertificateDer, Fingerprint, IdentityError, PeerId, Role, STATE_DIR_VARIABLE, certificates_in,
    resolve_state_dir, role_of, serial_and_expiry_of, validity_of,
};
use clap::{Args, Parser, Subcommand};
use time::OffsetDateTime;

const SECONDS_PER_DAY: u64 = 24 * 3600;
/// Validity of an issued certificate in days, as the nameserver issues it.
const DEFAULT_DAYS: u16 = 90;
/// Longest validity in days: the life of the authority's own certificate.
const MAX_DAYS: i64 = 3650;
/// Depth of folders that `show` searches: an identity lies at most at `peers/ID/identity.pem` in the state folder.
const MAX_DEPTH: usize = 3;

/// Shows and issues the certificates of a Brasa network.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Shows the role, validity and authority of identities; never shows a key.
    Show {
        /// File of an identity or authority, or a folder that contains such files.
        /// [default: the state folder: BRASA_STATE_DIR, else $XDG_STATE_HOME/brasa or ~/.local/state/brasa]
        path: Option<PathBuf>,
    },
    /// Generates a key and a certificate, for a machine that cannot enrol over the network.
    Issue(Issue),
}

#[derive(Args)]
struct Issue {
    /// Folder of the authority: `nameserver` in the state folder of the nameserver's user.
    #[arg(long, value_name = "DIR")]
    authority: PathBuf,
    #[command(flatten)]
    holder: Holder,
    /// File to write the identity to; must not exist.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Validity in days.
    #[arg(
        long,
        value_name = "N",
        default_value_t = DEFAULT_DAYS,
        value_parser = clap::value_parser!(u16).range(1..=MAX_DAYS)
    )]
    days: u16,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct Holder {
    /// Issue the identity of the peer with this id.
    #[arg(long, value_name = "ID")]
    peer: Option<PeerId>,
    /// Issue the identity of an administrator.
    #[arg(long)]
    admin: bool,
}

/// State folder of the environment.
fn state_dir() -> Result<PathBuf, Failure> {
    let variable = |name: &str| std::env::var_os(name);
    let (named, xdg, home) = (variable(STATE_DIR_VARIABLE), variable("XDG_STATE_HOME"), variable("HOME"));
    resolve_state_dir(named.as_deref(), xdg.as_deref(), home.as_deref()).ok_or_else(|| {
        Failure::new("no folder for the state", "HOME is not set", "give a file or folder, or set BRASA_STATE_DIR")
    })
}

/// A failed command, displayed as `error: WHAT (WHY; HINT)`.
struct Failure {
    what: String,
    why: String,
    hint: &'static str,
}

impl Failure {
    fn new(what: impl Into<String>, why: impl fmt::Display, hint: &'static str) -> Self {
        Self { what: what.into(), why: why.to_string(), hint }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {} ({}; {})", self.what, self.why, self.hint)
    }
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) if !error.use_stderr() => {
            // Help or version. A closed pipe is not an error.
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        Err(error) => return fail(&wrong_arguments(&error), 2),
    };
    let done = match arguments.command {
        Command::Show { path } => path.map_or_else(state_dir, Ok).and_then(|path| show(&path)),
        Command::Issue(issue) => issue.run(),
    };
    match done {
        Ok(text) => match io::stdout().write_all(text.as_bytes()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
            Err(error) => fail(&Failure::new("cannot write the output", error, "check standard output"), 1),
        },
        Err(failure) => fail(&failure, 1),
    }
}

fn fail(failure: &Failure, status: u8) -> ExitCode {
    // A failure to write to standard error cannot be reported anywhere.
    let _ = writeln!(io::stderr(), "{failure}");
    ExitCode::from(status)
}

/// Joins the lines of clap's message up to the first empty line; the usage follows it.
fn wrong_arguments(error: &clap::Error) -> Failure {
    let text = error.to_string();
    let lines = text.lines().take_while(|line| !line.is_empty()).map(str::trim);
    let why = lines.collect::<Vec<_>>().join(" ");
    // Without arguments clap prints the help instead of a message.
    let why = why.strip_prefix("error: ").unwrap_or("a command is missing");
    Failure::new("wrong arguments", why, "see `certs --help`")
}

fn show(path: &Path) -> Result<String, Failure> {
    let unreadable = |error: io::Error| {
        Failure::new(
            format!("cannot read {}", path.display()),
            error,
            "give the file of an identity, or a folder that contains such files",
        )
    };
    let mut files = Vec::new();
    if fs::metadata(path).map_err(unreadable)?.is_dir() {
        identity_files(path, MAX_DEPTH, &mut files).map_err(unreadable)?;
    } else {
        files.push(path.to_path_buf());
    }
    if files.is_empty() {
        let what = format!("no identity in {}", path.display());
        return Err(Failure::new(what, "no file there ends in .pem", "start a nameserver or join a network first"));
    }
    let mut text = String::new();
    for file in files {
        let wrong = |error: &dyn fmt::Display| {
            Failure::new(format!("{} is not an identity", file.display()), error, "remove it and join again")
        };
        let certificates =
            certificates_in(&file).map_err(|error| wrong(&error))?.ok_or_else(|| wrong(&"it was removed meanwhile"))?;
        text.push_str(&format!("{}\n", file.display()));
        text.push_str(&describe(&certificates).map_err(|error| wrong(&error))?);
    }
    Ok(text)
}

fn identity_files(folder: &Path, depth: usize, found: &mut Vec<PathBuf>) -> io::Result<()> {
    let mut entries = fs::read_dir(folder)?.collect::<Result<Vec<_>, _>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let (path, kind) = (entry.path(), entry.file_type()?);
        if kind.is_dir() && depth > 1 {
            identity_files(&path, depth - 1, found)?;
        } else if kind.is_file() && path.extension().is_some_and(|extension| extension == "pem") {
            found.push(path);
        }
    }
    Ok(())
}

fn describe(certificates: &[CertificateDer<'_>]) -> Result<String, IdentityError> {
    let Some(own) = certificates.first() else { return Ok(String::new()) };
    let role = role_of(own)?.map_or_else(|| "authority".to_owned(), |role| role.to_string());
    let (serial, _) = serial_and_expiry_of(own)?;
    let (begin, end) = validity_of(own)?;
    let authority = certificates.last().map(Fingerprint::of).unwrap_or_else(|| Fingerprint::of(own));
    let left = match end - now_unix_seconds() {
        seconds @ 0.. => format!("{} days left", seconds.unsigned_abs() / SECONDS_PER_DAY),
        _ => "EXPIRED".to_owned(),
    };
    Ok(format!(
        "  role       {role}\n  serial     {serial}\n  valid      {} to {} ({left})\n  authority  {authority}\n",
        utc(begin),
        utc(end),
    ))
}

fn now_unix_seconds() -> i64 {
    OffsetDateTime::now_utc().unix_timestamp()
}

fn utc(unix_seconds: i64) -> String {
    match OffsetDateTime::from_unix_timestamp(unix_seconds) {
        Ok(at) => {
            let (date, time) = (at.date(), at.time());
            let month = u8::from(date.month());
            format!("{}-{month:02}-{:02} {:02}:{:02} UTC", date.year(), date.day(), time.hour(), time.minute())
        }
        Err(_) => format!("second {unix_seconds}"),
    }
}

impl Issue {
    fn run(self) -> Result<String, Failure> {
        let role = match self.holder.peer {
            Some(id) => Role::Peer(id),
            // Clap's group requires exactly one of the two.
            None => Role::Admin,
        };
        let authority = Authority::load(&self.authority)
            .map_err(|error| {
                let what = format!("cannot use the authority in {}", self.authority.display());
                Failure::new(what, error, "run this as the user who runs the nameserver")
            })?
            .ok_or_else(|| {
                let what = format!("no authority in {}", self.authority.display());
                Failure::new(what, "there is no authority.pem", "a nameserver creates one at its first start")
            })?;
        let failed = |error: &dyn fmt::Display| {
            Failure::new(format!("cannot write {}", self.out.display()), error, "choose another --out")
        };
        let life = Duration::from_secs(u64::from(self.days) * SECONDS_PER_DAY);
        let identity = authority.identity(&role, life).map_err(|error| failed(&error))?;
        if !identity.save_new(&self.out).map_err(|error| failed(&error))? {
            return Err(failed(&"it exists already"));
        }
        let described = describe(&[identity.certificate().clone(), identity.authority().clone()]);
        Ok(format!("{}\n{}", self.out.display(), described.map_err(|error| failed(&error))?))
    }
}
