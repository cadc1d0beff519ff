//! Where s2n-tls reads its ciphertext from and writes it to: two buffers of the thread, and no socket.
//!
//! A connection that has read the half of a record from a socket, or has written the half of one to it, cannot
//! be taken apart. So it never does: it gets a record when all of it is there, and what it writes is taken in any
//! case. What is left over belongs to the session, which puts it here again for its next turn.
//!
//! This is the only file with `unsafe` in it: what s2n-tls calls is a function of C.

#![allow(unsafe_code)]

use std::cell::RefCell;
use std::ffi::{c_int, c_void};
use std::io;

use nix::errno::Errno;
use s2n_tls::connection::Connection;
use s2n_tls::error::Error;

/// A record's head: its kind, a version, and how long it is.
const HEAD: usize = 5;
/// More than the longest record (RFC 8446, section 5.2; RFC 5246, section 6.2.3).
const LONGEST: usize = HEAD + 16 * 1024 + 2048;
/// How much may be read from a socket at a time.
pub(crate) const READ_BYTES: usize = 64 * 1024;

thread_local! {
    static WIRE: RefCell<Wire> = RefCell::new(Wire::new());
}

struct Wire {
    /// A part of it is what was received and not read by TLS yet.
    incoming: Vec<u8>,
    start: usize,
    end: usize,
    /// What is still to be read of the record that is being read.
    of_record: usize,
    /// How many records may be read still.
    allowed: usize,
    outgoing: Vec<u8>,
}

impl Wire {
    fn new() -> Self {
        let incoming = vec![0; LONGEST + READ_BYTES];
        Self { incoming, start: 0, end: 0, of_record: 0, allowed: 0, outgoing: Vec::new() }
    }

    fn received(&self) -> &[u8] {
        &self.incoming[self.start..self.end]
    }

    /// How long the record is that comes next, if all of it is there.
    fn next_record(&self) -> Option<usize> {
        let received = self.received();
        let [kind, major, _, high, low] = *received.first_chunk::<HEAD>()?;
        let length = HEAD + usize::from(u16::from_be_bytes([high, low]));
        // What is no record is for TLS to complain about, as far as it has come.
        if !(20..=24).contains(&kind) || major != 3 || length > LONGEST {
            return Some(received.len());
        }
        (received.len() >= length).then_some(length)
    }

    fn read(&mut self, into: &mut [u8]) -> Option<usize> {
        if self.of_record == 0 {
            let record = self.next_record().filter(|_| self.allowed > 0)?;
            self.allowed -= 1;
            self.of_record = record;
        }
        let count = into.len().min(self.of_record).min(self.end - self.start);
        into[..count].copy_from_slice(&self.received()[..count]);
        self.start += count;
        self.of_record -= count;
        Some(count)
    }
}

/// Has a connection read and write here.
pub(crate) fn connect(connection: &mut Connection) -> Result<(), Error> {
    connection.set_receive_callback(Some(receive))?;
    connection.set_send_callback(Some(send))?;
    Ok(())
}

/// Puts here what a session has received. Nothing of another session is here.
pub(crate) fn load(received: &[u8]) {
    WIRE.with_borrow_mut(|wire| {
        if wire.incoming.len() < received.len() + READ_BYTES {
            wire.incoming.resize(received.len() + READ_BYTES, 0);
        }
        (wire.start, wire.end, wire.of_record) = (0, received.len(), 0);
        wire.outgoing.clear();
        wire.incoming[..received.len()].copy_from_slice(received);
    });
}

/// Receives more by `read`, at most so many bytes. Answers how many came: 0 is the end.
pub(crate) fn receive_by(
    most: usize,
    read: impl FnOnce(&mut [u8]) -> io::Result<usize>,
) -> io::Result<usize> {
    WIRE.with_borrow_mut(|wire| {
        let end = wire.end;
        let most = most.min(wire.incoming.len() - end);
        let count = read(&mut wire.incoming[end..end + most])?;
        wire.end += count;
        Ok(count)
    })
}

/// Whether TLS can go on with what is here.
pub(crate) fn has_record() -> bool {
    WIRE.with_borrow(|wire| wire.next_record().is_some_and(|length| length > 0))
}

/// Lets TLS read so many records from here on, and no more. Answers how long the next one is, if there is one: TLS may read
/// many in one call otherwise, and each of them may cost much.
pub(crate) fn allow(records: usize) -> Option<usize> {
    WIRE.with_borrow_mut(|wire| {
        wire.allowed = records;
        wire.next_record().filter(|length| *length > 0)
    })
}

/// Forgets what TLS has written and nobody has sent: it was for a session whose turn has failed.
pub(crate) fn forget_unsent() {
    WIRE.with_borrow_mut(|wire| wire.outgoing.clear());
}

/// Whether TLS has read something of what was put here.
pub(crate) fn was_read() -> bool {
    WIRE.with_borrow(|wire| wire.start > 0)
}

/// Takes what TLS has not read, into an empty buffer.
pub(crate) fn unload(into: &mut Vec<u8>) {
    WIRE.with_borrow_mut(|wire| {
        let rest = wire.received();
        if rest.is_empty() {
            // An idle session has no buffer.
            *into = Vec::new();
        } else {
            into.clear();
            into.reserve_exact(rest.len());
            into.extend_from_slice(rest);
        }
        (wire.start, wire.end, wire.of_record) = (0, 0, 0);
    });
}

/// Gives `write` what TLS has written, which is forgotten then.
pub(crate) fn sent<T>(write: impl FnOnce(&[u8]) -> T) -> T {
    WIRE.with_borrow_mut(|wire| {
        let answer = write(&wire.outgoing);
        wire.outgoing.clear();
        answer
    })
}

/// Answers the count, or -1 with the reason in `errno`, as read(2) does.
unsafe extern "C" fn receive(_: *mut c_void, buffer: *mut u8, length: u32) -> c_int {
    if buffer.is_null() {
        Errno::EFAULT.set();
        return -1;
    }
    // SAFETY: s2n-tls gives a buffer of its own of that length, for the time of this call
    // (s2n_connection_set_recv_cb).
    let into = unsafe { std::slice::from_raw_parts_mut(buffer, length as usize) };
    match WIRE.with_borrow_mut(|wire| wire.read(into)) {
        // At most the length, which is no more than a record.
        Some(count @ 1..) => count as c_int,
        Some(0) | None => {
            Errno::EAGAIN.set();
            -1
        }
    }
}

/// The same for write(2). It takes everything.
unsafe extern "C" fn send(_: *mut c_void, buffer: *const u8, length: u32) -> c_int {
    if buffer.is_null() {
        Errno::EFAULT.set();
        return -1;
    }
    // SAFETY: s2n-tls gives a buffer of its own of that length, for the time of this call
    // (s2n_connection_set_send_cb).
    let bytes = unsafe { std::slice::from_raw_parts(buffer, length as usize) };
    WIRE.with_borrow_mut(|wire| wire.outgoing.extend_from_slice(bytes));
    length as c_int
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reads(most: usize) -> Option<Vec<u8>> {
        let mut buffer = vec![0; most];
        let count = WIRE.with_borrow_mut(|wire| wire.read(&mut buffer))?;
        buffer.truncate(count);
        Some(buffer)
    }

    #[test]
    fn a_record_is_read_when_all_of_it_is_there() {
        let record = [23, 3, 3, 0, 2, b'a', b'b'];
        for there in 0..record.len() {
            load(&record[..there]);
            assert!(!has_record());
            assert_eq!(reads(HEAD), None);
            let mut rest = Vec::new();
            unload(&mut rest);
            assert_eq!(rest, record[..there]);
        }
        load(&record[..3]);
        assert_eq!(allow(1), None);
        let more = receive_by(READ_BYTES, |into| {
            into[..5].copy_from_slice(&[0, 2, b'a', b'b', 22]);
            Ok(5)
        });
        assert_eq!(more.unwrap(), 5);
        assert!(has_record());
        assert_eq!(allow(1), Some(7));
        // As s2n-tls reads: the head, and then what that says.
        assert_eq!(reads(HEAD).unwrap(), record[..HEAD]);
        assert_eq!(reads(2).unwrap(), b"ab");
        assert_eq!(reads(HEAD), None);
        let mut rest = Vec::new();
        unload(&mut rest);
        assert_eq!(rest, [22]);
    }

    #[test]
    fn what_is_no_record_is_for_tls_to_complain_about() {
        for bytes in [&b"GET / HTTP/1.1\r\n"[..], &[0x80, 46, 1, 3, 1], &[22, 3, 1, 255, 255]] {
            load(bytes);
            assert!(has_record());
            assert_eq!(reads(100), None);
            assert_eq!(allow(1), Some(bytes.len()));
            assert_eq!(reads(100).unwrap(), bytes);
        }
    }
}
