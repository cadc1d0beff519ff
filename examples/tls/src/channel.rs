//! A client's end of a session: its socket, and the TLS on it.

use std::io;
use std::net::Shutdown;
use std::task::Poll;

use s2n_tls::config::Config;
use s2n_tls::connection::Connection;
use s2n_tls::enums::{Blinding, Mode, PeerKeyUpdate, Version};
use s2n_tls::error::Error;
use tablecloth::Stream;
use zeroize::Zeroizing;

use super::about::About;
use super::callbacks::{self, READ_BYTES};
use super::end::End;
use super::rest::Rest;

/// The plaintext of the longest record: there has to be room for it, or a part of it would stay where it cannot be
/// moved from.
pub(crate) const RECORD_BYTES: usize = 16 * 1024;
/// A record takes as much of a turn as one of that length, however short it is.
const RECORD_COST: usize = 1024;
/// How often a client may renew its keys without saying anything. Each time costs two derivations.
const IDLE_UPDATES: u32 = 32;

/// A client's socket, and its TLS.
pub(crate) struct Channel {
    pub(crate) end: End,
    tls: Tls,
    /// The client has asked for new keys, and nothing was encrypted since (KeyUpdate, RFC 8446, section 4.6.3).
    owes_keys: bool,
    /// How often it has renewed its keys, as far as this was looked at.
    key_updates: u8,
    /// How often since the last byte of plaintext.
    idle_updates: u32,
    /// Received, and not decrypted yet: a part of a record, or records whose plaintext nobody takes yet.
    received: Vec<u8>,
    /// Whether something of that can be decrypted.
    has_record: bool,
    /// TLS has read something.
    begun: bool,
    /// Encrypted, and not taken by the socket yet.
    unsent: Rest,
    /// The end of the connection was read, or a close_notify.
    at_end: bool,
    /// TLS reads nothing more, because TLS 1.2 ends in both directions at once: what comes is thrown away.
    deaf: bool,
    /// The sending direction of the socket was ended.
    shut: bool,
    /// What is to be told when the bytes before it were: an end, or why nothing more can be decrypted.
    last: Option<io::Result<Read>>,
}

/// A connection of s2n-tls takes many kilobytes, which one that waits for long does without.
enum Tls {
    Awake(Connection),
    /// Its keys, and the numbers of its next records.
    Asleep(Zeroizing<Vec<u8>>),
}

/// What came of reading.
pub(crate) enum Read {
    /// So many bytes of plaintext.
    Bytes(usize),
    /// Something came that is no plaintext, and there may be more.
    Other,
    /// There is nothing at present.
    Nothing,
    /// The client has said that it is at its end.
    End,
    /// The connection has ended without that: there may have been more.
    Cut,
}

/// Where a handshake stands.
pub(crate) enum Handshake {
    Waits,
    Done,
}

/// A connection that was taken apart.
pub(crate) struct State {
    pub(crate) keys: Zeroizing<Vec<u8>>,
    pub(crate) owes_keys: bool,
    pub(crate) received: Vec<u8>,
    pub(crate) unsent: Vec<u8>,
}

impl Channel {
    /// A connection whose handshake is to come.
    pub(crate) fn accept(stream: Stream, config: &Config) -> Result<Self, Error> {
        Ok(Self::new(stream, Tls::Awake(connection(config)?)))
    }

    fn new(stream: Stream, tls: Tls) -> Self {
        Self {
            end: End::new(stream),
            tls,
            owes_keys: false,
            key_updates: 0,
            idle_updates: 0,
            received: Vec::new(),
            has_record: false,
            begun: false,
            unsent: Rest::default(),
            at_end: false,
            deaf: false,
            shut: false,
            last: None,
        }
    }

    /// A connection that another process has taken apart, or this one. It sleeps: nothing is written by this.
    pub(crate) fn restore(stream: Stream, state: State) -> Self {
        let State { keys, owes_keys, received, unsent } = state;
        let has_record = !received.is_empty();
        let unsent = Rest::of(&unsent);
        let tls = Tls::Asleep(keys);
        Self { owes_keys, received, has_record, unsent, ..Self::new(stream, tls) }
    }

    /// Has the connection sleep, if it can: its handshake is done, and neither side has said that it is at its end.
    /// Answers whether it does. (A KeyUpdate of which one record has a part and the next one the rest is lost between
    /// the two. Nobody sends five bytes in two records, and only this client's connection would break.)
    pub(crate) fn sleep(&mut self) -> bool {
        let Tls::Awake(tls) = &self.tls else { return true };
        if self.at_end || self.last.is_some() {
            return false;
        }
        let Ok(length) = tls.serialization_length() else { return false };
        let mut keys = Zeroizing::new(vec![0; length]);
        if tls.serialize(&mut keys).is_err() {
            return false;
        }
        // It has no keys any more: s2n-tls has wiped them, so that nothing is encrypted twice with one number.
        self.tls = Tls::Asleep(keys);
        true
    }

    pub(crate) fn is_asleep(&self) -> bool {
        matches!(self.tls, Tls::Asleep(_))
    }

    /// Whether TLS has read nothing of it: the client has said nothing yet, or not all of its first message.
    pub(crate) fn is_untouched(&self) -> bool {
        !self.begun && !self.at_end && !self.is_asleep()
    }

    /// The socket of an [untouched](Channel::is_untouched) client, and what it has said.
    pub(crate) fn into_untouched(self) -> (Stream, Vec<u8>) {
        (self.end.stream, self.received)
    }

    /// An untouched client, put together again.
    pub(crate) fn accept_with(
        stream: Stream,
        received: Vec<u8>,
        config: &Config,
    ) -> Result<Self, Error> {
        Ok(Self { received, ..Self::accept(stream, config)? })
    }

    /// What is left of a connection that [sleeps](Channel::sleep), and its socket.
    pub(crate) fn into_state(self) -> (Stream, State) {
        let keys = match self.tls {
            Tls::Asleep(keys) => keys,
            // Without keys nobody can go on.
            Tls::Awake(_) => Zeroizing::default(),
        };
        let (owes_keys, received) = (self.owes_keys, self.received);
        let unsent = self.unsent.bytes().to_vec();
        (self.end.stream, State { keys, owes_keys, received, unsent })
    }

    /// The connection, which is awake from here on. `moved` is for those whose handshake is over.
    fn tls(&mut self, moved: &Config) -> io::Result<&mut Connection> {
        if let Tls::Asleep(keys) = &self.tls {
            let mut tls = connection(moved).map_err(|error| words(&error))?;
            tls.deserialize(keys).map_err(|error| words(&error))?;
            if self.owes_keys {
                let answer = tls.request_key_update(PeerKeyUpdate::KeyUpdateNotRequested);
                answer.map_err(|error| words(&error))?;
            }
            self.key_updates = 0;
            self.tls = Tls::Awake(tls);
        }
        match &mut self.tls {
            Tls::Awake(tls) => Ok(tls),
            Tls::Asleep(_) => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// What is known of the connection, when its handshake is done.
    pub(crate) fn about(&self) -> About {
        match &self.tls {
            Tls::Awake(tls) => About::of(tls),
            Tls::Asleep(_) => About::default(),
        }
    }

    /// Whether there may be plaintext to be read.
    pub(crate) fn may_read(&self) -> bool {
        self.has_record || self.end.readable || self.last.is_some()
    }

    pub(crate) fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Bytes that are kept here.
    pub(crate) fn kept(&self) -> usize {
        self.received.capacity() + self.unsent.bytes().len()
    }

    /// Goes on with the handshake as far as the client lets it. An error was told to the client, if it can be.
    pub(crate) fn handshake(&mut self) -> io::Result<Handshake> {
        loop {
            self.flush()?;
            callbacks::load(&self.received);
            let read = self.receive(RECORD_BYTES);
            callbacks::allow(usize::MAX);
            // One that sleeps has its handshake behind it.
            let Tls::Awake(tls) = &mut self.tls else { return Ok(Handshake::Done) };
            let negotiated = tls.poll_negotiate().map_ok(drop);
            self.begun |= callbacks::was_read();
            if matches!(negotiated, Poll::Ready(Err(_))) {
                // Has the alert sent.
                let _ = tls.poll_shutdown();
            }
            self.unload();
            let sent = self.send();
            if let Poll::Ready(Err(error)) = negotiated {
                return Err(words(&error));
            }
            sent?;
            match (negotiated, read?) {
                (Poll::Ready(_), _) => return Ok(Handshake::Done),
                (Poll::Pending, Some(0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                (Poll::Pending, Some(_)) => {}
                (Poll::Pending, None) => return Ok(Handshake::Waits),
            }
        }
    }

    /// Decrypts what there is, into a buffer with room for several records; `most` is how much may be read from the
    /// socket. Answers also how much of a turn that has taken, in bytes.
    pub(crate) fn read(
        &mut self,
        plain: &mut [u8],
        most: usize,
        moved: &Config,
    ) -> (io::Result<Read>, usize) {
        if let Some(last) = self.last.take() {
            return (last, 0);
        }
        if self.deaf {
            return self.throw_away(most);
        }
        callbacks::load(&self.received);
        let had_record = self.has_record && callbacks::has_record();
        let received = if had_record { Ok(None) } else { self.receive(most) };
        let (decrypted, cost) = self.decrypt(plain, moved);
        self.unload();
        let cost = cost.max(received.as_ref().map_or(0, |read| read.unwrap_or_default()));
        let read = match (decrypted, received) {
            (Ok(Read::Nothing), Ok(Some(0))) => Ok(Read::Cut),
            // A part of a record, or one without plaintext.
            (Ok(Read::Nothing), Ok(Some(_))) => Ok(Read::Other),
            (Ok(Read::Nothing), Ok(None)) if had_record => Ok(Read::Other),
            (Ok(Read::Nothing), Err(error)) => Err(error),
            (read, Err(error)) => {
                self.last = Some(Err(error));
                read
            }
            (read, Ok(_)) => read,
        };
        (read, cost)
    }

    /// Reads until the client has ended the connection, so that no reset overtakes what was said to it.
    fn throw_away(&mut self, most: usize) -> (io::Result<Read>, usize) {
        (self.received, self.has_record) = (Vec::new(), false);
        callbacks::load(&[]);
        let received = self.receive(most);
        callbacks::load(&[]);
        match received {
            Ok(Some(0)) => (Ok(Read::End), 0),
            Ok(Some(count)) => (Ok(Read::Other), count),
            Ok(None) => (Ok(Read::Nothing), 0),
            Err(error) => (Err(error), 0),
        }
    }

    /// Reads from the socket, if there may be something. `None` if there was nothing.
    fn receive(&mut self, most: usize) -> io::Result<Option<usize>> {
        if !self.end.readable {
            return Ok(None);
        }
        let mut read = None;
        callbacks::receive_by(most, |into| {
            read = self.end.read(into)?;
            Ok(read.unwrap_or_default())
        })?;
        self.at_end |= read == Some(0);
        Ok(read)
    }

    /// Decrypts records one by one. Answers also what that has cost.
    fn decrypt(&mut self, plain: &mut [u8], moved: &Config) -> (io::Result<Read>, usize) {
        let (mut filled, mut cost) = (0, 0);
        let read = loop {
            if plain.len() - filled < RECORD_BYTES || cost >= READ_BYTES {
                break Ok(Read::Nothing);
            }
            let Some(length) = callbacks::allow(1) else { break Ok(Read::Nothing) };
            cost += length.max(RECORD_COST);
            let tls = match self.tls(moved) {
                Ok(tls) => tls,
                Err(error) => break Err(error),
            };
            let received = tls.poll_recv(&mut plain[filled..]);
            let updates = tls.key_update_counts().map_or(0, |counts| counts.recv_key_updates);
            self.note_key_updates(updates);
            match received {
                Poll::Ready(Ok(0)) => {
                    self.at_end = true;
                    break Ok(Read::End);
                }
                Poll::Ready(Ok(count)) => {
                    filled += count;
                    self.idle_updates = 0;
                }
                Poll::Pending if self.idle_updates > IDLE_UPDATES => {
                    break Err(io::Error::other("TLS: its keys are renewed again and again"));
                }
                // A record without plaintext.
                Poll::Pending => {}
                Poll::Ready(Err(error)) => break Err(words(&error)),
            }
        };
        let read = match read {
            read if filled == 0 => read,
            Ok(Read::Nothing) => Ok(Read::Bytes(filled)),
            last => {
                self.last = Some(last);
                Ok(Read::Bytes(filled))
            }
        };
        (read, cost)
    }

    /// The client has renewed its keys so often, which is counted up to 255 from when the connection was waked.
    fn note_key_updates(&mut self, updates: u8) {
        // Beyond that each record may be one.
        let is_beyond = updates == u8::MAX;
        self.owes_keys |= updates != self.key_updates || is_beyond;
        let more = updates.saturating_sub(self.key_updates).max(is_beyond.into());
        self.idle_updates += u32::from(more);
        self.key_updates = updates;
    }

    fn unload(&mut self) {
        self.has_record = callbacks::has_record();
        callbacks::unload(&mut self.received);
    }

    /// Encrypts all of it, and sends what the socket takes. Nothing was [unsent](Channel::has_unsent) before.
    pub(crate) fn write(&mut self, plain: &[u8], moved: &Config) -> io::Result<()> {
        callbacks::forget_unsent();
        let tls = self.tls(moved)?;
        // Whatever is written is taken.
        for piece in plain.chunks(RECORD_BYTES) {
            let mut piece = piece;
            while !piece.is_empty() {
                match tls.poll_send(piece) {
                    Poll::Ready(Ok(count)) => piece = piece.get(count..).unwrap_or_default(),
                    Poll::Ready(Err(error)) => return Err(words(&error)),
                    Poll::Pending => return Err(io::ErrorKind::WouldBlock.into()),
                }
            }
        }
        self.owes_keys = false;
        self.send()
    }

    /// Sends what TLS has written just now, behind what is unsent.
    fn send(&mut self) -> io::Result<()> {
        let (end, unsent) = (&mut self.end, &mut self.unsent);
        callbacks::sent(|bytes| {
            let mut written = 0;
            if unsent.is_empty() && end.writable && !bytes.is_empty() {
                written = end.write(bytes)?;
            }
            unsent.add(&bytes[written..]);
            Ok(())
        })
    }

    /// Sends what is unsent, as far as the socket takes it.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        while self.end.writable && !self.unsent.is_empty() {
            let written = self.end.write(self.unsent.bytes())?;
            self.unsent.take(written);
        }
        Ok(())
    }

    /// Tells the client that nothing more comes. In TLS 1.2 that is the end of both directions (RFC 5246, section 7.2.1).
    pub(crate) fn close_notify(&mut self, moved: &Config) -> io::Result<()> {
        callbacks::forget_unsent();
        self.deaf |= !self.has_two_ends(moved)?;
        if let Poll::Ready(Err(error)) = self.tls(moved)?.poll_shutdown_send().map_ok(drop) {
            return Err(words(&error));
        }
        self.send()
    }

    /// Whether one direction can end and the other one go on.
    pub(crate) fn has_two_ends(&mut self, moved: &Config) -> io::Result<bool> {
        Ok(matches!(self.tls(moved)?.actual_protocol_version(), Ok(Version::TLS13)))
    }

    /// Ends the sending direction of the socket, when everything was sent.
    pub(crate) fn shut(&mut self) {
        if !std::mem::replace(&mut self.shut, true) {
            // Fails if the client has ended the other one, and all is said then.
            let _ = self.end.stream.shutdown(Shutdown::Write);
        }
    }

    /// Forgets what is to be sent: nobody takes it any more.
    pub(crate) fn give_up(&mut self) {
        self.unsent = Rest::default();
    }

    /// Gives TLS's buffers back to the system, for a session that waits.
    pub(crate) fn rest(&mut self) {
        if let Tls::Awake(tls) = &mut self.tls {
            // Refused while there is something in them.
            let _ = tls.release_buffers();
        }
    }
}

fn connection(config: &Config) -> Result<Connection, Error> {
    let mut tls = Connection::new(Mode::Server);
    // Otherwise s2n-tls would call nanosleep(2) on the loop's thread after an error. What it hides by that are the timings of
    // ciphers that are not used here.
    tls.set_blinding(Blinding::SelfService)?;
    tls.set_config(config.clone())?;
    tls.prefer_throughput()?;
    callbacks::connect(&mut tls)?;
    Ok(tls)
}

/// An error in the library's words, without the place in its source.
pub(crate) fn words(error: &Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("TLS: {}", error.message()))
}
