//! Interface to the election core: messages to the task that owns it, and the view that the task publishes.
//!
//! The module `runtime::core_task` has the receiving side. Every user of the core holds a [`CoreHandle`].

use std::collections::BTreeMap;

use protocol::election::{Core, Event, Reply, SeatRole, Token};
use shared::{
    content::FileMeta,
    epoch::Epoch,
    file_name::FileName,
    id::{Incarnation, PeerId},
    limits,
    name::Endpoint,
    rpc::{
        nameserver::{Seat, SeatView},
        peer::SeatNotice,
        tracker::{Announcement, Heartbeat, HeartbeatAck, IndexPage, ListAll, TrackerError, Version, WhoHas},
    },
};
use tokio::sync::{mpsc, oneshot, watch};

/// Published state of the core.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// Relation of this peer to the tracker seat.
    pub role: SeatRole,
    /// The seat as this peer sees it.
    pub seat: SeatView,
    /// Set when the core's task has ended.
    pub stopped: Option<CoreEnd>,
}

/// How the core's task ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CoreEnd {
    /// The peer stopped it.
    Stopped,
    /// A later run of this peer has taken its place. The process must end.
    Superseded,
}

impl View {
    /// The seat that this peer holds or follows.
    pub fn tracker(&self) -> Option<&Seat> {
        self.seat.seat.as_ref().filter(|_| self.role != SeatRole::Electing)
    }

    /// The epoch that this peer follows, or the highest it has seen.
    pub fn epoch(&self) -> Epoch {
        self.seat.seat.as_ref().map_or(self.seat.epoch_high, |seat| seat.epoch)
    }
}

/// The core's task has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this peer is stopping")]
pub struct Stopped;

/// A change of the share that the core has to take in before it can be announced.
#[derive(Debug, Clone)]
pub enum ShareChange {
    /// No particular change: everything that the core has taken in already.
    None,
    /// These files, in exactly this form.
    Added(Vec<FileMeta>),
    /// Files of these names.
    Present(Vec<FileName>),
    /// No file of this name.
    Removed(FileName),
}

impl ShareChange {
    /// True if the core has taken the change in. `met` is the number of files that earlier calls found, so that ten
    /// thousand names are not looked up again each time.
    fn is_in(&self, core: &Core, met: &mut usize) -> bool {
        let share = core.share();
        match self {
            Self::None => true,
            Self::Added(files) => {
                *met += files[*met..].iter().take_while(|file| share.get(&file.name) == Some(*file)).count();
                *met == files.len()
            }
            Self::Present(names) => {
                *met += names[*met..].iter().take_while(|name| share.contains_key(*name)).count();
                *met == names.len()
            }
            Self::Removed(name) => !share.contains_key(name),
        }
    }
}

/// A caller that waits until a change of the share is announced.
pub(crate) struct AnnouncementWaiter {
    change: ShareChange,
    met: usize,
    reply: oneshot::Sender<()>,
}

impl AnnouncementWaiter {
    /// Answers the caller if the tracker has the change. Returns the waiter if it has to wait further.
    pub(crate) fn check(mut self, core: &Core) -> Option<Self> {
        if self.reply.is_closed() {
            return None;
        }
        if self.change.is_in(core, &mut self.met) && core.is_announced() {
            // Fails only if the caller no longer waits.
            let _ = self.reply.send(());
            return None;
        }
        Some(self)
    }
}

/// Query or call of another peer that the core answers at once.
pub(crate) enum Query {
    /// [`CoreHandle::who_has`].
    WhoHas { asker: PeerId, query: WhoHas, reply: oneshot::Sender<Result<Vec<Version>, TrackerError>> },
    /// [`CoreHandle::list_all`].
    ListAll { query: ListAll, reply: oneshot::Sender<Result<IndexPage, TrackerError>> },
    /// [`CoreHandle::heartbeat`].
    Heartbeat { from: PeerId, beat: Heartbeat, reply: oneshot::Sender<Result<HeartbeatAck, TrackerError>> },
    /// [`CoreHandle::announce`].
    Announce { from: PeerId, announcement: Announcement, reply: oneshot::Sender<Result<(), TrackerError>> },
    /// [`CoreHandle::leave`].
    Leave { from: PeerId, epoch: Epoch, incarnation: Incarnation, reply: oneshot::Sender<Result<(), TrackerError>> },
    /// [`CoreHandle::notice`].
    Notice { from: PeerId, notice: SeatNotice, reply: oneshot::Sender<SeatView> },
    /// [`CoreHandle::members`].
    Members { reply: oneshot::Sender<BTreeMap<PeerId, Endpoint>> },
}

type MakeEvent = Box<dyn FnOnce(Token) -> Event + Send>;

/// Message to the core's task.
pub(crate) enum Message {
    /// An event without an answer.
    Event(Event),
    /// An event that the core answers in its own time.
    Request(MakeEvent, oneshot::Sender<Reply>),
    /// A query or call that the core answers at once.
    Query(Query),
    /// A caller that waits for an announcement.
    Await(AnnouncementWaiter),
}

/// The sending side of the core's task. Cheap to clone.
#[derive(Clone)]
pub struct CoreHandle {
    messages: mpsc::Sender<Message>,
    view: watch::Receiver<View>,
}

impl CoreHandle {
    /// A handle, and the ends that the core's task keeps.
    pub(crate) fn new() -> (Self, mpsc::Receiver<Message>, watch::Sender<View>) {
        let (messages, received) = mpsc::channel(limits::MAX_QUEUED_EVENTS);
        let start = View { role: SeatRole::Electing, seat: SeatView::default(), stopped: None };
        let (published, view) = watch::channel(start);
        (Self { messages, view }, received, published)
    }

    /// Sends an event. Waits while [`limits::MAX_QUEUED_EVENTS`] messages are queued.
    ///
    /// # Errors
    /// When the core's task has ended.
    pub async fn send(&self, event: Event) -> Result<(), Stopped> {
        self.messages.send(Message::Event(event)).await.map_err(|_| Stopped)
    }

    /// Sends an event that the core answers; `make` builds it around the token of the reply.
    ///
    /// # Errors
    /// When the core's task ends before it answers.
    pub async fn request(&self, make: impl FnOnce(Token) -> Event + Send + 'static) -> Result<Reply, Stopped> {
        self.answered(|reply| Message::Request(Box::new(make), reply)).await
    }

    /// The versions of a file with their owners, if this peer is the tracker.
    ///
    /// # Errors
    /// When the core's task has ended. The inner error is the tracker's refusal.
    pub async fn who_has(&self, asker: PeerId, query: WhoHas) -> Result<Result<Vec<Version>, TrackerError>, Stopped> {
        self.answered(|reply| Message::Query(Query::WhoHas { asker, query, reply })).await
    }

    /// A page of the index, if this peer is the tracker.
    ///
    /// # Errors
    /// When the core's task has ended. The inner error is the tracker's refusal.
    pub async fn list_all(&self, query: ListAll) -> Result<Result<IndexPage, TrackerError>, Stopped> {
        self.answered(|reply| Message::Query(Query::ListAll { query, reply })).await
    }

    /// Delivers a heartbeat of `from`.
    ///
    /// # Errors
    /// When the core's task has ended. The inner error is the core's refusal.
    pub async fn heartbeat(
        &self,
        from: PeerId,
        beat: Heartbeat,
    ) -> Result<Result<HeartbeatAck, TrackerError>, Stopped> {
        self.answered(|reply| Message::Query(Query::Heartbeat { from, beat, reply })).await
    }

    /// Delivers an announcement of `from`.
    ///
    /// # Errors
    /// When the core's task has ended. The inner error is the core's refusal.
    pub async fn announce(
        &self,
        from: PeerId,
        announcement: Announcement,
    ) -> Result<Result<(), TrackerError>, Stopped> {
        self.answered(|reply| Message::Query(Query::Announce { from, announcement, reply })).await
    }

    /// Delivers the notice that the run `incarnation` of `from`, which followed `epoch`, leaves.
    ///
    /// # Errors
    /// When the core's task has ended. The inner error is the core's refusal.
    pub async fn leave(
        &self,
        from: PeerId,
        epoch: Epoch,
        incarnation: Incarnation,
    ) -> Result<Result<(), TrackerError>, Stopped> {
        self.answered(|reply| Message::Query(Query::Leave { from, epoch, incarnation, reply })).await
    }

    /// Delivers a notice of `from` about the seat. Returns the seat as this peer sees it after that.
    ///
    /// # Errors
    /// When the core's task has ended.
    pub async fn notice(&self, from: PeerId, notice: SeatNotice) -> Result<SeatView, Stopped> {
        self.answered(|reply| Message::Query(Query::Notice { from, notice, reply })).await
    }

    /// The registered peers as last known, without this one.
    ///
    /// # Errors
    /// When the core's task has ended.
    pub async fn members(&self) -> Result<BTreeMap<PeerId, Endpoint>, Stopped> {
        self.answered(|reply| Message::Query(Query::Members { reply })).await
    }

    /// Waits until the core has taken `change` in and the tracker has it. Unbounded: the caller sets the deadline.
    ///
    /// # Errors
    /// When the core's task ends before that.
    pub async fn announced(&self, change: ShareChange) -> Result<(), Stopped> {
        self.answered(|reply| Message::Await(AnnouncementWaiter { change, met: 0, reply })).await
    }

    async fn answered<T>(&self, message: impl FnOnce(oneshot::Sender<T>) -> Message) -> Result<T, Stopped> {
        let (reply, answer) = oneshot::channel();
        self.messages.send(message(reply)).await.map_err(|_| Stopped)?;
        answer.await.map_err(|_| Stopped)
    }

    /// The latest view.
    pub fn view(&self) -> View {
        self.view.borrow().clone()
    }

    /// The view and its changes.
    pub fn watch(&self) -> watch::Receiver<View> {
        self.view.clone()
    }
}
