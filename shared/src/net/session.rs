//! Session of a member: its identity, its socket, and its connection to the nameserver.
//!
//! | available credentials | action |
//! |---|---|
//! | an identity | use it |
//! | a join token | enrol with it; store the identity and the nameservers' addresses |
//! | neither, but this user runs the nameserver on this machine | enrol with the local token in the state directory |
//! | none of these | fail and explain how to get a token |

use crate::net::params;
use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
};

use certs::{Applicant, Identity, IdentityError, JoinToken, trust};

use super::{
    connection::{Connections, Target, resolve, unspecified_address},
    endpoint,
    enrolment::{DialError, dial_as_applicant, enrol, is_same_network},
    error::NetError,
};
use crate::{
    error::{Failure, FailureCode},
    id::{PeerId, Role},
    limits,
    name::Endpoint,
    rpc::{
        ALPN,
        enrol::Enrolled,
        nameserver::{NameServiceClient, Revision, ServerInfo},
    },
    time::{Clock, unix_micros},
};

/// Default UDP port of a nameserver.
pub const DEFAULT_PORT: u16 = 9090;

/// Configuration of a [`Session`].
#[derive(Debug, Clone)]
pub struct SessionConfig {
    /// Role of the program: a peer or an admin.
    pub role: Role,
    /// Base directory of all state (`BRASA_STATE_DIR`).
    pub state_dir: PathBuf,
    /// Nameserver given by the user.
    pub nameserver: Option<Endpoint>,
    /// Join token given by the user.
    pub join: Option<JoinToken>,
}

/// Session of a member.
pub struct Session {
    /// Identity of this program.
    pub identity: Identity,
    /// QUIC endpoint: a client, and for a peer also a server.
    pub endpoint: quinn::Endpoint,
    /// Outgoing connections.
    pub connections: Connections,
    /// Nameserver that answered.
    pub nameserver: Target,
    /// First reply of the nameserver.
    pub info: ServerInfo,
    /// Warning with a remedy, if the kernel granted smaller socket buffers than requested.
    pub buffer_warning: Option<String>,
    /// Size of the socket's receive buffer, bytes, if it is smaller than requested.
    pub clamped_buffer: Option<u64>,
}

/// Layout of a state directory.
#[derive(Debug, Clone)]
pub struct StateDir(PathBuf);

impl StateDir {
    /// Creates the layout below `base`. Does not access the file system.
    pub fn new(base: impl Into<PathBuf>) -> Self {
        Self(base.into())
    }

    /// Returns the nameserver's directory.
    pub fn nameserver(&self) -> PathBuf {
        self.0.join("nameserver")
    }

    /// Returns the path of the local token, which a nameserver writes for other programs of the same user.
    pub fn local_token(&self) -> PathBuf {
        self.0.join("local.token")
    }

    /// Returns the directory of a member.
    pub fn member(&self, role: &Role) -> PathBuf {
        match role {
            Role::Peer(id) => self.peer(id),
            Role::Admin => self.0.join("admin"),
            Role::Nameserver => self.nameserver(),
        }
    }

    /// Returns the directory of a peer.
    pub fn peer(&self, id: &PeerId) -> PathBuf {
        self.0.join("peers").join(id.as_str())
    }

    /// Reads the local token; `None` if it does not exist or, with a line in the log, if it is damaged or cannot be
    /// read. It is written anew at each start of the nameserver, so a damaged one is no reason to fail.
    fn read_local_token(&self) -> Option<JoinToken> {
        let path = self.local_token();
        let damage = match fs::read_to_string(&path) {
            Ok(text) => match text.parse() {
                Ok(token) => return Some(token),
                Err(error) => format!("it is damaged: {error}"),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => error.to_string(),
        };
        tracing::warn!(
            file = %path.display(),
            error = damage,
            "cannot use the local token; a restart of the nameserver writes it anew"
        );
        None
    }
}

impl Session {
    /// Opens a session: enrols if there is no valid identity, binds a socket, and connects to the nameserver.
    ///
    /// # Errors
    /// Fails with `NameserverUnreachable` if no nameserver answers, with `NotAuthorised` if there is no identity and no
    /// valid token, and with `Io` if the state directory cannot be used.
    pub async fn open(config: &SessionConfig) -> Result<Self, Failure> {
        let state = StateDir::new(&config.state_dir);
        let clock = Clock::start();
        loop {
            let token = state.read_local_token();
            let refused = match Self::try_open(config, &state).await {
                Err(refused) if refused.code == FailureCode::NotAuthorised && config.join.is_none() => refused,
                opened => return opened,
            };
            // A nameserver that starts on this machine answers shortly before it writes the local token.
            let files = MemberFiles::new(state.member(&config.role));
            if !candidates(config, &files.addresses, token.as_ref()).iter().all(is_loopback) {
                return Err(refused);
            }
            while state.read_local_token() == token {
                if clock.now().since_origin() > params::LOCAL_TOKEN_WAIT {
                    return Err(refused);
                }
                tokio::time::sleep(params::LOCAL_TOKEN_POLL).await;
            }
        }
    }

    /// Opens a session with the stored identity without a call to the nameserver; `None` if there is no valid identity
    /// of the network. `known` are addresses of other members.
    ///
    /// The own address is a guess until the nameserver observes it: the one from which the nameserver, or the first
    /// other member, would be called.
    ///
    /// # Errors
    /// Fails with `Io` if the state directory or the identity cannot be used or no socket can be bound.
    pub async fn open_stored(config: &SessionConfig, known: &[Endpoint]) -> Result<Option<Self>, Failure> {
        let state = StateDir::new(&config.state_dir);
        let files = MemberFiles::new(state.member(&config.role));
        let stored = Identity::load(&files.identity).map_err(|error| damaged_identity(&files, &config.role, error))?;
        let Some(identity) = stored.filter(|identity| identity.expires_unix_seconds() > now_unix_seconds()) else {
            return Ok(None);
        };
        let local_token = state.read_local_token();
        if required_token(config, &files, Some(&identity), local_token.clone()).is_some() {
            // The identity is of another network.
            return Ok(None);
        }
        let addresses = candidates(config, &files.addresses, local_token.as_ref());
        let Some(first) = addresses.first() else { return Ok(None) };
        let (bound, connections) = Self::bind(&identity, &addresses).await?;
        let port = bound.endpoint.local_addr().map_err(|error| cannot_bind(&error))?.port();
        let ip = local_address(addresses.iter().chain(known)).await;
        let info = ServerInfo {
            version: String::new(),
            advertised: Vec::new(),
            observed: SocketAddr::new(ip, port),
            revision: Revision::default(),
        };
        let nameserver = Target { role: Role::Nameserver, endpoint: first.clone() };
        Ok(Some(Self::new(identity, bound, connections, nameserver, info)))
    }

    fn new(
        identity: Identity,
        bound: endpoint::Bound,
        connections: Connections,
        nameserver: Target,
        info: ServerInfo,
    ) -> Self {
        let endpoint::Bound { endpoint, buffer_warning, clamped_buffer } = bound;
        Self { identity, endpoint, connections, nameserver, info, buffer_warning, clamped_buffer }
    }

    async fn try_open(config: &SessionConfig, state: &StateDir) -> Result<Self, Failure> {
        let files = MemberFiles::new(state.member(&config.role));
        create_private_directory(&files.directory).map_err(|error| Failure::unusable(&files.directory, &error))?;
        let stored = Identity::load(&files.identity).map_err(|error| damaged_identity(&files, &config.role, error))?;
        let (identity, expired) = match stored {
            Some(identity) if identity.expires_unix_seconds() <= now_unix_seconds() => (None, Some(identity)),
            stored => (stored, None),
        };
        let local_token = state.read_local_token();
        let addresses = candidates(config, &files.addresses, local_token.as_ref());
        let identity = match required_token(config, &files, identity.as_ref(), local_token) {
            Some(token) => Some(files.enrol(config, &addresses, &token, expired.as_ref()).await?),
            None => identity,
        };
        match identity {
            Some(identity) => Self::connect(identity, &addresses).await,
            None => Err(no_identity(config, &addresses, expired.is_some()).await),
        }
    }

    /// Binds the socket of a member.
    async fn bind(identity: &Identity, addresses: &[Endpoint]) -> Result<(endpoint::Bound, Connections), Failure> {
        let unusable = |error: trust::TrustError| {
            Failure::new(
                FailureCode::NotAuthorised,
                "this node's identity cannot be used",
                error,
                "join again with a token",
            )
        };
        let serves = matches!(identity.role(), Role::Peer(_));
        let server = serves.then(|| trust::member_server(identity, &[ALPN])).transpose().map_err(unusable)?;
        let client = trust::member_client(identity, &[ALPN]).map_err(unusable)?;
        let bound = endpoint::bind(unspecified_address(addresses).await, server, client)
            .map_err(|error| cannot_bind(&error))?;
        let connections = Connections::new(bound.endpoint.clone());
        Ok((bound, connections))
    }

    async fn connect(identity: Identity, addresses: &[Endpoint]) -> Result<Self, Failure> {
        let (bound, connections) = Self::bind(&identity, addresses).await?;
        let mut last = None;
        for address in addresses {
            let nameserver = Target { role: Role::Nameserver, endpoint: address.clone() };
            let wait = params::DIAL_DEADLINE + limits::CALL_DEADLINE;
            let ping = |client: NameServiceClient, context| async move { client.ping(context).await };
            match connections.call(&nameserver, wait, ping).await {
                Ok(info) => {
                    return Ok(Self::new(identity, bound, connections, nameserver, info));
                }
                Err(error) => last = Some(error),
            }
        }
        Err(NetError::nameserver_failure(last))
    }

    /// Returns the endpoint at which other members reach this program.
    ///
    /// This is the address that the nameserver observes. If that is a loopback address and the nameserver advertises
    /// another one, both programs run on one machine and share the advertised host.
    ///
    /// # Errors
    /// Fails if the socket has no local address.
    pub fn advertised(&self) -> io::Result<Endpoint> {
        let port = self.endpoint.local_addr()?.port();
        let observed = self.info.observed.ip().to_canonical();
        let reachable = self.info.advertised.iter().find(|endpoint| !is_loopback(endpoint));
        Ok(match reachable {
            Some(nameserver) if observed.is_loopback() => Endpoint { host: nameserver.host.clone(), port },
            _ => Endpoint::from(SocketAddr::new(observed, port)),
        })
    }
}

/// Paths in the directory of a member.
struct MemberFiles {
    directory: PathBuf,
    /// Key and certificate.
    identity: PathBuf,
    /// Addresses of the nameservers, if the member joined with a token.
    addresses: PathBuf,
    /// Key of an enrolment in progress.
    applicant_key: PathBuf,
}

impl MemberFiles {
    fn new(directory: PathBuf) -> Self {
        Self {
            identity: directory.join("identity.pem"),
            addresses: directory.join("nameservers"),
            applicant_key: directory.join("newcomer.key"),
            directory,
        }
    }

    /// Enrols with `token` and saves the identity. `expired` is the member's previous identity.
    async fn enrol(
        &self,
        config: &SessionConfig,
        addresses: &[Endpoint],
        token: &JoinToken,
        expired: Option<&Identity>,
    ) -> Result<Identity, Failure> {
        // The nameserver binds an id to its key, so a member with an expired certificate reuses its key.
        let applicant = match expired {
            Some(expired) if is_same_network(expired, token) => Applicant::again(expired),
            Some(_) | None => Applicant::load_or_create(&self.applicant_key),
        };
        let applicant = applicant.map_err(|error| damaged_applicant_key(&self.applicant_key, error))?;
        let (member, enrolled) = enrol(addresses, token, &config.role, applicant).await?;
        // The addresses come first: after a crash in between, an identity without them would not find its network.
        if config.join.is_some() {
            save_addresses(&self.addresses, &enrolled).map_err(|error| Failure::unusable(&self.addresses, &error))?;
        }
        member.save(&self.identity).map_err(|error| Failure::unusable(&self.identity, &error))?;
        // The identity contains the key, so this file is a redundant copy of a secret.
        match fs::remove_file(&self.applicant_key) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Failure::unusable(&self.applicant_key, &error))
            }
            Ok(()) | Err(_) => Ok(member),
        }
    }
}

/// Returns the token to enrol with, or `None` if the identity is sufficient or no token is available.
fn required_token(
    config: &SessionConfig,
    files: &MemberFiles,
    identity: Option<&Identity>,
    local_token: Option<JoinToken>,
) -> Option<JoinToken> {
    match (&config.join, identity) {
        // The node is a member of the token's network already.
        (Some(token), Some(identity)) if is_same_network(identity, token) => None,
        (Some(token), _) => Some(token.clone()),
        (None, Some(_)) if files.addresses.exists() => None,
        (None, Some(identity)) if local_token.as_ref().is_none_or(|token| is_same_network(identity, token)) => None,
        (None, _) => local_token,
    }
}

fn is_loopback(endpoint: &Endpoint) -> bool {
    match endpoint.socket_addr() {
        Some(address) => address.ip().is_loopback(),
        None => endpoint.host.to_string() == "localhost",
    }
}

/// Returns the addresses at which to look for a nameserver, from the first source that has any: the user, the join
/// token, the addresses saved by the enrolment, the local token, the default.
fn candidates(config: &SessionConfig, addresses_file: &Path, local_token: Option<&JoinToken>) -> Vec<Endpoint> {
    if let Some(endpoint) = &config.nameserver {
        return vec![endpoint.clone()];
    }
    let of_token = |token: &JoinToken| parse_addresses(token.addresses.iter().map(String::as_str));
    let saved = || fs::read_to_string(addresses_file).map(|text| parse_addresses(text.lines())).unwrap_or_default();
    let sources: [Vec<Endpoint>; 3] = [
        config.join.as_ref().map(of_token).unwrap_or_default(),
        saved(),
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

fn cannot_bind(error: &dyn std::fmt::Display) -> Failure {
    Failure::new(FailureCode::Io, "cannot bind a UDP socket", error, "check the system's limits")
}

/// Address of this machine from which the first reachable of `others` would be called; loopback if there is none. Sends
/// nothing.
async fn local_address<'a>(others: impl Iterator<Item = &'a Endpoint>) -> IpAddr {
    for endpoint in others {
        let Ok(addresses) = resolve(endpoint).await else { continue };
        for address in addresses {
            let any: IpAddr =
                if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
            let local = std::net::UdpSocket::bind((any, 0)).and_then(|socket| {
                socket.connect(address)?;
                socket.local_addr()
            });
            if let Ok(local) = local {
                return local.ip().to_canonical();
            }
        }
    }
    Ipv4Addr::LOCALHOST.into()
}

/// Failure of a member whose identity cannot be read, or is damaged.
fn damaged_identity(files: &MemberFiles, role: &Role, error: IdentityError) -> Failure {
    if matches!(error, IdentityError::File { .. }) {
        return Failure::unusable(&files.identity, &error);
    }
    let hint = match role {
        Role::Peer(id) => format!(
            "restore the file from a backup; without one remove it and join again with a token for this id, which              replaces the lost key: `nsc token --for {id}`, then `peer {id} --join TOKEN`; the shared files are not              affected"
        ),
        Role::Admin | Role::Nameserver => {
            "remove the file and run the command again on the nameserver's machine, which joins again".to_owned()
        }
    };
    Failure::new(FailureCode::Io, format!("the identity of {role} is damaged"), error, hint)
}

/// Failure of an applicant whose key cannot be read, or is damaged.
fn damaged_applicant_key(path: &Path, error: IdentityError) -> Failure {
    if matches!(error, IdentityError::File { .. }) {
        return Failure::unusable(path, &error);
    }
    let hint = format!(
        "remove {} and join again; if the id is refused then, it was bound to this key: use a token of `nsc token --for          ID`",
        path.display()
    );
    Failure::new(FailureCode::Io, "the key of an unfinished enrolment is damaged", error, hint)
}

fn now_unix_seconds() -> i64 {
    i64::try_from(unix_micros() / 1_000_000).unwrap_or(i64::MAX)
}

fn create_private_directory(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Returns the failure of a program without an identity: the nameserver cannot be reached or refuses the connection,
/// or it requires a certificate.
async fn no_identity(config: &SessionConfig, addresses: &[Endpoint], expired: bool) -> Failure {
    let applicant = match Applicant::new() {
        Ok(applicant) => applicant,
        Err(error) => return Failure::new(FailureCode::Internal, "cannot create a key", error, "try again"),
    };
    let mut last = None;
    for address in addresses {
        // No authority has this fingerprint, so the handshake always fails. A rejection shows that a nameserver
        // answers.
        let untrusted = certs::Fingerprint([0; 32]);
        match dial_as_applicant(address, untrusted, &applicant).await {
            Ok(_) | Err(DialError::Net(NetError::NotAuthorised { .. })) => {
                return not_enrolled(&config.role, address, expired);
            }
            Err(DialError::Net(error)) => last = Some(error),
            Err(DialError::Other(failure)) => return failure,
        }
    }
    NetError::nameserver_failure(last)
}

/// Returns the failure of a program whose certificate is missing or `expired`.
fn not_enrolled(role: &Role, nameserver: &Endpoint, expired: bool) -> Failure {
    let what = if expired {
        format!("the certificate of {role} has expired")
    } else {
        format!("{role} is not a member of this network")
    };
    let hint = match role {
        Role::Peer(id) => {
            format!("run `nsc token` on the nameserver's machine, then `peer {id} --join TOKEN`")
        }
        Role::Admin | Role::Nameserver => {
            "run this on the nameserver's machine, as the user who runs it, with its state directory".to_owned()
        }
    };
    let why = format!("the nameserver at {} requires a certificate", nameserver.host_port());
    Failure::new(FailureCode::NotAuthorised, what, why, hint)
}
