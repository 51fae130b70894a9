//! A small identity service, as oauth2-proxy is one: it says who a request is of, by the session cookie, or by the address
//! of a machine that has none.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;

/// What it knows: `session=alice` is Alice; `session=anonymous` is let through without a name, as a mistaken policy might;
/// the machine at `alices_machine` is Alice's too, and everybody else is nobody.
pub(crate) fn serve(listener: TcpListener, alices_machine: String) {
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let machine = alices_machine.clone();
            thread::spawn(move || while answer(&stream, &machine).is_some() {});
        }
    });
}

/// Answers one request; `None` at the end of the connection.
fn answer(stream: &TcpStream, alices_machine: &str) -> Option<()> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next()?.ok()?;
    let head: Vec<String> = lines.map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
    let header = |name: &str| {
        let line = head.iter().find(|line| line.to_ascii_lowercase().starts_with(name))?;
        line.split_once(':').map(|(_, value)| value.trim().to_owned())
    };
    assert!(first.starts_with("GET /oauth2/auth "), "the proxy asks for {first}");
    let session = header("cookie:").and_then(|cookie| cookie.strip_prefix("session=").map(str::to_owned));
    let by_address = header("x-forwarded-for:").is_some_and(|address| address == alices_machine);
    let (status, user) = match session.as_deref() {
        Some("anonymous") => ("200 OK", String::new()),
        Some(user) => ("200 OK", format!("X-Auth-Request-Email: {user}@example.com\r\n")),
        None if by_address => ("200 OK", "X-Auth-Request-Email: alice@example.com\r\n".to_owned()),
        None => ("401 Unauthorized", String::new()),
    };
    let answer = format!("HTTP/1.1 {status}\r\n{user}Content-Length: 0\r\n\r\n");
    (&mut &*stream).write_all(answer.as_bytes()).ok()
}

/// Listens at `address`, for [`serve`].
pub(crate) fn listen(address: SocketAddr) -> TcpListener {
    TcpListener::bind(address).expect("the address of the identity service")
}
