//! The way to a service manager: its socket, and what waits until there is room in it (sd_notify(3)).

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Instant;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, sendmsg, socket,
};
use nix::unistd::pipe2;

use crate::limits;

/// Each packet is one message, of lines that belong together: a manager that hears one of them has
/// heard the others.
pub(super) struct Channel {
    socket: OwnedFd,
    /// Not connected to it: a manager that begins anew is reached again by the same name.
    manager: UnixAddr,
    waiting: VecDeque<Words>,
    /// When what waits is to be said.
    due: Option<Instant>,
    /// Whether the last message did not reach it, and why was logged.
    is_deaf: bool,
}

struct Words {
    about: About,
    text: String,
}

/// What a message is about. Of the last three only the newest is worth saying.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum About {
    /// Who serves, or that nobody will: every one is said, in order.
    Service,
    /// The line that is shown to people.
    Status,
    /// That it takes longer.
    Time,
    /// That the loop turns.
    Loop,
}

impl Channel {
    /// A way to the socket that the variable names, a path or `@` and an abstract name. An error says why
    /// there is none.
    pub(super) fn to(variable: &OsStr) -> Result<Self, String> {
        let bytes = variable.as_bytes();
        let manager = match bytes {
            [b'/', ..] => UnixAddr::new(Path::new(variable)),
            [b'@', name @ ..] if !name.is_empty() => UnixAddr::new_abstract(name),
            _ => return Err("expected a path or @NAME".into()),
        };
        let manager = manager.map_err(|error| error.desc().to_owned())?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Unix, SockType::Datagram, flags, None);
        let socket = socket.map_err(|error| format!("make a socket: {error}"))?;
        Ok(Self { socket, manager, waiting: VecDeque::new(), due: None, is_deaf: false })
    }

    /// Says it at the end of this turn, or as soon as there is room.
    pub(super) fn say(&mut self, about: About, text: String, now: Instant) {
        if about != About::Service {
            self.waiting.retain(|words| words.about != about);
        } else if self.waiting.len() >= limits::NOTIFY_WAITING {
            // A manager that has not read for so long is told how it stands in the end.
            self.waiting.pop_front();
        }
        self.waiting.push_back(Words { about, text });
        self.due.get_or_insert(now);
    }

    /// Says what waits, as far as there is room. Answers whether nothing waits any more.
    pub(super) fn flush(&mut self, now: Instant) -> bool {
        while let Some(words) = self.waiting.front() {
            match self.send(words.text.as_bytes(), &[]) {
                Ok(()) => self.is_deaf = false,
                Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::EINTR) => {
                    self.due = Some(now + limits::NOTIFY_RETRY);
                    return false;
                }
                Err(error) => {
                    if !std::mem::replace(&mut self.is_deaf, true) {
                        log::warn!("the service manager cannot be told anything: {error}");
                    }
                }
            }
            self.waiting.pop_front();
        }
        self.due = None;
        true
    }

    /// When something is to be said, at the latest.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Sends the manager a descriptor that it closes when it has read all that was sent before, by whomever
    /// (sd_notify_barrier(3)). The answer is the other end, which is at its end then.
    pub(super) fn barrier(&self) -> nix::Result<OwnedFd> {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        // A manager wants it to be alone in its message.
        self.send(b"BARRIER=1", &[writer.as_fd()])?;
        Ok(reader)
    }

    fn send(&self, text: &[u8], fds: &[BorrowedFd<'_>]) -> nix::Result<()> {
        let numbers: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&numbers)];
        let control = if numbers.is_empty() { &[][..] } else { &rights[..] };
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        let socket = self.socket.as_raw_fd();
        sendmsg(socket, &[IoSlice::new(text)], control, flags, Some(&self.manager)).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;
    use std::time::Duration;

    use nix::unistd::read;

    use super::*;

    fn manager() -> (tempfile::TempDir, UnixDatagram, Channel) {
        let place = tempfile::tempdir().expect("a directory");
        let path = place.path().join("notify");
        let manager = UnixDatagram::bind(&path).expect("bound");
        manager.set_nonblocking(true).expect("set");
        let channel = Channel::to(path.as_os_str()).expect("a way to it");
        (place, manager, channel)
    }

    fn heard(manager: &UnixDatagram) -> Vec<String> {
        let mut buffer = [0; 4096];
        std::iter::from_fn(|| manager.recv(&mut buffer).ok().map(|read| buffer[..read].to_vec()))
            .map(|bytes| String::from_utf8(bytes).expect("text"))
            .collect()
    }

    #[test]
    fn a_variable_that_names_no_socket_is_told_in_words() {
        for text in ["", "@", "vsock:2:9", "relative", &format!("/{}", "x".repeat(200))] {
            let Err(error) = Channel::to(OsStr::new(text)) else { panic!("{text:?}") };
            assert!(!error.is_empty(), "{text:?}");
        }
        assert!(Channel::to(OsStr::new("@tablecloth-test-of-a-name")).is_ok());
    }

    #[test]
    fn words_come_in_their_order_and_of_what_is_only_news_the_newest() {
        let (_place, manager, mut channel) = manager();
        let now = Instant::now();
        channel.say(About::Service, "READY=1".into(), now);
        channel.say(About::Status, "STATUS=old".into(), now);
        channel.say(About::Loop, "WATCHDOG=1".into(), now);
        channel.say(About::Status, "STATUS=new".into(), now);
        channel.say(About::Service, "STOPPING=1".into(), now);
        assert_eq!(channel.due(), Some(now));
        assert!(channel.flush(now));
        assert_eq!(channel.due(), None);
        assert_eq!(heard(&manager), ["READY=1", "WATCHDOG=1", "STATUS=new", "STOPPING=1"]);
    }

    #[test]
    fn a_manager_that_does_not_read_is_told_later_and_holds_nobody_up() {
        let (_place, manager, mut channel) = manager();
        let mut now = Instant::now();
        let mut said = 0;
        loop {
            channel.say(About::Service, format!("READY={said}"), now);
            said += 1;
            if !channel.flush(now) {
                break;
            }
        }
        assert_eq!(channel.due(), Some(now + limits::NOTIFY_RETRY));
        assert_eq!(channel.barrier().err(), Some(Errno::EAGAIN));
        for more in 0..100 {
            channel.say(About::Service, format!("READY=more {more}"), now);
        }
        assert!(channel.waiting.len() <= limits::NOTIFY_WAITING, "bounded");
        let first = heard(&manager);
        assert_eq!(first.len(), said - 1);
        now += limits::NOTIFY_RETRY;
        while !channel.flush(now) {
            heard(&manager);
        }
        assert_eq!(heard(&manager).last().map(String::as_str), Some("READY=more 99"));
    }

    #[test]
    fn a_manager_that_is_gone_and_comes_back_is_told_what_is_said_then() {
        let (place, manager, mut channel) = manager();
        let now = Instant::now();
        drop(manager);
        channel.say(About::Service, "READY=1".into(), now);
        assert!(channel.flush(now), "nobody waits for it");
        let path = place.path().join("notify");
        std::fs::remove_file(&path).expect("removed");
        let manager = UnixDatagram::bind(&path).expect("bound");
        manager.set_read_timeout(Some(Duration::from_secs(10))).expect("set");
        channel.say(About::Service, "STOPPING=1".into(), now);
        assert!(channel.flush(now));
        let mut buffer = [0; 64];
        assert_eq!(manager.recv(&mut buffer).map(|read| buffer[..read].to_vec()).ok(), {
            Some(b"STOPPING=1".to_vec())
        });
    }

    #[test]
    fn a_barrier_is_over_when_the_manager_has_closed_its_descriptor() {
        let (_place, manager, channel) = manager();
        let reader = channel.barrier().expect("sent");
        assert_eq!(read(&reader, &mut [0]), Err(Errno::EAGAIN));
        let received = crate::sys::receive(&manager, &mut [0; 64]).expect("a packet");
        assert_eq!((received.length, received.descriptors.len()), (9, 1));
        drop(received);
        assert_eq!(read(&reader, &mut [0]), Ok(0));
    }
}
