//! Errors of connections and calls between two processes.

use quinn::ConnectionError;
use tarpc::client::RpcError;

use super::close_code::CloseCode;
use crate::error::{Failure, FailureCode};

/// Error of a connection or a call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetError {
    /// Nothing answers at the address: the process does not run, the address is wrong, or a firewall drops UDP.
    #[error("nothing answers at {address}: {why}")]
    Unreachable {
        /// Role and address of the target.
        address: String,
        /// Observed cause.
        why: String,
    },
    /// The target did not answer before the deadline. The caller can retry.
    #[error("{address} did not answer in time")]
    Deadline {
        /// Role and address of the target.
        address: String,
    },
    /// The two sides use different versions of the protocol. The older program needs an update.
    #[error("{address} uses another version of the protocol")]
    VersionMismatch {
        /// Role and address of the target.
        address: String,
    },
    /// One side rejects the other's identity.
    #[error("{address}: {why}")]
    NotAuthorised {
        /// Role and address of the target.
        address: String,
        /// Rejecting side and cause.
        why: String,
    },
    /// The target answers and refuses the connection or the call, mostly because a limit is reached. The caller can
    /// retry later.
    #[error("{address} refuses: {why}")]
    Refused {
        /// Role and address of the target.
        address: String,
        /// Reason given by the target.
        why: String,
    },
    /// The connection ended. The caller can retry.
    #[error("the connection to {address} ended: {why}")]
    Closed {
        /// Role and address of the target.
        address: String,
        /// Observed cause.
        why: String,
    },
    /// The error is local: no socket, or the host name does not resolve.
    #[error("{0}")]
    Local(String),
}

/// Base of the QUIC error codes of TLS alerts (RFC 8446 section 6.2): 0x100 + alert (RFC 9001 section 4.8).
const CRYPTO_ERROR: u64 = 0x100;
const NO_APPLICATION_PROTOCOL: u8 = 120;

fn alert(code: quinn::TransportErrorCode) -> Option<u8> {
    u64::from(code).checked_sub(CRYPTO_ERROR).and_then(|alert| u8::try_from(alert).ok())
}

/// Returns the text of a TLS alert about a certificate, or `None` for another alert.
fn certificate_alert(alert: u8) -> Option<&'static str> {
    Some(match alert {
        42 | 43 => "the certificate is unusable",
        44 => "the certificate was revoked",
        45 => "the certificate has expired",
        46 => "the certificate belongs to another node",
        48 => "the certificate was issued by the authority of another network",
        49 => "access is denied",
        51 => "a signature is invalid",
        116 => "a certificate is required",
        _ => return None,
    })
}

impl NetError {
    /// Classifies the error of a connection to `address`.
    pub fn from_connection(address: &str, error: &ConnectionError) -> Self {
        let address = address.to_owned();
        match error {
            ConnectionError::VersionMismatch => Self::VersionMismatch { address },
            ConnectionError::TimedOut => Self::Unreachable { address, why: "no answer".to_owned() },
            ConnectionError::TransportError(error) => match alert(error.code) {
                Some(NO_APPLICATION_PROTOCOL) => Self::VersionMismatch { address },
                Some(code) => {
                    // A certificate for another name and a malformed certificate cause the same alert. Only the text
                    // distinguishes them.
                    let why = match certificate_alert(code) {
                        _ if error.reason.contains("not valid for name") => "another node answers at this address",
                        Some(why) => why,
                        None => &error.reason,
                    };
                    Self::NotAuthorised { address, why: format!("this program rejects it: {why}") }
                }
                None => Self::Closed { address, why: error.to_string() },
            },
            ConnectionError::ConnectionClosed(close) => match alert(close.error_code) {
                Some(NO_APPLICATION_PROTOCOL) => Self::VersionMismatch { address },
                Some(code) => Self::NotAuthorised {
                    address,
                    why: format!(
                        "it rejects this program: {}",
                        certificate_alert(code).unwrap_or("the handshake failed")
                    ),
                },
                None if close.error_code == quinn::TransportErrorCode::CONNECTION_REFUSED => {
                    Self::Refused { address, why: "it has too many connections".to_owned() }
                }
                None => Self::Closed { address, why: close.to_string() },
            },
            ConnectionError::ApplicationClosed(close) => {
                let why = String::from_utf8_lossy(&close.reason).chars().filter(|c| !c.is_control()).collect();
                match CloseCode::from_varint(close.error_code) {
                    CloseCode::NotAuthorised => Self::NotAuthorised { address, why },
                    CloseCode::ShuttingDown => Self::Unreachable { address, why: "it has just stopped".to_owned() },
                    CloseCode::Overloaded => Self::Refused { address, why },
                    CloseCode::Done | CloseCode::Protocol => Self::Closed { address, why },
                }
            }
            other => Self::Closed { address, why: other.to_string() },
        }
    }

    /// Classifies the error of a call on a connection to `address`.
    pub fn from_rpc(address: &str, error: &RpcError, connection: &quinn::Connection) -> Self {
        match (error, connection.close_reason()) {
            // The reason of the connection is more specific than the missing answer.
            (_, Some(reason)) => Self::from_connection(address, &reason),
            (RpcError::DeadlineExceeded, None) => Self::Deadline { address: address.to_owned() },
            // The display text of `RpcError::Server` only says that the server stopped; `detail` has the cause.
            (RpcError::Server(error), None) => Self::Refused {
                address: address.to_owned(),
                why: error.detail.chars().filter(|c| !c.is_control()).collect(),
            },
            (error, None) => Self::Closed { address: address.to_owned(), why: error.to_string() },
        }
    }

    /// Converts the last error of dialling all known nameserver addresses into a failure; `None` if there was no
    /// address.
    pub fn nameserver_failure(last: Option<Self>) -> Failure {
        match last {
            Some(error @ (Self::Unreachable { .. } | Self::Local(_) | Self::Deadline { .. })) => Failure::new(
                FailureCode::NameserverUnreachable,
                "the nameserver cannot be reached",
                error,
                "start `nameserver`, or give its address with -n HOST -p PORT",
            ),
            // The server is at a limit; it did not judge our credentials.
            Some(error @ Self::Refused { .. }) => Failure::new(
                FailureCode::NameserverUnreachable,
                "the nameserver refuses the connection",
                error,
                "try again later; if it fails again, look at the log of the nameserver",
            ),
            // The server is restarting; it did not judge our credentials.
            Some(error @ Self::Closed { .. }) => Failure::new(
                FailureCode::NameserverUnreachable,
                "the nameserver ended the connection",
                error,
                "try again; if it fails again, look at the log of the nameserver",
            ),
            Some(error) => error.into_failure("the nameserver rejects this program"),
            None => {
                Failure::new(FailureCode::Internal, "no nameserver address is known", "none was given", "use -n HOST")
            }
        }
    }

    /// Converts the error of a call to the nameserver into a failure of the operation `what`, with a remedy.
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
            Self::Refused { .. } => (FailureCode::Timeout, "try again later"),
            Self::Closed { .. } => (FailureCode::Timeout, "try again"),
        };
        Failure::new(code, what, self, hint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nameserver_at_its_limit_is_reported_as_refusing() {
        let close = quinn::ApplicationClose {
            error_code: CloseCode::Overloaded.to_varint(),
            reason: b"too many connections of this identity"[..].into(),
        };
        let refused = NetError::from_connection("nameserver", &ConnectionError::ApplicationClosed(close));
        assert!(matches!(&refused, NetError::Refused { why, .. } if why.contains("too many")), "{refused:?}");
        let failure = NetError::nameserver_failure(Some(refused));
        assert_eq!(failure.code, FailureCode::NameserverUnreachable);
        assert!(failure.what.contains("refuses") && failure.why.contains("too many"), "{failure}");
    }

    #[test]
    fn nameserver_that_restarts_is_unreachable_and_one_that_rejects_is_not_authorised() {
        let address = "nameserver (127.0.0.1:9090)".to_owned();
        let reset = NetError::from_connection(&address, &ConnectionError::Reset);
        assert_eq!(NetError::nameserver_failure(Some(reset)).code, FailureCode::NameserverUnreachable);
        let refused = NetError::NotAuthorised { address, why: "not trusted".to_owned() };
        assert_eq!(NetError::nameserver_failure(Some(refused)).code, FailureCode::NotAuthorised);
    }
}
