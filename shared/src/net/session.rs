//! A program's place in the network: its identity, its socket, and its way to the nameserver.
//!
//! | what it has | what it does |
//! |---|---|
//! | an identity | uses it |
//! | a join token | enrols with it, keeps the identity and the nameservers' addresses |
//! | neither, but the nameserver runs on this machine for this user | enrols with the local token that the nameserver left in the state folder |
//! | none of these | says how to get a token |

use std::{
    fs,
    io::{self, Read},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
};

use certs::{Applicant, Identity, JoinToken, trust};

use super::{
    Connections, NetError, Target,
    connection::resolve,
    endpoint,
    enrolment::{DialError, applicant_dial, enrol},
};
use crate::{
    error::{Failure, FailureCode},
    id::{PeerId, Role},
    limits,
    name::Endpoint,
    rpc::{
        ALPN,
        enrol::Enrolled,
        nameserver::{NameServiceClient, ServerInfo},
    },
    time::{Clock, unix_micros},
};

/// File with the addresses of the nameservers of a network that was joined with a token, in a member's folder.
const ADDRESSES: &str = "nameservers";

/// UDP port of a nameserver unless another is told.
pub const DEFAULT_PORT: u16 = 9090;

/// What a program wants to be, and what it was told.
#[derive(Debug, Clone)]
pub struct SessionConfig {
    /// A peer, or an admin.
    pub role: Role,
    /// Base of all state (`BRASA_STATE_DIR`).
    pub state_dir: PathBuf,
    /// The nameserver, if the user named one.
    pub nameserver: Option<Endpoint>,
    /// A join token, if the user gave one.
    pub join: Option<JoinToken>,
}

/// A member's session: identity, socket, connections, nameserver.
pub struct Session {
    /// Who this program is.
    pub identity: Identity,
    /// Its socket: client, and server if it is a peer.
    pub endpoint: quinn::Endpoint,
    /// Its connections to others.
    pub connections: Connections,
    /// The nameserver that answered.
    pub nameserver: Target,
    /// What the nameserver said of itself and of this program.
    pub info: ServerInfo,
    /// Said when the kernel clamps the socket's buffers.
    pub buffer_warning: Option<String>,
    /// The socket's receive buffer in bytes, when it is smaller than was asked for.
    pub clamped_buffer: Option<u64>,
}

/// The files of one state folder.
#[derive(Debug, Clone)]
pub struct StateDir(PathBuf);

impl StateDir {
    /// The state below `base`.
    pub fn new(base: impl Into<PathBuf>) -> Self {
        Self(base.into())
    }

    /// The base of this user's state: `$BRASA_STATE_DIR`, else `$XDG_STATE_HOME/brasa`, else `~/.local/state/brasa`. An
    /// empty variable counts as not set; a relative `XDG_STATE_HOME` is to be ignored (XDG Base Directory
    /// Specification 0.8).
    ///
    /// # Errors
    /// `Usage` when none of them, nor `HOME`, is set.
    pub fn of_user() -> Result<PathBuf, Failure> {
        let var = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let absolute = |name| var(name).filter(|path| path.is_absolute());
        var("BRASA_STATE_DIR")
            .or_else(|| Some(absolute("XDG_STATE_HOME")?.join("brasa")))
            .or_else(|| Some(absolute("HOME")?.join(".local/state/brasa")))
            .ok_or_else(|| {
                Failure::new(
                    FailureCode::Usage,
                    "there is no place for state",
                    "HOME is not set",
                    "say --state-dir DIR or set BRASA_STATE_DIR",
                )
            })
    }

    /// The nameserver's folder.
    pub fn nameserver(&self) -> PathBuf {
        self.0.join("nameserver")
    }

    /// The token that a nameserver leaves for the user's own programs.
    pub fn local_token(&self) -> PathBuf {
        self.0.join("local.token")
    }

    /// The folder of one member.
    pub fn member(&self, role: &Role) -> PathBuf {
        match role {
            Role::Peer(id) => self.peer(id),
            Role::Admin => self.0.join("admin"),
            Role::Nameserver => self.nameserver(),
        }
    }

    /// The folder of one peer.
    pub fn peer(&self, id: &PeerId) -> PathBuf {
        self.0.join("peers").join(id.as_str())
    }

    /// Reads the local token; `None` when there is none or it is unreadable.
    fn read_local_token(&self) -> Option<JoinToken> {
        fs::read_to_string(self.local_token()).ok()?.parse().ok()
    }
}

impl Session {
    /// Becomes a member if need be, binds a socket, and finds the nameserver.
    ///
    /// # Errors
    /// `NameserverUnreachable` when none answers, `NotAuthorised` when there is no identity and no way to one,
    /// `Io` when the state folder cannot be used.
    pub async fn open(config: &SessionConfig) -> Result<Self, Failure> {
        let state = StateDir::new(&config.state_dir);
        let clock = Clock::start();
        loop {
            let token = state.read_local_token();
            let refused = match Self::try_open(config, &state).await {
                Err(refused) if refused.code == FailureCode::NotAuthorised && config.join.is_none() => refused,
                opened => return opened,
            };
            // A nameserver that is just starting on this machine answers a moment before its token lies there.
            if !candidates(config, &state.member(&config.role).join(ADDRESSES), token.as_ref()).iter().all(is_loopback)
            {
                return Err(refused);
            }
            while state.read_local_token() == token {
                if clock.now().since_origin() > limits::LOCAL_TOKEN_WAIT {
                    return Err(refused);
                }
                tokio::time::sleep(limits::LOCAL_TOKEN_POLL).await;
            }
        }
    }

    async fn try_open(config: &SessionConfig, state: &StateDir) -> Result<Self, Failure> {
        let folder = state.member(&config.role);
        create_private_folder(&folder).map_err(|error| Failure::unusable(&folder, &error))?;
        let identity_file = folder.join("identity.pem");
        let addresses_file = folder.join(ADDRESSES);
        let newcomer_file = folder.join("newcomer.key");

        let stored = Identity::load(&identity_file).map_err(|error| Failure::unusable(&identity_file, &error))?;
        let (mut identity, expired) = match stored {
            Some(identity) if identity.expires_unix_seconds() <= now_unix_seconds() => (None, Some(identity)),
            stored => (stored, None),
        };
        let local_token = state.read_local_token();
        let addresses = candidates(config, &addresses_file, local_token.as_ref());

        let token = match (&config.join, &identity) {
            // A token for the network that this node belongs to already is not needed any more.
            (Some(token), Some(identity)) if belongs_to(identity, token) => None,
            (Some(token), _) => Some(token.clone()),
            (None, Some(_)) if addresses_file.exists() => None,
            (None, Some(identity)) if local_token.as_ref().is_none_or(|token| belongs_to(identity, token)) => None,
            (None, _) => local_token,
        };
        if let Some(token) = token {
            // Its id is bound to its key, so a member whose time is over comes with the same.
            let newcomer = match &expired {
                Some(expired) if belongs_to(expired, &token) => Applicant::again(expired),
                Some(_) | None => Applicant::load_or_create(&newcomer_file),
            };
            let newcomer = newcomer.map_err(|error| Failure::unusable(&newcomer_file, &error))?;
            let (member, enrolled) = enrol(&addresses, &token, &config.role, newcomer).await?;
            // The addresses first: an identity without them would not find its network after a crash in between.
            if config.join.is_some() {
                save_addresses(&addresses_file, &enrolled)
                    .map_err(|error| Failure::unusable(&addresses_file, &error))?;
            }
            member.save(&identity_file).map_err(|error| Failure::unusable(&identity_file, &error))?;
            // The key is with the identity now; what stays behind is a second copy of it.
            if let Err(error) = fs::remove_file(&newcomer_file)
                && error.kind() != io::ErrorKind::NotFound
            {
                return Err(Failure::unusable(&newcomer_file, &error));
            }
            identity = Some(member);
        }
        match identity {
            Some(identity) => Self::connect(identity, &addresses).await,
            None => Err(no_identity(config, &addresses, expired.is_some()).await),
        }
    }

    async fn connect(identity: Identity, addresses: &[Endpoint]) -> Result<Self, Failure> {
        let unusable = |error: trust::TrustError| {
            Failure::new(
                FailureCode::NotAuthorised,
                "this node's identity cannot be used",
                error,
                "join again with a token",
            )
        };
        let serves = matches!(identity.role(), Role::Peer(_));
        let server = serves.then(|| trust::member_server(&identity, &[ALPN])).transpose().map_err(unusable)?;
        let client = trust::member_client(&identity, &[ALPN]).map_err(unusable)?;
        let bound = endpoint::bind(any_address(addresses).await, server, client)
            .map_err(|error| Failure::new(FailureCode::Io, "no UDP socket", error, "check the system's limits"))?;
        let connections = Connections::new(bound.endpoint.clone());
        let mut last = None;
        for address in addresses {
            let nameserver = Target { role: Role::Nameserver, endpoint: address.clone() };
            let wait = limits::DIAL_DEADLINE + limits::CALL_DEADLINE;
            let ping = |client: NameServiceClient, context| async move { client.ping(context).await };
            match connections.call(&nameserver, wait, ping).await {
                Ok(info) => {
                    return Ok(Self {
                        identity,
                        endpoint: bound.endpoint,
                        connections,
                        nameserver,
                        info,
                        buffer_warning: bound.buffer_warning,
                        clamped_buffer: bound.clamped_buffer,
                    });
                }
                Err(error) => last = Some(error),
            }
        }
        Err(unreachable(last))
    }

    /// Where others reach this program: the address the nameserver sees, unless that is loopback while the
    /// nameserver itself can be reached from elsewhere; then both are on one machine, and its address is ours.
    ///
    /// # Errors
    /// When the socket has no address.
    pub fn advertised(&self) -> io::Result<Endpoint> {
        let port = self.endpoint.local_addr()?.port();
        let observed = self.info.observed.ip().to_canonical();
        let elsewhere = self.info.advertised.iter().find(|endpoint| !is_loopback(endpoint));
        Ok(match elsewhere {
            Some(nameserver) if observed.is_loopback() => Endpoint { host: nameserver.host.clone(), port },
            _ => Endpoint::from(SocketAddr::new(observed, port)),
        })
    }
}

/// Reads a join token as the user gave it: the token, or `@FILE` to keep it out of the process list.
///
/// # Errors
/// When the file cannot be read or the text is no token.
pub fn parse_join(text: &str) -> Result<JoinToken, Failure> {
    let usage = |why: &dyn std::fmt::Display| {
        Failure::new(
            FailureCode::Usage,
            "the join token cannot be read",
            why,
            "copy the whole line that `nsc token` printed",
        )
    };
    let token = match text.strip_prefix('@') {
        Some(path) => read_token(Path::new(path)).map_err(|error| usage(&format!("{path}: {error}")))?,
        None => text.to_owned(),
    };
    token.parse().map_err(|error| usage(&error))
}

fn read_token(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    // What is cut off by the bound is no token either way.
    fs::File::open(path)?.take(limits::MAX_TOKEN_FILE_BYTES).read_to_string(&mut text)?;
    Ok(text)
}

fn is_loopback(endpoint: &Endpoint) -> bool {
    match endpoint.socket_addr() {
        Some(address) => address.ip().is_loopback(),
        None => endpoint.host.to_string() == "localhost",
    }
}

pub(super) fn belongs_to(identity: &Identity, token: &JoinToken) -> bool {
    certs::Fingerprint::of(identity.authority()) == token.authority
}

/// Where nameservers may be: as the user says; else as the join token says; else as remembered from joining;
/// else as the nameserver on this machine says; else the default.
fn candidates(config: &SessionConfig, addresses_file: &Path, local_token: Option<&JoinToken>) -> Vec<Endpoint> {
    if let Some(endpoint) = &config.nameserver {
        return vec![endpoint.clone()];
    }
    let of_token = |token: &JoinToken| parse_addresses(token.addresses.iter().map(String::as_str));
    let remembered =
        || fs::read_to_string(addresses_file).map(|text| parse_addresses(text.lines())).unwrap_or_default();
    let sources: [Vec<Endpoint>; 3] = [
        config.join.as_ref().map(of_token).unwrap_or_default(),
        remembered(),
        local_token.map(of_token).unwrap_or_default(),
    ];
    let default = Endpoint::from(SocketAddr::from((Ipv4Addr::LOCALHOST, DEFAULT_PORT)));
    sources.into_iter().find(|addresses| !addresses.is_empty()).unwrap_or_else(|| vec![default])
}

fn parse_addresses<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<Endpoint> {
    lines.filter_map(|line| Endpoint::from_host_port(line.trim()).ok()).collect()
}

fn save_addresses(file: &Path, enrolled: &Enrolled) -> io::Result<()> {
    let lines: String = enrolled.nameservers.iter().map(|endpoint| endpoint.host_port() + "\n").collect();
    certs::write_private(file, lines.as_bytes())
}

fn now_unix_seconds() -> i64 {
    i64::try_from(unix_micros() / 1_000_000).unwrap_or(i64::MAX)
}

fn create_private_folder(folder: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

pub(super) fn unreachable(error: Option<NetError>) -> Failure {
    match error {
        Some(error @ (NetError::Unreachable { .. } | NetError::Local(_) | NetError::Deadline { .. })) => Failure::new(
            FailureCode::NameserverUnreachable,
            "the nameserver cannot be reached",
            error,
            "start `nameserver`, or say where it is with -n HOST -p PORT",
        ),
        // It restarts, or has too many at its door: no word against this program.
        Some(error @ NetError::Closed { .. }) => Failure::new(
            FailureCode::NameserverUnreachable,
            "the nameserver ended the connection",
            error,
            "try again; if that does not help, look at what the nameserver says",
        ),
        Some(error) => error.into_failure("the nameserver does not let this program in"),
        None => Failure::new(FailureCode::Internal, "no nameserver address is known", "none was given", "use -n HOST"),
    }
}

/// Why there is no identity: nobody is there to ask, or nobody has let this program in yet.
async fn no_identity(config: &SessionConfig, addresses: &[Endpoint], expired: bool) -> Failure {
    let newcomer = match Applicant::new() {
        Ok(newcomer) => newcomer,
        Err(error) => return Failure::new(FailureCode::Internal, "no key could be made", error, "try again"),
    };
    let mut silent = None;
    for address in addresses {
        // A dial that trusts nobody: it cannot succeed, but tells silence from a refusal.
        let nobody = certs::Fingerprint([0; 32]);
        match applicant_dial(address, nobody, &newcomer).await {
            Err(DialError::Net(error @ (NetError::Unreachable { .. } | NetError::Local(_)))) => silent = Some(error),
            _ => {
                let hint = match &config.role {
                    Role::Peer(id) => {
                        format!("run `nsc token` where the nameserver runs, then `peer {id} --join TOKEN`")
                    }
                    Role::Admin | Role::Nameserver => {
                        "run this as the user who runs the nameserver, on its machine, with its state folder".to_owned()
                    }
                };
                let what = if expired {
                    format!("the certificate of {} has expired", config.role)
                } else {
                    format!("{} does not belong to this network yet", config.role)
                };
                return Failure::new(
                    FailureCode::NotAuthorised,
                    what,
                    format!("the nameserver at {} wants a certificate", address.host_port()),
                    hint,
                );
            }
        }
    }
    unreachable(silent)
}

/// The unspecified address of the family that the nameserver has.
pub(super) async fn any_address(addresses: &[Endpoint]) -> SocketAddr {
    let ipv6 = match addresses.first() {
        Some(first) => resolve(first).await.is_ok_and(|addresses| addresses.iter().any(SocketAddr::is_ipv6)),
        None => false,
    };
    let ip: IpAddr = if ipv6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    SocketAddr::new(ip, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nameserver_that_restarts_is_unreachable_and_one_that_refuses_is_not() {
        let address = "nameserver (127.0.0.1:9090)".to_owned();
        let reset = NetError::from_connection(&address, &quinn::ConnectionError::Reset);
        assert_eq!(unreachable(Some(reset)).code, FailureCode::NameserverUnreachable);
        let refused = NetError::NotAuthorised { address, why: "not trusted".to_owned() };
        assert_eq!(unreachable(Some(refused)).code, FailureCode::NotAuthorised);
    }
}
