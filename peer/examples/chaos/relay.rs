//! The network between the machines: a program in a namespace of its own, through which every datagram goes.
//!
//! All addresses of the machines are its own addresses too ([`super::lab`] sees to that). So it receives what is sent to
//! any of them, and sends it on with the address of who sent it. Nobody tells it of ports: who wants to be found has
//! said something before, to the nameserver at least.
//!
//! Standard input: a line of JSON with the [`Impairments`] that hold from now on; each is answered by a line
//! with the [`Traffic`] until then. It ends when its standard input does, so also when the program that started it is killed.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    io::{self, Write as _},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    rc::Rc,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{net::UdpSocket, sync::mpsc, task::LocalSet, time::timeout};

use crate::impair::{Fate, Host, Impairments, NAMESERVER};

/// Datagrams that are on their way at a time; more are lost, as in a router whose queue is full.
const MAX_UNDER_WAY: usize = 20_000;
/// Addresses with a socket, at most.
const MAX_ADDRESSES: usize = 8_192;
/// A socket to which nothing was sent for so long is given up. Peers look with sockets of their own whether somebody is there, many
/// times a second; the ports that others know hear something more often, however long a fault lasts.
const GIVE_UP: Duration = Duration::from_secs(60);
/// The largest datagram there is, bytes.
const MAX_DATAGRAM_BYTES: usize = 65_536;

/// What has gone through.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Datagrams that were sent on.
    pub passed: u64,
    /// Datagrams that met a cut.
    pub cut: u64,
    /// Datagrams that the weather took.
    pub lost: u64,
    /// Datagrams that were sent on twice.
    pub doubled: u64,
    /// Datagrams for which there was no room or no way.
    pub overflown: u64,
}

struct Relay {
    sockets: RefCell<HashMap<SocketAddrV4, Rc<UdpSocket>>>,
    impairments: RefCell<Impairments>,
    random: RefCell<fastrand::Rng>,
    traffic: Cell<Traffic>,
    under_way: Cell<usize>,
}

/// Runs the relay until standard input ends. `nameserver` is the address that is known from the start.
pub fn run(seed: u64, nameserver: SocketAddrV4) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async {
        let relay = Rc::new(Relay {
            sockets: RefCell::default(),
            impairments: RefCell::default(),
            random: RefCell::new(fastrand::Rng::with_seed(seed)),
            traffic: Cell::default(),
            under_way: Cell::new(0),
        });
        relay.socket(nameserver)?;
        relay.obey().await
    })
}

impl Relay {
    async fn obey(&self) -> io::Result<()> {
        let (tell, mut lines) = mpsc::channel(1);
        std::thread::spawn(move || {
            for line in io::stdin().lines().map_while(Result::ok) {
                if tell.blocking_send(line).is_err() {
                    return;
                }
            }
        });
        while let Some(line) = lines.recv().await {
            *self.impairments.borrow_mut() = serde_json::from_str(&line)?;
            // A short line, which who asked is waiting for.
            let mut output = io::stdout().lock();
            serde_json::to_writer(&mut output, &self.traffic.get())?;
            output.write_all(b"\n")?;
            output.flush()?;
        }
        Ok(())
    }

    /// The socket with an address of a machine, made when missing.
    fn socket(self: &Rc<Self>, address: SocketAddrV4) -> io::Result<Rc<UdpSocket>> {
        if let Some(socket) = self.sockets.borrow().get(&address) {
            return Ok(Rc::clone(socket));
        }
        if self.sockets.borrow().len() >= MAX_ADDRESSES {
            return Err(io::Error::other("too many addresses"));
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
            let received = match timeout(GIVE_UP, socket.recv_from(&mut buffer)).await {
                Err(_) if host(to) == NAMESERVER => continue,
                Err(_) => {
                    self.sockets.borrow_mut().remove(&to);
                    return;
                }
                Ok(received) => received,
            };
            // An error is about one datagram that was sent before.
            let Ok((length, SocketAddr::V4(from))) = received else { continue };
            let Ok(sender) = self.socket(from) else {
                self.count(|traffic| traffic.overflown += 1);
                continue;
            };
            let fate = self.impairments.borrow().fate(host(from), host(to), &mut self.random.borrow_mut());
            match fate {
                Fate::Cut => self.count(|traffic| traffic.cut += 1),
                Fate::Lost => self.count(|traffic| traffic.lost += 1),
                Fate::Arrives(first, again) => {
                    self.send(&sender, to, &buffer[..length], first);
                    if let Some(again) = again {
                        self.count(|traffic| traffic.doubled += 1);
                        self.send(&sender, to, &buffer[..length], again);
                    }
                }
            }
        }
    }

    fn send(self: &Rc<Self>, sender: &Rc<UdpSocket>, to: SocketAddrV4, datagram: &[u8], delay: Duration) {
        // A socket that was made a moment ago is not known to be writable yet: it has to be waited for.
        if delay.is_zero() && sender.try_send_to(datagram, to.into()).is_ok() {
            return self.count(|traffic| traffic.passed += 1);
        }
        if self.under_way.get() >= MAX_UNDER_WAY {
            return self.count(|traffic| traffic.overflown += 1);
        }
        self.under_way.set(self.under_way.get() + 1);
        let (relay, sender, datagram) = (Rc::clone(self), Rc::clone(sender), datagram.to_vec());
        tokio::task::spawn_local(async move {
            tokio::time::sleep(delay).await;
            let sent = sender.send_to(&datagram, to).await;
            relay.under_way.set(relay.under_way.get() - 1);
            relay.count(|traffic| match sent {
                Ok(_) => traffic.passed += 1,
                // There is nothing it could go to any more.
                Err(_) => traffic.overflown += 1,
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

/// The address of a machine.
pub fn address(host: Host) -> Ipv4Addr {
    Ipv4Addr::new(10, 79, 0, host)
}
