//! Join tokens: a secret that an admin hands to an applicant so that applicant and nameserver authenticate each other.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::certificate::Fingerprint;

/// Prefix of every token; the digit is the version of the format.
const PREFIX: &str = "brasa1-";
/// Longest token that is parsed, bytes.
const MAX_TOKEN_BYTES: usize = 4096;
/// Most addresses in a token.
const MAX_ADDRESSES: usize = 16;
/// Length in bytes of the checksum that distinguishes a typing error from a token that has expired or is used up.
const CHECKSUM_BYTES: usize = 4;

const ID_CONTEXT: &str = "brasa 2026 join token id";
const KEY_CONTEXT: &str = "brasa 2026 join token proof key";

/// Exporter label of the keying material that a proof is bound to (RFC 8446 section 7.5).
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-brasa-enrol";

/// Public identifier of a token; does not reveal its secret.
pub type TokenId = [u8; 16];

/// Key that proves and verifies knowledge of a token's secret (BLAKE3 keyed hash).
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProofKey([u8; 32]);

impl ProofKey {
    /// Computes the proof for one connection from its exported keying material and the request.
    pub fn proof(&self, keying_material: &[u8; 32], request: &[u8]) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(keying_material).update(request);
        *hasher.finalize().as_bytes()
    }

    /// Verifies `proof` in constant time.
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

/// A join token: the authority's fingerprint, the addresses of its nameservers, and a secret.
///
/// Its text is `brasa1-` and base32 without padding (RFC 4648 section 6, lower case), so that a double click selects
/// all of it. `Debug` hides the secret; `Display` writes the token itself.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// Fingerprint of the authority that the applicant trusts.
    pub authority: Fingerprint,
    /// Addresses of nameservers as `host:port`, preferred first.
    pub addresses: Vec<String>,
    secret: [u8; 20],
}

#[derive(Serialize, Deserialize)]
struct Content {
    authority: [u8; 32],
    secret: [u8; 20],
    addresses: Vec<String>,
}

/// Failure to parse a token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidToken {
    /// The text is not a token of this version.
    #[error("it does not begin with {PREFIX}")]
    Prefix,
    /// The token is truncated or contains a typing error.
    #[error("it is incomplete or mistyped")]
    Damaged,
}

impl JoinToken {
    /// Creates a token with a new secret.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn new(authority: Fingerprint, addresses: Vec<String>) -> Result<Self, getrandom::Error> {
        let mut secret = [0; 20];
        getrandom::fill(&mut secret)?;
        Ok(Self { authority, addresses, secret })
    }

    /// Identifier under which the nameserver stores the token.
    pub fn id(&self) -> TokenId {
        let mut id = [0; 16];
        id.copy_from_slice(&blake3::derive_key(ID_CONTEXT, &self.secret)[..16]);
        id
    }

    /// Key of the token's proofs. The nameserver stores this key, not the secret.
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
    fn token_survives_a_round_trip_through_its_text() {
        let token = token();
        let text = token.to_string();
        assert!(text.starts_with("brasa1-") && text.bytes().skip(7).all(|byte| byte.is_ascii_alphanumeric()));
        assert_eq!(text.parse(), Ok(token.clone()));
        assert_eq!(format!("  {text}\n").parse(), Ok(token));
    }

    #[test]
    fn token_with_one_wrong_character_is_rejected() {
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
    fn proof_of_another_connection_request_or_token_is_rejected() {
        let key = token().proof_key();
        let proof = key.proof(&[1; 32], b"request");
        assert!(key.accepts(&proof, &[1; 32], b"request"));
        assert!(!key.accepts(&proof, &[2; 32], b"request"));
        assert!(!key.accepts(&proof, &[1; 32], b"another"));
        assert!(!token().proof_key().accepts(&proof, &[1; 32], b"request"));
    }

    #[test]
    fn debug_output_hides_the_secret() {
        let token = token();
        let shown = format!("{token:?} {:?}", token.proof_key());
        assert!(!shown.contains(&data_encoding::HEXLOWER.encode(&token.secret)));
        assert!(!shown.contains(&format!("{:?}", token.secret)));
    }
}
