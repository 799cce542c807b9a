//! Join tokens: what an admin gives a newcomer so that both can trust each other.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::Fingerprint;

/// What every token begins with; the number is the version of the format.
const PREFIX: &str = "brasa1-";
/// Longest token that is read, bytes.
const MAX_TOKEN_BYTES: usize = 4096;
/// Most addresses in a token.
const MAX_ADDRESSES: usize = 16;
/// Bytes of the checksum that tells a typing error from a token that is not valid any more.
const CHECKSUM_BYTES: usize = 4;

const ID_CONTEXT: &str = "brasa 2026 join token id";
const KEY_CONTEXT: &str = "brasa 2026 join token proof key";

/// Label of the keying material that a proof is bound to (RFC 8446 section 7.5).
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-brasa-enrol";

/// Names a token without giving its secret away.
pub type TokenId = [u8; 16];

/// Key with which the knowledge of a token's secret is proven and checked (BLAKE3 keyed hash).
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProofKey([u8; 32]);

impl ProofKey {
    /// The proof for one connection, from its exported keying material and what is asked for.
    pub fn proof(&self, keying_material: &[u8; 32], request: &[u8]) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(keying_material).update(request);
        *hasher.finalize().as_bytes()
    }

    /// Whether `proof` is right; takes the same time for every wrong one.
    pub fn accepts(&self, proof: &[u8; 32], keying_material: &[u8; 32], request: &[u8]) -> bool {
        // `blake3::Hash` compares in constant time.
        blake3::Hash::from_bytes(self.proof(keying_material, request)) == blake3::Hash::from_bytes(*proof)
    }
}

impl fmt::Debug for ProofKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ProofKey(…)")
    }
}

/// A join token: the authority's fingerprint, where its nameservers answer, and a one-time secret.
///
/// Written `brasa1-…`, base32 without padding (RFC 4648 section 6, lower case), so that a double click selects it
/// whole. `Debug` does not show the secret; `Display` writes the token itself.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// What the newcomer pins.
    pub authority: Fingerprint,
    /// `host:port` of nameservers, best first.
    pub addresses: Vec<String>,
    secret: [u8; 20],
}

#[derive(Serialize, Deserialize)]
struct Content {
    authority: [u8; 32],
    secret: [u8; 20],
    addresses: Vec<String>,
}

/// Why a text is not a token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidToken {
    /// Not a token of this version at all.
    #[error("it does not begin with {PREFIX}")]
    Prefix,
    /// Typed or copied wrongly.
    #[error("it is incomplete or mistyped")]
    Damaged,
}

impl JoinToken {
    /// A token with a new secret.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn new(authority: Fingerprint, addresses: Vec<String>) -> Result<Self, getrandom::Error> {
        let mut secret = [0; 20];
        getrandom::fill(&mut secret)?;
        Ok(Self { authority, addresses, secret })
    }

    /// What the nameserver knows the token by.
    pub fn id(&self) -> TokenId {
        let mut id = [0; 16];
        id.copy_from_slice(&blake3::derive_key(ID_CONTEXT, &self.secret)[..16]);
        id
    }

    /// The key of its proofs; this, not the secret, is what a nameserver keeps.
    pub fn proof_key(&self) -> ProofKey {
        ProofKey(blake3::derive_key(KEY_CONTEXT, &self.secret))
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let content = Content { authority: self.authority.0, secret: self.secret, addresses: self.addresses.clone() };
        let mut bytes = postcard::to_stdvec(&content).map_err(|_| fmt::Error)?;
        let checksum = blake3::hash(&bytes);
        bytes.extend_from_slice(&checksum.as_bytes()[..CHECKSUM_BYTES]);
        write!(f, "{PREFIX}{}", data_encoding::BASE32_NOPAD.encode(&bytes).to_ascii_lowercase())
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken")
            .field("authority", &self.authority)
            .field("addresses", &self.addresses)
            .finish_non_exhaustive()
    }
}

impl FromStr for JoinToken {
    type Err = InvalidToken;

    fn from_str(text: &str) -> Result<Self, InvalidToken> {
        let body = text.trim().strip_prefix(PREFIX).ok_or(InvalidToken::Prefix)?;
        if body.len() > MAX_TOKEN_BYTES {
            return Err(InvalidToken::Damaged);
        }
        let bytes = data_encoding::BASE32_NOPAD
            .decode(body.to_ascii_uppercase().as_bytes())
            .map_err(|_| InvalidToken::Damaged)?;
        let content_bytes = bytes.len().checked_sub(CHECKSUM_BYTES).ok_or(InvalidToken::Damaged)?;
        let (content, checksum) = bytes.split_at(content_bytes);
        if &blake3::hash(content).as_bytes()[..CHECKSUM_BYTES] != checksum {
            return Err(InvalidToken::Damaged);
        }
        let content: Content = postcard::from_bytes(content).map_err(|_| InvalidToken::Damaged)?;
        if content.addresses.len() > MAX_ADDRESSES {
            return Err(InvalidToken::Damaged);
        }
        Ok(Self { authority: Fingerprint(content.authority), addresses: content.addresses, secret: content.secret })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> JoinToken {
        JoinToken::new(Fingerprint([7; 32]), vec!["10.0.0.1:9090".to_owned()]).unwrap()
    }

    #[test]
    fn a_token_is_read_as_it_was_written() {
        let token = token();
        let text = token.to_string();
        assert!(text.starts_with("brasa1-") && text.bytes().skip(7).all(|byte| byte.is_ascii_alphanumeric()));
        assert_eq!(text.parse(), Ok(token.clone()));
        assert_eq!(format!("  {text}\n").parse(), Ok(token));
    }

    #[test]
    fn every_single_mistyped_character_is_noticed() {
        let text = token().to_string();
        for at in 7..text.len() {
            let mut wrong = text.clone().into_bytes();
            wrong[at] = if wrong[at] == b'a' { b'b' } else { b'a' };
            let wrong = String::from_utf8(wrong).unwrap();
            assert!(wrong.parse::<JoinToken>().is_err(), "position {at}");
        }
        assert_eq!(text[..text.len() - 3].parse::<JoinToken>(), Err(InvalidToken::Damaged));
        assert_eq!("nonsense".parse::<JoinToken>(), Err(InvalidToken::Prefix));
    }

    #[test]
    fn a_proof_counts_for_its_connection_and_request_only() {
        let key = token().proof_key();
        let proof = key.proof(&[1; 32], b"request");
        assert!(key.accepts(&proof, &[1; 32], b"request"));
        assert!(!key.accepts(&proof, &[2; 32], b"request"));
        assert!(!key.accepts(&proof, &[1; 32], b"another"));
        assert!(!token().proof_key().accepts(&proof, &[1; 32], b"request"));
    }

    #[test]
    fn debug_shows_no_secret() {
        let token = token();
        let shown = format!("{token:?} {:?}", token.proof_key());
        assert!(!shown.contains(&data_encoding::HEXLOWER.encode(&token.secret)));
        assert!(!shown.contains(&format!("{:?}", token.secret)));
    }
}
