//! Buffers of texts that have been written, for the next ones: on the steady path a text needs no fresh memory.
//!
//! Each thread has its own few; a buffer goes to the thread that wrote it out, which most likely writes the next answer.

use std::cell::RefCell;

/// Buffers that a thread keeps.
const KEPT: usize = 64;
/// Capacity above which a buffer is not kept: 64 KiB a thread at most.
const KEPT_BYTES: usize = 1024;

thread_local! {
    static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// An empty buffer for about `bytes`.
pub fn take(bytes: usize) -> Vec<u8> {
    let spare =
        if bytes <= KEPT_BYTES { SPARE.try_with(|spare| spare.borrow_mut().pop()).ok().flatten() } else { None };
    match spare {
        Some(mut buffer) => {
            buffer.reserve(bytes);
            buffer
        }
        None => Vec::with_capacity(bytes),
    }
}

/// Takes back what is not needed any more.
pub fn give_back(mut buffer: Vec<u8>) {
    if buffer.capacity() <= KEPT_BYTES {
        buffer.clear();
        // A thread that is ending keeps nothing.
        let _ = SPARE.try_with(|spare| {
            let mut spare = spare.borrow_mut();
            if spare.len() < KEPT {
                spare.push(buffer);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_again_empty_unless_it_is_large() {
        let mut small = take(100);
        small.extend_from_slice(b"text");
        let place = small.as_ptr();
        give_back(small);
        give_back(Vec::with_capacity(KEPT_BYTES + 1));
        let again = take(10);
        assert_eq!((again.as_ptr(), again.len()), (place, 0));
        let other = take(10);
        assert!(other.as_ptr() != place);
    }
}
