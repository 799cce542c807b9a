//! The program `certs`: output, exit status and files.

#![expect(clippy::unwrap_used, reason = "an unexpected error fails the test")]

use std::{
    fs,
    path::Path,
    process::{Command, Output},
    time::Duration,
};

use certs::{Authority, Identity, Role, trust};

fn certs(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_certs")).args(arguments).env_remove("BRASA_STATE_DIR").output().unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Returns exit status and standard error; asserts that standard error is one line of the documented form.
fn failure(output: &Output) -> (i32, String) {
    let error = String::from_utf8(output.stderr.clone()).unwrap();
    let line = error.strip_suffix('\n').unwrap();
    assert!(
        line.starts_with("error: ") && line.ends_with(')') && line.contains(" (") && line.contains("; "),
        "{line:?}"
    );
    assert!(!line.contains('\n') && output.stdout.is_empty(), "{output:?}");
    (output.status.code().unwrap(), line.to_owned())
}

#[test]
fn issued_identity_is_usable_and_shown_without_its_key() {
    let base = tempfile::tempdir().unwrap();
    let folder = base.path().join("nameserver");
    let authority = Authority::load_or_create(&folder).unwrap();
    let out = base.path().join("peer1.pem");

    let issued = certs(&["issue", "--authority", text(&folder), "--peer", "peer1", "--out", text(&out), "--days", "7"]);
    assert!(issued.status.success(), "{issued:?}");
    let identity = Identity::load(&out).unwrap().unwrap();
    assert_eq!(identity.role(), &Role::Peer("peer1".parse().unwrap()));
    assert_eq!(identity.authority(), authority.certificate());
    trust::member_client(&identity, &[]).unwrap();

    let shown = certs(&["show", text(base.path())]);
    assert!(shown.status.success() && shown.stderr.is_empty(), "{shown:?}");
    let shown = String::from_utf8(shown.stdout).unwrap();
    for part in ["peer peer1", "  role       authority", &authority.fingerprint().to_string()] {
        assert!(shown.contains(part), "{part} is missing in {shown}");
    }
    assert!(shown.contains("(6 days left)") || shown.contains("(7 days left)"), "{shown}");
    let pem = fs::read_to_string(&out).unwrap();
    let key_line = pem.lines().nth(1).unwrap();
    assert!(!shown.contains(key_line));

    // A second identity does not replace the first.
    let again = certs(&["issue", "--authority", text(&folder), "--admin", "--out", text(&out)]);
    let (status, line) = failure(&again);
    assert!(status == 1 && line.contains("it exists already"), "{line}");
    assert_eq!(fs::read_to_string(&out).unwrap(), pem);
}

#[test]
fn expired_identity_is_shown_as_expired() {
    let base = tempfile::tempdir().unwrap();
    let authority = Authority::ephemeral().unwrap();
    let file = base.path().join("identity.pem");
    authority.identity(&Role::Admin, Duration::ZERO).unwrap().save(&file).unwrap();
    let deadline = Identity::load(&file).unwrap().unwrap().expires_unix_seconds() + 10;
    loop {
        let shown = String::from_utf8(certs(&["show", text(&file)]).stdout).unwrap();
        if shown.contains("EXPIRED") {
            break;
        }
        assert!(shown.contains("0 days left"), "{shown}");
        assert!(time::OffsetDateTime::now_utc().unix_timestamp() < deadline, "still valid: {shown}");
    }
}

#[test]
fn wrong_arguments_exit_with_status_2() {
    for arguments in [
        &[][..],
        &["shout"],
        &["show", "a", "b"],
        &["issue"],
        &["issue", "--authority", "x", "--out", "y"],
        &["issue", "--authority", "x", "--out", "y", "--admin", "--peer", "peer1"],
        &["issue", "--authority", "x", "--out", "y", "--peer", "../x"],
        &["issue", "--authority", "x", "--out", "y", "--admin", "--days", "0"],
        &["issue", "--authority", "x", "--out", "y", "--admin", "--days", "many"],
    ] {
        assert_eq!(failure(&certs(arguments)).0, 2, "{arguments:?}");
    }
    assert!(certs(&["--help"]).status.success());
    assert!(certs(&["--version"]).status.success());
}

#[test]
fn missing_or_malformed_file_exits_with_status_1() {
    let base = tempfile::tempdir().unwrap();
    let out = base.path().join("out.pem");
    let missing = base.path().join("missing");
    let issued = certs(&["issue", "--authority", text(&missing), "--admin", "--out", text(&out)]);
    assert_eq!(failure(&issued).0, 1);
    // A failed lookup of the authority creates nothing.
    assert!(!missing.exists() && !out.exists());

    assert_eq!(failure(&certs(&["show", text(&missing)])).0, 1);
    assert_eq!(failure(&certs(&["show", text(base.path())])).0, 1);
    fs::write(&out, "nonsense").unwrap();
    assert_eq!(failure(&certs(&["show", text(&out)])).0, 1);
}

#[test]
fn full_disk_leaves_no_partial_identity() {
    let base = tempfile::tempdir().unwrap();
    let folder = base.path().join("nameserver");
    Authority::load_or_create(&folder).unwrap();
    let empty = base.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let out = empty.join("peer1.pem");
    // The limit forbids any file to grow: the write returns an error, or SIGXFSZ kills the program during the write.
    for on_signal in ["trap '' XFSZ; ", ""] {
        let script = format!("ulimit -c 0; ulimit -f 0; {on_signal}exec \"$0\" \"$@\"");
        let output = Command::new("sh")
            .args(["-c", &script, env!("CARGO_BIN_EXE_certs"), "issue", "--authority", text(&folder)])
            .args(["--peer", "peer1", "--out", text(&out)])
            .output()
            .unwrap();
        assert!(!output.status.success());
        assert!(!out.exists(), "a partial identity remains");
        if !on_signal.is_empty() {
            assert_eq!(failure(&output).0, 1);
            assert_eq!(fs::read_dir(&empty).unwrap().count(), 0, "a temporary file remains");
        }
    }
    // After the crash the command succeeds despite files that the killed process may have left.
    let output = certs(&["issue", "--authority", text(&folder), "--peer", "peer1", "--out", text(&out)]);
    assert!(output.status.success() && Identity::load(&out).unwrap().is_some());
}
