//! Relay: the process in a network namespace of its own that forwards every datagram between the hosts.
//!
//! All addresses of the hosts are local in the relay's namespace ([`super::testbed`] sets up the routes), so the relay
//! receives every datagram whatever its destination and forwards it under the sender's address. It learns ports from
//! traffic: it opens a socket for each address that sends. Only the nameserver's address is known from the start.
//!
//! Control protocol: each line on standard input is a JSON [`Impairments`] that replaces the previous one; the relay
//! answers with one line, a JSON [`Traffic`] with the counts so far. The relay exits when its standard input closes,
//! which also happens when the parent process is killed.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    io::{self, Write as _},
    net::{SocketAddr, SocketAddrV4},
    rc::Rc,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{net::UdpSocket, sync::mpsc, task::LocalSet, time::timeout};

use crate::{
    impairment::{Impairments, Verdict},
    topology::{Host, NAMESERVER_HOST},
};

/// Upper bound of delayed datagrams. Further ones are dropped, as a router with a full queue does.
const MAX_QUEUED: usize = 20_000;
/// Upper bound of open sockets.
const MAX_SOCKETS: usize = 8_192;
/// Idle time after which a socket is closed. Peers probe ports from new sockets many times a second, and each of them
/// costs a socket here. The listening ports of peers receive datagrams more often, however long a fault lasts.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Upper bound of a UDP datagram, bytes.
const MAX_DATAGRAM_BYTES: usize = 65_536;

/// Datagram counts of the relay.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Forwarded datagrams, duplicates included.
    pub forwarded: u64,
    /// Datagrams that a partition or a cut blocked.
    pub blocked: u64,
    /// Datagrams that a degraded link lost.
    pub lost: u64,
    /// Datagrams that were forwarded twice.
    pub duplicated: u64,
    /// Datagrams dropped because the queue or the socket table was full, or because sending failed.
    pub dropped: u64,
}

struct Relay {
    sockets: RefCell<HashMap<SocketAddrV4, Rc<UdpSocket>>>,
    impairments: RefCell<Impairments>,
    rng: RefCell<fastrand::Rng>,
    traffic: Cell<Traffic>,
    queued: Cell<usize>,
}

/// Runs the relay until standard input closes.
///
/// # Errors
/// When a socket, standard input or standard output fails.
pub fn run(seed: u64, nameserver: SocketAddrV4) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async {
        let relay = Rc::new(Relay {
            sockets: RefCell::default(),
            impairments: RefCell::default(),
            rng: RefCell::new(fastrand::Rng::with_seed(seed)),
            traffic: Cell::default(),
            queued: Cell::new(0),
        });
        relay.socket(nameserver)?;
        relay.serve_control().await
    })
}

impl Relay {
    async fn serve_control(&self) -> io::Result<()> {
        let (sender, mut lines) = mpsc::channel(1);
        std::thread::spawn(move || {
            for line in io::stdin().lines().map_while(Result::ok) {
                if sender.blocking_send(line).is_err() {
                    return;
                }
            }
        });
        while let Some(line) = lines.recv().await {
            *self.impairments.borrow_mut() = serde_json::from_str(&line)?;
            // The write cannot block for long: the line is short and the parent is reading.
            let mut output = io::stdout().lock();
            serde_json::to_writer(&mut output, &self.traffic.get())?;
            output.write_all(b"\n")?;
            output.flush()?;
        }
        Ok(())
    }

    /// Returns the socket bound to a host's address, opening it when there is none.
    fn socket(self: &Rc<Self>, address: SocketAddrV4) -> io::Result<Rc<UdpSocket>> {
        if let Some(socket) = self.sockets.borrow().get(&address) {
            return Ok(Rc::clone(socket));
        }
        if self.sockets.borrow().len() >= MAX_SOCKETS {
            return Err(io::Error::other("the socket table is full"));
        }
        let socket = std::net::UdpSocket::bind(address)?;
        socket.set_nonblocking(true)?;
        let socket = Rc::new(UdpSocket::from_std(socket)?);
        self.sockets.borrow_mut().insert(address, Rc::clone(&socket));
        tokio::task::spawn_local(Rc::clone(self).receive(address, Rc::clone(&socket)));
        Ok(socket)
    }

    async fn receive(self: Rc<Self>, to: SocketAddrV4, socket: Rc<UdpSocket>) {
        let mut buffer = vec![0; MAX_DATAGRAM_BYTES];
        loop {
            let received = match timeout(IDLE_TIMEOUT, socket.recv_from(&mut buffer)).await {
                Err(_) if host(to) == NAMESERVER_HOST => continue,
                Err(_) => {
                    self.sockets.borrow_mut().remove(&to);
                    return;
                }
                Ok(received) => received,
            };
            // An error reports an ICMP message about a datagram sent earlier; the socket stays usable.
            let Ok((length, SocketAddr::V4(from))) = received else { continue };
            let Ok(sender) = self.socket(from) else {
                self.count(|traffic| traffic.dropped += 1);
                continue;
            };
            let verdict = self.impairments.borrow().verdict(host(from), host(to), &mut self.rng.borrow_mut());
            match verdict {
                Verdict::Blocked => self.count(|traffic| traffic.blocked += 1),
                Verdict::Lost => self.count(|traffic| traffic.lost += 1),
                Verdict::Delivered { after, duplicate_after } => {
                    self.send(&sender, to, &buffer[..length], after);
                    if let Some(after) = duplicate_after {
                        self.count(|traffic| traffic.duplicated += 1);
                        self.send(&sender, to, &buffer[..length], after);
                    }
                }
            }
        }
    }

    fn send(self: &Rc<Self>, sender: &Rc<UdpSocket>, to: SocketAddrV4, datagram: &[u8], delay: Duration) {
        // A new socket is not yet registered as writable, so the attempt may fail and the task below sends.
        if delay.is_zero() && sender.try_send_to(datagram, to.into()).is_ok() {
            return self.count(|traffic| traffic.forwarded += 1);
        }
        if self.queued.get() >= MAX_QUEUED {
            return self.count(|traffic| traffic.dropped += 1);
        }
        self.queued.set(self.queued.get() + 1);
        let (relay, sender, datagram) = (Rc::clone(self), Rc::clone(sender), datagram.to_vec());
        tokio::task::spawn_local(async move {
            tokio::time::sleep(delay).await;
            let sent = sender.send_to(&datagram, to).await;
            relay.queued.set(relay.queued.get() - 1);
            relay.count(|traffic| match sent {
                Ok(_) => traffic.forwarded += 1,
                // The destination host is gone.
                Err(_) => traffic.dropped += 1,
            });
        });
    }

    fn count(&self, change: impl FnOnce(&mut Traffic)) {
        let mut traffic = self.traffic.get();
        change(&mut traffic);
        self.traffic.set(traffic);
    }
}

fn host(address: SocketAddrV4) -> Host {
    address.ip().octets()[3]
}
