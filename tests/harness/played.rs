//! A predecessor that the test plays itself: a readiness pipe, a handoff socket, and whatever it
//! puts into them. Its bytes are written down here and do not change with the library.

use std::fs::File;
use std::io::{IoSlice, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, recv, sendmsg, socketpair,
};
use nix::unistd::pipe;
use tablecloth::wire::VARIABLE;

use super::{PATIENCE, Start};

/// The predecessor's ends, and the successor's, which any child of this process inherits.
pub(crate) struct Played {
    socket: OwnedFd,
    pipe: File,
    far: (OwnedFd, OwnedFd),
}

/// A part of a MANIFEST that passes on TCP listeners.
pub(crate) struct Part<'a> {
    /// The header's.
    pub(crate) version: u16,
    pub(crate) oldest: u16,
    pub(crate) newest: u16,
    pub(crate) generation: u64,
    pub(crate) part: u8,
    pub(crate) parts: u8,
    pub(crate) names: Vec<&'a str>,
    /// The descriptors' kind; 0 is a TCP listener.
    pub(crate) kind: u8,
    /// What a later version than 2 has added.
    pub(crate) added: &'a [u8],
}

impl<'a> Part<'a> {
    /// The whole manifest, in protocol version 1, with one listener.
    pub(crate) fn new(name: &'a str) -> Self {
        Self {
            version: 1,
            oldest: 1,
            newest: 1,
            generation: 1,
            part: 0,
            parts: 1,
            names: vec![name],
            kind: 0,
            added: &[],
        }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut packet = b"tclo".to_vec();
        packet.extend(self.version.to_le_bytes());
        packet.push(1);
        packet.extend(self.oldest.to_le_bytes());
        packet.extend(self.newest.to_le_bytes());
        packet.extend(self.generation.to_le_bytes());
        packet.extend(std::process::id().to_le_bytes());
        // No signal is blocked, and this process stays for ever.
        packet.extend(0u64.to_le_bytes());
        packet.extend(u64::MAX.to_le_bytes());
        packet.extend([self.part, self.parts, self.names.len() as u8]);
        for name in &self.names {
            packet.extend([self.kind, name.len() as u8]);
            packet.extend(name.as_bytes());
        }
        if self.version >= 2 {
            // How each was asked for, and which file it was: not known.
            self.names.iter().for_each(|_| packet.extend([0; 1 + 8 + 8]));
        }
        packet.extend(self.added);
        packet
    }
}

impl Played {
    pub(crate) fn new() -> Self {
        let (socket, far_socket) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::empty())
                .expect("a pair");
        let (pipe, far_pipe) = pipe().expect("a pipe");
        for near in [&socket, &pipe] {
            fcntl(near, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).expect("a flag");
        }
        Self { socket, pipe: pipe.into(), far: (far_pipe, far_socket) }
    }

    /// Says so before there is a successor, or afterwards.
    pub(crate) fn say(&self, packet: &[u8]) {
        self.say_with(packet, &[]);
    }

    pub(crate) fn say_with(&self, packet: &[u8], descriptors: &[BorrowedFd<'_>]) {
        let numbers: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&numbers)];
        let control = if numbers.is_empty() { &[][..] } else { &rights[..] };
        let (socket, slices) = (self.socket.as_raw_fd(), [IoSlice::new(packet)]);
        sendmsg::<()>(socket, &slices, control, MsgFlags::MSG_NOSIGNAL, None).expect("sent");
    }

    /// Has a program find this predecessor.
    pub(crate) fn start(&self, start: Start) -> Start {
        let (pipe, socket) = (self.far.0.as_raw_fd(), self.far.1.as_raw_fd());
        start.env(VARIABLE, &format!("pipe={pipe},socket={socket},pid={}", std::process::id()))
    }

    /// The successor's next packet.
    pub(crate) fn hear(&self) -> Vec<u8> {
        let mut packet = vec![0; 64 * 1024];
        wait_for(&self.socket);
        let length = recv(self.socket.as_raw_fd(), &mut packet, MsgFlags::empty()).expect("one");
        packet.truncate(length);
        packet
    }

    /// The byte on the readiness pipe.
    pub(crate) fn hear_ready(&mut self) -> u8 {
        let mut byte = [0];
        wait_for(&self.pipe);
        self.pipe.read_exact(&mut byte).expect("a byte");
        byte[0]
    }
}

/// Waits until there is something to read.
fn wait_for(fd: impl AsFd) {
    let patience = PollTimeout::try_from(PATIENCE).expect("seconds");
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut fds, patience), Ok(1), "nothing came");
}
