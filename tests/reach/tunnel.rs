//! Contract 4.11 with OpenSSH's own server on loopback, and keys that are made here.

use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::account::{Account, closed_port};
use crate::support::gateway::Gateway;
use crate::support::{PATIENCE, TOKEN};

/// The programs of OpenSSH; without them nothing here can run.
fn have_openssh() -> bool {
    let missing =
        ["/usr/sbin/sshd", "/usr/bin/ssh", "/usr/bin/ssh-keygen"].into_iter().find(|path| !Path::new(path).exists());
    if let Some(path) = missing {
        assert!(std::env::var_os("CI").is_none(), "{path} is missing, and CI must have it");
        println!("SKIPPED: there is no {path} (Debian: openssh-server, openssh-client)");
    }
    missing.is_none()
}

/// A server with keys of its own, for the user who runs the tests.
struct Sshd {
    folder: TempDir,
    port: u16,
    child: Option<Child>,
}

impl Sshd {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut server = Self { folder, port: closed_port(), child: None };
        for key in ["host_key", "id"] {
            server.make_key(key);
        }
        std::fs::copy(server.path("id.pub"), server.path("authorized_keys")).unwrap();
        let user = std::env::var("USER").unwrap_or_else(|_| "root".into());
        std::fs::write(
            server.path("sshd_config"),
            format!(
                "Port {}\nListenAddress 127.0.0.1\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\nStrictModes no\n\
                 UsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin yes\n",
                server.port,
                server.path("host_key").display(),
                server.path("authorized_keys").display(),
            ),
        )
        .unwrap();
        // The client's side: what a person has in ~/.ssh, in a place of our own.
        std::fs::write(
            server.path("ssh_config"),
            format!(
                "UserKnownHostsFile {}\nGlobalKnownHostsFile /dev/null\nUser {user}\n",
                server.path("known_hosts").display()
            ),
        )
        .unwrap();
        server.know_the_host();
        server.serve();
        server
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn make_key(&self, name: &str) {
        let _ = std::fs::remove_file(self.path(name));
        let made =
            Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(self.path(name)).status();
        assert!(made.unwrap().success());
    }

    fn know_the_host(&self) {
        let key = std::fs::read_to_string(self.path("host_key.pub")).unwrap();
        std::fs::write(self.path("known_hosts"), format!("[127.0.0.1]:{} {key}", self.port)).unwrap();
    }

    /// `SHA256:...` of the key that the server shows.
    fn fingerprint(&self) -> String {
        let output = Command::new("ssh-keygen").arg("-lf").arg(self.path("host_key.pub")).output().unwrap();
        String::from_utf8(output.stdout).unwrap().split(' ').nth(1).unwrap().to_owned()
    }

    fn serve(&mut self) {
        // Debian's server wants this folder, and only its service makes it.
        let _ = std::fs::create_dir_all("/run/sshd");
        let log = std::fs::File::create(self.path("sshd.log")).unwrap();
        let child =
            Command::new("/usr/sbin/sshd").args(["-D", "-e", "-f"]).arg(self.path("sshd_config")).stderr(log).spawn();
        self.child = Some(child.unwrap());
        eventually("sshd listens", || TcpStream::connect(("127.0.0.1", self.port)).ok().map(drop));
    }

    /// Ends it with all its connections, as a host that goes down does.
    fn stop(&mut self) {
        let mut child = self.child.take().unwrap();
        let sessions = children_of(child.id());
        child.kill().unwrap();
        child.wait().unwrap();
        for session in sessions {
            for pid in children_of(session).into_iter().chain([session]) {
                let _ = kill_process(pid_of(pid), Signal::KILL);
            }
        }
    }

    /// An account in remote mode whose tunnel leads here, and on to `gateway_port`.
    fn account(&self, gateway_port: u16) -> Account {
        let config = json!({
            "gateway": {"mode": "remote", "remote": {
                "url": format!("ws://127.0.0.1:{}", closed_port()),
                "token": TOKEN,
                "sshTarget": format!("127.0.0.1:{}", self.port),
                "sshIdentity": self.path("id"),
                "remotePort": gateway_port,
            }},
            "plugins": {"entries": {"clawgate": {"config": {"tunnel": {"sshConfig": self.path("ssh_config")}}}}},
        });
        Account::new().config(&config)
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        if self.child.is_some() {
            self.stop();
        }
    }
}

/// An account whose tunnel is taken down at the end, whatever happens.
struct Tunnelled(Account);

impl Drop for Tunnelled {
    fn drop(&mut self) {
        let _ = self.0.run(&["tunnel", "down"]);
    }
}

impl Tunnelled {
    fn state(&self) -> Value {
        let ran = self.0.run(&["tunnel", "status", "--json"]);
        serde_json::from_str(&ran.out).unwrap_or_else(|error| panic!("{error}: {ran:?}"))
    }

    fn pid(&self, which: &str) -> u32 {
        u32::try_from(self.state()[which].as_u64().unwrap()).unwrap()
    }

    fn until_up(&self, not_ssh: u32) -> u32 {
        eventually("the tunnel is up again", || {
            let state = self.state();
            let ssh = u32::try_from(state["sshPid"].as_u64()?).ok()?;
            (state["phase"] == "ready" && ssh != not_ssh).then_some(ssh)
        })
    }
}

pub(crate) fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(started.elapsed() < PATIENCE, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn pid_of(pid: u32) -> Pid {
    Pid::from_raw(i32::try_from(pid).unwrap()).unwrap()
}

/// Whether a process lives. One that is dead and not yet waited for does not.
fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    test_kill_process(pid_of(pid)).is_ok() && !stat.contains(") Z ")
}

fn children_of(pid: u32) -> Vec<u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

#[test]
fn a_tunnel_comes_up_carries_calls_and_comes_back() {
    if !have_openssh() {
        return;
    }
    let (gateway, mut sshd) = (Gateway::start(), Sshd::start());
    let account = Tunnelled(sshd.account(gateway.port));
    let up = account.0.ok(&["tunnel", "up"]);
    assert!(up.contains("up, since") && up.contains(&format!("-> 127.0.0.1:{}", gateway.port)), "{up}");
    assert!(account.0.ok(&["health"]).starts_with("OK"));
    assert!(account.0.ok(&["tunnel", "up"]).contains("up, since"), "a second time changes nothing");
    let explained = account.0.ok(&["gateway", "explain"]);
    assert!(explained.contains("through the SSH tunnel"), "{explained}");

    let ssh = account.pid("sshPid");
    kill_process(pid_of(ssh), Signal::KILL).unwrap();
    let again = account.until_up(ssh);
    assert!(account.0.ok(&["health"]).starts_with("OK"));
    assert_eq!(account.state()["restarts"], 1);

    sshd.stop();
    eventually("the end is noticed", || (account.state()["phase"] != "ready").then_some(()));
    sshd.serve();
    let third = account.until_up(again);
    assert!(account.0.ok(&["health"]).starts_with("OK"));
    let log = account.0.ok(&["tunnel", "logs"]);
    assert!(log.contains("Ready") && log.contains("it was killed"), "{log}");

    let supervisor = account.pid("pid");
    assert!(account.0.ok(&["tunnel", "restart"]).contains("up, since"));
    eventually("both are gone", || (!is_alive(supervisor) && !is_alive(third)).then_some(()));
    let (supervisor, ssh) = (account.pid("pid"), account.pid("sshPid"));
    assert_eq!(account.0.ok(&["tunnel", "down"]), "The tunnel is down.\n");
    eventually("both are gone", || (!is_alive(supervisor) && !is_alive(ssh)).then_some(()));
    assert_eq!(account.0.ok(&["tunnel", "down"]), "No tunnel was up.\n");
    assert!(account.0.run(&["tunnel", "status"]).out.contains("No tunnel is up"));
}

#[test]
fn a_supervisor_that_is_killed_leaves_nothing_behind() {
    if !have_openssh() {
        return;
    }
    let (gateway, sshd) = (Gateway::start(), Sshd::start());
    let account = Tunnelled(sshd.account(gateway.port));
    account.0.ok(&["tunnel", "up"]);
    let (supervisor, ssh) = (account.pid("pid"), account.pid("sshPid"));
    kill_process(pid_of(supervisor), Signal::KILL).unwrap();
    eventually("ssh is gone, too", || (!is_alive(ssh)).then_some(()));
    assert_eq!(account.state()["up"], false);
    // And it is no obstacle to the next.
    assert!(account.0.ok(&["tunnel", "up"]).contains("up, since"));
}

#[test]
fn a_command_opens_a_tunnel_for_itself_and_takes_it_along() {
    if !have_openssh() {
        return;
    }
    let (gateway, sshd) = (Gateway::start(), Sshd::start());
    let account = sshd.account(gateway.port);
    assert!(account.ok(&["health"]).starts_with("OK"));
    assert!(account.ok(&["status"]).contains("ok in"));

    // Killed in the middle, it leaves no ssh behind.
    let mut child = account.command(&["logs", "--follow"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let ssh = eventually("its ssh runs", || children_of(child.id()).first().copied());
    kill_process(pid_of(child.id()), Signal::KILL).unwrap();
    child.wait().unwrap();
    eventually("its ssh is gone", || (!is_alive(ssh)).then_some(()));

    let nowhere = sshd.account(closed_port());
    let refused = nowhere.fails(&["health"]);
    assert!(refused.contains("no gateway answers at its end") && refused.contains("remotePort"), "{refused}");
}

#[test]
fn a_host_with_another_key_is_refused_with_both_fingerprints() {
    if !have_openssh() {
        return;
    }
    let (gateway, mut sshd) = (Gateway::start(), Sshd::start());
    let account = Tunnelled(sshd.account(gateway.port));
    let known = sshd.fingerprint();
    sshd.stop();
    sshd.make_key("host_key");
    sshd.serve();
    let presented = sshd.fingerprint();
    for command in [&["tunnel", "up"][..], &["health"]] {
        let refused = account.0.fails(command);
        let forget = format!("ssh-keygen -R '[127.0.0.1]:{}' -f {}", sshd.port, sshd.path("known_hosts").display());
        for part in ["key has changed", &known, &presented, &forget] {
            assert!(refused.contains(part), "{command:?} {part}: {refused}");
        }
    }
    assert_eq!(account.state()["up"], false, "it is not tried again");

    std::fs::write(sshd.path("known_hosts"), "").unwrap();
    let refused = account.0.fails(&["tunnel", "up"]);
    assert!(refused.contains("key is not known") && refused.contains("compare the fingerprint"), "{refused}");
    // Whoever leaves it to OpenSSH gets what OpenSSH does.
    std::fs::write(
        sshd.path("ssh_config"),
        std::fs::read_to_string(sshd.path("ssh_config")).unwrap() + "StrictHostKeyChecking accept-new\n",
    )
    .unwrap();
    assert!(account.0.fails(&["tunnel", "up"]).contains("key is not known"), "strict is strict");
    account.0.ok(&["config", "set", "gateway.remote.sshHostKeyPolicy", "openssh"]);
    assert!(account.0.ok(&["tunnel", "up"]).contains("up, since"));
}

#[test]
fn a_port_that_is_taken_and_a_key_that_is_not_are_told_apart() {
    if !have_openssh() {
        return;
    }
    let (gateway, sshd) = (Gateway::start(), Sshd::start());
    let account = Tunnelled(sshd.account(gateway.port));
    let config = std::fs::read_to_string(account.0.state_dir().join("openclaw.json")).unwrap();
    let config: Value = serde_json::from_str(&config).unwrap();
    let port: u16 = config["gateway"]["remote"]["url"].as_str().unwrap().rsplit(':').next().unwrap().parse().unwrap();
    let taken = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    let answer = std::thread::spawn(move || {
        use std::io::Write as _;
        // Some web server.
        let (mut stream, _) = taken.accept().unwrap();
        stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").unwrap();
        taken
    });
    let us = format!("(pid {})", std::process::id());
    let refused = account.0.fails(&["health"]);
    assert!(refused.contains(&format!("port {port} of this host is taken by")) && refused.contains(&us), "{refused}");
    let taken = answer.join().unwrap();
    let refused = account.0.fails(&["tunnel", "up"]);
    assert!(refused.contains(&us) && refused.contains("gateway.remote.url"), "{refused}");
    drop(taken);

    std::fs::write(sshd.path("authorized_keys"), "").unwrap();
    let refused = account.0.fails(&["tunnel", "up"]);
    assert!(refused.contains("takes none of our keys (publickey)") && refused.contains("ssh-copy-id"), "{refused}");
    assert_eq!(std::fs::metadata(sshd.path("id")).unwrap().permissions().mode() & 0o777, 0o600);

    std::fs::copy(sshd.path("id.pub"), sshd.path("authorized_keys")).unwrap();
    account.0.ok(&["config", "set", "gateway.remote.token", "wrong"]);
    let refused = account.0.fails(&["tunnel", "up"]);
    assert!(refused.contains("the tunnel is up, but") && refused.contains("another secret"), "{refused}");
}
