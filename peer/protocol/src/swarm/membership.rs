//! Providers that join, gain groups, leave or are dropped.

use std::time::Duration;

use shared::{group_ranges::GroupRanges, time::Timestamp};

use super::{
    Swarm,
    event::{Action, Dropped, Has, ProviderId, RequestId},
    params::MAX_SWARM_PROVIDERS,
    piece::PieceState,
    provider::Provider,
};

impl Swarm {
    pub(super) fn on_added(
        &mut self,
        now: Timestamp,
        id: ProviderId,
        has: &Has,
        rtt: Option<Duration>,
        out: &mut Vec<Action>,
    ) {
        if self.sent_corrupt_data.contains(&id) {
            out.push(Action::Drop { provider: id, why: Dropped::SentCorruptData });
        } else if let Some(provider) = self.providers.get_mut(&id) {
            provider.rejoin(has, rtt, &mut self.pieces);
            self.refill(id);
        } else if self.providers.len() >= MAX_SWARM_PROVIDERS {
            out.push(Action::Drop { provider: id, why: Dropped::TooMany });
        } else {
            self.providers.insert(id, Provider::new(now, self.layout, has, rtt, &mut self.pieces));
            if self.providers.len() == 2 {
                self.redistribute(out);
            }
            self.refill(id);
        }
    }

    pub(super) fn on_gained(&mut self, id: ProviderId, gained: &GroupRanges, out: &mut Vec<Action>) {
        let Some(provider) = self.providers.get_mut(&id) else { return };
        let pieces = provider.gain(gained.iter(), &mut self.pieces);
        self.refill(id);
        for piece in pieces {
            self.give_way(piece, out);
        }
    }

    /// Ends a run where another receiver fetches the same part from the same single provider, just ahead.
    ///
    /// A piece that only one provider had and that is in flight from it is now at another receiver too: that
    /// receiver's run is ahead of this one. What was requested after the piece is cancelled, and the picker continues
    /// elsewhere.
    fn give_way(&mut self, piece: u32, out: &mut Vec<Action>) {
        let PieceState::InFlight(request) = self.pieces.state(piece) else { return };
        if self.pieces.providers(piece) != 2 {
            return;
        }
        let Some(provider) = self.providers.get_mut(&request.provider) else { return };
        provider.next_piece = None;
        let later = provider.requests.iter().filter(|later| later.id.serial > request.serial);
        let later: Vec<_> = later.filter(|later| !later.is_flowing()).map(|later| later.id).collect();
        let groups = self.layout.groups_of(piece);
        let is_piece_flowing = provider.request(request).is_some_and(|request| {
            request.proven > groups.start || request.has_started && groups.contains(&request.groups.start)
        });
        self.truncate(request, if is_piece_flowing { groups.end } else { groups.start }, out);
        for later in later {
            self.end_request(later);
            out.push(Action::Cancel { request: later });
        }
    }

    pub(super) fn drop_provider(&mut self, id: ProviderId, why: Dropped, out: &mut Vec<Action>) {
        for request in self.remove_provider(id) {
            out.push(Action::Cancel { request });
        }
        out.push(Action::Drop { provider: id, why });
    }

    /// Removes a provider and releases its work; returns its requests.
    pub(super) fn remove_provider(&mut self, id: ProviderId) -> Vec<RequestId> {
        let Some(provider) = self.providers.get(&id) else { return Vec::new() };
        provider.withdraw(&mut self.pieces);
        let requests: Vec<_> = provider.requests.iter().map(|request| request.id).collect();
        for &request in &requests {
            self.end_request(request);
        }
        self.providers.remove(&id);
        requests
    }
}
