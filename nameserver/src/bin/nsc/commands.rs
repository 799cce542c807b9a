//! The commands of `nsc`: calls to the nameserver and the answers to print.

use shared::{
    error::{Failure, FailureCode},
    id::Incarnation,
    limits::{CALL_DEADLINE, MAX_WATCH_WAIT},
    name::Name,
    net::session::Session,
    rpc::nameserver::{
        Changes, Condition, LeaseRequest, ListQuery, MintToken, NameError, NameServiceClient, Page, Position, Record,
        Register, Selector, TagQuery, WatchQuery,
    },
};
use tarpc::{client::RpcError, context::Context};

use crate::{
    args::Command,
    output::{confirm, print},
    render::{SEARCHED, change_line, listing, lookup},
};

/// An admin's session with the nameserver.
pub(crate) struct NameClient(pub(crate) Session);

impl NameClient {
    /// Executes a command and prints its answer.
    ///
    /// # Errors
    /// The nameserver's refusal, a failure of the network, or `io` when the answer cannot be written.
    pub(crate) async fn execute(&self, command: Command) -> Result<(), Failure> {
        let answer = match command {
            Command::Ping => {
                self.call("the nameserver cannot be pinged", |c, cx| async move { c.ping(cx).await.map(Ok) }).await?;
                "Name server ping ok.\n".to_owned()
            }
            Command::List { prefix: None } => listing(&self.list(None, None).await?, ""),
            Command::List { prefix: Some(prefix) } => {
                listing(&self.list(Some(&prefix), None).await?, &format!("- prefix '{prefix}'"))
            }
            Command::Listmatching { pattern } => {
                listing(&self.list(None, Some(&pattern)).await?, &format!("- regex '{pattern}'"))
            }
            Command::Watch { prefix } => return self.watch(prefix).await,
            Command::YplookupAll { tags } => listing(&self.yplookup(Some(tags), None).await?, SEARCHED),
            Command::YplookupAny { tags } => listing(&self.yplookup(None, Some(tags)).await?, SEARCHED),
            Command::Lookup { name } => {
                let what = format!("{name} was not found");
                let record = self.call(what, |c, cx| async move { c.lookup(cx, name).await }).await?;
                lookup(&record)
            }
            Command::Register { name, uri, tags } => {
                let what = format!("{name} was not registered");
                let done = format!("Registered {name}\n");
                let request = Register {
                    name,
                    uri,
                    tags: Some(tags),
                    lease: LeaseRequest::Permanent,
                    condition: Condition::IfAbsent,
                    incarnation: Incarnation::default(),
                };
                self.call(what, |c, cx| async move { c.register(cx, request).await }).await?;
                done
            }
            Command::Remove { name } => {
                let selector = Selector { name: Some(name.clone()), ..Selector::default() };
                match self.remove(&name, selector).await? {
                    0 => "Nothing removed\n".to_owned(),
                    _ => format!("Removed {name}\n"),
                }
            }
            Command::Removematching { pattern } => {
                if !confirm().await? {
                    return Ok(());
                }
                let selector = Selector { regex: Some(pattern.clone()), ..Selector::default() };
                format!("{} items removed.\n", self.remove(&pattern, selector).await?)
            }
            Command::Setmeta { name, tags } => {
                let done = if tags.is_empty() { "Metadata cleared\n" } else { "Metadata updated\n" };
                let what = format!("the metadata of {name} was not changed");
                self.call(what, |c, cx| async move { c.set_metadata(cx, name, tags).await }).await?;
                done.to_owned()
            }
            Command::Token { ttl, uses, for_peer } => {
                let request = MintToken { ttl, uses, for_peer };
                self.call("no token was created", |c, cx| async move { c.mint_token(cx, request).await }).await? + "\n"
            }
        };
        print(&answer)
    }

    async fn list(&self, prefix: Option<&str>, regex: Option<&str>) -> Result<Vec<Record>, Failure> {
        self.all_pages(|after| {
            let query = ListQuery { prefix: prefix.map(Into::into), regex: regex.map(Into::into), after };
            self.call("the names cannot be listed", |c, cx| async move { c.list(cx, query).await })
        })
        .await
    }

    /// Prints the names, then each change as `+ NAME --> URI` or `- NAME`. Returns only on a failure.
    async fn watch(&self, prefix: Option<String>) -> Result<(), Failure> {
        let mut since = None;
        loop {
            match self.changes(since, prefix.clone()).await? {
                Changes::Resync { position } => {
                    since = Some(position);
                    let title = prefix.as_ref().map(|prefix| format!("- prefix '{prefix}'")).unwrap_or_default();
                    print(&listing(&self.list(prefix.as_deref(), None).await?, &title))?;
                }
                Changes::Delta { position, changes } => {
                    since = Some(position);
                    changes.iter().try_for_each(|change| print(&change_line(change)))?;
                }
            }
        }
    }

    async fn changes(&self, since: Option<Position>, prefix: Option<String>) -> Result<Changes, Failure> {
        let query = WatchQuery { since, prefix, regex: None, wait: MAX_WATCH_WAIT };
        let call = |names: NameServiceClient, cx| async move { names.changes(cx, query).await };
        let what = "the names cannot be watched";
        match self.0.connections.call(&self.0.nameserver, MAX_WATCH_WAIT + CALL_DEADLINE, call).await {
            Ok(answer) => answer.map_err(|error| refusal(what, &error)),
            Err(error) => Err(error.into_failure(what)),
        }
    }

    async fn yplookup(&self, all: Option<Vec<String>>, any: Option<Vec<String>>) -> Result<Vec<Record>, Failure> {
        self.all_pages(|after| {
            let query = TagQuery { all: all.clone(), any: any.clone(), after };
            self.call("the names cannot be listed", |c, cx| async move { c.yplookup(cx, query).await })
        })
        .await
    }

    async fn all_pages<F>(&self, mut page: impl FnMut(Option<Name>) -> F) -> Result<Vec<Record>, Failure>
    where
        F: Future<Output = Result<Page, Failure>>,
    {
        let mut records = Vec::new();
        let mut after = None;
        loop {
            let mut page = page(after).await?;
            records.append(&mut page.records);
            after = page.next;
            if after.is_none() {
                return Ok(records);
            }
        }
    }

    async fn remove(&self, what: &str, selector: Selector) -> Result<u64, Failure> {
        self.call(format!("{what} was not removed"), |c, cx| async move { c.remove(cx, selector).await }).await
    }

    /// Calls the nameserver. `what` is the summary of a failure.
    async fn call<T, F>(
        &self,
        what: impl Into<String>,
        call: impl FnOnce(NameServiceClient, Context) -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<Result<T, NameError>, RpcError>>,
    {
        match self.0.connections.call(&self.0.nameserver, CALL_DEADLINE, call).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(refusal(what, &error)),
            Err(error) => Err(error.into_failure(what)),
        }
    }
}

/// Converts a refusal of the nameserver to a failure with a hint for the user.
fn refusal(what: impl Into<String>, error: &NameError) -> Failure {
    let (code, hint) = match error {
        NameError::UnknownName(_) => (FailureCode::UnknownName, "`nsc list` shows the names"),
        NameError::NameExists(_) => (FailureCode::Exists, "remove it first, or choose another name"),
        NameError::InvalidName(_) => (FailureCode::InvalidName, "choose another name"),
        NameError::InvalidUri(_) | NameError::InvalidTag(_) | NameError::InvalidQuery(_) => {
            (FailureCode::Usage, "correct the argument")
        }
        NameError::NotAuthorised(_) => (FailureCode::NotAuthorised, "only the owner may do that"),
        NameError::LimitReached { .. } => (FailureCode::LimitReached, "remove something first"),
        NameError::RevisionMismatch { .. } | NameError::Superseded { .. } | NameError::Unavailable(_) => {
            (FailureCode::Timeout, "try again")
        }
    };
    Failure::new(code, what, error, hint)
}
