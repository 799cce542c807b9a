//! Settings that all programs share: the address of the nameserver, the state folder and the join token.
//!
//! A flag takes precedence over an environment variable, and a variable over the default. `docs/cli.md` documents both.

use std::{
    ffi::OsString,
    fmt, fs,
    io::{self, Read as _},
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use certs::JoinToken;
pub use certs::STATE_DIR_VARIABLE;

use crate::{
    error::{Failure, FailureCode},
    limits::MAX_TOKEN_FILE_BYTES,
    name::{Endpoint, Host},
    net::session::DEFAULT_PORT,
};

/// Environment variable with the nameserver's address: `HOST` or `HOST:PORT`.
pub const NAMESERVER_VARIABLE: &str = "BRASA_NAMESERVER";
/// Environment variable with a join token or `@FILE`.
pub const JOIN_VARIABLE: &str = "BRASA_JOIN";

/// Environment variables and working directory of a process, as far as the settings depend on them. Has no `Debug`,
/// because a variable may hold a secret.
#[derive(Clone, Default)]
pub struct Environment {
    /// [`NAMESERVER_VARIABLE`].
    pub nameserver: Option<OsString>,
    /// [`STATE_DIR_VARIABLE`].
    pub state_dir: Option<OsString>,
    /// [`JOIN_VARIABLE`]. A secret.
    pub join: Option<OsString>,
    /// `XDG_STATE_HOME`.
    pub xdg_state_home: Option<OsString>,
    /// `HOME`.
    pub home: Option<OsString>,
    /// Folder that relative paths are joined to. When it is empty, they stay relative.
    pub working_dir: PathBuf,
}

impl Environment {
    /// Reads the variables of this process. An empty variable counts as unset. Relative paths stay relative.
    pub fn of_process() -> Self {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        Self {
            nameserver: variable(NAMESERVER_VARIABLE),
            state_dir: variable(STATE_DIR_VARIABLE),
            join: variable(JOIN_VARIABLE),
            xdg_state_home: variable("XDG_STATE_HOME"),
            home: variable("HOME"),
            working_dir: PathBuf::new(),
        }
    }

    /// Joins relative paths to the current working directory of this process.
    ///
    /// # Errors
    /// `io` when the process has no working directory, for example because it was deleted.
    pub fn in_working_dir(mut self) -> Result<Self, Failure> {
        self.working_dir = std::env::current_dir().map_err(|error| {
            Failure::new(FailureCode::Io, "no working directory", error, "change to a folder that exists")
        })?;
        Ok(self)
    }

    /// Resolves the nameserver that the user names. Each of host and port comes from its flag, else from
    /// [`NAMESERVER_VARIABLE`], else from the default `127.0.0.1:9090`. `None` when neither flags nor variable are set.
    ///
    /// # Errors
    /// `usage` when the variable is malformed, even if the flags override it.
    pub fn nameserver(&self, host: Option<Host>, port: Option<u16>) -> Result<Option<Endpoint>, Failure> {
        let named = self.nameserver_variable()?;
        if host.is_none() && port.is_none() {
            return Ok(named);
        }
        let base = named.unwrap_or(Endpoint { host: Host::Ip(Ipv4Addr::LOCALHOST.into()), port: DEFAULT_PORT });
        Ok(Some(Endpoint { host: host.unwrap_or(base.host), port: port.unwrap_or(base.port) }))
    }

    fn nameserver_variable(&self) -> Result<Option<Endpoint>, Failure> {
        let Some(value) = &self.nameserver else { return Ok(None) };
        let parse = |text: &str| {
            Endpoint::from_host_port(text)
                .ok()
                .or_else(|| Some(Endpoint { host: parse_host(text).ok()?, port: DEFAULT_PORT }))
        };
        value.to_str().and_then(parse).map(Some).ok_or_else(|| {
            Failure::new(
                FailureCode::Usage,
                format!("{NAMESERVER_VARIABLE} cannot be read"),
                format!("{:?} is not an address", value.to_string_lossy()),
                "write HOST or HOST:PORT; before a port, an IPv6 address stands in brackets",
            )
        })
    }

    /// Resolves the base folder of all state: the flag, else [`STATE_DIR_VARIABLE`], else `$XDG_STATE_HOME/brasa`, else
    /// `~/.local/state/brasa`. Relative values of `XDG_STATE_HOME` and `HOME` are ignored (XDG Base Directory
    /// Specification 0.8).
    ///
    /// # Errors
    /// `usage` when none of them is set.
    pub fn state_dir(&self, flag: Option<&Path>) -> Result<PathBuf, Failure> {
        let named = flag.map(Path::as_os_str).or(self.state_dir.as_deref());
        certs::resolve_state_dir(named, self.xdg_state_home.as_deref(), self.home.as_deref())
            .map(|folder| self.working_dir.join(folder))
            .ok_or_else(|| {
                Failure::new(
                    FailureCode::Usage,
                    "no folder for the state",
                    "HOME is not set",
                    format!("use --state-dir DIR or set {STATE_DIR_VARIABLE}"),
                )
            })
    }

    /// Reads the join token that the flag or else [`JOIN_VARIABLE`] names: the token itself, or `@FILE` with the path
    /// of a file that holds it, which keeps the token out of the process list. `None` when neither is set.
    ///
    /// # Errors
    /// `io` when the file cannot be read, `usage` when the text is not a token.
    pub fn join_token(&self, flag: Option<&str>) -> Result<Option<JoinToken>, Failure> {
        let named = match (flag, &self.join) {
            (Some(flag), _) => flag,
            (None, Some(variable)) => variable.to_str().ok_or_else(|| not_a_token(&"it is not UTF-8"))?,
            (None, None) => return Ok(None),
        };
        let text = match named.strip_prefix('@') {
            Some(path) => {
                let path = self.working_dir.join(path);
                read_token_file(&path).map_err(|error| {
                    Failure::new(
                        FailureCode::Io,
                        format!("no join token in {}", path.display()),
                        error,
                        "use --join @FILE with a file that holds the output of `nsc token`",
                    )
                })?
            }
            None => named.to_owned(),
        };
        text.parse().map(Some).map_err(|error| not_a_token(&error))
    }
}

/// Parses a host name or an IP address; an IPv6 address may stand in brackets.
///
/// # Errors
/// A message for the user when `text` is neither.
pub fn parse_host(text: &str) -> Result<Host, String> {
    // Without a port behind it, an IPv6 address needs no brackets.
    if let Ok(ip) = text.parse() {
        return Ok(Host::Ip(ip));
    }
    text.parse().map_err(|_| "not a host name or an IP address".to_owned())
}

/// The failure does not repeat the text: it may contain a part of a secret.
fn not_a_token(why: &dyn fmt::Display) -> Failure {
    Failure::new(
        FailureCode::Usage,
        "the join token cannot be read",
        why,
        "copy the whole line that `nsc token` printed",
    )
}

fn read_token_file(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    // A longer file is truncated; its text is not a token in any case.
    fs::File::open(path)?.take(MAX_TOKEN_FILE_BYTES).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use certs::Fingerprint;

    use super::*;

    fn environment() -> Environment {
        Environment { home: Some("/home/ana".into()), working_dir: "/srv".into(), ..Environment::default() }
    }

    #[test]
    fn nameserver_takes_each_part_from_flag_then_variable_then_default() {
        let resolve = |host: Option<&str>, port, variable: Option<&str>| {
            let environment = Environment { nameserver: variable.map(OsString::from), ..environment() };
            let host = host.map(|host| parse_host(host).unwrap());
            environment.nameserver(host, port).unwrap().map(|endpoint| endpoint.host_port())
        };
        assert_eq!(resolve(None, None, None), None);
        for (host, port, variable, expected) in [
            (None, None, Some("10.0.0.1:5"), "10.0.0.1:5"),
            (None, None, Some("lab"), "lab:9090"),
            (None, None, Some("::1"), "[::1]:9090"),
            (None, None, Some("[::1]"), "[::1]:9090"),
            (None, None, Some("[::1]:5"), "[::1]:5"),
            (None, Some(7), Some("10.0.0.1:5"), "10.0.0.1:7"),
            (None, Some(7), Some("lab"), "lab:7"),
            (Some("lab"), None, Some("10.0.0.1:5"), "lab:5"),
            (Some("lab"), None, Some("other"), "lab:9090"),
            (Some("::1"), Some(7), Some("10.0.0.1:5"), "[::1]:7"),
            (None, Some(7), None, "127.0.0.1:7"),
            (Some("lab"), None, None, "lab:9090"),
        ] {
            assert_eq!(resolve(host, port, variable).as_deref(), Some(expected), "{host:?} {port:?} {variable:?}");
        }
    }

    #[test]
    fn nameserver_variable_that_is_malformed_is_a_usage_error_even_with_both_flags() {
        for malformed in ["a b:1", "lab:port", "lab:0", "lab:99999", "quic://lab:1"] {
            let environment = Environment { nameserver: Some(malformed.into()), ..environment() };
            let flags = (Some(parse_host("lab").unwrap()), Some(1));
            for (host, port) in [(None, None), flags] {
                let failure = environment.nameserver(host, port).unwrap_err();
                assert_eq!(failure.code, FailureCode::Usage, "{malformed}: {failure}");
                assert!(failure.to_string().contains(NAMESERVER_VARIABLE), "{failure}");
            }
        }
    }

    #[test]
    fn state_dir_comes_from_flag_then_variable_then_xdg_then_home() {
        let mut environment = environment();
        assert_eq!(environment.state_dir(None).unwrap(), Path::new("/home/ana/.local/state/brasa"));
        environment.xdg_state_home = Some("relative".into());
        assert_eq!(environment.state_dir(None).unwrap(), Path::new("/home/ana/.local/state/brasa"));
        environment.xdg_state_home = Some("/xdg".into());
        assert_eq!(environment.state_dir(None).unwrap(), Path::new("/xdg/brasa"));
        environment.state_dir = Some("state".into());
        assert_eq!(environment.state_dir(None).unwrap(), Path::new("/srv/state"));
        assert_eq!(environment.state_dir(Some(Path::new("/flag"))).unwrap(), Path::new("/flag"));
        environment.working_dir = PathBuf::new();
        assert_eq!(environment.state_dir(None).unwrap(), Path::new("state"));
        assert_eq!(Environment::default().state_dir(None).unwrap_err().code, FailureCode::Usage);
    }

    #[test]
    fn join_token_comes_from_flag_then_variable_and_from_a_file_behind_an_at_sign() {
        let folder = tempfile::tempdir().unwrap();
        let token = || JoinToken::new(Fingerprint([7; 32]), vec!["10.0.0.1:9090".to_owned()]).unwrap();
        let (flag, variable) = (token(), token());
        fs::write(folder.path().join("token"), format!("{flag}\n")).unwrap();
        let environment = Environment {
            join: Some(variable.to_string().into()),
            working_dir: folder.path().to_owned(),
            ..environment()
        };
        assert_eq!(environment.join_token(Some(&flag.to_string())), Ok(Some(flag.clone())));
        assert_eq!(environment.join_token(Some("@token")), Ok(Some(flag)));
        assert_eq!(environment.join_token(None), Ok(Some(variable)));
        assert_eq!(Environment::default().join_token(None), Ok(None));
    }

    #[test]
    fn join_token_that_cannot_be_read_is_reported_without_its_text() {
        let text = JoinToken::new(Fingerprint([7; 32]), Vec::new()).unwrap().to_string();
        let truncated = environment().join_token(Some(&text[..text.len() - 1])).unwrap_err();
        assert_eq!(truncated.code, FailureCode::Usage);
        assert!(!truncated.to_string().contains(&text[10..30]), "{truncated}");
        assert_eq!(environment().join_token(Some("")).unwrap_err().code, FailureCode::Usage);
        let missing = environment().join_token(Some("@no/such/file")).unwrap_err();
        assert_eq!(missing.code, FailureCode::Io);
        assert!(missing.to_string().contains("/srv/no/such/file"), "{missing}");
    }
}
