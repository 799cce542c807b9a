//! A running nameserver.

use std::{
    fs::{DirBuilder, File, TryLockError},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use certs::{Authority, JoinToken, trust};
use shared::{
    error::{Failure, FailureCode},
    id::Role,
    limits::{CERTIFICATE_LIFE, CLOSE_DEADLINE},
    name::{Endpoint, Host},
    net::{
        CloseCode,
        endpoint::{self, ResetKeys},
        serve::serve,
        session::StateDir,
    },
    rpc::{ALPN, ENROL_ALPN, nameserver::NameError},
    time::{Clock, unix_micros},
};
use tokio::{task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    config::{Config, StorageChoice},
    interfaces,
    owner::{self, OwnerHandle},
    service::House,
    storage::{MemoryStorage, RedbStorage, Storage, StorageError},
};

/// Most addresses that a token carries and callers are told.
const MAX_ADVERTISED: usize = 8;

/// A running nameserver. Dropped, it stops as if it were killed; [`Server::shutdown`] is kinder.
pub struct Server {
    local_addr: SocketAddr,
    advertised: Vec<Endpoint>,
    endpoint: quinn::Endpoint,
    stop: CancellationToken,
    serving: JoinHandle<()>,
    owner: Option<thread::JoinHandle<()>>,
    /// Held as long as the server runs: one a state folder.
    _lock: File,
}

impl Server {
    /// Starts a nameserver: its authority and storage are loaded or made, its socket is bound, and the local token is
    /// left for this user's programs. Needs a tokio runtime with I/O and time.
    ///
    /// # Errors
    /// `AlreadyRunning` when another nameserver uses the state folder or the storage; `Io` when a file or the port
    /// cannot be used; `Usage` when the host is none of this machine's.
    pub async fn start(config: Config) -> Result<Self, Failure> {
        let state = StateDir::new(&config.state_dir);
        let folder = state.nameserver();
        let lock = lock_folder(&folder)?;
        let authority = Authority::load_or_create(&folder).map_err(|error| Failure::unusable(&folder, &error))?;
        let bound = bind(&config, &authority, &folder).await?;
        if let Some(warning) = bound.buffer_warning {
            // No more than a note: names are small.
            tracing::info!("{warning}");
        }
        let endpoint = bound.endpoint;
        let local_addr = endpoint.local_addr().map_err(|error| Failure::unusable(&folder, &error))?;

        let storage = open_storage(&config.storage, &folder)?;
        let (owner, owner_thread) = owner::start(storage, Clock::start()).map_err(storage_failure)?;
        let advertised = advertised(&config, local_addr);
        register_self(&owner, advertised.first().cloned().unwrap_or_else(|| local_addr.into())).await?;

        // Last of all: who finds the token finds a nameserver that answers.
        let local_token = leave_local_token(&state.local_token(), &authority, local_addr)?;
        let stop = CancellationToken::new();
        let house = House {
            owner,
            authority,
            local_token,
            run: unix_micros(),
            advertised: advertised.clone(),
            looking: tokio::sync::Mutex::default(),
        };
        let serving = tokio::spawn(serve(endpoint.clone(), Arc::new(house), stop.clone()));
        let owner = Some(owner_thread);
        Ok(Self { local_addr, advertised, endpoint, stop, serving, owner, _lock: lock })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Where others are told to reach it, best first.
    pub fn advertised(&self) -> &[Endpoint] {
        &self.advertised
    }

    /// Stops: callers are told, everything that was acknowledged is stored, the storage is closed.
    pub async fn shutdown(mut self) {
        self.stop.cancel();
        self.endpoint.close(CloseCode::ShuttingDown.to_varint(), b"the nameserver stops");
        // Who does not answer within the deadline learns it from silence.
        let _ = timeout(CLOSE_DEADLINE, self.endpoint.wait_idle()).await;
        let Some(owner) = self.owner.take() else { return };
        // The last connections' tasks hold the owner's last handles.
        let ended = (&mut self.serving).await.is_ok()
            && tokio::task::spawn_blocking(|| owner.join().is_ok()).await.is_ok_and(|joined| joined);
        if !ended {
            tracing::error!("the registry's owner did not end as it should");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
        self.endpoint.close(CloseCode::ShuttingDown.to_varint(), b"the nameserver stops");
    }
}

/// Makes the nameserver's folder, for this user only, and takes it.
fn lock_folder(folder: &Path) -> Result<File, Failure> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(|error| Failure::unusable(folder, &error))?;
    let path = folder.join("lock");
    let lock = File::options()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(&path)
        .map_err(|error| Failure::unusable(&path, &error))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(Failure::new(
            FailureCode::AlreadyRunning,
            "a nameserver runs already",
            format!("it uses {}", folder.display()),
            "stop it, or choose another folder with --state-dir",
        )),
        Err(TryLockError::Error(error)) => Err(Failure::unusable(&path, &error)),
    }
}

async fn bind(config: &Config, authority: &Authority, folder: &Path) -> Result<endpoint::Bound, Failure> {
    let internal = |error: &dyn std::fmt::Display| {
        Failure::new(FailureCode::Internal, "the nameserver's certificate cannot be used", error, "try again")
    };
    // New at each start: callers check who it is and by which authority, not which key it has.
    let identity = authority.identity(&Role::Nameserver, CERTIFICATE_LIFE).map_err(|error| internal(&error))?;
    let server = trust::nameserver_server(&identity, &[ALPN, ENROL_ALPN]).map_err(|error| internal(&error))?;
    let client = trust::member_client(&identity, &[ALPN]).map_err(|error| internal(&error))?;
    let key_file = folder.join("reset.key");
    let keys = ResetKeys::load_or_create(&key_file).map_err(|error| Failure::unusable(&key_file, error))?;
    let mut last = None;
    for address in resolve(config).await? {
        match endpoint::bind_with_reset_keys(address, server.clone(), client.clone(), &keys) {
            Ok(bound) => return Ok(bound),
            Err(error) => last = Some(error),
        }
    }
    let why = last.map_or_else(|| "it has no address".to_owned(), |error| error.to_string());
    let what = format!("cannot listen at {}:{}", config.host, config.port);
    Err(Failure::new(
        FailureCode::Io,
        what,
        why,
        "choose another port with -p (0 takes a free one), or stop what uses it",
    ))
}

/// The addresses to try, IPv4 first: `localhost` shall be where its callers look first.
async fn resolve(config: &Config) -> Result<Vec<SocketAddr>, Failure> {
    let name = match &config.host {
        Host::Ip(ip) => return Ok(vec![SocketAddr::new(*ip, config.port)]),
        Host::Name(name) => name.as_str(),
    };
    let found = tokio::net::lookup_host((name, config.port)).await.map_err(|error| {
        let what = format!("cannot listen at {name}");
        Failure::new(FailureCode::Usage, what, error, "give an address of this machine with -n")
    })?;
    let mut found: Vec<SocketAddr> = found.collect();
    found.sort_by_key(SocketAddr::is_ipv6);
    Ok(found)
}

fn open_storage(choice: &StorageChoice, folder: &Path) -> Result<Box<dyn Storage>, Failure> {
    let path: PathBuf = match choice {
        StorageChoice::Memory => return Ok(Box::new(MemoryStorage::default())),
        StorageChoice::Redb => folder.join("registry.redb"),
        StorageChoice::RedbFile(path) => path.clone(),
    };
    RedbStorage::open(&path).map(|storage| Box::new(storage) as Box<dyn Storage>).map_err(storage_failure)
}

fn storage_failure(error: StorageError) -> Failure {
    let (code, hint) = match &error {
        StorageError::InUse { .. } => {
            (FailureCode::AlreadyRunning, "stop it, or choose another file with -s redb:PATH")
        }
        StorageError::Format { .. } => (FailureCode::VersionMismatch, "use the version of the program that wrote it"),
        StorageError::Damaged { .. } => (FailureCode::Io, "restore a backup, or move the file away to begin anew"),
        StorageError::Io { .. } => (FailureCode::Io, "check the disk and the file's rights"),
        StorageError::Conflict { .. } => (FailureCode::Internal, "try again"),
    };
    Failure::new(code, "the names cannot be loaded", error, hint)
}

async fn register_self(owner: &OwnerHandle, endpoint: Endpoint) -> Result<(), Failure> {
    let written: Result<(), NameError> = owner
        .write(Role::Nameserver, move |registry, now, _| {
            registry.register_self(endpoint, now);
            Ok(())
        })
        .await;
    written.map_err(|error| {
        Failure::new(FailureCode::Io, "the nameserver's own name cannot be stored", error, "check the disk")
    })
}

/// Where others are told to reach the nameserver.
fn advertised(config: &Config, local: SocketAddr) -> Vec<Endpoint> {
    if let Some(advertise) = &config.advertise {
        return vec![advertise.endpoint(local.port())];
    }
    let at = |ip: IpAddr| Endpoint::from(SocketAddr::new(ip, local.port()));
    if !local.ip().is_unspecified() {
        return vec![at(local.ip())];
    }
    let own: Vec<Endpoint> =
        interfaces::own_addresses(local.is_ipv6()).into_iter().take(MAX_ADVERTISED).map(at).collect();
    if own.is_empty() { vec![at(loopback_of(local))] } else { own }
}

fn loopback_of(local: SocketAddr) -> IpAddr {
    if local.is_ipv6() { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() }
}

/// Leaves the token for this user's programs on this machine: readable by nobody else, new at each start.
fn leave_local_token(path: &Path, authority: &Authority, local: SocketAddr) -> Result<JoinToken, Failure> {
    let ip = if local.ip().is_unspecified() { loopback_of(local) } else { local.ip() };
    let here = Endpoint::from(SocketAddr::new(ip, local.port())).host_port();
    let token = JoinToken::new(authority.fingerprint(), vec![here])
        .map_err(|error| Failure::unusable(path, io::Error::other(error.to_string())))?;
    certs::write_private(path, token.to_string().as_bytes()).map_err(|error| Failure::unusable(path, &error))?;
    Ok(token)
}
