//! Tailscale: the route that is held through a command, and who comes through it. The daemon and the command are
//! stand-ins; the gateway and its sockets are real.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, test_kill_process};
use serde_json::{Value, json};

use crate::support::client::{Client, UPGRADE, operator};
use crate::support::device::Device;
use crate::support::gateway::{Gateway, HttpAnswer, Setup};
use crate::support::{PATIENCE, TOKEN};

/// Of the node that the stand-in daemon knows.
const ALICES: &str = "100.64.0.9";

/// A tailscaled that knows one address, counts questions, and can be gone.
struct Daemon {
    asked: Arc<AtomicUsize>,
    socket: PathBuf,
}

impl Daemon {
    fn start(folder: &Path) -> Self {
        let socket = folder.join("tailscaled.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                let mut line = String::new();
                BufReader::new(stream.try_clone().unwrap()).read_line(&mut line).unwrap();
                count.fetch_add(1, Ordering::Relaxed);
                let known = line.contains(&format!("addr={ALICES}:0 "));
                let body =
                    json!({"Node": {"Name": "pc.tail.ts.net."}, "UserProfile": {"LoginName": "Alice@Example.com"}});
                let body = if known { body.to_string() } else { "no match for IP:port".to_owned() };
                let status = if known { "200 OK" } else { "404 Not Found" };
                let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        Self { asked, socket }
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

/// A `tailscale` that writes down how it was called and by which process, and holds the route until it is told to end;
/// its first `failures` calls end at once.
fn command(folder: &Path, failures: u32) -> PathBuf {
    let path = folder.join("tailscale");
    let script = format!(
        "#!/bin/sh\n\
         trap 'echo released >> {folder}/released; exit 0' TERM\n\
         env > {folder}/environment\n\
         echo \"$$ $*\" >> {folder}/calls\n\
         if [ $(wc -l < {folder}/calls) -le {failures} ]; then echo 'backend is not ready' >&2; exit 3; fi\n\
         echo Available within your tailnet:\necho https://gw.tail.ts.net/\n\
         while :; do sleep 0.05; done\n",
        folder = folder.display()
    );
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn setup(folder: &Path, gateway: &Value, command: &Path, socket: &Path) -> Setup {
    assert!(folder.exists());
    let own = json!({"tailscale": {"command": command, "socket": socket}});
    let config = json!({"gateway": gateway, "plugins": {"entries": {"clawgate": {"config": own}}}});
    Setup::new().config(&config)
}

fn calls(folder: &Path) -> Vec<(i32, String)> {
    let text = std::fs::read_to_string(folder.join("calls")).unwrap_or_default();
    let call = |line: &str| line.split_once(' ').map(|(pid, args)| (pid.parse().unwrap(), args.to_owned()));
    text.lines().filter_map(call).collect()
}

fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < until, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The port that the route was made to.
fn route_port(folder: &Path) -> u16 {
    let (_, args) = eventually("the command is called", || calls(folder).pop());
    let (_, target) = args.split_once("http://127.0.0.1:").expect(&args);
    target.trim().parse().unwrap()
}

fn serve_headers(address: &str, login: &str) -> String {
    format!(
        "Host: gw.tail.ts.net\r\nX-Forwarded-For: {address}\r\nX-Forwarded-Proto: https\r\n\
         X-Forwarded-Host: gw.tail.ts.net\r\nTailscale-User-Login: {login}\r\n"
    )
}

fn open(port: u16, headers: &str) -> Result<Client, HttpAnswer> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(format!("GET / HTTP/1.1\r\n{UPGRADE}{headers}\r\n").as_bytes()).unwrap();
    Client::upgraded(stream)
}

fn control_ui() -> Value {
    json!({
        "minProtocol": 4, "maxProtocol": 4,
        "client": {"id": "openclaw-control-ui", "version": "1.0.0", "platform": "linux", "mode": "webchat"},
        "role": "operator", "scopes": ["operator.read", "operator.write"],
    })
}

const PAGE: &str = "Origin: https://gw.tail.ts.net\r\n";

struct Tailnet {
    gateway: Gateway,
    daemon: Daemon,
    port: u16,
    folder: tempfile::TempDir,
}

fn tailnet(gateway: &Value) -> Tailnet {
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(folder.path());
    let gateway = setup(folder.path(), gateway, &command(folder.path(), 0), &daemon.socket).start();
    let port = route_port(folder.path());
    Tailnet { gateway, daemon, port, folder }
}

#[test]
fn a_control_ui_of_the_tailnet_comes_in_by_its_user_and_is_asked_about_once() {
    let tailnet = tailnet(&json!({"tailscale": {"mode": "serve"}}));
    let mut connected = Vec::new();
    for number in 0..5 {
        let mut client = open(tailnet.port, &(serve_headers(ALICES, "alice@example.com") + PAGE)).unwrap();
        let hello = Device::new(number).connect(&mut client, &control_ui()).unwrap();
        assert_eq!(hello["auth"]["scopes"], json!(["operator.read", "operator.write"]), "{hello}");
        client.call("health", &json!({})).unwrap();
        connected.push(client);
    }
    assert_eq!(tailnet.daemon.asked(), 1);
    assert!(tailnet.gateway.log_lines("by=tailscale").len() >= 5);
    assert!(tailnet.gateway.stderr.wait_for(|line| line.contains("https://gw.tail.ts.net/")).is_some());
}

#[test]
fn a_login_that_the_daemon_does_not_confirm_is_no_login_and_the_client_hears_why() {
    let tailnet = tailnet(&json!({"tailscale": {"mode": "serve"}}));
    let refused = |headers: String| {
        let mut client = open(tailnet.port, &(headers + PAGE)).unwrap();
        Device::new(1).connect(&mut client, &control_ui()).unwrap_err()["details"].clone()
    };
    let details = refused(serve_headers(ALICES, "mallory@example.com"));
    assert_eq!(
        (&details["code"], &details["identityReason"]),
        (&json!("AUTH_TOKEN_MISSING"), &json!("tailscale_user_mismatch"))
    );
    let details = refused(serve_headers("100.64.0.66", "alice@example.com"));
    assert_eq!(details["identityReason"], "tailscale_whois_failed");
    assert!(tailnet.gateway.log_lines("tailscaled knows no 100.64.0.66").len() == 1);
    std::fs::remove_file(&tailnet.daemon.socket).unwrap();
    let details = refused(serve_headers("100.64.0.67", "alice@example.com"));
    assert_eq!(details["identityReason"], "tailscale_whois_failed");
    assert!(tailnet.gateway.log_lines("there is no such socket").len() == 1);
    let status = tailnet.gateway.operator().call("status", &json!({})).unwrap();
    assert_eq!(
        status["gateway"]["refused"],
        json!({
            "tailscale_user_mismatch": 1, "tailscale_whois_failed": 2, "token_missing": 3,
        })
    );
}

#[test]
fn s_14_the_same_headers_are_worth_nothing_on_the_ordinary_port() {
    let tailnet = tailnet(&json!({"tailscale": {"mode": "serve"}}));
    let forged = serve_headers(ALICES, "alice@example.com") + PAGE;
    assert_eq!(open(tailnet.gateway.port, &forged).err().expect("refused").status, 403);
    // And nothing but Serve is believed on its own port.
    assert_eq!(open(tailnet.port, "Host: 127.0.0.1\r\n").err().expect("refused").status, 403);
    let funnel = format!("{forged}Tailscale-Funnel-Request: ?1\r\n");
    assert_eq!(open(tailnet.port, &funnel).err().expect("refused").status, 403);
    assert_eq!(tailnet.daemon.asked(), 0);
}

#[test]
fn who_brings_the_token_through_serve_is_judged_by_it_and_nobody_is_asked() {
    let tailnet = tailnet(&json!({"tailscale": {"mode": "serve"}}));
    let mut client = open(tailnet.port, &serve_headers(ALICES, "alice@example.com")).unwrap();
    client.connect(&operator()).unwrap();
    assert_eq!(tailnet.daemon.asked(), 0);
    assert!(operator()["auth"]["token"] == TOKEN);
}

#[test]
fn a_route_made_by_hand_serves_only_where_that_is_written_out() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(folder.path());
    let config = json!({"auth": {"allowTailscale": true}});
    let gateway = setup(folder.path(), &config, Path::new("tailscale"), &daemon.socket).start();
    let mut client = open(gateway.port, &(serve_headers(ALICES, "alice@example.com") + PAGE)).unwrap();
    Device::new(1).connect(&mut client, &control_ui()).unwrap();
    let (code, _) = {
        std::fs::write(gateway.state_dir().join("openclaw.json"), "{gateway: {auth: {allowTailscale: false}}}")
            .unwrap();
        client.closed()
    };
    assert_eq!(code, 4001);
}

#[test]
fn funnel_wants_a_password_and_gives_strangers_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(folder.path());
    let funnel = json!({"tailscale": {"mode": "funnel"}, "auth": {"mode": "password", "password": "p4ss"}});
    let gateway = setup(folder.path(), &funnel, &command(folder.path(), 0), &daemon.socket).no_token().start();
    let port = route_port(folder.path());
    assert!(calls(folder.path())[0].1.starts_with("funnel --yes http://127.0.0.1:"));
    let headers = "Host: gw.tail.ts.net\r\nX-Forwarded-For: 203.0.113.9\r\nX-Forwarded-Proto: https\r\n\
                   X-Forwarded-Host: gw.tail.ts.net\r\nTailscale-Funnel-Request: ?1\r\n";
    let mut params = operator();
    params["auth"] = json!({"password": "wrong"});
    open(port, headers).unwrap().connect(&params).unwrap_err();
    params["auth"] = json!({"password": "p4ss"});
    open(port, headers).unwrap().connect(&params).unwrap();
    assert_eq!(gateway.log_lines("203.0.113.9").len(), 2, "refused and let in, by its true address");
    let without =
        setup(folder.path(), &json!({"tailscale": {"mode": "funnel"}}), Path::new("tailscale"), &daemon.socket);
    assert!(without.refuses().stderr.contains("gateway.auth.password"));
}

#[test]
fn a_command_that_fails_is_called_again_and_released_at_the_stop() {
    let folder = tempfile::tempdir().unwrap();
    let serve = json!({"tailscale": {"mode": "serve"}});
    let mut gateway = setup(folder.path(), &serve, &command(folder.path(), 1), Path::new("/nowhere")).start();
    let line = gateway.stderr.wait_for(|line| line.contains("released the route")).unwrap();
    assert!(line.contains("backend is not ready") && line.contains("exit status: 3"), "{line}");
    gateway.stderr.wait_for(|line| line.contains("reached through Tailscale")).unwrap();
    gateway.signal(Signal::TERM);
    assert!(gateway.wait().expect("it stops").success());
    assert!(folder.path().join("released").exists(), "Tailscale had its time");
    assert_eq!(calls(folder.path()).len(), 2);
}

#[test]
fn the_command_gets_none_of_the_gateways_secrets() {
    let folder = tempfile::tempdir().unwrap();
    let serve = json!({"tailscale": {"mode": "serve"}});
    let setup = setup(folder.path(), &serve, &command(folder.path(), 0), Path::new("/nowhere"));
    let setup = setup.no_token().env("OPENCLAW_GATEWAY_TOKEN", "gateway-s3cret").env("TS_DEBUG", "kept");
    let _gateway = setup.env("ANTHROPIC_API_KEY", "model-s3cret").start();
    route_port(folder.path());
    let environment = std::fs::read_to_string(folder.path().join("environment")).unwrap();
    assert!(!environment.contains("s3cret"), "{environment}");
    assert!(environment.contains("PATH=") && environment.contains("TS_DEBUG=kept"), "{environment}");
}

#[test]
fn a_gateway_that_is_killed_takes_its_route_with_it() {
    let tailnet = tailnet(&json!({"tailscale": {"mode": "serve"}}));
    let (pid, _) = calls(tailnet.folder.path()).pop().unwrap();
    let pid = Pid::from_raw(pid).unwrap();
    test_kill_process(pid).expect("it runs");
    tailnet.gateway.signal(Signal::KILL);
    eventually("the command ends with the gateway", || tailnet.folder.path().join("released").exists().then_some(()));
    eventually("its process is gone", || test_kill_process(pid).is_err().then_some(()));
}

#[test]
fn a_missing_command_refuses_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let serve = json!({"tailscale": {"mode": "serve"}});
    let refusal = setup(folder.path(), &serve, Path::new("/nowhere/tailscale"), Path::new("/nowhere")).refuses();
    assert!(refusal.stderr.contains("plugins.entries.clawgate.config.tailscale.command"), "{}", refusal.stderr);
    let mut open = serve;
    open["auth"] = json!({"mode": "none"});
    let refusal = setup(folder.path(), &open, &command(folder.path(), 0), Path::new("/nowhere")).no_token().refuses();
    assert!(refusal.stderr.contains("gateway.auth.mode"), "{}", refusal.stderr);
    assert!(calls(folder.path()).is_empty(), "nothing was published");
}
