//! Upload slots of one peer: [`UploadQueue`] behind a lock, and a wake-up for each request that waits.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use protocol::upload::queue::{Admission, UploadId, UploadLimits, UploadQueue};
use shared::id::PeerId;
use tokio::sync::oneshot;

pub(super) struct Slots(Mutex<Table>);

struct Table {
    slots: UploadQueue<PeerId>,
    waiting: HashMap<UploadId, Waiting>,
}

struct Waiting {
    /// `stable_id` of the connection of the request.
    connection: usize,
    start: oneshot::Sender<()>,
}

/// Slot of an upload, or position of a request in the queue; released on drop.
pub(super) struct Slot<'a> {
    slots: &'a Slots,
    id: UploadId,
}

impl Slots {
    pub(super) fn new(limits: UploadLimits) -> Self {
        Self(Mutex::new(Table { slots: UploadQueue::new(limits), waiting: HashMap::new() }))
    }

    /// Returns the numbers of uploads with a slot and of requests that wait for one.
    pub(super) fn load(&self) -> (usize, usize) {
        self.table().slots.load()
    }

    /// Requests a slot. Returns it and, if the request has to wait, the signal for its turn; `None` if the queue is
    /// full.
    pub(super) fn request(
        &self,
        peer: &PeerId,
        connection: usize,
    ) -> Option<(Slot<'_>, Option<oneshot::Receiver<()>>)> {
        let mut table = self.table();
        match table.slots.request(peer) {
            Admission::Active(id) => Some((Slot { slots: self, id }, None)),
            Admission::Waiting(id) => {
                let (start, turn) = oneshot::channel();
                table.waiting.insert(id, Waiting { connection, start });
                Some((Slot { slots: self, id }, Some(turn)))
            }
            Admission::Busy => None,
        }
    }

    /// Returns true if requests of other connections wait. The connection may be of the same peer: a receiver that was
    /// killed and runs again waits for the slot of its earlier run.
    pub(super) fn others_wait(&self, connection: usize) -> bool {
        self.table().waiting.values().any(|waiting| waiting.connection != connection)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot<'_> {
    /// Gives the slot to a request that waits. The upload continues without a slot.
    pub(super) fn demote(&self) {
        let mut table = self.slots.table();
        let mut start = Vec::new();
        table.slots.demote(self.id, &mut start);
        table.start(start);
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        let mut table = self.slots.table();
        table.waiting.remove(&self.id);
        let mut start = Vec::new();
        table.slots.end(self.id, &mut start);
        table.start(start);
    }
}

impl Table {
    fn start(&mut self, uploads: Vec<UploadId>) {
        for id in uploads {
            if let Some(waiting) = self.waiting.remove(&id) {
                // A request that ended meanwhile releases its slot on drop, after this lock is released.
                let _ = waiting.start.send(());
            }
        }
    }
}
