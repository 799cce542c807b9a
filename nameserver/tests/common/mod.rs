//! A nameserver, and members that call it over the network.
#![expect(dead_code, reason = "each test program uses its own part of this")]

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

/// Longest wait for anything; every wait ends as soon as what it waits for happens.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A nameserver in this process, with a state folder of its own.
pub(crate) struct House {
    pub(crate) folder: TempDir,
    pub(crate) server: Server,
}

impl House {
    pub(crate) async fn start(storage: StorageChoice) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut config = Config::new(folder.path());
        config.port = 0;
        config.storage = storage;
        let server = Server::start(config).await.unwrap();
        Self { folder, server }
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

    /// The connection to the nameserver that calls go over.
    pub(crate) async fn connection(&self) -> quinn::Connection {
        self.0.connections.connection(&self.0.nameserver).await.unwrap()
    }

    pub(crate) async fn open_at(state_dir: &Path, role: Role, nameserver: Option<Endpoint>) -> Result<Self, Failure> {
        Self::open_with(&SessionConfig { role, state_dir: state_dir.to_owned(), nameserver, join: None }).await
    }

    pub(crate) async fn open_with(config: &SessionConfig) -> Result<Self, Failure> {
        tokio::time::timeout(PATIENCE, Session::open(config)).await.unwrap().map(Self)
    }

    /// Any call; failures of the network included.
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

    pub(crate) async fn renew(&self, name: &str, run: u64) -> Result<Registered, NameError> {
        let name = name.to_owned();
        self.call(|c, cx| async move { c.renew(cx, name, Incarnation(run)).await }).await
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

    /// The changes of names that begin with `prefix` since then, or the next one if it comes within `wait`.
    pub(crate) async fn changes(&self, since: Option<Position>, prefix: &str, wait: Duration) -> Changes {
        let query = WatchQuery { since, prefix: Some(prefix.to_owned()), regex: None, wait };
        self.call(|c, cx| async move { c.changes(cx, query).await }).await.unwrap()
    }

    /// How far the changes are that can be asked for from now on.
    pub(crate) async fn position(&self) -> Position {
        match self.changes(None, "", Duration::ZERO).await {
            Changes::Resync { position } | Changes::Delta { position, .. } => position,
        }
    }

    /// Waits until the nameserver tells that `name` is gone, which it was not by `since`; fails the test when that takes longer.
    pub(crate) async fn sees_gone(&self, name: &str, mut since: Position, within: Duration) {
        let told = async {
            loop {
                let Changes::Delta { position, changes } = self.changes(Some(since), name, within).await else {
                    panic!("it has forgotten what changed")
                };
                since = position;
                if changes.iter().any(|change| change.name.as_str() == name && change.record.is_none()) {
                    return;
                }
            }
        };
        let told = tokio::time::timeout(within, told).await;
        assert!(told.is_ok(), "{name} is still there after {within:?}");
    }

    /// The names of all pages.
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

/// A permanent registration; admins only.
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

/// The real program, killed when dropped.
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
        // Ends with the line, or with the process.
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim_end().strip_prefix("NS running on ").expect("the line that says where").to_owned();
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
        // Most tests have ended it already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
