//! The bytes of one connection: over TCP as they are, or through TLS.
//!
//! An enum and no trait object: a plain connection pays one predictable branch a call and not a byte of memory, and the
//! large state of TLS is in a box of its own.
//!
//! Over TLS, what [`AsyncWrite::poll_write`] took may still wait as ciphertext: only [`AsyncWrite::poll_flush`] says
//! that the kernel has it. Over TCP, flushing is always done at once.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::net::{RecvFlags, SendFlags};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

/// A connection that was accepted.
#[derive(Debug)]
pub enum Stream {
    /// As it comes.
    Plain(TcpStream),
    /// Decrypted here.
    Tls(Box<TlsStream<TcpStream>>),
}

/// What [`Stream::poll_receive`] got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Bytes, 0 at the end of the stream.
    pub bytes: usize,
    /// Whether the next call may get more without waiting.
    pub more: bool,
}

impl Stream {
    /// Reads once, like [`AsyncRead::poll_read`], and says whether it is worth reading again at once: after a short
    /// read the kernel has no more, and asking it again would only cost.
    pub fn poll_receive(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<Received>> {
        match self {
            Self::Plain(stream) => loop {
                ready!(stream.poll_read_ready(cx))?;
                let mut short = None;
                let read = stream.try_io(Interest::READABLE, || {
                    let (bytes, _) = rustix::net::recv(&*stream, &mut *buffer, RecvFlags::empty())?;
                    if bytes > 0 && bytes < buffer.len() {
                        // The edge is used up. An error is how tokio hears of it; it forgets no end of the stream.
                        short = Some(bytes);
                        return Err(io::ErrorKind::WouldBlock.into());
                    }
                    Ok(bytes)
                });
                match (short, read) {
                    (Some(bytes), _) => return Poll::Ready(Ok(Received { bytes, more: false })),
                    (None, Ok(bytes)) => return Poll::Ready(Ok(Received { bytes, more: true })),
                    (None, Err(error)) if is_passing(&error) => {}
                    (None, Err(error)) => return Poll::Ready(Err(error)),
                }
            },
            Self::Tls(stream) => {
                let mut buffer = ReadBuf::new(buffer);
                ready!(Pin::new(stream).poll_read(cx, &mut buffer))?;
                Poll::Ready(Ok(Received { bytes: buffer.filled().len(), more: true }))
            }
        }
    }

    /// Whether nothing is there to be read; `cx` is woken when something comes.
    pub fn poll_quiet(&self, cx: &mut Context<'_>) -> bool {
        match self {
            Self::Plain(stream) => stream.poll_read_ready(cx).is_pending(),
            // There may be plaintext already: only reading tells.
            Self::Tls(_) => false,
        }
    }
}

/// Try again: the readiness was stale, or a signal came.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

impl AsyncRead for Stream {
    #[inline]
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    #[inline]
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            // The system call itself: libc's is a cancellation point of its threads, which costs on each message.
            Self::Plain(stream) => loop {
                ready!(stream.poll_write_ready(cx))?;
                let sent = stream.try_io(Interest::WRITABLE, || {
                    rustix::net::send(&*stream, bytes, SendFlags::NOSIGNAL).map_err(io::Error::from)
                });
                match sent {
                    Err(error) if is_passing(&error) => {}
                    sent => return Poll::Ready(sent),
                }
            },
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    #[inline]
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, parts),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, parts),
        }
    }

    #[inline]
    fn is_write_vectored(&self) -> bool {
        true
    }

    #[inline]
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(_) => Poll::Ready(Ok(())),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    #[inline]
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_connection_is_no_larger_for_tls() {
        assert_eq!(size_of::<Stream>(), size_of::<TcpStream>());
    }
}
