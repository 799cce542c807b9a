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

use crate::{
    actor::{self, RegistryHandle},
    config::{Config, StorageChoice},
    interfaces,
    params::CERTIFICATE_LIFE,
    service::ServiceState,
    storage::{Storage, StorageError, memory::MemoryStorage, redb::RedbStorage},
};
use certs::{Authority, JoinToken, trust};
use shared::{
    error::{Failure, FailureCode},
    id::Role,
    limits::CLOSE_DEADLINE,
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

/// Most addresses that a token carries and that callers receive.
const MAX_ADVERTISED: usize = 8;

/// A running nameserver. Dropping it stops it without waiting; [`Server::shutdown`] stops it in order.
pub struct Server {
    local_addr: SocketAddr,
    advertised: Vec<Endpoint>,
    endpoint: quinn::Endpoint,
    stop: CancellationToken,
    serving: JoinHandle<()>,
    registry: Option<thread::JoinHandle<()>>,
    /// Lock on the state folder, held while the server runs.
    _lock: File,
}

impl Server {
    /// Starts a nameserver: loads or creates its authority and storage, binds its socket, and writes the local token
    /// for this user's programs. Requires a tokio runtime with I/O and time.
    ///
    /// # Errors
    /// `AlreadyRunning` when another nameserver uses the state folder or the storage; `Io` when a file or the port
    /// cannot be used; `Usage` when the host cannot be resolved.
    pub async fn start(config: Config) -> Result<Self, Failure> {
        let state = StateDir::new(&config.state_dir);
        let folder = state.nameserver();
        let lock = lock_folder(&folder)?;
        let authority = Authority::load_or_create(&folder).map_err(|error| Failure::unusable(&folder, &error))?;
        let bound = bind(&config, &authority, &folder).await?;
        if let Some(warning) = bound.buffer_warning {
            // The nameserver's messages are small, so small buffers hardly matter.
            tracing::info!(warning, "the kernel limits the socket's buffers");
        }
        let endpoint = bound.endpoint;
        let local_addr = endpoint.local_addr().map_err(|error| Failure::unusable(&folder, &error))?;

        let storage = open_storage(&config.storage, &folder)?;
        let (registry, registry_thread) = actor::start(storage, Clock::start()).map_err(storage_failure)?;
        let advertised = advertised(&config, local_addr);
        register_self(&registry, advertised.first().cloned().unwrap_or_else(|| local_addr.into())).await?;

        // Written last, so that a program that finds the token finds a nameserver that answers.
        let local_token = write_local_token(&state.local_token(), &authority, local_addr)?;
        let stop = CancellationToken::new();
        let state = ServiceState {
            registry,
            authority,
            local_token,
            run: unix_micros(),
            advertised: advertised.clone(),
            incumbent_probe: tokio::sync::Mutex::default(),
        };
        let serving = tokio::spawn(serve(endpoint.clone(), Arc::new(state), stop.clone()));
        let registry = Some(registry_thread);
        Ok(Self { local_addr, advertised, endpoint, stop, serving, registry, _lock: lock })
    }

    /// Address of the server's socket.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Endpoints at which other machines reach the server, preferred first.
    pub fn advertised(&self) -> &[Endpoint] {
        &self.advertised
    }

    /// Stops the server: closes all connections, stores every acknowledged write and closes the storage.
    pub async fn shutdown(mut self) {
        self.stop.cancel();
        self.endpoint.close(CloseCode::ShuttingDown.to_varint(), b"the nameserver stops");
        // A caller that does not confirm the close within the deadline times out instead.
        let _ = timeout(CLOSE_DEADLINE, self.endpoint.wait_idle()).await;
        let Some(registry) = self.registry.take() else { return };
        // The tasks of the last connections hold the last handles of the actor.
        let ended = (&mut self.serving).await.is_ok()
            && tokio::task::spawn_blocking(|| registry.join().is_ok()).await.is_ok_and(|joined| joined);
        if !ended {
            tracing::error!("a task or the registry's thread panicked");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
        self.endpoint.close(CloseCode::ShuttingDown.to_varint(), b"the nameserver stops");
    }
}

/// Creates the nameserver's folder, accessible by this user only, and locks it.
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
            "a nameserver is already running",
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
    // Issued at each start: callers verify the role and the authority, not the key.
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

/// Resolves the addresses to listen at, IPv4 first, because callers try `127.0.0.1` by default.
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

async fn register_self(registry: &RegistryHandle, endpoint: Endpoint) -> Result<(), Failure> {
    let written: Result<(), NameError> = registry
        .write(Role::Nameserver, move |registry, now, _| {
            registry.register_self(endpoint, now);
            Ok(())
        })
        .await;
    written.map_err(|error| {
        Failure::new(FailureCode::Io, "the nameserver's own name cannot be stored", error, "check the disk")
    })
}

/// Endpoints at which other machines reach the nameserver.
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

/// Generates the token for this user's programs on this machine and writes it to a file that only this user can read.
fn write_local_token(path: &Path, authority: &Authority, local: SocketAddr) -> Result<JoinToken, Failure> {
    let ip = if local.ip().is_unspecified() { loopback_of(local) } else { local.ip() };
    let here = Endpoint::from(SocketAddr::new(ip, local.port())).host_port();
    let token = JoinToken::new(authority.fingerprint(), vec![here])
        .map_err(|error| Failure::unusable(path, io::Error::other(error.to_string())))?;
    certs::write_private(path, token.to_string().as_bytes()).map_err(|error| Failure::unusable(path, &error))?;
    Ok(token)
}
