//! Server-sent events, as providers stream them: bytes in, the `data` of each event out. Without IO.

/// Bytes one event may have.
const MAX_EVENT_BYTES: usize = 4 * 1024 * 1024;

/// An event is longer than this gateway takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an event of the stream is longer than {MAX_EVENT_BYTES} bytes")]
pub struct TooLong;

/// What has come of a stream and is not a whole event yet.
#[derive(Debug, Default)]
pub struct Events {
    line: Vec<u8>,
    data: Vec<u8>,
    has_data: bool,
    after_cr: bool,
}

impl Events {
    /// Takes the next bytes and hands the data of every event that is whole now to `each`.
    ///
    /// # Errors
    /// An event is too long: the stream can't be followed any further.
    pub fn push(&mut self, bytes: &[u8], mut each: impl FnMut(&[u8])) -> Result<(), TooLong> {
        for &byte in bytes {
            // Lines end with LF, CR, or both (HTML, server-sent events).
            match byte {
                b'\n' if std::mem::take(&mut self.after_cr) => {}
                b'\n' | b'\r' => {
                    self.after_cr = byte == b'\r';
                    self.end_line(&mut each);
                }
                _ => {
                    self.after_cr = false;
                    self.line.push(byte);
                }
            }
            if self.line.len() + self.data.len() > MAX_EVENT_BYTES {
                return Err(TooLong);
            }
        }
        Ok(())
    }

    /// The stream has ended: what was not followed by a blank line is an event all the same.
    pub fn end(&mut self, mut each: impl FnMut(&[u8])) {
        self.end_line(&mut each);
        self.dispatch(&mut each);
    }

    fn end_line(&mut self, each: &mut impl FnMut(&[u8])) {
        if self.line.is_empty() {
            return self.dispatch(each);
        }
        if let Some(value) = self.line.strip_prefix(b"data") {
            let value = match value {
                [b':', b' ', rest @ ..] | [b':', rest @ ..] => Some(rest),
                [] => Some(value),
                _ => None,
            };
            if let Some(value) = value {
                if std::mem::replace(&mut self.has_data, true) {
                    self.data.push(b'\n');
                }
                self.data.extend_from_slice(value);
            }
        }
        self.line.clear();
    }

    fn dispatch(&mut self, each: &mut impl FnMut(&[u8])) {
        if std::mem::take(&mut self.has_data) {
            each(&self.data);
        }
        self.data.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn events(pieces: &[&[u8]]) -> Vec<String> {
        let (mut events, mut found) = (Events::default(), Vec::new());
        for piece in pieces {
            events.push(piece, |data| found.push(String::from_utf8_lossy(data).into_owned())).unwrap();
        }
        events.end(|data| found.push(String::from_utf8_lossy(data).into_owned()));
        found
    }

    #[test]
    fn gives_the_data_of_each_event() {
        let stream = b": comment\nevent: x\ndata: {\"a\":1}\n\ndata:b\r\ndata: c\r\n\r\n\n\nid: 4\n\ndata: last";
        assert_eq!(events(&[stream]), ["{\"a\":1}", "b\nc", "last"]);
    }

    #[test]
    fn an_endless_line_is_refused() {
        let mut events = Events::default();
        assert_eq!(events.push(&vec![b'x'; MAX_EVENT_BYTES + 1], |_| ()), Err(TooLong));
    }

    proptest! {
        #[test]
        fn where_the_bytes_are_cut_does_not_matter(stream in "(data: ?[a-c]{0,3}|\r|\n|\r\n|:x|data){0,20}", cut in 0usize..60) {
            let bytes = stream.as_bytes();
            let (a, b) = bytes.split_at(cut.min(bytes.len()));
            prop_assert_eq!(events(&[a, b]), events(&[bytes]));
        }
    }
}
