//! Registration of this peer's name `peer.<id>` in the nameserver: registers it, renews its lease, registers it again
//! after the lease expired, and removes it at the end.

use std::{sync::Arc, time::Duration};

use shared::{
    error::{Failure, FailureCode},
    id::{Incarnation, PeerId},
    limits,
    name::{Endpoint, Name},
    net::NetError,
    retry::{Backoff, LogLimit},
    rpc::nameserver::{Condition, LeaseRequest, NameError, NameServiceClient, Register, Registered, Selector},
    time::Clock,
};
use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{params, rpc_client::RpcClient};
use crate::diagnostics::warnings::{Topic, Warnings};

/// Subject of the warning about the registration.
const SUBJECT: &str = "registration";

/// Registration of one peer.
#[derive(Clone)]
pub struct Registration {
    /// Client of the nameserver.
    pub calls: Arc<RpcClient>,
    /// Id of this peer.
    pub id: PeerId,
    /// Incarnation of this process.
    pub incarnation: Incarnation,
    /// Endpoint of this peer.
    pub endpoint: Endpoint,
    /// Lasting conditions for `status`.
    pub warnings: Warnings,
}

/// State of a registration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegistrationState {
    /// The nameserver has not registered the name yet.
    Waiting,
    /// The name was registered.
    Registered,
    /// The registration is no longer kept.
    Ended,
}

/// Reason why a registration is no longer kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RegistrationEnd {
    /// The caller stopped it.
    Stopped,
    /// A later run of this peer holds the name. The process must end.
    Superseded,
}

/// Error of one attempt.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum RegistrationError {
    /// The nameserver did not answer or refused the connection. The peer retries.
    #[error(transparent)]
    Call(NetError),
    /// The nameserver cannot register the name at the moment. The peer retries.
    #[error("the nameserver refuses: {0}")]
    Refused(NameError),
    /// The nameserver does not permit the registration.
    #[error(transparent)]
    Denied(NameError),
}

impl Registration {
    /// Registers the name for the first time.
    ///
    /// # Errors
    /// `AlreadyRunning` if a later run of this peer holds the name, `NameserverUnreachable` if the nameserver does not
    /// answer or cannot store the name, `LimitReached` if it has too many names, `NotAuthorised` if it does not permit
    /// the name.
    pub async fn register(&self) -> Result<(), Failure> {
        match self.try_register().await {
            Ok(_) => Ok(()),
            Err(error) => Err(first_failure(&self.id, error)),
        }
    }

    /// Registers the name, unless `state` says that it is, and renews its lease until `stop`; then removes the name.
    /// Retries while the nameserver does not answer or refuses.
    pub async fn keep(self, state: &watch::Sender<RegistrationState>, stop: CancellationToken) -> RegistrationEnd {
        let clock = Clock::start();
        let mut backoff = Backoff::new(params::REGISTRATION_SHORTEST, params::REGISTRATION_LONGEST);
        let mut log = LogLimit::new(params::LOG_INTERVAL);
        let is_registered = || *state.borrow() == RegistrationState::Registered;
        let mut wait = if is_registered() { renewal_interval(limits::DEFAULT_LEASE) } else { Duration::ZERO };
        let mut failing = false;
        loop {
            tokio::select! {
                () = sleep(wait) => {}
                () = self.calls.nameserver_back(), if failing => {}
                () = stop.cancelled() => {
                    if is_registered() {
                        self.remove().await;
                    }
                    return RegistrationEnd::Stopped;
                }
            }
            let attempt = if is_registered() { self.renew().await } else { self.try_register().await };
            match attempt {
                Ok(registered) => {
                    if std::mem::take(&mut failing) {
                        tracing::info!("registered again");
                    }
                    self.warnings.clear(Topic::Nameserver, SUBJECT);
                    backoff.reset();
                    state.send_replace(RegistrationState::Registered);
                    wait = renewal_interval(registered.lease.unwrap_or(limits::DEFAULT_LEASE));
                }
                Err(RegistrationError::Denied(NameError::Superseded { .. })) => return RegistrationEnd::Superseded,
                Err(error) => {
                    failing = true;
                    wait = backoff.pause();
                    if let Some(suppressed) = log.permit(clock.now()) {
                        // The start of a peer that was never registered has warned already.
                        match is_registered() {
                            true => tracing::warn!(%error, suppressed, "cannot renew the registration; retrying"),
                            false => tracing::info!(%error, suppressed, "cannot register this peer; retrying"),
                        }
                    }
                    self.warn(&error);
                }
            }
        }
    }

    /// Warns of a failure that does not pass by itself.
    fn warn(&self, error: &RegistrationError) {
        let remedy = match error {
            RegistrationError::Call(NetError::NotAuthorised { .. }) => {
                format!("join again with a token: `nsc token`, then `peer {} --join TOKEN`", self.id)
            }
            RegistrationError::Call(NetError::VersionMismatch { .. }) => {
                "update the older of the two programs".to_owned()
            }
            // `status` itself pings the nameserver.
            RegistrationError::Call(_) => return self.warnings.clear(Topic::Nameserver, SUBJECT),
            RegistrationError::Refused(_) => "look at the log of the nameserver".to_owned(),
            RegistrationError::Denied(_) => "ask the network's admin".to_owned(),
        };
        let text = format!("this peer is not registered, so that others do not find it: {error}; {remedy}");
        self.warnings.set(Topic::Nameserver, SUBJECT, text);
    }

    async fn renew(&self) -> Result<Registered, RegistrationError> {
        let (name, incarnation) = (Name::peer(&self.id).to_string(), self.incarnation);
        let answer = self
            .calls
            .names(limits::CALL_DEADLINE, |names: NameServiceClient, cx| async move {
                names.renew(cx, name, incarnation).await
            })
            .await;
        match answer {
            // The lease expired while the nameserver could not be reached.
            Ok(Err(NameError::UnknownName(_))) => self.try_register().await,
            answer => classify(answer),
        }
    }

    async fn try_register(&self) -> Result<Registered, RegistrationError> {
        let request = Register {
            name: Name::peer(&self.id).to_string(),
            uri: self.endpoint.to_string(),
            tags: None,
            lease: LeaseRequest::For(limits::DEFAULT_LEASE),
            condition: Condition::Always,
            incarnation: self.incarnation,
        };
        let answer =
            self.calls
                .names(limits::CALL_DEADLINE, |names: NameServiceClient, cx| async move {
                    names.register(cx, request).await
                })
                .await;
        classify(answer)
    }

    async fn remove(&self) {
        let selector = Selector { name: Some(Name::peer(&self.id).to_string()), ..Selector::default() };
        let answer =
            self.calls
                .names(limits::CLOSE_DEADLINE, |names: NameServiceClient, cx| async move {
                    names.remove(cx, selector).await
                })
                .await;
        if !matches!(answer, Ok(Ok(_))) {
            tracing::debug!(?answer, "cannot remove the name; it stays until its lease expires");
        }
    }
}

fn renewal_interval(lease: Duration) -> Duration {
    lease / params::LEASE_RENEWALS_PER_TERM
}

fn classify(answer: Result<Result<Registered, NameError>, NetError>) -> Result<Registered, RegistrationError> {
    answer.map_err(RegistrationError::Call)?.map_err(|error| match error {
        NameError::Unavailable(_) | NameError::LimitReached { .. } | NameError::UnknownName(_) => {
            RegistrationError::Refused(error)
        }
        error => RegistrationError::Denied(error),
    })
}

/// Returns the failure of a start whose registration failed.
fn first_failure(id: &PeerId, error: RegistrationError) -> Failure {
    let (code, hint) = match &error {
        RegistrationError::Call(_) => {
            (FailureCode::NameserverUnreachable, "check that the nameserver runs, then try again")
        }
        RegistrationError::Refused(NameError::LimitReached { .. }) => {
            (FailureCode::LimitReached, "try again later, or ask the network's admin to remove names")
        }
        RegistrationError::Refused(_) => {
            (FailureCode::NameserverUnreachable, "try again; if it fails again, look at the log of the nameserver")
        }
        RegistrationError::Denied(NameError::Superseded { .. }) => {
            let what = format!("{id} is running already");
            return Failure::new(FailureCode::AlreadyRunning, what, error, "stop that one, or take another peer id");
        }
        RegistrationError::Denied(_) => {
            (FailureCode::NotAuthorised, "take another peer id, or ask the network's admin")
        }
    };
    Failure::new(code, format!("{} could not be registered", Name::peer(id)), error, hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(answer: Result<Result<Registered, NameError>, NetError>) -> Failure {
        first_failure(&"a".parse().unwrap(), classify(answer).unwrap_err())
    }

    #[test]
    fn first_registration_that_is_refused_is_not_reported_as_unreachable() {
        let full = failure(Ok(Err(NameError::LimitReached { what: "names".to_owned(), limit: 7 })));
        assert_eq!(full.code, FailureCode::LimitReached);
        assert!(full.why.contains("refuses: limit reached: names"), "{full}");

        let unavailable = failure(Ok(Err(NameError::Unavailable("the disk is full".to_owned()))));
        assert_eq!(unavailable.code, FailureCode::NameserverUnreachable);
        assert!(unavailable.why.contains("the disk is full") && !unavailable.hint.contains("runs"), "{unavailable}");

        let later = failure(Ok(Err(NameError::Superseded { by: Incarnation(2) })));
        assert_eq!(later.code, FailureCode::AlreadyRunning);
        assert_eq!(failure(Ok(Err(NameError::NotAuthorised(String::new())))).code, FailureCode::NotAuthorised);
        let silent = NetError::Deadline { address: "nameserver".to_owned() };
        assert_eq!(failure(Err(silent)).code, FailureCode::NameserverUnreachable);
    }
}
