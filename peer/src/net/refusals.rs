//! Pause after a failed authentication: a peer whose certificate has expired, or that belongs to another network, would
//! otherwise make a handshake for each call of the election core, ten a second.

use std::{collections::HashMap, time::Duration};

use shared::{
    net::{NetError, Target},
    retry::Backoff,
    time::Timestamp,
};

use super::params::{MAX_REFUSALS, REFUSAL_LONGEST, REFUSAL_SHORTEST};

/// Targets with which an authentication failed, each with the time until which it is not dialled again.
#[derive(Debug, Default)]
pub(crate) struct Refusals(HashMap<Target, Refusal>);

#[derive(Debug)]
struct Refusal {
    error: NetError,
    until: Timestamp,
    backoff: Backoff,
}

impl Refusals {
    /// Returns the error of the last attempt if `target` must not be dialled at `now`.
    pub(crate) fn check(&self, target: &Target, now: Timestamp) -> Option<NetError> {
        self.0.get(target).filter(|refusal| now < refusal.until).map(|refusal| refusal.error.clone())
    }

    /// Takes the outcome of a call. Returns the pause if the call failed because one side does not accept the other.
    pub(crate) fn note(&mut self, target: &Target, now: Timestamp, error: Option<&NetError>) -> Option<Duration> {
        let lasts =
            |error: &&NetError| matches!(error, NetError::NotAuthorised { .. } | NetError::VersionMismatch { .. });
        let Some(error) = error.filter(lasts) else {
            // Silence proves nothing; an answer ends the refusal.
            if error.is_none() {
                self.0.remove(target);
            }
            return None;
        };
        if self.0.len() >= MAX_REFUSALS && !self.0.contains_key(target) {
            self.0.retain(|_, refusal| now < refusal.until);
            if self.0.len() >= MAX_REFUSALS {
                return None;
            }
        }
        let refusal = self.0.entry(target.clone()).or_insert_with(|| Refusal {
            error: error.clone(),
            until: now,
            backoff: Backoff::new(REFUSAL_SHORTEST, REFUSAL_LONGEST),
        });
        // Calls that were under way together count once.
        if now < refusal.until {
            return None;
        }
        let pause = refusal.backoff.pause();
        (refusal.error, refusal.until) = (error.clone(), now + pause);
        Some(pause)
    }
}

#[cfg(test)]
mod tests {
    use shared::id::Role;

    use super::*;

    fn target(port: u16) -> Target {
        Target { role: Role::Nameserver, endpoint: format!("quic://127.0.0.1:{port}").parse().unwrap() }
    }

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_origin(Duration::from_secs(seconds))
    }

    fn rejected() -> NetError {
        NetError::NotAuthorised { address: "nameserver".to_owned(), why: "the certificate has expired".to_owned() }
    }

    #[test]
    fn rejected_program_dials_the_same_target_ever_more_rarely() {
        let mut refusals = Refusals::default();
        let (mut now, end, mut dials) = (at(0), at(3600), 0);
        while now < end {
            if refusals.check(&target(1), now).is_none() {
                dials += 1;
                refusals.note(&target(1), now, Some(&rejected()));
            }
            now += Duration::from_millis(100);
        }
        assert!((60..120).contains(&dials), "{dials} handshakes an hour");
        assert_eq!(refusals.check(&target(2), end), None, "another address is dialled");
    }

    #[test]
    fn answer_ends_the_pause_and_silence_causes_none() {
        let mut refusals = Refusals::default();
        let silent = NetError::Deadline { address: String::new() };
        assert_eq!(refusals.note(&target(1), at(0), Some(&silent)), None);
        assert_eq!(refusals.check(&target(1), at(0)), None);
        refusals.note(&target(1), at(0), Some(&rejected()));
        assert_eq!(refusals.check(&target(1), at(0)), Some(rejected()));
        refusals.note(&target(1), at(0), None);
        assert_eq!(refusals.check(&target(1), at(0)), None);
    }

    #[test]
    fn refusals_are_bounded() {
        let mut refusals = Refusals::default();
        for port in 1..=u16::try_from(MAX_REFUSALS).unwrap() + 1 {
            refusals.note(&target(port), at(0), Some(&rejected()));
        }
        assert_eq!(refusals.0.len(), MAX_REFUSALS);
        refusals.note(&target(60_000), at(100), Some(&rejected()));
        assert_eq!(refusals.0.len(), 1, "those whose pause is over make room");
    }
}
