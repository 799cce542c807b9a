//! Baselines: a file over TCP and TLS 1.3, and bytes over a plain QUIC stream.
//!
//! Sender and receiver are processes of this program with a hidden subcommand. Like peers, they live for all runs.
//! Certificates and cipher suites are Brasa's (crate `certs`). The QUIC endpoint is `shared::net::endpoint`, with the
//! same datagram sizes, windows and socket buffers. One thread moves the bytes at each end, which is fastest on few
//! cores. Each line on a receiver's standard input starts a transfer, and the receiver answers with a JSON
//! [`Timing`].

#![expect(clippy::print_stdout, reason = "the processes report on standard output")]

use std::{
    fs::File,
    io::{self, BufRead as _, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use certs::{Authority, Identity, Role, trust};
use clap::Subcommand;
use serde::{Deserialize, Serialize};
use shared::{net::endpoint, rpc::ALPN, time::Clock};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{
    TlsAcceptor, TlsConnector,
    rustls::{ClientConfig, ServerConfig, pki_types::ServerName},
};

use crate::process::Process;

/// Size of reads and writes, bytes.
const BUFFER_BYTES: usize = 256 << 10;
/// Lifetime of the certificates.
const CERTIFICATE_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// Process at one end of a baseline.
#[derive(Debug, Subcommand)]
pub enum Endpoint {
    /// Sends a file to every client that connects over TCP and TLS
    #[command(hide = true)]
    ServeTls { identities: PathBuf, file: PathBuf },
    /// Receives a file over TCP and TLS for each line on standard input
    #[command(hide = true)]
    FetchTls { identities: PathBuf, address: SocketAddr, to: PathBuf },
    /// Sends the requested number of bytes to every client that connects over QUIC
    #[command(hide = true)]
    ServeQuic { identities: PathBuf },
    /// Receives and discards bytes over QUIC for each line on standard input
    #[command(hide = true)]
    FetchQuic { identities: PathBuf, address: SocketAddr, bytes: u64 },
}

/// Duration of a transfer with its handshake, seconds.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Timing {
    /// Until the last byte is written or discarded.
    pub received: f64,
    /// Until the file is on the disk.
    pub synced: f64,
}

/// Sender and receiver of a baseline.
pub struct Pair {
    pub sender: Process,
    pub receiver: Process,
}

impl Pair {
    /// Starts a pair that transfers a file over TCP and TLS and writes it to `to`.
    pub fn tls(folder: &Path, file: &Path, to: &Path) -> Self {
        Self::start(folder, "tls", &[file.to_owned()], &[to.to_owned()])
    }

    /// Starts a pair that transfers `bytes` bytes over a plain QUIC stream and discards them.
    pub fn quic(folder: &Path, bytes: u64) -> Self {
        Self::start(folder, "quic", &[], &[bytes.to_string().into()])
    }

    fn start(folder: &Path, protocol: &str, send: &[PathBuf], receive: &[PathBuf]) -> Self {
        let identities = folder.join(format!("{protocol}-identities"));
        std::fs::create_dir_all(&identities).expect("the directory is writable");
        let authority = Authority::ephemeral().expect("key generation succeeds");
        for id in ["sender", "receiver"] {
            let identity =
                authority.identity(&role(id), CERTIFICATE_LIFETIME).expect("the authority issues an identity");
            identity.save(&identities.join(id)).expect("the directory is writable");
        }
        let this = std::env::current_exe().expect("this program has a path");
        let spawn = |verb: &str, words: &[PathBuf]| {
            let mut command = Command::new(&this);
            command.arg(format!("{verb}-{protocol}")).arg(&identities).args(words);
            Process::spawn(&mut command, &folder.join(format!("{verb}-{protocol}.log")))
        };
        let sender = spawn("serve", send);
        let address = PathBuf::from(sender.read_line());
        let receiver = spawn("fetch", &[&[address], receive].concat());
        Self { sender, receiver }
    }

    /// Transfers once.
    pub fn fetch(&mut self) -> Timing {
        self.receiver.write_line("");
        serde_json::from_str(&self.receiver.read_line()).expect("the receiver answers with its timing")
    }
}

impl Endpoint {
    /// Runs the process until standard input closes (receivers) or it is killed (senders).
    pub fn run(self) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        match self {
            Self::ServeTls { identities, file } => runtime.block_on(serve_tls(server(&identities), &file)),
            Self::ServeQuic { identities } => runtime.block_on(serve_quic(&identities)),
            Self::FetchTls { identities, address, to } => {
                let tls = client(&identities);
                each_line(|| runtime.block_on(fetch_tls(tls.clone(), address, &to)));
            }
            Self::FetchQuic { identities, address, bytes } => {
                let local = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
                let bind = async { endpoint::bind(local, None, client(&identities)) };
                let endpoint = runtime.block_on(bind).expect("a socket").endpoint;
                each_line(|| runtime.block_on(fetch_quic(&endpoint, address, bytes)));
            }
        }
    }
}

fn role(id: &str) -> Role {
    Role::Peer(id.parse().expect("a peer id"))
}

fn identity(identities: &Path, id: &str) -> Identity {
    Identity::load(&identities.join(id)).expect("the identity is readable").expect("the identity exists")
}

fn server(identities: &Path) -> ServerConfig {
    trust::member_server(&identity(identities, "sender"), &[ALPN]).expect("a TLS configuration")
}

fn client(identities: &Path) -> ClientConfig {
    trust::member_client(&identity(identities, "receiver"), &[ALPN]).expect("a TLS configuration")
}

fn each_line(mut fetch: impl FnMut() -> Timing) {
    for _ in io::stdin().lock().lines().map_while(Result::ok) {
        println!("{}", serde_json::to_string(&fetch()).expect("numbers have a JSON form"));
    }
}

async fn serve_tls(tls: ServerConfig, path: &Path) {
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    println!("{}", listener.local_addr().expect("a bound socket has an address"));
    loop {
        let (stream, _) = listener.accept().await.expect("a connection");
        stream.set_nodelay(true).expect("a TCP socket");
        let mut stream = acceptor.accept(stream).await.expect("a handshake");
        let mut file = File::open(path).expect("the file exists");
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            match file.read(&mut buffer).expect("the file is readable") {
                0 => break,
                count => stream.write_all(&buffer[..count]).await.expect("the receiver reads"),
            }
        }
        stream.shutdown().await.expect("the receiver reads");
    }
}

async fn fetch_tls(tls: ClientConfig, address: SocketAddr, to: &Path) -> Timing {
    let clock = Clock::start();
    let stream = TcpStream::connect(address).await.expect("the sender listens");
    stream.set_nodelay(true).expect("a TCP socket");
    let name = ServerName::try_from(role("sender").dns_name()).expect("a role's name is a DNS name");
    let mut stream = TlsConnector::from(Arc::new(tls)).connect(name, stream).await.expect("a handshake");
    let mut file = File::create_new(to).expect("the file of the last run was removed");
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut filled = 0;
    loop {
        let count = stream.read(&mut buffer[filled..]).await.expect("the sender sends");
        filled += count;
        // Full buffers only: TLS returns 16 KiB at a time, and each write is a system call.
        if count == 0 || filled == buffer.len() {
            file.write_all(&buffer[..filled]).expect("the disk has room for the file");
            filled = 0;
        }
        if count == 0 {
            break;
        }
    }
    let received = clock.now().since_origin().as_secs_f64();
    file.sync_all().expect("the disk accepts the file");
    Timing { received, synced: clock.now().since_origin().as_secs_f64() }
}

async fn serve_quic(identities: &Path) {
    let local = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let bound = endpoint::bind(local, Some(server(identities)), client(identities)).expect("a socket");
    println!("{}", bound.endpoint.local_addr().expect("a bound socket has an address"));
    let block = Bytes::from(vec![0x5a; BUFFER_BYTES]);
    loop {
        let incoming = bound.endpoint.accept().await.expect("the endpoint stays open");
        let connection = incoming.await.expect("a handshake");
        let (mut send, mut recv) = connection.accept_bi().await.expect("a stream");
        let mut remaining = recv.read_u64().await.expect("the receiver sends the number of bytes");
        while remaining > 0 {
            let take = usize::try_from(remaining).map_or(BUFFER_BYTES, |remaining| remaining.min(BUFFER_BYTES));
            send.write_chunk(block.slice(..take)).await.expect("the receiver reads");
            remaining -= take as u64;
        }
        send.finish().expect("the stream is open");
        connection.closed().await;
    }
}

async fn fetch_quic(endpoint: &quinn::Endpoint, address: SocketAddr, bytes: u64) -> Timing {
    let clock = Clock::start();
    let connecting = endpoint.connect(address, &role("sender").dns_name()).expect("an address to connect to");
    let connection = connecting.await.expect("a handshake");
    let (mut send, mut recv) = connection.open_bi().await.expect("a stream");
    send.write_u64(bytes).await.expect("the sender reads");
    let mut received = 0;
    while let Some(chunk) = recv.read_chunk(usize::MAX, true).await.expect("the sender sends") {
        received += chunk.bytes.len() as u64;
    }
    assert_eq!(received, bytes, "all bytes arrive");
    let took = clock.now().since_origin().as_secs_f64();
    connection.close(quinn::VarInt::from_u32(0), b"");
    Timing { received: took, synced: took }
}
