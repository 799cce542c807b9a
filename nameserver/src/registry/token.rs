//! Join tokens, and the key that each peer's id is bound to.

use crate::params::{MAX_ENROLMENTS, MAX_TOKEN_LIFE, MAX_TOKEN_USES, MAX_TOKENS};
use certs::{ProofKey, TokenId};
use shared::{
    id::{PeerId, Role},
    rpc::{
        enrol::EnrolError,
        nameserver::{MintToken, NameError},
    },
    time::Timestamp,
};

use super::{
    Registry,
    change::{Change, EnrolmentRow, TokenRow},
};

/// Credential of an applicant whose proof has been verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Credential {
    /// The local token: the applicant can read this user's files and runs on this machine.
    Local,
    /// A join token.
    Token(TokenId),
}

impl Registry {
    /// Stores a token that `caller`, an admin, hands out. `wall` is the wall clock in microseconds since 1970.
    ///
    /// # Errors
    /// [`NameError::NotAuthorised`] when the caller is not an admin, [`NameError::InvalidQuery`] for a token without
    /// life or uses, [`NameError::LimitReached`] beyond a bound on its life, its uses or the number of tokens.
    pub fn mint(
        &mut self,
        now: Timestamp,
        wall: u64,
        caller: &Role,
        request: MintToken,
        id: TokenId,
        proof_key: ProofKey,
    ) -> Result<(), NameError> {
        let full = |what: &str, limit: u64| NameError::LimitReached { what: what.into(), limit };
        if *caller != Role::Admin {
            return Err(NameError::NotAuthorised("only an admin creates join tokens".into()));
        }
        let MintToken { ttl, uses, for_peer } = request;
        if ttl.is_zero() || uses == 0 {
            return Err(NameError::InvalidQuery("a token needs a life and at least one use".into()));
        }
        if ttl > MAX_TOKEN_LIFE {
            return Err(full("seconds of a token's life", MAX_TOKEN_LIFE.as_secs()));
        }
        if uses > MAX_TOKEN_USES {
            return Err(full("uses of a token", MAX_TOKEN_USES.into()));
        }
        let expired = self.tables.tokens().iter().filter(|(_, row)| row.expires_micros <= wall);
        let expired: Vec<TokenId> = expired.map(|(id, _)| *id).collect();
        if self.tables.tokens().len() - expired.len() >= MAX_TOKENS {
            return Err(full("join tokens", MAX_TOKENS as u64));
        }
        for id in expired {
            self.tables.apply(Change::TokenRemoved(id), now);
        }
        let life = u64::try_from(ttl.as_micros()).expect("a token's life is at most MAX_TOKEN_LIFE");
        let row = TokenRow { proof_key, expires_micros: wall.saturating_add(life), uses_left: uses, for_peer };
        self.tables.apply(Change::TokenPut(id, row), now);
        Ok(())
    }

    /// Returns the key that verifies proofs of a token's secret; `None` for an unknown or expired token.
    pub fn proof_key(&self, wall: u64, id: &TokenId) -> Option<ProofKey> {
        self.tables.tokens().get(id).filter(|row| wall < row.expires_micros).map(|row| row.proof_key.clone())
    }

    /// Enrols an applicant with a verified proof as `role`: consumes one use of its token and binds the id to the key
    /// whose BLAKE3 hash is `key`.
    ///
    /// Repeating an enrolment with the same id, key and token consumes no further use, because the applicant may have
    /// lost the first answer.
    ///
    /// # Errors
    /// See [`EnrolError`]; the registry is unchanged then.
    pub fn enrol(
        &mut self,
        now: Timestamp,
        wall: u64,
        credential: Credential,
        role: &Role,
        key: [u8; 32],
    ) -> Result<(), EnrolError> {
        match credential {
            Credential::Local => match role {
                Role::Nameserver => Err(EnrolError::RoleNotAllowed(role.clone())),
                // Admins are not bound to a key: a lost key must not lock out the machine's user.
                Role::Admin => Ok(()),
                Role::Peer(id) => {
                    self.check_key(id, &key, false)?;
                    self.bind(now, id, EnrolmentRow { key, token: None })
                }
            },
            Credential::Token(token) => {
                let row = self.tables.tokens().get(&token).filter(|row| wall < row.expires_micros);
                let row = row.cloned().ok_or(EnrolError::InvalidToken)?;
                let enrolment = EnrolmentRow { key, token: Some(token) };
                if role.peer().is_some_and(|id| self.tables.enrolments().get(id) == Some(&enrolment)) {
                    return Ok(());
                }
                let uses_left = row.uses_left.checked_sub(1).ok_or(EnrolError::InvalidToken)?;
                let Role::Peer(id) = role else { return Err(EnrolError::RoleNotAllowed(role.clone())) };
                if row.for_peer.as_ref().is_some_and(|only| only != id) {
                    return Err(EnrolError::OtherPeer);
                }
                self.check_key(id, &key, row.for_peer.is_some())?;
                self.bind(now, id, enrolment)?;
                // A used-up token stays until it expires, so that an enrolment can be repeated.
                self.tables.apply(Change::TokenPut(token, TokenRow { uses_left, ..row }), now);
                Ok(())
            }
        }
    }

    fn check_key(&self, id: &PeerId, key: &[u8; 32], may_replace: bool) -> Result<(), EnrolError> {
        match self.tables.enrolments().get(id) {
            Some(row) if row.key != *key && !may_replace => Err(EnrolError::AlreadyEnrolled(Role::Peer(id.clone()))),
            _ => Ok(()),
        }
    }

    fn bind(&mut self, now: Timestamp, id: &PeerId, row: EnrolmentRow) -> Result<(), EnrolError> {
        let present = self.tables.enrolments().get(id);
        if present.is_none() && self.tables.enrolments().len() >= MAX_ENROLMENTS {
            return Err(EnrolError::Unavailable(format!("the limit of {MAX_ENROLMENTS} peers is reached")));
        }
        if present != Some(&row) {
            self.tables.apply(Change::Enrolled(id.clone(), row), now);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use certs::{Fingerprint, JoinToken};

    use super::*;
    use crate::registry::tests::{NOW, peer, registry};

    const WALL: u64 = 1_700_000_000_000_000;
    const HOUR: Duration = Duration::from_secs(3600);
    const EXPIRY: u64 = WALL + 3_600_000_000;

    fn mint(registry: &mut Registry, uses: u32, for_peer: Option<&str>) -> TokenId {
        let token = JoinToken::new(Fingerprint([0; 32]), Vec::new()).unwrap();
        let request = MintToken { ttl: HOUR, uses, for_peer: for_peer.map(|id| id.parse().unwrap()) };
        registry.mint(NOW, WALL, &Role::Admin, request, token.id(), token.proof_key()).unwrap();
        token.id()
    }

    fn enrol(registry: &mut Registry, token: TokenId, id: &str, key: u8) -> Result<(), EnrolError> {
        registry.enrol(NOW, WALL, Credential::Token(token), &peer(id), [key; 32])
    }

    #[test]
    fn token_by_a_non_admin_or_outside_the_bounds_is_rejected() {
        let mut registry = registry();
        let revision = registry.revision();
        let token = JoinToken::new(Fingerprint([0; 32]), Vec::new()).unwrap();
        let mut mint = |caller: &Role, ttl, uses| {
            let request = MintToken { ttl, uses, for_peer: None };
            registry.mint(NOW, WALL, caller, request, token.id(), token.proof_key())
        };
        for caller in [peer("a"), Role::Nameserver] {
            assert!(matches!(mint(&caller, HOUR, 1), Err(NameError::NotAuthorised(_))));
        }
        assert!(matches!(mint(&Role::Admin, Duration::ZERO, 1), Err(NameError::InvalidQuery(_))));
        assert!(matches!(mint(&Role::Admin, HOUR, 0), Err(NameError::InvalidQuery(_))));
        assert!(matches!(mint(&Role::Admin, Duration::MAX, 1), Err(NameError::LimitReached { .. })));
        assert!(matches!(mint(&Role::Admin, HOUR, u32::MAX), Err(NameError::LimitReached { .. })));
        assert_eq!(registry.revision(), revision);
    }

    #[test]
    fn used_up_token_is_rejected() {
        let mut registry = registry();
        let token = mint(&mut registry, 2, None);
        assert!(registry.proof_key(WALL, &token).is_some());
        enrol(&mut registry, token, "a", 1).unwrap();
        enrol(&mut registry, token, "b", 2).unwrap();
        assert_eq!(enrol(&mut registry, token, "c", 3), Err(EnrolError::InvalidToken));
        assert_eq!(enrol(&mut registry, token, "a", 9), Err(EnrolError::InvalidToken));
        assert_eq!(enrol(&mut registry, [0; 16], "c", 3), Err(EnrolError::InvalidToken));
    }

    #[test]
    fn repeated_enrolment_consumes_no_further_use() {
        let mut registry = registry();
        let token = mint(&mut registry, 1, None);
        enrol(&mut registry, token, "a", 1).unwrap();
        let revision = registry.revision();
        enrol(&mut registry, token, "a", 1).unwrap();
        assert_eq!(registry.revision(), revision);
    }

    #[test]
    fn expired_token_is_rejected() {
        let mut registry = registry();
        let token = mint(&mut registry, 1, None);
        assert!(registry.proof_key(EXPIRY - 1, &token).is_some());
        assert!(registry.proof_key(EXPIRY, &token).is_none());
        let late = registry.enrol(NOW, EXPIRY, Credential::Token(token), &peer("a"), [1; 32]);
        assert_eq!(late, Err(EnrolError::InvalidToken));
    }

    #[test]
    fn expired_tokens_are_removed_at_the_token_limit() {
        let mut registry = registry();
        for _ in 0..MAX_TOKENS {
            mint(&mut registry, 1, None);
        }
        let token = JoinToken::new(Fingerprint([0; 32]), Vec::new()).unwrap();
        let mut again = |wall| {
            let request = MintToken { ttl: HOUR, uses: 1, for_peer: None };
            registry.mint(NOW, wall, &Role::Admin, request, token.id(), token.proof_key())
        };
        assert!(matches!(again(EXPIRY - 1), Err(NameError::LimitReached { limit: 10_000, .. })));
        assert_eq!(again(EXPIRY), Ok(()));
        assert_eq!(registry.tables.tokens().len(), 1);
    }

    #[test]
    fn id_stays_bound_to_its_key_unless_a_token_names_it() {
        let mut registry = registry();
        let any = mint(&mut registry, 9, None);
        enrol(&mut registry, any, "a", 1).unwrap();
        assert_eq!(enrol(&mut registry, any, "a", 2), Err(EnrolError::AlreadyEnrolled(peer("a"))));
        let local = registry.enrol(NOW, WALL, Credential::Local, &peer("a"), [2; 32]);
        assert_eq!(local, Err(EnrolError::AlreadyEnrolled(peer("a"))));

        let for_a = mint(&mut registry, 1, Some("a"));
        assert_eq!(enrol(&mut registry, for_a, "b", 2), Err(EnrolError::OtherPeer));
        enrol(&mut registry, for_a, "a", 2).unwrap();
        assert_eq!(enrol(&mut registry, any, "a", 1), Err(EnrolError::AlreadyEnrolled(peer("a"))));
        let uses_left = registry.tables.tokens()[&any].uses_left;
        assert_eq!(uses_left, 8, "a rejected enrolment consumed a use");
    }

    #[test]
    fn join_token_enrols_peers_and_local_token_enrols_admins() {
        let mut registry = registry();
        let token = mint(&mut registry, 9, None);
        let mut become_role = |credential, role: Role| registry.enrol(NOW, WALL, credential, &role, [1; 32]);
        for role in [Role::Admin, Role::Nameserver] {
            let refused = become_role(Credential::Token(token), role.clone());
            assert_eq!(refused, Err(EnrolError::RoleNotAllowed(role)));
        }
        assert_eq!(become_role(Credential::Local, Role::Admin), Ok(()));
        assert_eq!(become_role(Credential::Local, peer("a")), Ok(()));
        let refused = become_role(Credential::Local, Role::Nameserver);
        assert_eq!(refused, Err(EnrolError::RoleNotAllowed(Role::Nameserver)));
    }
}
