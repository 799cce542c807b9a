//! Requests in flight: verified groups, truncation, cancellation, the end.

use std::ops::Range;

use shared::time::Timestamp;

use super::{
    Swarm,
    event::{Action, ProviderId, RequestId},
};

impl Swarm {
    pub(super) fn on_started(&mut self, now: Timestamp, id: RequestId) {
        let Some(provider) = self.providers.get_mut(&id.provider) else { return };
        provider.on_activity(now, None);
        if let Some(request) = provider.request_mut(id) {
            request.has_started = true;
        }
        self.refill(id.provider);
    }

    pub(super) fn on_verified(&mut self, now: Timestamp, id: RequestId, groups: Range<u64>, out: &mut Vec<Action>) {
        if groups.is_empty() || groups.end > self.layout.groups() {
            return;
        }
        let mut completed = Vec::new();
        let bytes = self.layout.bytes(&groups);
        self.bytes_proven += self.have.insert(groups.clone(), |piece| completed.push(piece));
        let mut is_done = false;
        if let Some(provider) = self.providers.get_mut(&id.provider) {
            provider.on_delivery(now, bytes);
            if let Some(request) = provider.request_mut(id) {
                request.proven = request.proven.max(groups.end);
                is_done = request.proven >= request.groups.end;
            }
            self.refill(id.provider);
        }
        for piece in completed {
            for other in self.pieces.complete(piece).into_iter().flatten().filter(|&other| other != id) {
                self.trim(other, piece, out);
            }
        }
        if is_done {
            self.end_request(id);
        }
    }

    /// Truncates a request by a piece that another request completed, if that piece is its last.
    fn trim(&mut self, id: RequestId, piece: u32, out: &mut Vec<Action>) {
        let Some(request) = self.providers.get(&id.provider).and_then(|provider| provider.request(id)) else { return };
        let piece_groups = self.layout.groups_of(piece);
        if request.groups.end <= piece_groups.end {
            self.truncate(id, piece_groups.start, out);
        }
    }

    /// Shortens a request to the groups before `at_group`, where a piece begins; cancels it when they are verified.
    pub(super) fn truncate(&mut self, id: RequestId, at_group: u64, out: &mut Vec<Action>) {
        let provider = self.providers.get_mut(&id.provider);
        let Some(request) = provider.and_then(|provider| provider.request_mut(id)) else { return };
        if at_group <= request.proven {
            self.end_request(id);
            out.push(Action::Cancel { request: id });
        } else if at_group < request.groups.end {
            let released = at_group..std::mem::replace(&mut request.groups.end, at_group);
            self.release(id, &released);
            out.push(Action::Truncate { request: id, at_group });
        }
    }

    pub(super) fn cancel_all(&mut self, id: ProviderId, out: &mut Vec<Action>) {
        let Some(provider) = self.providers.get(&id) else { return };
        let requests: Vec<_> = provider.requests.iter().map(|request| request.id).collect();
        for request in requests {
            self.end_request(request);
            out.push(Action::Cancel { request });
        }
    }

    /// Removes a request and releases what it did not deliver; returns whether it was in flight.
    pub(super) fn end_request(&mut self, id: RequestId) -> bool {
        let Some(provider) = self.providers.get_mut(&id.provider) else { return false };
        let Some(request) = provider.remove(id) else { return false };
        self.active -= usize::from(provider.requests.is_empty());
        self.release(id, &request.groups);
        self.refill(id.provider);
        true
    }

    fn release(&mut self, id: RequestId, groups: &Range<u64>) {
        let missing = self.pieces.missing();
        for piece in self.layout.pieces_of(groups) {
            self.pieces.release(piece, id);
        }
        self.has_released |= self.pieces.missing() > missing;
    }
}
