//! This peer's name in the nameserver, `peer.<id>`: registered, renewed, registered again when it is lost, removed at
//! the end.

use std::time::Duration;

use shared::{
    error::{Failure, FailureCode},
    id::{Incarnation, PeerId},
    limits,
    name::{Endpoint, Name},
    net::{Connections, NetError, Target},
    rpc::nameserver::{Condition, LeaseRequest, NameError, NameServiceClient, Register, Registered, Selector},
};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// How long after a failed try the next one comes: soon, so that a nameserver that is back is used at once.
const RETRY: Duration = Duration::from_millis(250);

/// The registration of one peer.
#[derive(Clone)]
pub struct Registration {
    /// The way to the nameserver.
    pub connections: Connections,
    /// The nameserver.
    pub nameserver: Target,
    /// Who.
    pub id: PeerId,
    /// Which run.
    pub incarnation: Incarnation,
    /// Where it answers.
    pub endpoint: Endpoint,
}

/// How a registration that is kept ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RegistrationEnd {
    /// As asked.
    Stopped,
    /// The nameserver does not let this run keep the name; the process must end.
    Lost(String),
}

enum Problem {
    /// Try again.
    Passing(String),
    /// No use.
    Final(NameError),
}

impl Registration {
    /// Registers the name for the first time.
    ///
    /// # Errors
    /// `AlreadyRunning` when a later run of this peer holds the name, `NameserverUnreachable` when the nameserver does
    /// not answer.
    pub async fn register(&self) -> Result<(), Failure> {
        self.try_register().await.map(|_| ()).map_err(|problem| match problem {
            Problem::Passing(why) => Failure::new(
                FailureCode::NameserverUnreachable,
                format!("{} could not be registered", Name::peer(&self.id)),
                why,
                "check that the nameserver runs, then try again",
            ),
            Problem::Final(error @ NameError::Superseded { .. }) => Failure::new(
                FailureCode::AlreadyRunning,
                format!("{} is running already", self.id),
                error,
                "stop that one, or take another peer id",
            ),
            Problem::Final(error) => Failure::new(
                FailureCode::NotAuthorised,
                format!("{} could not be registered", Name::peer(&self.id)),
                error,
                "take another peer id, or ask the network's admin",
            ),
        })
    }

    /// Keeps the name until `stop`, through absences of the nameserver, then removes it.
    pub async fn keep(self, stop: CancellationToken) -> RegistrationEnd {
        let mut wait = limits::DEFAULT_LEASE / limits::LEASE_RENEWALS_PER_TERM;
        let mut away = false;
        loop {
            tokio::select! {
                () = sleep(wait) => {}
                () = stop.cancelled() => {
                    self.remove().await;
                    return RegistrationEnd::Stopped;
                }
            }
            match self.renew().await {
                Ok(registered) => {
                    if std::mem::take(&mut away) {
                        tracing::info!("the nameserver is back");
                    }
                    let lease = registered.lease.unwrap_or(limits::DEFAULT_LEASE);
                    wait = lease / limits::LEASE_RENEWALS_PER_TERM;
                }
                Err(Problem::Passing(why)) => {
                    if !std::mem::replace(&mut away, true) {
                        tracing::warn!(why, "the nameserver does not answer; trying again");
                    }
                    wait = RETRY;
                }
                Err(Problem::Final(error)) => return RegistrationEnd::Lost(error.to_string()),
            }
        }
    }

    async fn renew(&self) -> Result<Registered, Problem> {
        let (name, incarnation) = (Name::peer(&self.id).to_string(), self.incarnation);
        let answer = self
            .connections
            .call(&self.nameserver, limits::CALL_DEADLINE, |names: NameServiceClient, cx| async move {
                names.renew(cx, name, incarnation).await
            })
            .await;
        match answer {
            // The lease ran out while the nameserver could not be reached.
            Ok(Err(NameError::UnknownName(_))) => self.try_register().await,
            answer => sort(answer),
        }
    }

    async fn try_register(&self) -> Result<Registered, Problem> {
        let request = Register {
            name: Name::peer(&self.id).to_string(),
            uri: self.endpoint.to_string(),
            tags: None,
            lease: LeaseRequest::For(limits::DEFAULT_LEASE),
            condition: Condition::Always,
            incarnation: self.incarnation,
        };
        let answer = self
            .connections
            .call(&self.nameserver, limits::CALL_DEADLINE, |names: NameServiceClient, cx| async move {
                names.register(cx, request).await
            })
            .await;
        sort(answer)
    }

    async fn remove(&self) {
        let selector = Selector { name: Some(Name::peer(&self.id).to_string()), ..Selector::default() };
        let answer = self
            .connections
            .call(&self.nameserver, limits::CLOSE_DEADLINE, |names: NameServiceClient, cx| async move {
                names.remove(cx, selector).await
            })
            .await;
        if !matches!(answer, Ok(Ok(_))) {
            tracing::debug!(?answer, "the name stays until its lease runs out");
        }
    }
}

fn sort(answer: Result<Result<Registered, NameError>, NetError>) -> Result<Registered, Problem> {
    match answer {
        Ok(Ok(registered)) => Ok(registered),
        Ok(Err(error @ (NameError::Unavailable(_) | NameError::LimitReached { .. } | NameError::UnknownName(_)))) => {
            Err(Problem::Passing(error.to_string()))
        }
        Ok(Err(error)) => Err(Problem::Final(error)),
        Err(error) => Err(Problem::Passing(error.to_string())),
    }
}
