//! A successor of another build, with protocol versions of its own. It is written down byte by
//! byte, so that what any two builds have in common is held against something that does not change
//! with the library.

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, accept, recv, recvmsg, send};
use nix::unistd::close;

/// What it speaks.
#[derive(Clone, Copy)]
struct Range {
    oldest: u16,
    newest: u16,
}

impl Range {
    fn agree(self, other: Self) -> Option<u16> {
        let newest = self.newest.min(other.newest);
        (newest >= self.oldest.max(other.oldest)).then_some(newest)
    }
}

/// Takes over, and serves until it is killed; or refuses in words, which is the error.
/// `range` is `OLDEST-NEWEST`.
pub(crate) fn succeed(
    range: &str,
    socket: RawFd,
    ready: impl FnOnce() -> Result<(), String>,
) -> Result<(), String> {
    let (oldest, newest) = range.split_once('-').ok_or("OLDEST-NEWEST")?;
    let number = |text: &str| text.parse::<u16>().map_err(|error| format!("{range}: {error}"));
    let speaks = Range { oldest: number(oldest)?, newest: number(newest)? };

    let mut packet = [0; 32 * 1024];
    let (length, descriptors) = receive(socket, &mut packet).map_err(|e| e.to_string())?;
    let manifest = &packet[..length];
    assert_eq!((&manifest[..4], manifest[6]), (&b"tclo"[..], 1), "a MANIFEST");
    let field = |at: usize| u16::from_le_bytes([manifest[at], manifest[at + 1]]);
    let spoken = Range { oldest: field(7), newest: field(9) };
    assert_eq!(field(4), spoken.newest, "it is written in the newest version of its range");

    let Some(chosen) = speaks.agree(spoken) else {
        let words = format!(
            "the predecessor speaks {} to {}, this other build {} to {}",
            spoken.oldest, spoken.newest, speaks.oldest, speaks.newest
        );
        let body = [&(words.len() as u16).to_le_bytes(), words.as_bytes()].concat();
        say(socket, speaks.newest, 3, &body)?;
        return Err(words);
    };
    // This build cannot be asked to speak another version than this library's.
    assert!((1..=4).contains(&chosen));
    let build = b"another build";
    let pid = std::process::id().to_le_bytes();
    let length = (build.len() as u16).to_le_bytes();
    say(socket, chosen, 2, &[&[0; 8], &pid[..], &length, build].concat())?;
    ready()?;
    hear(socket, chosen, 4)?;
    say(socket, chosen, 5, &[])?;
    log::info!("another build serves");
    hear(socket, chosen, 8)?;
    say(socket, chosen, 9, &[])?;
    serve(*descriptors.first().ok_or("no listener")?).map_err(|error| error.to_string())
}

fn receive(socket: RawFd, packet: &mut [u8]) -> nix::Result<(usize, Vec<RawFd>)> {
    let mut control = nix::cmsg_space!([RawFd; 8]);
    let mut slices = [io::IoSliceMut::new(packet)];
    let message = recvmsg::<()>(socket, &mut slices, Some(&mut control), MsgFlags::empty())?;
    let mut descriptors = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(numbers) = control {
            descriptors.extend(numbers);
        }
    }
    Ok((message.bytes, descriptors))
}

fn say(socket: RawFd, version: u16, kind: u8, body: &[u8]) -> Result<(), String> {
    let packet = [&b"tclo"[..], &version.to_le_bytes(), &[kind], body].concat();
    let sent = send(socket, &packet, MsgFlags::MSG_NOSIGNAL).map_err(|error| error.to_string())?;
    assert_eq!(sent, packet.len());
    Ok(())
}

/// Waits for that message without a body, in that version.
fn hear(socket: RawFd, version: u16, kind: u8) -> Result<(), String> {
    let mut packet = [0; 64];
    let length = patiently(|| recv(socket, &mut packet, MsgFlags::empty()));
    let expected = [&b"tclo"[..], &version.to_le_bytes(), &[kind]].concat();
    match length.map(|length| &packet[..length]) {
        Ok(heard) if *heard == expected => Ok(()),
        Ok(heard) => Err(format!("{heard:?} instead of {expected:?}")),
        Err(error) => Err(error.to_string()),
    }
}

/// Answers `who`, whatever is asked.
fn serve(listener: RawFd) -> nix::Result<()> {
    let answer = format!("{} 1\n", std::process::id());
    loop {
        let connection = patiently(|| accept(listener))?;
        let asked = recv(connection, &mut [0; 64], MsgFlags::empty());
        if asked.is_ok_and(|read| read > 0) {
            send(connection, answer.as_bytes(), MsgFlags::MSG_NOSIGNAL)?;
        }
        close(connection)?;
    }
}

/// Again, until there is something: both sockets came as the predecessor made them, non-blocking.
fn patiently<T>(mut call: impl FnMut() -> nix::Result<T>) -> nix::Result<T> {
    loop {
        match call() {
            Err(Errno::EAGAIN | Errno::EINTR) => std::thread::sleep(Duration::from_millis(1)),
            done => return done,
        }
    }
}
