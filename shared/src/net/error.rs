//! What can go wrong between two processes, in words that say what to do.

use quinn::ConnectionError;
use tarpc::client::RpcError;

use super::CloseCode;
use crate::error::{Failure, FailureCode};

/// Why a connection or a call did not work. `address` is whom it was about.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetError {
    /// Nothing answers there: not running, another address, or something between drops UDP.
    #[error("nothing answers at {address}: {why}")]
    Unreachable {
        /// Who was called.
        address: String,
        /// What was seen.
        why: String,
    },
    /// An answer did not come in time; trying again makes sense.
    #[error("{address} did not answer in time")]
    Deadline {
        /// Who was called.
        address: String,
    },
    /// The two sides speak different versions of the protocol; update the older one.
    #[error("{address} speaks another version of the protocol")]
    VersionMismatch {
        /// Who was called.
        address: String,
    },
    /// One side does not accept the other's identity.
    #[error("{address}: {why}")]
    NotAuthorised {
        /// Who was called.
        address: String,
        /// Which side, and why.
        why: String,
    },
    /// The connection ended; trying again makes sense.
    #[error("the connection to {address} ended: {why}")]
    Closed {
        /// Who was called.
        address: String,
        /// What was seen.
        why: String,
    },
    /// The local side cannot: no socket, no such host.
    #[error("{0}")]
    Local(String),
}

/// TLS alerts (RFC 8446 section 6.2) travel as QUIC codes 0x100 + alert (RFC 9001 section 4.8).
const CRYPTO_ERROR: u64 = 0x100;
const NO_APPLICATION_PROTOCOL: u8 = 120;

fn alert(code: quinn::TransportErrorCode) -> Option<u8> {
    u64::from(code).checked_sub(CRYPTO_ERROR).and_then(|alert| u8::try_from(alert).ok())
}

/// What a TLS alert says about a certificate; `None` for alerts about something else.
fn certificate_alert(alert: u8) -> Option<&'static str> {
    Some(match alert {
        42 | 43 => "the certificate is unusable",
        44 => "the certificate was revoked",
        45 => "the certificate has expired",
        46 => "the certificate is for somebody else",
        48 => "the certificate is of another network's authority",
        49 => "access is denied",
        51 => "a signature is wrong",
        116 => "a certificate is required",
        _ => return None,
    })
}

impl NetError {
    /// What an ended connection to `address` means.
    pub fn from_connection(address: &str, error: &ConnectionError) -> Self {
        let address = address.to_owned();
        match error {
            ConnectionError::VersionMismatch => Self::VersionMismatch { address },
            ConnectionError::TimedOut => Self::Unreachable { address, why: "no answer".to_owned() },
            ConnectionError::TransportError(error) => match alert(error.code) {
                Some(NO_APPLICATION_PROTOCOL) => Self::VersionMismatch { address },
                Some(code) => {
                    // Another name and an unreadable certificate are one alert; only the text tells them apart.
                    let why = match certificate_alert(code) {
                        _ if error.reason.contains("not valid for name") => "somebody else answers there",
                        Some(why) => why,
                        None => &error.reason,
                    };
                    Self::NotAuthorised { address, why: format!("not trusted here: {why}") }
                }
                None => Self::Closed { address, why: error.to_string() },
            },
            ConnectionError::ConnectionClosed(close) => match alert(close.error_code) {
                Some(NO_APPLICATION_PROTOCOL) => Self::VersionMismatch { address },
                Some(code) => Self::NotAuthorised {
                    address,
                    why: format!("not accepted there: {}", certificate_alert(code).unwrap_or("the handshake failed")),
                },
                None if close.error_code == quinn::TransportErrorCode::CONNECTION_REFUSED => {
                    Self::Closed { address, why: "too many connections there".to_owned() }
                }
                None => Self::Closed { address, why: close.to_string() },
            },
            ConnectionError::ApplicationClosed(close) => {
                let why = String::from_utf8_lossy(&close.reason).chars().filter(|c| !c.is_control()).collect();
                match CloseCode::from_varint(close.error_code) {
                    CloseCode::NotAuthorised => Self::NotAuthorised { address, why },
                    CloseCode::ShuttingDown => Self::Unreachable { address, why: "it has just stopped".to_owned() },
                    CloseCode::Done | CloseCode::Overloaded | CloseCode::Protocol => Self::Closed { address, why },
                }
            }
            other => Self::Closed { address, why: other.to_string() },
        }
    }

    /// What a failed call on a connection to `address` means.
    pub fn from_rpc(address: &str, error: &RpcError, connection: &quinn::Connection) -> Self {
        match (error, connection.close_reason()) {
            // Why the connection ended says more than that the call got no answer.
            (_, Some(reason)) => Self::from_connection(address, &reason),
            (RpcError::DeadlineExceeded, None) => Self::Deadline { address: address.to_owned() },
            // Its own text is only that the server stopped; why, is one level below.
            (RpcError::Server(error), None) => Self::Closed {
                address: address.to_owned(),
                why: error.detail.chars().filter(|c| !c.is_control()).collect(),
            },
            (error, None) => Self::Closed { address: address.to_owned(), why: error.to_string() },
        }
    }

    /// The same as a failure of `what`, with what the user can do.
    pub fn into_failure(self, what: impl Into<String>) -> Failure {
        let (code, hint) = match &self {
            Self::Unreachable { .. } | Self::Local(_) => {
                (FailureCode::NameserverUnreachable, "check that it runs and that UDP reaches it")
            }
            Self::Deadline { .. } => (FailureCode::Timeout, "try again"),
            Self::VersionMismatch { .. } => (FailureCode::VersionMismatch, "update the older of the two programs"),
            Self::NotAuthorised { .. } => {
                (FailureCode::NotAuthorised, "join the network with a token: `nsc token`, then `--join TOKEN`")
            }
            Self::Closed { .. } => (FailureCode::Timeout, "try again"),
        };
        Failure::new(code, what, self, hint)
    }
}
