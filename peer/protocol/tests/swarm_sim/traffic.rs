//! What goes over the links: requests, groups on their way, news.

use std::{ops::Range, time::Duration};

use protocol::{
    swarm::{Action, Event, Failure, RequestId},
    upload::queue::Asked,
};
use shared::limits::GROUP_BYTES;

use crate::world::{Manner, Sim, Upload, What, id};

/// How often a peer tells the others what came to it: as many others, as many milliseconds, but not more often than this.
const NEWS_INTERVAL: Duration = Duration::from_millis(50);
/// Groups on their way between two peers (as a congestion window has it): 100 Mbit/s at 40 ms.
const WINDOW: u64 = 32;

impl Sim {
    pub(crate) fn happen(&mut self, what: What) {
        match what {
            What::Tell(at, event) => self.tell(at, event),
            What::Tick(at) => {
                if self.nodes[at].ticks_at.is_some_and(|due| due <= self.now) {
                    self.nodes[at].ticks_at = None;
                    self.tell(at, Event::Tick);
                }
            }
            What::Ask { to, from, request, groups } => self.on_ask(to, from, request, groups),
            What::Cut { to, from, request, at_group } => {
                let uploads = &mut self.nodes[to].uploads;
                if let Some(upload) = uploads.iter_mut().find(|upload| upload.to == from && upload.request == request) {
                    upload.end = upload.end.min(at_group);
                    self.end_uploads(to);
                    self.send(to);
                }
            }
            What::UplinkFree(at) => {
                self.nodes[at].uplink_is_busy = false;
                self.end_uploads(at);
                self.send(at);
            }
            What::Arrives { at, from, request, group } => {
                let bytes = self.bytes(group) as f64;
                let node = &mut self.nodes[at];
                node.downlink_free = node.downlink_free.max(self.now) + Duration::from_secs_f64(bytes / node.link.down);
                let when = node.downlink_free;
                self.at(when, What::Received { at, from, request, group });
            }
            What::Received { at, from, request, group } => self.on_received(at, from, request, group),
            What::Acknowledged { to, from } => {
                *self.nodes[to].in_flight.entry(from).or_default() -= 1;
                self.send(to);
            }
            What::News(at) => {
                let gained = std::mem::take(&mut self.nodes[at].news);
                if !gained.is_empty() {
                    for other in (0..self.nodes.len()).filter(|&other| other != at) {
                        if self.nodes[other].swarm.is_some() && self.nodes[other].finished.is_none() {
                            let event = Event::ProviderGained { owner: id(at), gained: gained.clone() };
                            self.after(self.latency[&(at, other)], What::Tell(other, event));
                        }
                    }
                }
                if self.nodes[at].finished.is_none() {
                    let others = Duration::from_millis(self.nodes.len() as u64);
                    self.after(NEWS_INTERVAL.max(others), What::News(at));
                }
            }
            What::Fault(at) => {
                let node = &mut self.nodes[at];
                node.is_gone = true;
                self.receiving -= usize::from(node.swarm.is_some() && node.finished.is_none());
                if matches!(self.nodes[at].link.manner, Manner::VanishesAt(_)) {
                    for other in (0..self.nodes.len()).filter(|&other| other != at) {
                        self.after(self.latency[&(at, other)], What::Tell(other, Event::ProviderLost { owner: id(at) }));
                    }
                }
            }
        }
    }

    fn tell(&mut self, at: usize, event: Event) {
        let now = self.now;
        let node = &mut self.nodes[at];
        let Some(swarm) = &mut node.swarm else { return };
        if node.is_gone {
            return;
        }
        if let Event::ProviderLost { owner } = &event {
            node.wanted.retain(|request, _| request.owner != *owner);
        }
        let mut actions = Vec::new();
        swarm.handle(now, event, &mut actions);
        let due = swarm.next_deadline();
        for action in actions {
            self.act(at, action);
        }
        if let Some(due) = due
            && self.nodes[at].ticks_at.is_none_or(|earlier| due < earlier)
        {
            self.nodes[at].ticks_at = Some(due);
            self.at(due.max(now), What::Tick(at));
        }
    }

    fn act(&mut self, at: usize, action: Action) {
        match action {
            Action::Request { request, groups } => {
                let to = request.owner.0 as usize;
                assert!(!self.nodes[at].dropped.contains_key(&to), "{to} was dropped");
                self.nodes[at].wanted.insert(request, groups.clone());
                self.after(self.latency[&(at, to)], What::Ask { to, from: at, request, groups });
            }
            Action::Truncate { request, at_group } => {
                let to = request.owner.0 as usize;
                let groups = self.nodes[at].wanted.get_mut(&request).expect("only what is under way is cut");
                assert!(groups.start < at_group && at_group < groups.end);
                groups.end = at_group;
                self.after(self.latency[&(at, to)], What::Cut { to, from: at, request, at_group });
            }
            Action::Cancel { request } => {
                let to = request.owner.0 as usize;
                self.nodes[at].wanted.remove(&request);
                self.after(self.latency[&(at, to)], What::Cut { to, from: at, request, at_group: 0 });
            }
            Action::Drop { owner, why } => {
                self.nodes[at].dropped.insert(owner.0 as usize, why);
            }
            Action::Stuck => {}
            Action::Finished => {
                assert!(self.nodes[at].finished.is_none(), "said once");
                self.nodes[at].finished = Some(self.now.since_origin());
                self.receiving -= 1;
                self.at(self.now, What::News(at));
            }
        }
    }

    fn on_ask(&mut self, to: usize, from: usize, request: RequestId, groups: Range<u64>) {
        let node = &mut self.nodes[to];
        if node.is_gone {
            return;
        }
        assert!(
            node.has[groups.start as usize..groups.end as usize].iter().all(|has| *has),
            "{from} asks {to} for what it does not have"
        );
        let (slot, is_active) = match node.slots.ask(&from) {
            Asked::Now(slot) => (slot, true),
            Asked::Waits(slot) => (slot, false),
            Asked::Busy => {
                let why = Failure::Busy { retry_after: None };
                let event = Event::RequestFailed { request, why };
                self.nodes[from].wanted.remove(&request);
                self.after(self.latency[&(to, from)], What::Tell(from, event));
                return;
            }
        };
        node.uploads.push_back(Upload { to: from, request, next: groups.start, end: groups.end, slot, is_active });
        self.send(to);
    }

    /// Ends the uploads that have nothing more to send and starts those whose turn has come.
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

    /// Puts the next group on the uplink: the active uploads take turns.
    fn send(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        if node.is_gone || node.uplink_is_busy {
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
        self.after(took, What::UplinkFree(at));
        self.after(took + self.latency[&(at, to)], What::Arrives { at: to, from: at, request, group });
    }

    fn on_received(&mut self, at: usize, from: usize, request: RequestId, group: u64) {
        self.after(self.latency[&(at, from)], What::Acknowledged { to: from, from: at });
        let lies = self.nodes[from].link.manner == Manner::Lies && group % 16 == 7;
        let node = &mut self.nodes[at];
        let Some(groups) = node.wanted.get(&request).filter(|groups| groups.contains(&group)) else { return };
        if lies {
            node.wanted.remove(&request);
            self.tell(at, Event::RequestFailed { request, why: Failure::Lied });
            return;
        }
        let (is_first, is_last) = (group == groups.start, group + 1 == groups.end);
        if is_last {
            node.wanted.remove(&request);
        }
        node.has[group as usize] = true;
        node.news.insert(group..group + 1);
        if is_first {
            self.tell(at, Event::Begun { request });
        }
        self.tell(at, Event::Verified { request, groups: group..group + 1 });
        if is_last {
            self.tell(at, Event::RequestDone { request });
        }
    }

    fn bytes(&self, group: u64) -> u64 {
        GROUP_BYTES.min(self.size - group * GROUP_BYTES)
    }
}
