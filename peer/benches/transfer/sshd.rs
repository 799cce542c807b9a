//! Private ssh server on a free loopback port, with its own keys and configuration.

use std::{
    fs::{self, Permissions},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use crate::process::Deadline;

/// Running ssh server. Dropping it kills the server.
pub struct Sshd {
    server: Child,
    port: u16,
    folder: PathBuf,
}

impl Sshd {
    /// Starts a server with its files in `folder/ssh`, and logs in once with a generated key.
    ///
    /// # Errors
    /// When a program is missing, or when the server does not start or rejects the login.
    pub fn start(folder: &Path) -> Result<Self, String> {
        for (tool, ask) in [("rsync", "--version"), ("ssh", "-V"), ("ssh-keygen", "-?")] {
            if Command::new(tool).arg(ask).output().is_err() {
                return Err(format!("{tool} is not installed"));
            }
        }
        // sshd refuses to start from a relative path.
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]);
        let program = folders.map(|folder| folder.join("sshd")).find(|program| program.is_file());
        let program = program.ok_or("sshd is not installed")?;
        let folder = folder.join("ssh");
        fs::create_dir(&folder).map_err(|error| error.to_string())?;
        fs::set_permissions(&folder, Permissions::from_mode(0o700)).map_err(|error| error.to_string())?;
        for key in ["host", "user"] {
            let mut keygen = Command::new("ssh-keygen");
            keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(folder.join(key));
            let generated = keygen.output().map_err(|error| error.to_string())?;
            if !generated.status.success() {
                return Err(format!("ssh-keygen: {}", String::from_utf8_lossy(&generated.stderr).trim()));
            }
        }
        let port = free_port()?;
        let config = format!(
            "ListenAddress 127.0.0.1\nPort {port}\nHostKey {0}/host\nAuthorizedKeysFile {0}/user.pub\nPidFile none\n\
             StrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n",
            folder.display()
        );
        fs::write(folder.join("config"), config).map_err(|error| error.to_string())?;
        let log = fs::File::create(folder.join("log")).map_err(|error| error.to_string())?;
        let mut command = Command::new(program);
        command.args(["-D", "-e", "-f"]).arg(folder.join("config"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let server = command.spawn().map_err(|error| error.to_string())?;
        let mut sshd = Self { server, port, folder };
        let deadline = Deadline::new();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            if sshd.server.try_wait().is_ok_and(|status| status.is_some()) {
                let log = fs::read_to_string(sshd.folder.join("log")).unwrap_or_default();
                return Err(format!("sshd does not start: {}", log.trim()));
            }
            deadline.pause("the ssh server");
        }
        let login = sshd.ssh().args(["127.0.0.1", "true"]).output().map_err(|error| error.to_string())?;
        if login.status.success() {
            Ok(sshd)
        } else {
            Err(format!("sshd rejects the login: {}", String::from_utf8_lossy(&login.stderr).trim()))
        }
    }

    /// Returns the command `rsync -a` that copies the directory `source` from the server into the directory `target`.
    pub fn rsync(&self, source: &Path, target: &Path) -> Command {
        let ssh = self.ssh();
        let words: Vec<_> = ssh.get_args().map(|word| word.to_string_lossy()).collect();
        let mut command = Command::new("rsync");
        command.args(["-a", "-e", &format!("ssh {}", words.join(" "))]);
        command.arg(format!("127.0.0.1:{}", source.display())).arg(target);
        command
    }

    fn ssh(&self) -> Command {
        let mut command = Command::new("ssh");
        command.args(["-F", "none", "-p", &self.port.to_string(), "-i"]).arg(self.folder.join("user"));
        command.args(["-o", "StrictHostKeyChecking=no", "-o", "BatchMode=yes", "-o", "LogLevel=ERROR"]);
        command.args(["-o", &format!("UserKnownHostsFile={}", self.folder.join("known").display())]);
        command
    }
}

/// Returns a port that is free at the moment, because sshd does not accept port 0.
fn free_port() -> Result<u16, String> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
    listener.map(|address| address.port()).map_err(|error| error.to_string())
}

impl Drop for Sshd {
    fn drop(&mut self) {
        // Fails when the server has exited.
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
