//! Example of a client: asks the nameserver for the tracker, and the tracker for all files.
//!
//! ```text
//! cargo run -p peer --example files
//! ```
//!
//! Needs a running nameserver on the same machine and under the same user, whose state has the admin's key. Prints the
//! tracker and one line for each file: size in bytes, name, owners.

#![expect(clippy::print_stdout, reason = "an example prints its results")]

use shared::{
    error::Failure,
    id::Role,
    limits::CALL_DEADLINE,
    net::{
        Target,
        session::{Session, SessionConfig},
    },
    rpc::{
        nameserver::NameServiceClient,
        tracker::{ListAll, TrackerServiceClient},
    },
    settings::Environment,
};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let state_dir = Environment::of_process().state_dir(None)?;
    let config = SessionConfig { role: Role::Admin, state_dir, nameserver: None, join: None };
    let session = Session::open(&config).await?;

    let call = |nameserver: NameServiceClient, context| async move { nameserver.seat(context).await };
    let view = session.connections.call(&session.nameserver, CALL_DEADLINE, call).await;
    let Some(seat) = view.map_err(|error| error.into_failure("cannot ask the nameserver for the tracker"))?.seat else {
        println!("there is no tracker");
        return Ok(());
    };
    println!("tracker {} at {}, epoch {}", seat.peer, seat.endpoint, seat.epoch);

    let tracker = Target { role: Role::Peer(seat.peer), endpoint: seat.endpoint };
    let mut after = None;
    loop {
        let query = ListAll { epoch: seat.epoch, prefix: String::new(), after };
        let call = |tracker: TrackerServiceClient, context| async move { tracker.list_all(context, query).await };
        let page = session.connections.call(&tracker, CALL_DEADLINE, call).await;
        let page = page.map_err(|error| error.into_failure("cannot ask the tracker for its files"))?;
        let Ok(page) = page.inspect_err(|error| println!("the tracker refused the query: {error}")) else {
            return Ok(());
        };
        for indexed in &page.files {
            println!("{:>12}  {}  {:?}", indexed.file.size, indexed.file.name, indexed.owners);
        }
        after = page.next;
        if after.is_none() {
            return Ok(());
        }
    }
}
