//! Commands over the control socket.

use std::{sync::atomic::Ordering, time::Duration};

use super::*;
use crate::cli::fake::Fake;

const DEADLINE: Duration = Duration::from_secs(20);

struct Running {
    folder: PathBuf,
    fake: Arc<Fake>,
    stop: CancellationToken,
    served: tokio::task::JoinHandle<Next>,
    _base: tempfile::TempDir,
}

fn start_below(deeper: &str) -> Running {
    let base = tempfile::tempdir().unwrap();
    let folder = base.path().join(deeper);
    let fake = Arc::new(Fake::sharing(&["a.txt"]));
    let server = ControlServer::bind(&folder).unwrap();
    let stop = CancellationToken::new();
    let served = tokio::spawn({
        let (backend, stop) = (Arc::clone(&fake) as Arc<dyn PeerApi>, stop.clone());
        async move { server.serve(backend, &stop).await }
    });
    Running { folder, fake, stop, served, _base: base }
}

fn start() -> Running {
    start_below("peers/peer1")
}

fn request(line: &str) -> Request {
    let words = line.split(' ').map(str::to_owned).collect();
    Request { words, json: false, working_dir: "/client".into(), progress: true }
}

async fn ask(running: &Running, request: &Request) -> (Answered, String, String) {
    let client = ControlClient::connect(&running.folder).await.unwrap().expect("a peer runs");
    let (mut out, mut err) = (String::new(), String::new());
    let asked = client.run(request, |reply| {
        match reply {
            Reply::Out(part) => out += &part,
            Reply::Err(part) => err += &part,
            Reply::Accepted | Reply::Progress(_) | Reply::Done { .. } => {}
        }
        Ok::<(), io::Error>(())
    });
    let answered = timeout(DEADLINE, asked).await.expect("an answer").unwrap();
    (answered, out, err)
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let waited = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(DEADLINE, waited).await.unwrap_or_else(|_| panic!("{what}"));
}

#[tokio::test]
async fn a_running_peer_carries_commands_out() {
    let running = start();
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
    assert_eq!((mode(&running.folder), mode(&running.folder.join(SOCKET_NAME))), (0o700, 0o600));
    assert_eq!(ask(&running, &request("list")).await, (Answered::Done(0), "a.txt  3 B\n".to_owned(), String::new()));
    let json = Request { json: true, ..request("tracker") };
    assert!(ask(&running, &json).await.1.starts_with(r#"{"epoch":4"#));
    let (answered, _, err) = ask(&running, &request("remove nope")).await;
    assert_eq!(answered, Answered::Done(1));
    assert!(err.starts_with("error: no file"), "{err}");
    assert_eq!(ask(&running, &request("frob")).await.0, Answered::Done(2));
    ask(&running, &request("add x.txt")).await;
    assert_eq!(running.fake.added.lock().unwrap()[0].path, Path::new("/client/x.txt"));
}

#[tokio::test]
async fn a_client_that_goes_away_stops_its_command() {
    let running = start();
    let client = ControlClient::connect(&running.folder).await.unwrap().unwrap();
    let mut progressed = 0;
    let slow = request("download slow");
    {
        let mut asked = std::pin::pin!(client.run(&slow, |reply| match reply {
            // Seen some progress: Ctrl-C.
            Reply::Progress(_) => {
                progressed += 1;
                Err(())
            }
            _ => Ok(()),
        }));
        assert_eq!(timeout(DEADLINE, &mut asked).await.unwrap(), Err(()));
    }
    assert_eq!(progressed, 1);
    until("the download is dropped", || running.fake.dropped.load(Ordering::SeqCst) == 1).await;
    assert_eq!(ask(&running, &request("list")).await.0, Answered::Done(0));
}

#[tokio::test]
async fn exit_and_kill_reach_the_peer_after_their_answer() {
    for (line, next) in [("exit", Next::Exit), ("kill", Next::Kill)] {
        let running = start();
        assert_eq!(ask(&running, &request(line)).await.0, Answered::Done(0));
        assert_eq!(timeout(DEADLINE, running.served).await.unwrap().unwrap(), next);
        assert!(ControlClient::connect(&running.folder).await.unwrap().is_none());
    }
}

#[tokio::test]
async fn a_peer_that_stops_finishes_what_runs_but_takes_nothing_new() {
    let running = start();
    let client = ControlClient::connect(&running.folder).await.unwrap().unwrap();
    let slow = request("download slow");
    let mut asked = Box::pin(client.run(&slow, |_| Ok::<(), ()>(())));
    tokio::select! {
        _ = &mut asked => panic!("a slow download never ends"),
        () = until("the download begins", || running.fake.begun.load(Ordering::SeqCst) == 1) => {}
    }
    running.stop.cancel();
    until("the socket vanishes", || !running.folder.join(SOCKET_NAME).exists()).await;
    assert!(ControlClient::connect(&running.folder).await.unwrap().is_none());
    assert!(!running.served.is_finished());
    drop(asked);
    assert_eq!(timeout(DEADLINE, running.served).await.unwrap().unwrap(), Next::Exit);
}

#[tokio::test]
async fn what_a_dead_peer_left_is_replaced() {
    let base = tempfile::tempdir().unwrap();
    assert!(ControlClient::connect(base.path()).await.unwrap().is_none());
    // A socket that nobody listens on any more.
    drop(std::os::unix::net::UnixListener::bind(base.path().join(SOCKET_NAME)).unwrap());
    assert!(ControlClient::connect(base.path()).await.unwrap().is_none());
    let _server = ControlServer::bind(base.path()).unwrap();
    assert!(ControlClient::connect(base.path()).await.unwrap().is_some());
}

#[tokio::test]
async fn a_path_too_long_for_a_socket_is_no_obstacle() {
    let running = start_below(&"long-name/".repeat(20));
    assert_eq!(ask(&running, &request("list")).await.0, Answered::Done(0));
    let short = fs::read_link(running.folder.join(SOCKET_NAME)).unwrap();
    assert!(short.as_os_str().len() <= MAX_SOCKET_PATH_BYTES);
    ask(&running, &request("exit")).await;
    running.served.await.unwrap();
    assert!(!short.exists() && fs::symlink_metadata(running.folder.join(SOCKET_NAME)).is_err());
}

#[tokio::test]
async fn garbage_harms_nobody() {
    let running = start();
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 64], &[0, 0, 0, 2, b'{', b'}'], &[0, 0, 0, 9]] {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut stream = UnixStream::connect(running.folder.join(SOCKET_NAME)).await.unwrap();
        stream.write_all(garbage).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        // It may be cut off while there is something unread.
        let _ = timeout(DEADLINE, stream.read_to_end(&mut answer)).await.expect("it is cut off");
        assert!(answer.is_empty(), "{answer:?}");
    }
    assert_eq!(ask(&running, &request("list")).await.0, Answered::Done(0));
}

#[test]
fn long_output_is_cut_between_characters() {
    let text = "a€".repeat(CONTROL_OUTPUT_BYTES);
    let cut: Vec<&str> = parts(&text).collect();
    assert!(cut.iter().all(|part| !part.is_empty() && part.len() <= CONTROL_OUTPUT_BYTES));
    assert_eq!(cut.concat(), text);
    assert_eq!(parts("").count(), 0);
}
