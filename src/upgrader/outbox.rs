//! What the other process is still to be told: words that its socket has no room for, and words for a
//! successor that has not said which version it speaks.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use crate::post::Post;
use crate::sys;
use crate::wire::Message;

/// Words in the order in which they are to be said. There are a few kinds of them, and each is said a
/// few times in an upgrade.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    words: VecDeque<Message>,
}

impl Outbox {
    pub(crate) fn add(&mut self, message: Message) {
        self.words.push_back(message);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// Takes back what is out of date.
    pub(crate) fn forget(&mut self, which: impl Fn(&Message) -> bool) {
        self.words.retain(|message| !which(message));
    }

    /// Sends what the socket takes. Of a process that is dead its death is heard, and nothing waits.
    pub(crate) fn flush(&mut self, socket: &OwnedFd, protocol: u16) {
        while let Some(message) = self.words.front() {
            match sys::send(socket, &message.encode(protocol), &[]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => log::debug!("{} to the other process: {error}", message.name()),
                Ok(()) => {}
            }
            self.words.pop_front();
        }
    }
}

/// Sends of the application's messages what the socket takes, and leaves half of the socket's `room` to the
/// handoff itself. Answers whether something still waits.
pub(crate) fn flush_post(post: &mut Post, socket: &OwnedFd, protocol: u16, room: usize) -> bool {
    while let Some(message) = post.first() {
        if sys::unread(socket.as_fd()).is_ok_and(|unread| unread > room / 2) {
            return true;
        }
        let packet = Message::Told(message.to_vec()).encode(protocol);
        match sys::send(socket, &packet, &[]) {
            // Of a process that is dead its death is heard.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::BrokenPipe
                        | io::ErrorKind::ConnectionReset
                        | io::ErrorKind::NotConnected
                ) =>
            {
                log::debug!("TOLD to the other process: {error}");
            }
            // The socket is full, or the kernel has no memory for it (ENOBUFS, send(2)): later.
            Err(_) => return true,
            Ok(()) => {}
        }
        post.said();
    }
    false
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

    use super::*;
    use crate::wire::PROTOCOL;

    #[test]
    fn a_word_that_the_socket_has_no_room_for_is_said_when_there_is() {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (near, far) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).expect("a pair");
        while sys::send(&near, &[0; 512], &[]).is_ok() {}
        let mut outbox = Outbox::default();
        outbox.add(Message::Upgrade);
        outbox.flush(&near, PROTOCOL.newest);
        assert!(!outbox.is_empty(), "there is no room");

        let mut packet = [0; 512];
        while sys::receive(&far, &mut packet).is_ok() {}
        outbox.flush(&near, PROTOCOL.newest);
        assert!(outbox.is_empty());
        let received = sys::receive(&far, &mut packet).expect("a packet");
        let (_, message) = Message::decode(&packet[..received.length], PROTOCOL).expect("a word");
        assert_eq!(message, Message::Upgrade);
    }
}
