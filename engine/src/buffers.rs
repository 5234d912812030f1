//! Buffers that are used again.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// Most buffers that wait, and most bytes of one that does.
const WAITING_MAX: usize = 2;
const BYTES_MAX: usize = 8 << 20;

/// Buffers for what comes again and again in some megabytes and is soon forgotten: the next takes the memory of the last. Else the allocator
/// gives what was freed to smaller things, and takes fresh memory for the next, whose pages the kernel has to clear first: a twentieth of
/// what a table of spans costs. **Memory**: what is lent, and up to [`WAITING_MAX`] buffers of [`BYTES_MAX`] that wait.
#[derive(Debug, Clone, Default)]
pub struct Buffers {
    waiting: Arc<Mutex<Vec<Vec<u8>>>>,
}

/// A buffer that goes back.
struct Lent {
    buffer: Vec<u8>,
    home: Buffers,
}

impl Buffers {
    /// An empty buffer for `bytes` bytes. What follows may be somewhat longer: a fresh one has room for a quarter more, if it comes back then.
    pub fn take(&self, bytes: usize) -> Vec<u8> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        match waiting.iter().position(|buffer| buffer.capacity() >= bytes) {
            Some(at) => waiting.swap_remove(at),
            None => Vec::with_capacity((bytes + bytes / 4).min(BYTES_MAX).max(bytes)),
        }
    }

    /// The bytes of `buffer`, which comes here when nobody has them any more.
    pub fn lend(&self, buffer: Vec<u8>) -> Bytes {
        Bytes::from_owner(Lent { buffer, home: self.clone() })
    }
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        if buffer.capacity() > BYTES_MAX {
            return;
        }
        let mut waiting = self.home.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.push(buffer);
        if waiting.len() > WAITING_MAX {
            // What is long enough for much is long enough for little.
            waiting.sort_unstable_by_key(Vec::capacity);
            waiting.remove(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(buffers: &Buffers) -> Vec<usize> {
        buffers.waiting.lock().unwrap_or_else(PoisonError::into_inner).iter().map(Vec::capacity).collect()
    }

    #[test]
    fn a_buffer_comes_back_when_the_last_has_let_go() {
        let buffers = Buffers::default();
        let mut buffer = buffers.take(20);
        buffer.extend_from_slice(b"spans");
        let (room, place) = (buffer.capacity(), buffer.as_ptr());
        let lent = buffers.lend(buffer);
        let part = lent.slice(1..3);
        assert_eq!((&lent[..], &part[..]), (&b"spans"[..], &b"pa"[..]));
        drop(lent);
        assert_eq!((&part[..], waiting(&buffers)), (&b"pa"[..], Vec::new()));
        drop(part);
        assert_eq!(waiting(&buffers), [room]);
        let again = buffers.take(25);
        assert_eq!((again.as_ptr(), again.len()), (place, 0));
        drop(buffers.lend(again));
        assert!(buffers.take(26).capacity() >= 26, "too short ones are of no use");
        assert_eq!(waiting(&buffers), [room], "and wait on");
    }

    #[test]
    fn few_wait_and_none_that_is_large() {
        let buffers = Buffers::default();
        let lent: Vec<Bytes> = [30, 10, 20].map(|bytes| buffers.lend(Vec::with_capacity(bytes))).into();
        drop(lent);
        assert_eq!(waiting(&buffers), [20, 30], "the longest {WAITING_MAX}");
        let buffers = Buffers::default();
        drop(buffers.lend(Vec::with_capacity(BYTES_MAX + 1)));
        assert_eq!(waiting(&buffers), Vec::<usize>::new());
    }
}
