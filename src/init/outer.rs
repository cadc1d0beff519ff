//! The manager that the init has itself: who has set `NOTIFY_SOCKET` for it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::sys::{self, Name};

/// What the environment calls the manager's socket (sd_notify(3)).
pub(super) const VARIABLE: &str = "NOTIFY_SOCKET";

/// How many datagrams wait for a manager that does not read; more are lost, the oldest first.
const MOST_WAITING: usize = 64;

/// A manager, and what it is still to be told. Nobody waits for it.
pub(super) struct Outer {
    name: Name,
    socket: OwnedFd,
    waiting: VecDeque<String>,
    said: Vec<&'static str>,
}

impl Outer {
    pub(super) fn of_environment() -> Option<Self> {
        let name = name_of(std::env::var_os(VARIABLE)?.as_bytes())?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let made = socket(AddressFamily::Unix, SockType::Datagram, flags, None);
        match made.and_then(|socket| sys::connect(socket.as_fd(), &name).map(|()| socket)) {
            Ok(socket) => Some(Self { name, socket, waiting: VecDeque::new(), said: Vec::new() }),
            Err(error) => {
                log::warn!("the manager that {VARIABLE} names hears nothing: {error}");
                None
            }
        }
    }

    /// Words of the server's.
    pub(super) fn pass_on(&mut self, words: &str) {
        if words.is_empty() {
            return;
        }
        if self.waiting.len() == MOST_WAITING {
            self.waiting.pop_front();
        }
        self.waiting.push_back(words.into());
        self.flush();
    }

    /// Words of the init's own.
    pub(super) fn say_once(&mut self, words: &'static str) {
        if !self.said.contains(&words) {
            self.said.push(words);
            self.pass_on(words);
        }
    }

    /// Says what waits, as far as there is room for it.
    pub(super) fn flush(&mut self) {
        let mut connected = false;
        while let Some(words) = self.waiting.front() {
            match sys::send(&self.socket, words.as_bytes(), &[]) {
                Ok(()) => drop(self.waiting.pop_front()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // A manager that was started anew has another socket of that name (connect(2)).
                Err(_) if !connected => {
                    connected = sys::connect(self.socket.as_fd(), &self.name).is_ok();
                    if !connected {
                        self.waiting.clear();
                    }
                }
                Err(_) => self.waiting.clear(),
            }
        }
    }

    /// The socket, if something waits for room in it.
    pub(super) fn waits(&self) -> Option<BorrowedFd<'_>> {
        (!self.waiting.is_empty()).then(|| self.socket.as_fd())
    }
}

/// A path, or `@` and a name that no file has (unix(7)).
fn name_of(text: &[u8]) -> Option<Name> {
    let path = match text {
        [b'@', name @ ..] if !name.is_empty() => [b"\0", name].concat(),
        [b'/', ..] => [text, b"\0"].concat(),
        _ => return None,
    };
    Name::new(&[&family(), path.as_slice()].concat())
}

/// What a name begins with.
pub(super) fn family() -> [u8; 2] {
    (AddressFamily::Unix as u16).to_ne_bytes()
}
