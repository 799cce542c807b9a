//! `nsc`: name server control. Pyro5's commands with Pyro5's output, join tokens, and watching.

use std::{
    io::{BufRead, ErrorKind, Write},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use clap::{Parser, Subcommand};
use nameserver::config::parse_host;
use shared::{
    error::{Failure, FailureCode},
    id::{Incarnation, PeerId, Role},
    limits::{CALL_DEADLINE, MAX_WATCH_WAIT},
    name::{Endpoint, Host, Name, Tag},
    net::{
        CloseCode,
        session::{DEFAULT_PORT, Session, SessionConfig, StateDir},
    },
    rpc::nameserver::{
        Changes, Condition, LeaseRequest, ListQuery, MintToken, NameChange, NameError, NameServiceClient, Page,
        Position, Record, Register, Selector, TagQuery, WatchQuery,
    },
};
use tarpc::{client::RpcError, context::Context};

// Later: `revoke ID`, `backup FILE`, `restore FILE`.

/// Name server control.
#[derive(Parser)]
#[command(name = "nsc", version)]
struct Arguments {
    /// Host of the nameserver [default: $BRASA_NAMESERVER, else the one on this machine]
    #[arg(short = 'n', long, value_parser = parse_host)]
    host: Option<Host>,
    /// Port of the nameserver
    #[arg(short, long, value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// Base of all state [default: $BRASA_STATE_DIR, $XDG_STATE_HOME/brasa or ~/.local/state/brasa]
    #[arg(long)]
    state_dir: Option<PathBuf>,
    /// Say what is being done
    #[arg(short, long)]
    verbose: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Whether the nameserver answers
    Ping,
    /// Names, all or those that begin with PREFIX
    List {
        /// Literal, case-sensitive
        prefix: Option<String>,
    },
    /// Names whose beginning matches a regular expression
    Listmatching {
        /// Regular expression
        pattern: String,
    },
    /// Names, all or those that begin with PREFIX, and every change of them until interrupted
    Watch {
        /// Literal, case-sensitive
        prefix: Option<String>,
    },
    /// Where a name answers
    Lookup {
        /// The name
        name: String,
    },
    /// Registers a name for good, unless it exists
    Register {
        /// The name
        name: String,
        /// Where it answers: quic://HOST:PORT
        uri: String,
        /// Metadata tags
        tags: Vec<String>,
    },
    /// Removes a name
    Remove {
        /// The name
        name: String,
    },
    /// Removes names whose beginning matches a regular expression, after asking
    Removematching {
        /// Regular expression
        pattern: String,
    },
    /// Replaces the metadata tags of a name
    Setmeta {
        /// The name
        name: String,
        /// Its new tags; none clears them
        tags: Vec<String>,
    },
    /// Names that have all of these tags
    #[command(name = "yplookup_all")]
    YplookupAll {
        /// Metadata tags
        #[arg(required = true)]
        tags: Vec<String>,
    },
    /// Names that have any of these tags
    #[command(name = "yplookup_any")]
    YplookupAny {
        /// Metadata tags
        #[arg(required = true)]
        tags: Vec<String>,
    },
    /// Prints a token with which peers of other machines join
    Token {
        /// How long it can be used: seconds, or with s, m, h or d
        #[arg(long, value_parser = parse_duration, default_value = "1h")]
        ttl: Duration,
        /// How often it can be used
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        uses: u32,
        /// Only for this peer, which may then take its id over from another key
        #[arg(long = "for", value_name = "PEER")]
        for_peer: Option<PeerId>,
    },
}

fn main() -> ExitCode {
    shared::telemetry::init();
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        // Help and version; who closed the pipe does not want to read more.
        Err(error) if !error.use_stderr() => {
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            return end(&Failure::from_parser(
                "nsc",
                &error.to_string(),
                "the form is: nsc [OPTIONS] COMMAND [ARG]...",
            ));
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done = runtime
        .map_err(|error| Failure::new(FailureCode::Io, "nsc cannot run", error, "check the system's limits"))
        .and_then(|runtime| runtime.block_on(run(arguments)));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => end(&failure),
    }
}

fn end(failure: &Failure) -> ExitCode {
    // Nothing is left to do when standard error is gone too.
    let _ = writeln!(std::io::stderr(), "error: {failure}");
    ExitCode::from(failure.code.exit_status())
}

async fn run(arguments: Arguments) -> Result<(), Failure> {
    let Arguments { host, port, state_dir, verbose, command } = arguments;
    let config = SessionConfig {
        role: Role::Admin,
        state_dir: state_dir.map_or_else(StateDir::of_user, Ok)?,
        nameserver: nameserver_at(host, port)?,
        join: None,
    };
    if verbose {
        print("Locating name server...\n")?;
    }
    let names = Names(Session::open(&config).await?);
    if verbose {
        print(&format!("Name server found: {}\n", names.0.nameserver.endpoint))?;
    }
    let done = names.carry_out(command).await;
    names.0.connections.close(CloseCode::Done, "done").await;
    done?;
    if verbose {
        print("Done.\n")?;
    }
    Ok(())
}

/// Where the user says the nameserver is: flags beat the environment.
fn nameserver_at(host: Option<Host>, port: Option<u16>) -> Result<Option<Endpoint>, Failure> {
    let said = std::env::var("BRASA_NAMESERVER").ok().filter(|text| !text.is_empty());
    let said = said.as_deref().map(Endpoint::from_host_port).transpose().map_err(|error| {
        Failure::new(FailureCode::Usage, "BRASA_NAMESERVER cannot be read", error, "write HOST:PORT")
    })?;
    Ok(match (host, port, said) {
        (None, None, said) => said,
        (Some(host), port, _) => Some(Endpoint { host, port: port.unwrap_or(DEFAULT_PORT) }),
        (None, Some(port), Some(Endpoint { host, .. })) => Some(Endpoint { host, port }),
        (None, Some(port), None) => Some(Endpoint { host: Host::Ip([127, 0, 0, 1].into()), port }),
    })
}

/// The nameserver, as an admin calls it.
struct Names(Session);

impl Names {
    async fn carry_out(&self, command: Command) -> Result<(), Failure> {
        let said = match command {
            Command::Ping => {
                self.call("the nameserver cannot be pinged", |c, cx| async move { c.ping(cx).await.map(Ok) }).await?;
                "Name server ping ok.\n".to_owned()
            }
            Command::List { prefix: None } => listing(&self.list(None, None).await?, ""),
            Command::List { prefix: Some(prefix) } => {
                listing(&self.list(Some(&prefix), None).await?, &format!("- prefix '{prefix}'"))
            }
            Command::Listmatching { pattern } => {
                listing(&self.list(None, Some(&pattern)).await?, &format!("- regex '{pattern}'"))
            }
            Command::Watch { prefix } => return self.watch(prefix).await,
            Command::YplookupAll { tags } => listing(&self.yplookup(Some(tags), None).await?, SEARCHED),
            Command::YplookupAny { tags } => listing(&self.yplookup(None, Some(tags)).await?, SEARCHED),
            Command::Lookup { name } => {
                let what = format!("{name} was not found");
                let record = self.call(what, |c, cx| async move { c.lookup(cx, name).await }).await?;
                looked_up(&record)
            }
            Command::Register { name, uri, tags } => {
                let what = format!("{name} was not registered");
                let done = format!("Registered {name}\n");
                let request = Register {
                    name,
                    uri,
                    tags: Some(tags),
                    lease: LeaseRequest::Permanent,
                    condition: Condition::IfAbsent,
                    incarnation: Incarnation::default(),
                };
                self.call(what, |c, cx| async move { c.register(cx, request).await }).await?;
                done
            }
            Command::Remove { name } => {
                let selector = Selector { name: Some(name.clone()), ..Selector::default() };
                match self.remove(&name, selector).await? {
                    0 => "Nothing removed\n".to_owned(),
                    _ => format!("Removed {name}\n"),
                }
            }
            Command::Removematching { pattern } => {
                if !confirmed().await? {
                    return Ok(());
                }
                let selector = Selector { regex: Some(pattern.clone()), ..Selector::default() };
                format!("{} items removed.\n", self.remove(&pattern, selector).await?)
            }
            Command::Setmeta { name, tags } => {
                let done = if tags.is_empty() { "Metadata cleared\n" } else { "Metadata updated\n" };
                let what = format!("the metadata of {name} was not changed");
                self.call(what, |c, cx| async move { c.set_metadata(cx, name, tags).await }).await?;
                done.to_owned()
            }
            Command::Token { ttl, uses, for_peer } => {
                let request = MintToken { ttl, uses, for_peer };
                self.call("no token was made", |c, cx| async move { c.mint_token(cx, request).await }).await? + "\n"
            }
        };
        print(&said)
    }

    async fn list(&self, prefix: Option<&str>, regex: Option<&str>) -> Result<Vec<Record>, Failure> {
        self.all_pages(|after| {
            let query = ListQuery { prefix: prefix.map(Into::into), regex: regex.map(Into::into), after };
            self.call("the names cannot be listed", |c, cx| async move { c.list(cx, query).await })
        })
        .await
    }

    /// Prints what is there, then what changes: `+ NAME --> URI`, `- NAME`. Ends with a failure only.
    async fn watch(&self, prefix: Option<String>) -> Result<(), Failure> {
        let mut since = None;
        loop {
            match self.changes(since, prefix.clone()).await? {
                Changes::Resync { position } => {
                    since = Some(position);
                    let title = prefix.as_ref().map(|prefix| format!("- prefix '{prefix}'")).unwrap_or_default();
                    print(&listing(&self.list(prefix.as_deref(), None).await?, &title))?;
                }
                Changes::Delta { position, changes } => {
                    since = Some(position);
                    changes.iter().try_for_each(|change| print(&changed(change)))?;
                }
            }
        }
    }

    async fn changes(&self, since: Option<Position>, prefix: Option<String>) -> Result<Changes, Failure> {
        let query = WatchQuery { since, prefix, regex: None, wait: MAX_WATCH_WAIT };
        let call = |names: NameServiceClient, cx| async move { names.changes(cx, query).await };
        let what = "the names cannot be watched";
        match self.0.connections.call(&self.0.nameserver, MAX_WATCH_WAIT + CALL_DEADLINE, call).await {
            Ok(answer) => answer.map_err(|refused| refusal(what.to_owned(), &refused)),
            Err(error) => Err(error.into_failure(what)),
        }
    }

    async fn yplookup(&self, all: Option<Vec<String>>, any: Option<Vec<String>>) -> Result<Vec<Record>, Failure> {
        self.all_pages(|after| {
            let query = TagQuery { all: all.clone(), any: any.clone(), after };
            self.call("the names cannot be listed", |c, cx| async move { c.yplookup(cx, query).await })
        })
        .await
    }

    async fn all_pages<F>(&self, mut page: impl FnMut(Option<Name>) -> F) -> Result<Vec<Record>, Failure>
    where
        F: Future<Output = Result<Page, Failure>>,
    {
        let mut records = Vec::new();
        let mut after = None;
        loop {
            let mut page = page(after).await?;
            records.append(&mut page.records);
            after = page.next;
            if after.is_none() {
                return Ok(records);
            }
        }
    }

    async fn remove(&self, what: &str, selector: Selector) -> Result<u64, Failure> {
        self.call(format!("{what} was not removed"), |c, cx| async move { c.remove(cx, selector).await }).await
    }

    /// Makes a call; a failure is told as one of `what`.
    async fn call<T, F>(
        &self,
        what: impl Into<String>,
        call: impl FnOnce(NameServiceClient, Context) -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<Result<T, NameError>, RpcError>>,
    {
        match self.0.connections.call(&self.0.nameserver, CALL_DEADLINE, call).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(refused)) => Err(refusal(what.into(), &refused)),
            Err(error) => Err(error.into_failure(what)),
        }
    }
}

/// A refusal of the nameserver, with what the user can do.
fn refusal(what: String, error: &NameError) -> Failure {
    let (code, hint) = match error {
        NameError::UnknownName(_) => (FailureCode::UnknownName, "`nsc list` shows the names"),
        NameError::NameExists(_) => (FailureCode::Exists, "remove it first, or choose another name"),
        NameError::InvalidName(_) => (FailureCode::InvalidName, "choose another name"),
        NameError::InvalidUri(_) | NameError::InvalidTag(_) | NameError::InvalidQuery(_) => {
            (FailureCode::Usage, "correct the argument")
        }
        NameError::NotAuthorised(_) => (FailureCode::NotAuthorised, "only its owner can do that"),
        NameError::LimitReached { .. } => (FailureCode::LimitReached, "remove something first"),
        NameError::RevisionMismatch { .. } | NameError::Superseded { .. } | NameError::Unavailable(_) => {
            (FailureCode::Timeout, "try again")
        }
    };
    Failure::new(code, what, error, hint)
}

/// Title of what is found by tags; the space is Pyro5's.
const SEARCHED: &str = " - searched by metadata";

/// Names as Pyro5's `nsc` lists them.
fn listing(records: &[Record], title: &str) -> String {
    let mut text = format!("--------START LIST {title}\n");
    for record in records {
        text.push_str(&format!("{} --> {}\n", record.name, record.uri));
        if !record.tags.is_empty() {
            text.push_str(&format!("    metadata: {}\n", python_set(&record.tags)));
        }
    }
    text.push_str(&format!("--------END LIST {title}\n"));
    text
}

/// A change, on one line.
fn changed(change: &NameChange) -> String {
    match &change.record {
        Some(record) if record.tags.is_empty() => format!("+ {} --> {}\n", record.name, record.uri),
        Some(record) => format!("+ {} --> {} {}\n", record.name, record.uri, python_set(&record.tags)),
        None => format!("- {}\n", change.name),
    }
}

/// A name as Pyro5's `nsc` looks it up.
fn looked_up(record: &Record) -> String {
    let mut text = format!("{}\n", record.uri);
    if !record.tags.is_empty() {
        text.push_str(&format!("metadata: {}\n", python_set(&record.tags)));
    }
    text
}

/// A set as Python writes it: single quotes, unless only double ones need no escaping.
fn python_set(tags: &[Tag]) -> String {
    let quoted = tags.iter().map(|tag| {
        let text = tag.as_str().replace('\\', "\\\\");
        match (text.contains('\''), text.contains('"')) {
            (true, false) => format!("\"{text}\""),
            _ => format!("'{}'", text.replace('\'', "\\'")),
        }
    });
    format!("{{{}}}", quoted.collect::<Vec<_>>().join(", "))
}

/// Asks whether to go on, as Pyro5 does.
async fn confirmed() -> Result<bool, Failure> {
    let question = "Potentially removing lots of items from the Name server. Are you sure (y/n)?";
    // Nobody there to read it: nobody is sure.
    write_out(question).map_err(unwritable)?;
    // On a thread of its own: the connection is kept alive meanwhile.
    let answer = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        std::io::stdin().lock().read_line(&mut line).map(|bytes| (bytes > 0).then_some(line))
    });
    let unanswered = |why: &dyn std::fmt::Display| {
        Failure::new(FailureCode::Interrupted, "nothing was removed", why, "answer y or n on standard input")
    };
    let answer = answer.await.map_err(|error| unanswered(&error))?.map_err(|error| unanswered(&error))?;
    let answer = answer.ok_or_else(|| unanswered(&"there was no answer"))?;
    Ok(matches!(answer.trim(), "y" | "Y"))
}

/// Writes an answer. A reader that is gone (`nsc list | head -1`) has what it wanted: that is the end.
fn print(text: &str) -> Result<(), Failure> {
    match write_out(text) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        written => written.map_err(unwritable),
    }
}

fn write_out(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

fn unwritable(error: std::io::Error) -> Failure {
    Failure::new(FailureCode::Io, "the answer cannot be written", error, "check where it goes")
}

/// `90`, `90s`, `15m`, `1h`, `7d`.
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
    number.checked_mul(unit).map(Duration::from_secs).ok_or_else(|| "that is too long".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use shared::rpc::nameserver::Revision;

    use super::*;

    fn record(name: &str, tags: &[&str]) -> Record {
        Record {
            name: name.parse().unwrap(),
            uri: "quic://hostname:9999".parse().unwrap(),
            tags: tags.iter().map(|tag| tag.parse().unwrap()).collect(),
            revision: Revision(1),
        }
    }

    #[test]
    fn lists_look_like_pyro5s() {
        assert_eq!(listing(&[], ""), "--------START LIST \n--------END LIST \n");
        assert_eq!(
            listing(&[record("name1", &[]), record("name2", &["a", "b"])], "- regex 'name.$'"),
            "--------START LIST - regex 'name.$'\n\
             name1 --> quic://hostname:9999\n\
             name2 --> quic://hostname:9999\n    metadata: {'a', 'b'}\n\
             --------END LIST - regex 'name.$'\n"
        );
        assert_eq!(looked_up(&record("x", &[])), "quic://hostname:9999\n");
        assert_eq!(looked_up(&record("x", &["t"])), "quic://hostname:9999\nmetadata: {'t'}\n");
    }

    #[test]
    fn tags_are_quoted_as_python_quotes_them() {
        let set = |tag: &str| python_set(&[tag.parse().unwrap()]);
        assert_eq!(set("it's"), r#"{"it's"}"#);
        assert_eq!(set(r#"say "it's""#), r#"{'say "it\'s"'}"#);
        assert_eq!(set(r"back\slash"), r"{'back\\slash'}");
    }

    #[test]
    fn times_are_read_with_units() {
        assert_eq!(parse_duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("15m"), Ok(Duration::from_secs(900)));
        assert_eq!(parse_duration("1h"), Ok(Duration::from_secs(3600)));
        assert_eq!(parse_duration("7d"), Ok(Duration::from_secs(7 * 24 * 3600)));
        for bad in ["", "h", "1w", "-1", "1.5h", "99999999999999999999", "9999999999999999999d"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }
}
