//! A third program: asks the nameserver who the tracker is, and the tracker for all files.
//!
//! Run it on the machine and as the user of the nameserver: `cargo run -p peer --example files`.

#![expect(clippy::print_stdout, reason = "an example shows what it finds")]

use shared::{
    error::Failure,
    id::Role,
    limits::CALL_DEADLINE,
    net::{
        Target,
        session::{Session, SessionConfig, StateDir},
    },
    rpc::{
        nameserver::NameServiceClient,
        tracker::{ListAll, TrackerServiceClient},
    },
};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let state_dir = StateDir::of_user()?;
    let config = SessionConfig { role: Role::Admin, state_dir, nameserver: None, join: None };
    let session = Session::open(&config).await?;

    let ask = |names: NameServiceClient, context| async move { names.seat(context).await };
    let view = session.connections.call(&session.nameserver, CALL_DEADLINE, ask).await;
    let Some(seat) = view.map_err(|error| error.into_failure("the nameserver does not answer"))?.seat else {
        println!("there is no tracker");
        return Ok(());
    };
    println!("{} is tracker at {} under epoch {}", seat.peer, seat.endpoint, seat.epoch);

    let tracker = Target { role: Role::Peer(seat.peer), endpoint: seat.endpoint };
    let mut after = None;
    loop {
        let query = ListAll { epoch: seat.epoch, prefix: String::new(), after };
        let ask = |tracker: TrackerServiceClient, context| async move { tracker.list_all(context, query).await };
        let page = session.connections.call(&tracker, CALL_DEADLINE, ask).await;
        let page = page.map_err(|error| error.into_failure("the tracker does not answer"))?;
        let Ok(page) = page.inspect_err(|error| println!("the tracker has no answer: {error}")) else { return Ok(()) };
        for indexed in &page.files {
            println!("{:>12}  {}  {:?}", indexed.file.size, indexed.file.name, indexed.owners);
        }
        after = page.next;
        if after.is_none() {
            return Ok(());
        }
    }
}
