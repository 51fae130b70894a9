//! The daemon's LocalAPI over its Unix socket: `whois` of an address, this host's own name, and nothing else.
//!
//! ```text
//! GET /localapi/v0/whois?addr=100.64.0.9:0 HTTP/1.1      {"Node": {..}, "UserProfile": {"LoginName": "a@example.com"}}
//! Host: local-tailscaled.sock
//! ```
//!
//! Answers and failures are remembered for seconds; an address is asked about once at a time, whoever waits;
//! everything is bounded, and whatever goes wrong is no login.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::Request;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::UnixStream;
use tokio::sync::{OnceCell, Semaphore};
use tokio::time::{Instant, timeout};

use crate::task;

/// How long a login is believed: a page that loads asks once, and who is taken out of the tailnet is not let in by what was
/// so a while ago.
const KNOWN: Duration = Duration::from_secs(10);
/// How long a failure is believed: long enough that a reload of a page does not ask again for each of its requests.
const FAILED: Duration = Duration::from_secs(5);
/// Time for one question.
const DEADLINE: Duration = Duration::from_secs(3);
/// Addresses remembered.
const ADDRESSES: usize = 1024;
/// Questions under way at a time.
const QUESTIONS: usize = 16;
/// Bytes of an answer. One has about 3000.
const ANSWER_BYTES: usize = 256 * 1024;

/// Why the daemon named nobody.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the text of each variant says what it is")]
pub enum WhoisError {
    #[error("tailscaled does not answer at {socket}: {why}. Is it running, and may this user ask it?", socket = socket.display())]
    Unreachable { socket: PathBuf, why: Box<str> },
    #[error("tailscaled gave no answer within {} s", DEADLINE.as_secs())]
    Timeout,
    #[error("tailscaled knows no {0}")]
    Unknown(IpAddr),
    #[error("tailscaled refused the question with status {0}")]
    Status(u16),
    #[error("tailscaled gave an answer that cannot be read: {0}")]
    Malformed(Box<str>),
    #[error("{0} is a tagged machine, which belongs to no user")]
    Tagged(IpAddr),
}

/// A login, or why there is none.
pub type Answer = Result<Arc<str>, WhoisError>;

/// The daemon, as far as it is asked.
#[derive(Debug)]
pub struct LocalApi {
    socket: PathBuf,
    remembered: Mutex<HashMap<IpAddr, Arc<Remembered>>>,
    questions: Semaphore,
}

#[derive(Debug, Default)]
struct Remembered {
    answer: OnceCell<(Answer, Instant)>,
}

impl Remembered {
    fn is_stale(&self, now: Instant) -> bool {
        self.answer.get().is_some_and(|(_, until)| now >= *until)
    }
}

impl LocalApi {
    /// Asks at `socket`.
    pub fn new(socket: PathBuf) -> Self {
        Self { socket, remembered: Mutex::default(), questions: Semaphore::new(QUESTIONS) }
    }

    /// The login that `address` belongs to. Cancel safe: whoever else waits asks again.
    ///
    /// # Errors
    /// [`WhoisError`]: nobody, as far as we know.
    pub async fn whois(&self, address: IpAddr) -> Answer {
        let remembered = self.remembered(address.to_canonical());
        let ask = || async {
            let answer = self.ask(address.to_canonical()).await;
            let lasts = if answer.is_ok() { KNOWN } else { FAILED };
            (answer, Instant::now() + lasts)
        };
        remembered.answer.get_or_init(ask).await.0.clone()
    }

    fn remembered(&self, address: IpAddr) -> Arc<Remembered> {
        let now = Instant::now();
        let mut all = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = all.get(&address).filter(|found| !found.is_stale(now)) {
            return Arc::clone(found);
        }
        if all.len() >= ADDRESSES {
            all.retain(|_, remembered| !remembered.is_stale(now));
        }
        // Still full: any of them can be asked about again.
        if all.len() >= ADDRESSES
            && let Some(one) = all.keys().next().copied()
        {
            all.remove(&one);
        }
        let fresh = Arc::<Remembered>::default();
        all.insert(address, Arc::clone(&fresh));
        fresh
    }

    async fn ask(&self, address: IpAddr) -> Answer {
        // Every version takes an address with a port; this port is nobody's.
        let answer = self.get(&format!("/localapi/v0/whois?addr={}", SocketAddr::new(address, 0))).await;
        let body = answer.map_err(|error| match error {
            WhoisError::Status(404) => WhoisError::Unknown(address),
            error => error,
        })?;
        login(address, &body)
    }

    /// This host's name in its tailnet: `gw.tail1234.ts.net`.
    ///
    /// # Errors
    /// [`WhoisError`]: it is not known.
    pub async fn own_name(&self) -> Result<String, WhoisError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Status {
            #[serde(rename = "Self")]
            own: Own,
        }
        #[derive(Deserialize)]
        struct Own {
            #[serde(rename = "DNSName", default)]
            dns_name: String,
        }
        let body = self.get("/localapi/v0/status?peers=false").await?;
        let malformed = |why: String| WhoisError::Malformed(why.into());
        let status: Status = serde_json::from_slice(&body).map_err(|error| malformed(error.to_string()))?;
        let name = status.own.dns_name.trim_end_matches('.');
        match name.is_empty() {
            true => Err(malformed("MagicDNS is off: this machine has no name in the tailnet".to_owned())),
            false => Ok(name.to_owned()),
        }
    }

    async fn get(&self, path: &str) -> Result<Bytes, WhoisError> {
        let answer = timeout(DEADLINE, async {
            // Closed never; what waits here is bounded by the deadline.
            let _turn = self.questions.acquire().await;
            self.exchange(path).await
        });
        answer.await.unwrap_or(Err(WhoisError::Timeout))
    }

    async fn exchange(&self, path: &str) -> Result<Bytes, WhoisError> {
        let unreachable = |why: String| WhoisError::Unreachable { socket: self.socket.clone(), why: why.into() };
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| unreachable(explain(&error)))?;
        let (mut requests, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| unreachable(error.to_string()))?;
        task::spawn("localapi", async move { drop(connection.await) });
        let request = Request::get(path)
            .header("Host", "local-tailscaled.sock")
            .body(Empty::<Bytes>::new())
            .map_err(|error| unreachable(error.to_string()))?;
        let answer = requests.send_request(request).await.map_err(|error| unreachable(error.to_string()))?;
        match answer.status().as_u16() {
            200 => {}
            status => return Err(WhoisError::Status(status)),
        }
        let body = Limited::new(answer.into_body(), ANSWER_BYTES).collect().await;
        Ok(body.map_err(|error| WhoisError::Malformed(error.to_string().into()))?.to_bytes())
    }
}

fn explain(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "there is no such socket".to_owned(),
        io::ErrorKind::ConnectionRefused => "nobody listens there".to_owned(),
        _ => error.to_string(),
    }
}

/// The login in an answer.
fn login(address: IpAddr, body: &[u8]) -> Answer {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Whois {
        #[serde(default)]
        node: Option<Node>,
        user_profile: Option<UserProfile>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Node {
        #[serde(default)]
        tags: Option<Vec<String>>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct UserProfile {
        #[serde(default)]
        login_name: String,
    }
    let whois: Whois = serde_json::from_slice(body).map_err(|error| WhoisError::Malformed(error.to_string().into()))?;
    // All tagged machines share one profile that is no person.
    if whois.node.and_then(|node| node.tags).is_some_and(|tags| !tags.is_empty()) {
        return Err(WhoisError::Tagged(address));
    }
    let login = whois.user_profile.map(|profile| profile.login_name).unwrap_or_default();
    if login.trim().is_empty() { Err(WhoisError::Unknown(address)) } else { Ok(login.trim().into()) }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    use super::*;

    const ALICE: &str =
        r#"{"Node":{"ID":1,"Name":"pc.tail.ts.net."},"UserProfile":{"ID":2,"LoginName":"alice@example.com"}}"#;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// A daemon that gives every question the same answer, after a while, and counts them.
    fn daemon(folder: &tempfile::TempDir, status: &'static str, body: &'static str) -> (LocalApi, Arc<AtomicUsize>) {
        let socket = folder.path().join("tailscaled.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        task::spawn("daemon", async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                let mut request = vec![0; 4096];
                let read = stream.read(&mut request).await.unwrap();
                let request = String::from_utf8_lossy(&request[..read]).to_ascii_lowercase();
                assert!(request.starts_with("get /localapi/v0/whois?addr="), "{request}");
                assert!(request.contains("\r\nhost: local-tailscaled.sock\r\n"), "{request}");
                tokio::time::sleep(Duration::from_millis(20)).await;
                let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                // Who asked may have left.
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        (LocalApi::new(socket), asked)
    }

    #[tokio::test]
    async fn many_who_ask_at_once_and_soon_again_are_one_question() {
        let folder = tempfile::tempdir().unwrap();
        let (api, asked) = daemon(&folder, "200 OK", ALICE);
        let address = ip("100.64.0.9");
        let (one, two, three) =
            tokio::join!(api.whois(address), api.whois(address), api.whois(ip("::ffff:100.64.0.9")));
        assert_eq!(one.unwrap().as_ref(), "alice@example.com");
        assert!(two.is_ok() && three.is_ok() && api.whois(address).await.is_ok());
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        api.whois(ip("fd7a:115c:a1e0::9")).await.unwrap();
        assert_eq!(asked.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn one_who_leaves_does_not_take_the_answer_from_the_others() {
        let folder = tempfile::tempdir().unwrap();
        let (api, _) = daemon(&folder, "200 OK", ALICE);
        let left = timeout(Duration::from_millis(1), api.whois(ip("100.64.0.9"))).await;
        assert!(left.is_err(), "it left before the answer");
        api.whois(ip("100.64.0.9")).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_login_and_a_failure_are_remembered_for_seconds() {
        let api = LocalApi::new("/nowhere/tailscaled.sock".into());
        let address = ip("100.64.0.9");
        let error = api.whois(address).await.unwrap_err().to_string();
        assert!(error.contains("/nowhere/tailscaled.sock") && error.contains("no such socket"), "{error}");
        let first = Arc::clone(&api.remembered.lock().unwrap()[&address]);
        tokio::time::advance(FAILED - Duration::from_millis(1)).await;
        assert!(Arc::ptr_eq(&first, &api.remembered(address)));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(!Arc::ptr_eq(&first, &api.remembered(address)));
        let known = api.remembered(ip("100.64.0.10"));
        known.answer.set((Ok("alice".into()), Instant::now() + KNOWN)).unwrap();
        tokio::time::advance(KNOWN - Duration::from_millis(1)).await;
        assert_eq!(api.whois(ip("100.64.0.10")).await.unwrap().as_ref(), "alice");
    }

    #[tokio::test]
    async fn whatever_goes_wrong_is_no_login() {
        for (status, body) in [
            ("404 Not Found", "no match for IP:port"),
            ("403 Forbidden", "access denied"),
            ("200 OK", "<html>"),
            ("200 OK", "{}"),
            ("200 OK", r#"{"UserProfile":{"LoginName":" "}}"#),
            ("200 OK", r#"{"Node":{"Tags":["tag:server"]},"UserProfile":{"LoginName":"tagged-devices"}}"#),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let (api, _) = daemon(&folder, status, body);
            api.whois(ip("100.64.0.9")).await.unwrap_err();
        }
    }

    #[tokio::test]
    async fn what_is_remembered_is_bounded() {
        let api = LocalApi::new("/nowhere".into());
        for number in 0..ADDRESSES as u32 + 100 {
            api.remembered(IpAddr::from(number.to_be_bytes()));
        }
        assert_eq!(api.remembered.lock().unwrap().len(), ADDRESSES);
    }

    #[tokio::test(start_paused = true)]
    async fn a_daemon_that_says_nothing_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("s");
        let _listener = UnixListener::bind(&socket).unwrap();
        assert_eq!(LocalApi::new(socket).whois(ip("100.64.0.9")).await, Err(WhoisError::Timeout));
    }
}
