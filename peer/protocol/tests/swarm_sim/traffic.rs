//! Traffic on the links: requests, groups, advertisements.

use std::{hash::Hash as _, ops::Range, time::Duration};

use protocol::{
    swarm::{Action, Event, Failure, RequestId},
    upload::queue::Admission,
};
use shared::limits::GROUP_BYTES;

use crate::world::{Behaviour, Occurrence, Sim, Upload, id};

/// Interval of advertisements, at least; a millisecond per peer in larger swarms.
const ADVERTISE_INTERVAL: Duration = Duration::from_millis(50);
/// Groups in flight between two peers, like a congestion window: 100 Mbit/s at 40 ms.
const WINDOW: u64 = 32;

impl Sim {
    pub(crate) fn process(&mut self, occurrence: Occurrence) {
        match occurrence {
            Occurrence::Event(at, event) => self.handle(at, event),
            Occurrence::Tick(at) => {
                if self.nodes[at].ticks_at.is_some_and(|due| due <= self.now) {
                    self.nodes[at].ticks_at = None;
                    self.handle(at, Event::Tick);
                }
            }
            Occurrence::Request { to, from, request, groups } => self.on_request(to, from, request, groups),
            Occurrence::Truncate { to, from, request, at_group } => {
                let uploads = &mut self.nodes[to].uploads;
                if let Some(upload) = uploads.iter_mut().find(|upload| upload.to == from && upload.request == request) {
                    upload.end = upload.end.min(at_group);
                    self.end_uploads(to);
                    self.send(to);
                }
            }
            Occurrence::UplinkFree(at) => {
                self.nodes[at].uplink_is_busy = false;
                self.end_uploads(at);
                self.send(at);
            }
            Occurrence::Arrives { at, from, request, group } => {
                let bytes = self.bytes(group) as f64;
                let node = &mut self.nodes[at];
                node.downlink_free = node.downlink_free.max(self.now) + Duration::from_secs_f64(bytes / node.link.down);
                let when = node.downlink_free;
                self.at(when, Occurrence::Received { at, from, request, group });
            }
            Occurrence::Received { at, from, request, group } => self.on_received(at, from, request, group),
            Occurrence::Acknowledged { to, from } => {
                *self.nodes[to].in_flight.entry(from).or_default() -= 1;
                self.send(to);
            }
            Occurrence::Advertise(at) => self.advertise(at),
            Occurrence::Fault(at) => self.fail(at),
        }
    }

    /// Advertises what a receiver gained since the last time, and schedules the next time.
    fn advertise(&mut self, at: usize) {
        let gained = std::mem::take(&mut self.nodes[at].gained);
        if !gained.is_empty() {
            for other in (0..self.nodes.len()).filter(|&other| other != at) {
                if self.nodes[other].swarm.is_some() && self.nodes[other].finished.is_none() {
                    let event = Event::ProviderGained { provider: id(at), gained: gained.clone() };
                    self.after(self.latency[&(at, other)], Occurrence::Event(other, event));
                }
            }
        }
        if self.nodes[at].finished.is_none() {
            let others = Duration::from_millis(self.nodes.len() as u64);
            self.after(ADVERTISE_INTERVAL.max(others), Occurrence::Advertise(at));
        }
    }

    /// Lets a peer stall or vanish.
    fn fail(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        node.has_left = true;
        self.receiving -= usize::from(node.swarm.is_some() && node.finished.is_none());
        if matches!(self.nodes[at].link.behaviour, Behaviour::VanishesAt(_)) {
            for other in (0..self.nodes.len()).filter(|&other| other != at) {
                self.after(
                    self.latency[&(at, other)],
                    Occurrence::Event(other, Event::ProviderLost { provider: id(at) }),
                );
            }
        }
    }

    fn handle(&mut self, at: usize, event: Event) {
        let now = self.now;
        let node = &mut self.nodes[at];
        let Some(swarm) = &mut node.swarm else { return };
        if node.has_left {
            return;
        }
        if let Event::ProviderLost { provider } = &event {
            node.wanted.retain(|request, _| request.provider != *provider);
        }
        let mut actions = Vec::new();
        swarm.handle(now, event, &mut actions);
        let due = swarm.next_deadline();
        for action in actions {
            self.carry_out(at, action);
        }
        if let Some(due) = due
            && self.nodes[at].ticks_at.is_none_or(|earlier| due < earlier)
        {
            self.nodes[at].ticks_at = Some(due);
            self.at(due.max(now), Occurrence::Tick(at));
        }
    }

    /// Adds an action to the digest of the run.
    fn record(&mut self, at: usize, action: &Action) {
        let words = match action {
            Action::Request { request, groups } => (0, request.provider.0, request.serial, groups.start, groups.end),
            Action::Truncate { request, at_group } => (1, request.provider.0, request.serial, *at_group, 0),
            Action::Cancel { request } => (2, request.provider.0, request.serial, 0, 0),
            Action::Drop { provider, .. } => (3, provider.0, 0, 0, 0),
            Action::Stuck => (4, 0, 0, 0, 0),
            Action::Finished => (5, 0, 0, 0, 0),
        };
        (self.now.since_origin(), at, words).hash(&mut self.digest);
    }

    fn carry_out(&mut self, at: usize, action: Action) {
        self.record(at, &action);
        match action {
            Action::Request { request, groups } => {
                let to = request.provider.0 as usize;
                assert!(!self.nodes[at].dropped.contains_key(&to), "{to} was dropped");
                self.nodes[at].wanted.insert(request, groups.clone());
                self.after(self.latency[&(at, to)], Occurrence::Request { to, from: at, request, groups });
            }
            Action::Truncate { request, at_group } => {
                let to = request.provider.0 as usize;
                let groups = self.nodes[at].wanted.get_mut(&request).expect("only requests in flight are truncated");
                assert!(groups.start < at_group && at_group < groups.end);
                groups.end = at_group;
                self.after(self.latency[&(at, to)], Occurrence::Truncate { to, from: at, request, at_group });
            }
            Action::Cancel { request } => {
                let to = request.provider.0 as usize;
                self.nodes[at].wanted.remove(&request);
                self.after(self.latency[&(at, to)], Occurrence::Truncate { to, from: at, request, at_group: 0 });
            }
            Action::Drop { provider, why } => {
                self.nodes[at].dropped.insert(provider.0 as usize, why);
            }
            Action::Stuck => {}
            Action::Finished => {
                assert!(self.nodes[at].finished.is_none(), "finished once");
                self.nodes[at].finished = Some(self.now.since_origin());
                self.receiving -= 1;
                self.at(self.now, Occurrence::Advertise(at));
            }
        }
    }

    fn on_request(&mut self, to: usize, from: usize, request: RequestId, groups: Range<u64>) {
        let node = &mut self.nodes[to];
        if node.has_left {
            return;
        }
        assert!(
            node.has[groups.start as usize..groups.end as usize].iter().all(|has| *has),
            "{from} requests from {to} what it does not have"
        );
        let (slot, is_active) = match node.slots.request(&from) {
            Admission::Active(slot) => (slot, true),
            Admission::Waiting(slot) => (slot, false),
            Admission::Busy => {
                let why = Failure::Busy { retry_after: None };
                let event = Event::RequestFailed { request, why };
                self.nodes[from].wanted.remove(&request);
                self.after(self.latency[&(to, from)], Occurrence::Event(from, event));
                return;
            }
        };
        node.uploads.push_back(Upload { to: from, request, next: groups.start, end: groups.end, slot, is_active });
        self.send(to);
    }

    /// Ends the uploads that have nothing left to send and starts those whose turn it is.
    fn end_uploads(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        while let Some(index) = node.uploads.iter().position(|upload| upload.next >= upload.end) {
            let over = node.uploads.remove(index).expect("just found");
            let mut start = Vec::new();
            node.slots.end(over.slot, &mut start);
            for upload in &mut node.uploads {
                upload.is_active |= start.contains(&upload.slot);
            }
        }
    }

    /// Sends the next group over the uplink; active uploads take turns.
    fn send(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        if node.has_left || node.uplink_is_busy {
            return;
        }
        let in_flight = &node.in_flight;
        let may_send = |upload: &Upload| {
            upload.is_active && upload.next < upload.end && in_flight.get(&upload.to).copied().unwrap_or(0) < WINDOW
        };
        let Some(index) = node.uploads.iter().position(may_send) else { return };
        let mut upload = node.uploads.remove(index).expect("just found");
        let (to, request, group) = (upload.to, upload.request, upload.next);
        upload.next += 1;
        node.uploads.push_back(upload);
        node.uplink_is_busy = true;
        *node.in_flight.entry(to).or_default() += 1;
        let bytes = GROUP_BYTES.min(self.size - group * GROUP_BYTES);
        node.bytes_sent += bytes;
        let took = Duration::from_secs_f64(bytes as f64 / node.link.up);
        self.after(took, Occurrence::UplinkFree(at));
        self.after(took + self.latency[&(at, to)], Occurrence::Arrives { at: to, from: at, request, group });
    }

    fn on_received(&mut self, at: usize, from: usize, request: RequestId, group: u64) {
        self.after(self.latency[&(at, from)], Occurrence::Acknowledged { to: from, from: at });
        let is_corrupt = self.nodes[from].link.behaviour == Behaviour::SendsCorruptData && group % 16 == 7;
        let node = &mut self.nodes[at];
        let Some(groups) = node.wanted.get(&request).filter(|groups| groups.contains(&group)) else { return };
        if is_corrupt {
            node.wanted.remove(&request);
            self.handle(at, Event::RequestFailed { request, why: Failure::SentCorruptData });
            return;
        }
        let (is_first, is_last) = (group == groups.start, group + 1 == groups.end);
        if is_last {
            node.wanted.remove(&request);
        }
        node.has[group as usize] = true;
        node.gained.insert(group..group + 1);
        if is_first {
            self.handle(at, Event::RequestStarted { request });
        }
        self.handle(at, Event::Verified { request, groups: group..group + 1 });
        if is_last {
            self.handle(at, Event::RequestDone { request });
        }
    }

    fn bytes(&self, group: u64) -> u64 {
        GROUP_BYTES.min(self.size - group * GROUP_BYTES)
    }
}
