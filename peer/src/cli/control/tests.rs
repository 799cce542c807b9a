//! Commands over the control socket of a fake peer.

use std::{sync::atomic::Ordering, time::Duration};

use super::*;
use crate::cli::fake_peer::FakePeer;

const DEADLINE: Duration = Duration::from_secs(20);

struct Running {
    folder: PathBuf,
    fake: Arc<FakePeer>,
    stop: CancellationToken,
    served: tokio::task::JoinHandle<PeerEffect>,
    _base: tempfile::TempDir,
}

fn start_in(folder: &str) -> Running {
    let base = tempfile::tempdir().unwrap();
    let folder = base.path().join(folder);
    let fake = Arc::new(FakePeer::sharing(&["a.txt"]));
    let server = ControlServer::bind(&folder).unwrap();
    let stop = CancellationToken::new();
    let served = tokio::spawn({
        let (peer, stop) = (Arc::clone(&fake) as Arc<dyn PeerApi>, stop.clone());
        async move { server.serve(peer, &stop).await }
    });
    Running { folder, fake, stop, served, _base: base }
}

fn start() -> Running {
    start_in("peers/peer1")
}

fn request(line: &str) -> Request {
    let words = line.split(' ').map(str::to_owned).collect();
    Request { words, json: false, working_dir: "/client".into(), progress: true }
}

async fn run(running: &Running, request: &Request) -> (ClientOutcome, String, String) {
    let client = ControlClient::connect(&running.folder).await.unwrap().expect("the peer is running");
    let (mut out, mut err) = (String::new(), String::new());
    let running = client.run(request, |reply| {
        match reply {
            Reply::Out(part) => out += &part,
            Reply::Err(part) => err += &part,
            Reply::Accepted | Reply::Progress(_) | Reply::Done { .. } => {}
        }
        Ok::<(), io::Error>(())
    });
    let outcome = timeout(DEADLINE, running).await.expect("the command ends").unwrap();
    (outcome, out, err)
}

async fn until(otherwise: &str, mut condition: impl FnMut() -> bool) {
    let waited = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(DEADLINE, waited).await.unwrap_or_else(|_| panic!("{otherwise}"));
}

#[tokio::test]
async fn running_peer_executes_commands_and_its_socket_is_private() {
    let running = start();
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
    assert_eq!((mode(&running.folder), mode(&running.folder.join(SOCKET_NAME))), (0o700, 0o600));
    assert_eq!(
        run(&running, &request("list")).await,
        (ClientOutcome::Done(0), "a.txt  3 B\n".to_owned(), String::new())
    );
    let json = Request { json: true, ..request("tracker") };
    assert!(run(&running, &json).await.1.starts_with(r#"{"epoch":4"#));
    let (outcome, _, err) = run(&running, &request("remove nope")).await;
    assert_eq!(outcome, ClientOutcome::Done(1));
    assert!(err.starts_with("error: no file"), "{err}");
    assert_eq!(run(&running, &request("frob")).await.0, ClientOutcome::Done(2));
    run(&running, &request("add x.txt")).await;
    assert_eq!(running.fake.added.lock().unwrap()[0].path, Path::new("/client/x.txt"));
}

#[tokio::test]
async fn disconnecting_client_stops_its_command() {
    let running = start();
    let client = ControlClient::connect(&running.folder).await.unwrap().unwrap();
    let mut progress_count = 0;
    let slow = request("download slow");
    {
        let mut running_command = std::pin::pin!(client.run(&slow, |reply| match reply {
            // Stops the client at the first progress, as Ctrl-C does.
            Reply::Progress(_) => {
                progress_count += 1;
                Err(())
            }
            _ => Ok(()),
        }));
        assert_eq!(timeout(DEADLINE, &mut running_command).await.unwrap(), Err(()));
    }
    assert_eq!(progress_count, 1);
    until("the download was not dropped", || running.fake.dropped.load(Ordering::SeqCst) == 1).await;
    assert_eq!(run(&running, &request("list")).await.0, ClientOutcome::Done(0));
}

#[tokio::test]
async fn exit_and_kill_are_answered_before_the_server_ends() {
    for (line, next) in [("exit", PeerEffect::Exit), ("kill", PeerEffect::Kill)] {
        let running = start();
        assert_eq!(run(&running, &request(line)).await.0, ClientOutcome::Done(0));
        assert_eq!(timeout(DEADLINE, running.served).await.unwrap().unwrap(), next);
        assert!(ControlClient::connect(&running.folder).await.unwrap().is_none());
    }
}

#[tokio::test]
async fn stopping_server_completes_running_commands_and_accepts_no_new_ones() {
    let running = start();
    let client = ControlClient::connect(&running.folder).await.unwrap().unwrap();
    let slow = request("download slow");
    let mut running_command = Box::pin(client.run(&slow, |_| Ok::<(), ()>(())));
    tokio::select! {
        _ = &mut running_command => panic!("the slow download completed"),
        () = until("the download did not start", || running.fake.started.load(Ordering::SeqCst) == 1) => {}
    }
    running.stop.cancel();
    until("the socket was not removed", || !running.folder.join(SOCKET_NAME).exists()).await;
    assert!(ControlClient::connect(&running.folder).await.unwrap().is_none());
    assert!(!running.served.is_finished());
    drop(running_command);
    assert_eq!(timeout(DEADLINE, running.served).await.unwrap().unwrap(), PeerEffect::Exit);
}

#[tokio::test]
async fn socket_of_a_dead_peer_is_replaced() {
    let base = tempfile::tempdir().unwrap();
    assert!(ControlClient::connect(base.path()).await.unwrap().is_none());
    // Dropping the listener leaves the file.
    drop(std::os::unix::net::UnixListener::bind(base.path().join(SOCKET_NAME)).unwrap());
    assert!(ControlClient::connect(base.path()).await.unwrap().is_none());
    let _server = ControlServer::bind(base.path()).unwrap();
    assert!(ControlClient::connect(base.path()).await.unwrap().is_some());
}

#[tokio::test]
async fn state_folder_with_a_long_path_gets_a_linked_socket() {
    let running = start_in(&"long-name/".repeat(20));
    assert_eq!(run(&running, &request("list")).await.0, ClientOutcome::Done(0));
    let short = fs::read_link(running.folder.join(SOCKET_NAME)).unwrap();
    assert!(short.as_os_str().len() <= MAX_SOCKET_PATH_BYTES);
    run(&running, &request("exit")).await;
    running.served.await.unwrap();
    assert!(!short.exists() && fs::symlink_metadata(running.folder.join(SOCKET_NAME)).is_err());
}

#[tokio::test]
async fn garbage_closes_only_its_own_connection() {
    let running = start();
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 64], &[0, 0, 0, 2, b'{', b'}'], &[0, 0, 0, 9]] {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut stream = UnixStream::connect(running.folder.join(SOCKET_NAME)).await.unwrap();
        stream.write_all(garbage).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        // The server can reset the connection while the client has unread data.
        let _ = timeout(DEADLINE, stream.read_to_end(&mut answer)).await.expect("the server closes the connection");
        assert!(answer.is_empty(), "{answer:?}");
    }
    assert_eq!(run(&running, &request("list")).await.0, ClientOutcome::Done(0));
}

#[test]
fn long_output_is_split_between_characters() {
    let text = "a€".repeat(CONTROL_OUTPUT_BYTES);
    let split: Vec<&str> = parts(&text).collect();
    assert!(split.iter().all(|part| !part.is_empty() && part.len() <= CONTROL_OUTPUT_BYTES));
    assert_eq!(split.concat(), text);
    assert_eq!(parts("").count(), 0);
}
