//! What Brasa is measured against: a file over TCP and TLS 1.3, and bytes over a bare QUIC stream. Each end is a
//! process of its own, this very program with hidden words; they stay for all runs, as peers do.
//!
//! Certificates and cipher suites are Brasa's (crate `certs`), the QUIC endpoint is `shared::net::endpoint`: same
//! datagrams, windows and socket buffers. One thread moves the bytes at each end, which is the fastest for both on few
//! cores. A receiver takes a line of its standard input as the word to begin and answers with a line of JSON.

#![expect(clippy::print_stdout, reason = "the processes talk by their standard output")]

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

use crate::process::Running;

/// Bytes read, written and handed to TLS at a time.
const BUFFER_BYTES: usize = 256 << 10;
/// Life of the certificates that the two ends show each other.
const LIFE: Duration = Duration::from_secs(24 * 3600);

/// One end of a measurement.
#[derive(Debug, Subcommand)]
pub enum Tool {
    /// Sends a file to whoever connects by TCP and TLS.
    #[command(hide = true)]
    ServeTls { identities: PathBuf, file: PathBuf },
    /// Receives a file by TCP and TLS, anew for each line of standard input.
    #[command(hide = true)]
    FetchTls { identities: PathBuf, address: SocketAddr, to: PathBuf },
    /// Sends as many bytes as whoever connects by QUIC asks for.
    #[command(hide = true)]
    ServeQuic { identities: PathBuf },
    /// Receives bytes by QUIC and throws them away, anew for each line of standard input.
    #[command(hide = true)]
    FetchQuic { identities: PathBuf, address: SocketAddr, bytes: u64 },
}

/// How long a receiver took, connecting included, seconds.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Took {
    /// Until the last byte was written, or thrown away.
    pub received: f64,
    /// Until the file was on the disk.
    pub synced: f64,
}

/// Two processes of which one receives what the other sends.
pub struct Pair {
    pub sender: Running,
    pub receiver: Running,
}

impl Pair {
    /// A file over TCP and TLS, written to `to`.
    pub fn tls(folder: &Path, file: &Path, to: &Path) -> Self {
        Self::start(folder, "tls", &[file.to_owned()], &[to.to_owned()])
    }

    /// So many bytes over a bare QUIC stream, thrown away.
    pub fn quic(folder: &Path, bytes: u64) -> Self {
        Self::start(folder, "quic", &[], &[bytes.to_string().into()])
    }

    fn start(folder: &Path, protocol: &str, send: &[PathBuf], receive: &[PathBuf]) -> Self {
        let identities = folder.join(format!("{protocol}-identities"));
        std::fs::create_dir_all(&identities).expect("a folder for identities");
        let authority = Authority::ephemeral().expect("an authority can be made");
        for id in ["sender", "receiver"] {
            let identity = authority.identity(&role(id), LIFE).expect("an identity can be made");
            identity.save(&identities.join(id)).expect("an identity can be kept");
        }
        let this = std::env::current_exe().expect("this program has a path");
        let spawn = |verb: &str, words: &[PathBuf]| {
            let mut command = Command::new(&this);
            command.arg(format!("{verb}-{protocol}")).arg(&identities).args(words);
            Running::spawn(&mut command, &folder.join(format!("{verb}-{protocol}.log")))
        };
        let sender = spawn("serve", send);
        let address = PathBuf::from(sender.line());
        let receiver = spawn("fetch", &[&[address], receive].concat());
        Self { sender, receiver }
    }

    pub fn fetch(&mut self) -> Took {
        self.receiver.say("");
        serde_json::from_str(&self.receiver.line()).expect("the receiver answers with what it took")
    }
}

impl Tool {
    /// Does what it is for until its input ends or it is killed.
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
    Identity::load(&identities.join(id)).expect("readable").expect("it was put there")
}

fn server(identities: &Path) -> ServerConfig {
    trust::member_server(&identity(identities, "sender"), &[ALPN]).expect("a TLS configuration")
}

fn client(identities: &Path) -> ClientConfig {
    trust::member_client(&identity(identities, "receiver"), &[ALPN]).expect("a TLS configuration")
}

fn each_line(mut fetch: impl FnMut() -> Took) {
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
        let mut file = File::open(path).expect("the file is there");
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            match file.read(&mut buffer).expect("readable") {
                0 => break,
                count => stream.write_all(&buffer[..count]).await.expect("the receiver reads"),
            }
        }
        stream.shutdown().await.expect("the receiver reads");
    }
}

async fn fetch_tls(tls: ClientConfig, address: SocketAddr, to: &Path) -> Took {
    let clock = Clock::start();
    let stream = TcpStream::connect(address).await.expect("the sender listens");
    stream.set_nodelay(true).expect("a TCP socket");
    let name = ServerName::try_from(role("sender").dns_name()).expect("a role's name is a DNS name");
    let mut stream = TlsConnector::from(Arc::new(tls)).connect(name, stream).await.expect("a handshake");
    let mut file = File::create_new(to).expect("the last one was removed");
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut filled = 0;
    loop {
        let count = stream.read(&mut buffer[filled..]).await.expect("the sender sends");
        filled += count;
        // Whole buffers: TLS hands out 16 KiB at a time, and each write is a call of the system.
        if count == 0 || filled == buffer.len() {
            file.write_all(&buffer[..filled]).expect("room for the file");
            filled = 0;
        }
        if count == 0 {
            break;
        }
    }
    let received = clock.now().since_origin().as_secs_f64();
    file.sync_all().expect("the disk takes it");
    Took { received, synced: clock.now().since_origin().as_secs_f64() }
}

async fn serve_quic(identities: &Path) {
    let local = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let bound = endpoint::bind(local, Some(server(identities)), client(identities)).expect("a socket");
    println!("{}", bound.endpoint.local_addr().expect("a bound socket has an address"));
    let block = Bytes::from(vec![0x5a; BUFFER_BYTES]);
    loop {
        let incoming = bound.endpoint.accept().await.expect("nobody closes it");
        let connection = incoming.await.expect("a handshake");
        let (mut send, mut recv) = connection.accept_bi().await.expect("a stream");
        let mut left = recv.read_u64().await.expect("how many");
        while left > 0 {
            let take = usize::try_from(left).map_or(BUFFER_BYTES, |left| left.min(BUFFER_BYTES));
            send.write_chunk(block.slice(..take)).await.expect("the receiver reads");
            left -= take as u64;
        }
        send.finish().expect("it was not finished before");
        connection.closed().await;
    }
}

async fn fetch_quic(endpoint: &quinn::Endpoint, address: SocketAddr, bytes: u64) -> Took {
    let clock = Clock::start();
    let connecting = endpoint.connect(address, &role("sender").dns_name()).expect("an address to connect to");
    let connection = connecting.await.expect("a handshake");
    let (mut send, mut recv) = connection.open_bi().await.expect("a stream");
    send.write_u64(bytes).await.expect("the sender reads");
    let mut received = 0;
    while let Some(chunk) = recv.read_chunk(usize::MAX, true).await.expect("the sender sends") {
        received += chunk.bytes.len() as u64;
    }
    assert_eq!(received, bytes, "all bytes came");
    let took = clock.now().since_origin().as_secs_f64();
    connection.close(quinn::VarInt::from_u32(0), b"");
    Took { received: took, synced: took }
}
