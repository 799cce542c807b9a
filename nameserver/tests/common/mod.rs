//! A nameserver in this process or as a program, and members that call it over the network.
#![expect(dead_code, reason = "each test program uses a part of this module")]

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use nameserver::{
    config::{Config, StorageChoice},
    server::Server,
};
use shared::{
    error::Failure,
    id::{Incarnation, Role},
    limits::CALL_DEADLINE,
    name::Endpoint,
    net::{
        NetError,
        session::{Session, SessionConfig},
    },
    rpc::nameserver::{
        Changes, Condition, LeaseRequest, ListQuery, NameError, NameServiceClient, Page, Position, Record, Register,
        Registered, Revision, Selector, TagQuery, WatchQuery,
    },
};
use tarpc::{client::RpcError, context::Context};
use tempfile::TempDir;

/// Deadline of every wait. It fails the test; a wait ends as soon as its event happens.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// A nameserver in this process with its own state folder.
pub(crate) struct TestServer {
    pub(crate) folder: TempDir,
    pub(crate) instance: Server,
}

impl TestServer {
    pub(crate) async fn start(storage: StorageChoice) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut config = Config::new(folder.path());
        config.port = 0;
        config.storage = storage;
        let instance = Server::start(config).await.unwrap();
        Self { folder, instance }
    }

    pub(crate) async fn admin(&self) -> Member {
        Member::open(self.folder.path(), Role::Admin).await.unwrap()
    }

    pub(crate) async fn peer(&self, id: &str) -> Member {
        Member::open(self.folder.path(), Role::Peer(id.parse().unwrap())).await.unwrap()
    }
}

/// A member with a connection to its nameserver.
pub(crate) struct Member(Session);

impl Member {
    pub(crate) async fn open(state_dir: &Path, role: Role) -> Result<Self, Failure> {
        Self::open_at(state_dir, role, None).await
    }

    /// Returns the connection that carries the calls to the nameserver.
    pub(crate) async fn connection(&self) -> quinn::Connection {
        self.0.connections.connection(&self.0.nameserver).await.unwrap()
    }

    pub(crate) async fn open_at(state_dir: &Path, role: Role, nameserver: Option<Endpoint>) -> Result<Self, Failure> {
        Self::open_with(&SessionConfig { role, state_dir: state_dir.to_owned(), nameserver, join: None }).await
    }

    pub(crate) async fn open_with(config: &SessionConfig) -> Result<Self, Failure> {
        tokio::time::timeout(DEADLINE, Session::open(config)).await.unwrap().map(Self)
    }

    /// Makes a call; returns failures of the network.
    pub(crate) async fn try_call<T, F>(&self, call: impl FnOnce(NameServiceClient, Context) -> F) -> Result<T, NetError>
    where
        F: Future<Output = Result<T, RpcError>>,
    {
        self.0.connections.call(&self.0.nameserver, CALL_DEADLINE, call).await
    }

    pub(crate) async fn call<T, F>(&self, call: impl FnOnce(NameServiceClient, Context) -> F) -> T
    where
        F: Future<Output = Result<T, RpcError>>,
    {
        self.try_call(call).await.unwrap()
    }

    pub(crate) async fn register(&self, request: Register) -> Result<Registered, NameError> {
        self.call(|c, cx| async move { c.register(cx, request).await }).await
    }

    pub(crate) async fn renew(&self, name: &str, incarnation: u64) -> Result<Registered, NameError> {
        let name = name.to_owned();
        self.call(|c, cx| async move { c.renew(cx, name, Incarnation(incarnation)).await }).await
    }

    pub(crate) async fn lookup(&self, name: &str) -> Result<Record, NameError> {
        let name = name.to_owned();
        self.call(|c, cx| async move { c.lookup(cx, name).await }).await
    }

    pub(crate) async fn set_metadata(&self, name: &str, tags: &[&str]) -> Result<Revision, NameError> {
        let (name, tags) = (name.to_owned(), texts(tags));
        self.call(|c, cx| async move { c.set_metadata(cx, name, tags).await }).await
    }

    pub(crate) async fn remove(&self, selector: Selector) -> Result<u64, NameError> {
        self.call(|c, cx| async move { c.remove(cx, selector).await }).await
    }

    pub(crate) async fn list(&self, query: ListQuery) -> Result<Page, NameError> {
        self.call(|c, cx| async move { c.list(cx, query).await }).await
    }

    pub(crate) async fn yplookup(&self, query: TagQuery) -> Result<Page, NameError> {
        self.call(|c, cx| async move { c.yplookup(cx, query).await }).await
    }

    pub(crate) async fn count(&self) -> u64 {
        self.call(|c, cx| async move { c.count(cx).await }).await
    }

    /// Returns the changes after `since` to names that begin with `prefix`; waits up to `wait` for the first one.
    pub(crate) async fn changes(&self, since: Option<Position>, prefix: &str, wait: Duration) -> Changes {
        let query = WatchQuery { since, prefix: Some(prefix.to_owned()), regex: None, wait };
        self.call(|c, cx| async move { c.changes(cx, query).await }).await.unwrap()
    }

    /// Returns the position of the last change.
    pub(crate) async fn position(&self) -> Position {
        match self.changes(None, "", Duration::ZERO).await {
            Changes::Resync { position } | Changes::Delta { position, .. } => position,
        }
    }

    /// Waits until the nameserver reports the removal of `name` after `since`; fails the test after `within`.
    pub(crate) async fn wait_for_removal(&self, name: &str, mut since: Position) {
        let removal = async {
            loop {
                let Changes::Delta { position, changes } = self.changes(Some(since), name, DEADLINE).await else {
                    panic!("the log of changes does not reach back to {since:?}")
                };
                since = position;
                if changes.iter().any(|change| change.name.as_str() == name && change.record.is_none()) {
                    return;
                }
            }
        };
        let removed = tokio::time::timeout(DEADLINE, removal).await;
        assert!(removed.is_ok(), "{name} still exists after {DEADLINE:?}");
    }

    /// Returns the names of all pages.
    pub(crate) async fn names(&self, mut query: ListQuery) -> Vec<String> {
        let mut names = Vec::new();
        loop {
            let page = self.list(query.clone()).await.unwrap();
            names.extend(page.records.into_iter().map(|record| String::from(record.name)));
            match page.next {
                Some(next) => query.after = Some(next),
                None => return names,
            }
        }
    }
}

pub(crate) fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

/// A permanent registration, which only admins may make.
pub(crate) fn permanent(name: &str) -> Register {
    Register {
        name: name.to_owned(),
        uri: "quic://host.com:4444".to_owned(),
        tags: None,
        lease: LeaseRequest::Permanent,
        condition: Condition::Always,
        incarnation: Incarnation(1),
    }
}

/// A registration with a lease.
pub(crate) fn leased(name: &str, lease: Duration) -> Register {
    Register { lease: LeaseRequest::For(lease), ..permanent(name) }
}

/// The program `nameserver` as a child process, killed when dropped.
pub(crate) struct Program {
    pub(crate) child: Child,
    pub(crate) address: String,
}

impl Program {
    pub(crate) fn start(state_dir: &Path, port: u16) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_nameserver"))
            .args(["-p", &port.to_string(), "--state-dir"])
            .arg(state_dir)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        // Returns after the line, or when the process ends.
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim_end().strip_prefix("NS running on ").expect("the line with the address").to_owned();
        Self { child, address }
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.rsplit_once(':').unwrap().1.parse().unwrap()
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Fails when the test has killed the process already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
