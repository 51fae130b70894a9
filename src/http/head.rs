//! The head of a request: how much of it is taken, and the answer to one that cannot be read. The one home of what both
//! listeners ask of HTTP/1.1: [`server`].
//!
//! hyper answers a malformed head by itself, with a bare status line, before any code of ours is asked. [`Edge`] stands
//! between hyper and the socket and puts an answer of our own in its place: with a body that says what is wrong, and with
//! the headers that every other answer has.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::HeaderValue;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::server::conn::http1;
use hyper_util::rt::TokioTimer;

use super::reject::{self, Reject};

/// Bytes of a request head.
pub const HEAD_BYTES: usize = 16 * 1024;
/// Header lines of a request.
pub const MAX_HEADERS: usize = 64;
/// Time a peer has to send its request head.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of the answers that hyper makes by itself; they have about 130.
const AUTOMATIC_BYTES: usize = 256;

/// HTTP/1.1 as strangers get it.
pub fn server() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_headers(MAX_HEADERS)
        .max_buf_size(HEAD_BYTES)
        .half_close(false);
    builder
}

/// Why a connection ended that hyper has answered by itself; `None` for any other end.
pub fn fault(error: &hyper::Error) -> Option<Reject> {
    match () {
        () if error.is_parse_too_large() => Some(reject::HEAD_TOO_LARGE),
        () if error.is_parse() => Some(reject::BAD_HEAD),
        () => None,
    }
}

/// A socket under hyper's hands.
#[derive(Debug)]
pub struct Edge<T> {
    io: T,
    transport_security: Option<HeaderValue>,
    /// What is written in place of an answer of hyper's.
    own: Option<(Vec<u8>, usize)>,
}

impl<T> Edge<T> {
    /// Around `io`; answers of its own get `transport_security`.
    pub const fn new(io: T, transport_security: Option<HeaderValue>) -> Self {
        Self { io, transport_security, own: None }
    }

    /// The socket.
    pub fn into_inner(self) -> T {
        self.io
    }
}

/// Our answer for `answer`, if that is one that hyper made by itself. Ours have a header that those have not, and nothing
/// that is sent as a body can be such a head as a whole: it would have to end with it and begin with it.
fn in_place_of(answer: &[u8]) -> Option<Reject> {
    // The length first: everything that is sent passes here.
    let text = str::from_utf8(Some(answer).filter(|answer| answer.len() <= AUTOMATIC_BYTES)?).ok()?;
    let status = text.strip_prefix("HTTP/1.1 ").or(text.strip_prefix("HTTP/1.0 "))?.get(..4)?;
    let is_automatic = text.find("\r\n\r\n") == Some(text.len() - 4)
        && text.contains("\r\ncontent-length: 0\r\n")
        && !text.contains("\r\nx-content-type-options:");
    match status {
        "400 " if is_automatic => Some(reject::BAD_HEAD),
        "414 " | "431 " if is_automatic => Some(reject::HEAD_TOO_LARGE),
        _ => None,
    }
}

impl<T: Read + Unpin> Read for Edge<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<T: Write + Unpin> Write for Edge<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let Self { io, transport_security, own } = &mut *self;
        if own.is_none() {
            *own = in_place_of(buf).map(|reject| (reject.to_bytes(transport_security.take()), 0));
        }
        let Some((bytes, written)) = own else { return Pin::new(io).poll_write(cx, buf) };
        while *written < bytes.len() {
            match ready!(Pin::new(&mut *io).poll_write(cx, &bytes[*written..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                more => *written += more,
            }
        }
        *own = None;
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut filled = bufs.iter().filter(|buf| !buf.is_empty());
        match (filled.next(), filled.next()) {
            // A head alone. What goes out with a body is an answer of ours.
            (Some(only), None) => self.poll_write(cx, only),
            _ => Pin::new(&mut self.io).poll_write_vectored(cx, bufs),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_hyper_answers_by_itself_is_replaced() {
        let automatic = |status: &str| {
            format!(
                "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: 0\r\ndate: Wed, 25 Nov 2026 20:00:00 GMT\r\n\r\n"
            )
        };
        assert_eq!(in_place_of(automatic("400 Bad Request").as_bytes()), Some(reject::BAD_HEAD));
        let large = automatic("431 Request Header Fields Too Large");
        assert_eq!(in_place_of(large.as_bytes()), Some(reject::HEAD_TOO_LARGE));
        assert_eq!(in_place_of(automatic("200 OK").as_bytes()), None);
        assert_eq!(in_place_of(&reject::BAD_HOST.to_bytes(None)), None, "one of ours");
        for more in [format!("{}x", automatic("400 Bad Request")), format!("{0}{0}", automatic("400 Bad Request"))] {
            assert_eq!(in_place_of(more.as_bytes()), None, "{more}");
        }
        assert_eq!(in_place_of(b"HTTP/1.1 400"), None);
    }
}
