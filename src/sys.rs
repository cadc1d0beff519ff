//! The only `unsafe`: spawn a process, pass descriptors to it, adopt descriptors in it, and ask the
//! kernel for what nix has no safe name for.
//!
//! Each block says who owns the descriptor, and why nobody else does. `spawn` makes a process, `reap` hears
//! how processes end, and `actions` keeps what signals do; they are parts of this noun.

mod actions;
mod memory;
mod reap;
mod spawn;

use std::ffi::{CStr, OsStr, OsString};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::ptr;
use std::sync::Mutex;
use std::time::Instant;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use crate::limits;
pub(crate) use actions::Action;
pub(crate) use memory::Shared;
pub(crate) use reap::{Ending, reap};
pub(crate) use spawn::{Command, NotSpawned, Spawned, spawn, spawn_with_mask};

/// A descriptor for a process, which becomes readable when it dies (pidfd_open(2)). The caller
/// knows that the id still means that process: it is its parent, or its child.
pub(crate) fn process_descriptor(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: no pointer is passed.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid as libc::pid_t, 0) };
    let fd = RawFd::try_from(Errno::result(fd)?).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has just made this descriptor for us, close-on-exec, and nobody else
    // knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Kills a process for sure, and never another one that got its id (pidfd_send_signal(2)).
pub(crate) fn kill(process: BorrowedFd<'_>) -> io::Result<()> {
    send_signal(process, libc::SIGKILL)
}

/// Sends a signal to a process, and never to another one that got its id (pidfd_send_signal(2)).
pub(crate) fn send_signal(process: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    let info = ptr::null::<libc::siginfo_t>();
    // SAFETY: the descriptor is borrowed and stays open; a null siginfo is allowed.
    let result =
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), signal, info, 0) };
    Errno::result(result)?;
    Ok(())
}

/// Waits until a process is dead, and no longer than until `deadline`; answers whether it is.
pub(crate) fn is_dead_by(process: BorrowedFd<'_>, deadline: Instant) -> bool {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(process, PollFlags::POLLIN)], timeout) {
            Ok(ready) if ready > 0 => return true,
            // More time than one poll can wait, or a signal.
            Ok(_) | Err(Errno::EINTR) if Instant::now() < deadline => {}
            Ok(_) | Err(_) => return false,
        }
    }
}

/// Whether a process has begun to exit, or will as soon as it is scheduled: PF_EXITING in the ninth
/// field of `/proc/PID/stat`, or SIGKILL in `SigPnd` of `/proc/PID/status` (proc(5)). The caller
/// knows that the id still means that process.
pub(crate) fn is_exiting(pid: u32) -> bool {
    const PF_EXITING: u64 = 4;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let pending = status.lines().find_map(|line| line.strip_prefix("SigPnd:"));
    let pending = pending.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    if pending.is_some_and(|mask| mask & (1 << (libc::SIGKILL - 1)) != 0) {
        return true;
    }
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The second field is the name, in parentheses, and may contain anything.
    let flags = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(6));
    flags.and_then(|flags| flags.parse::<u64>().ok()).is_some_and(|flags| flags & PF_EXITING != 0)
}

/// Locks a file for this process, or says that it is locked ([`io::ErrorKind::WouldBlock`]). The lock
/// belongs to the open file description and goes with its last descriptor (flock(2)).
pub(crate) fn lock(file: BorrowedFd<'_>) -> nix::Result<()> {
    // SAFETY: the descriptor is borrowed and stays open; no pointer is passed.
    Errno::result(unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) }).map(drop)
}

/// The same, shared with others that do so: enough to see whether somebody has locked it.
pub(crate) fn lock_shared(file: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the descriptor is borrowed and stays open; no pointer is passed.
    Errno::result(unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_SH | libc::LOCK_NB) })?;
    Ok(())
}

/// Who owns the files that this process makes (geteuid(2)).
pub(crate) fn effective_user() -> u32 {
    // SAFETY: no pointer is passed, and it always succeeds.
    unsafe { libc::geteuid() }
}

/// The monotonic clock, in microseconds (CLOCK_MONOTONIC, clock_gettime(2)).
#[cfg(feature = "systemd")]
pub(crate) fn monotonic_micros() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes one timespec. With this clock it always succeeds.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1000
}

/// Drops every capability of this thread, the inheritable and the ambient ones included (capabilities(7)).
pub(crate) fn drop_capabilities() -> io::Result<()> {
    /// _LINUX_CAPABILITY_VERSION_3, which libc has no name for (linux/capability.h).
    const VERSION: u32 = 0x2008_0522;
    let (none, whom) = ([0_u32; 6], [VERSION, 0]);
    // SAFETY: no pointer is passed. Where there are no ambient ones (before Linux 4.3), it fails and that is all.
    unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) };
    // SAFETY: a header of version and thread, 0 for the calling one, and two sets of three masks as that version
    // has them; they are only read.
    let result = unsafe { libc::syscall(libc::SYS_capset, whom.as_ptr(), none.as_ptr()) };
    Errno::result(result)?;
    Ok(())
}

/// A signal's name, or its number where it has none.
pub(crate) fn signal_name(signal: i32) -> String {
    match Signal::try_from(signal) {
        Ok(signal) => signal.as_str().into(),
        Err(_) => format!("signal {signal}"),
    }
}

/// Has a TCP socket delay its acknowledgements, so that they ride on what is sent, or not (TCP_QUICKACK,
/// tcp(7)). nix has no name for it.
pub(crate) fn delay_acknowledgements(socket: BorrowedFd<'_>, delay: bool) -> io::Result<()> {
    let quick = libc::c_int::from(!delay);
    // SAFETY: the value is an int, as the option has it.
    unsafe { set_option(socket, libc::IPPROTO_TCP, libc::TCP_QUICKACK, &quick) }
}

/// Sets an option that nix has no name for (setsockopt(2)).
///
/// # Safety
///
/// The option's value is of type `T`, and what it points to lives until this returns.
unsafe fn set_option<T>(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    value: &T,
) -> io::Result<()> {
    let (value, length) = (ptr::from_ref(value), size_of::<T>() as libc::socklen_t);
    // SAFETY: the descriptor is borrowed and stays open; the value is as long as is said, and of the type that the
    // caller has promised.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value.cast(), length) };
    Errno::result(result)?;
    Ok(())
}

/// Whether a TCP socket acknowledges at once what comes next (TCP_QUICKACK, tcp(7)).
#[cfg(test)]
pub(crate) fn acknowledges_at_once(socket: BorrowedFd<'_>) -> bool {
    let (mut quick, mut length): (libc::c_int, _) =
        (0, size_of::<libc::c_int>() as libc::socklen_t);
    let (level, name) = (libc::IPPROTO_TCP, libc::TCP_QUICKACK);
    let (fd, value) = (socket.as_raw_fd(), (&raw mut quick).cast());
    // SAFETY: the descriptor is borrowed and stays open; the value is an int, as long as is said.
    let result = unsafe { libc::getsockopt(fd, level, name, value, &raw mut length) };
    result == 0 && quick != 0
}

/// SIOCOUTQNSD, which libc has no name for (linux/sockios.h).
const SIOCOUTQNSD: libc::Ioctl = 0x894b;

/// How many bytes a TCP socket is still to send for the first time: its peer has no room for them, or
/// the way there has none.
pub(crate) fn unsent(socket: BorrowedFd<'_>) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the descriptor is borrowed and stays open; the call writes an int, and nothing else.
    Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCOUTQNSD, &raw mut bytes) })?;
    Ok(usize::try_from(bytes).unwrap_or(0))
}

/// How much a Unix socket has sent that nobody has read, as the kernel counts it (SIOCOUTQ, unix(7)).
pub(crate) fn unread(socket: BorrowedFd<'_>) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the descriptor is borrowed and stays open; the call writes an int, and nothing else.
    Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) })?;
    Ok(usize::try_from(bytes).unwrap_or(0))
}

/// Whether a signal does what it does unless somebody has said otherwise (signal(7)).
pub(crate) fn is_at_its_default(signal: i32) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: with a null new action the call only fills in the old one, or fails.
    let result = unsafe { libc::sigaction(signal, ptr::null(), action.as_mut_ptr()) };
    // SAFETY: zeroed, which is an action as good as any: numbers, and a set without a signal.
    result != 0 || unsafe { action.assume_init() }.sa_sigaction == libc::SIG_DFL
}

/// Reads an environment variable and takes it out of the environment, so that no child of this
/// process inherits it.
///
/// It stays where another thread could be reading the environment at the same time; what reads it
/// has to expect it from an ancestor.
pub(crate) fn take_variable(name: &str) -> Option<OsString> {
    let value = std::env::var_os(name)?;
    if single_threaded() {
        // SAFETY: this is the only thread, so nobody reads or writes the environment meanwhile,
        // and no other thread can come into being before this one goes on.
        unsafe { std::env::remove_var(name) };
    }
    Some(value)
}

/// `/proc/self/task` has one directory for each thread; its links are those and two more (proc(5)).
fn single_threaded() -> bool {
    std::fs::metadata("/proc/self/task").is_ok_and(|tasks| tasks.nlink() == 3)
}

/// The numbers that were adopted.
static ADOPTED: Mutex<Vec<RawFd>> = Mutex::new(Vec::new());

/// Whether a descriptor that the program was started with is what it should be. It is only looked at.
/// An error says that there is none of that number, or that it belongs to somebody in this program.
pub(crate) fn is_inherited(
    number: RawFd,
    is: impl FnOnce(BorrowedFd<'_>) -> bool,
) -> io::Result<bool> {
    // A poisoned lock is as good as a whole one here: a push happens or it does not.
    let adopted = ADOPTED.lock().unwrap_or_else(|poison| poison.into_inner());
    // Standard input, output and error belong to the program; a number is adopted only once.
    if number <= libc::STDERR_FILENO || adopted.contains(&number) {
        return Err(Errno::EBADF.into());
    }
    // SAFETY: asks about a number, which may be closed; no ownership is involved.
    let flags = Errno::result(unsafe { libc::fcntl(number, libc::F_GETFD) })?;
    // Whoever opened a descriptor in this program made it close-on-exec, as Rust's library does.
    // One without the flag was inherited, so that nobody in this program owns it.
    if flags & libc::FD_CLOEXEC != 0 {
        return Err(Errno::EBADF.into());
    }
    // SAFETY: open, and nobody in this program owns it, so that nobody closes it meanwhile.
    Ok(is(unsafe { BorrowedFd::borrow_raw(number) }))
}

/// The epoll instance of a poll, which mio lends as a number.
pub(crate) fn descriptor_of(poll: &mio::Poll) -> BorrowedFd<'_> {
    // SAFETY: the poll owns it, and is borrowed for as long as it is.
    unsafe { BorrowedFd::borrow_raw(poll.as_raw_fd()) }
}

/// Adopts a descriptor that the program was started with, and that was [looked at](is_inherited). Each
/// number can be adopted once.
pub(crate) fn adopt(number: RawFd) -> io::Result<OwnedFd> {
    is_inherited(number, |_| true)?;
    ADOPTED.lock().unwrap_or_else(|poison| poison.into_inner()).push(number);
    // SAFETY: open, inherited, and adopted by nobody before, so this is its only owner. (Of two threads
    // that adopt one number, both may come here; there is one server in a process at a time, and only it
    // adopts.)
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    Ok(fd)
}

/// Sends one packet with descriptors on it. Never blocks, never raises SIGPIPE.
pub(crate) fn send(socket: impl AsFd, packet: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let numbers: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&numbers)];
    let control = if numbers.is_empty() { &[][..] } else { &rights[..] };
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    let socket = socket.as_fd().as_raw_fd();
    sendmsg::<()>(socket, &[IoSlice::new(packet)], control, flags, None)?;
    Ok(())
}

/// A packet: how long it is, and the descriptors that rode on it.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) length: usize,
    pub(crate) descriptors: Vec<OwnedFd>,
    /// Who has sent it, by the kernel's word, if the socket was asked to say so (SO_PASSCRED, unix(7)).
    /// `None` also for a process that has no id in this pid namespace.
    pub(crate) sender: Option<u32>,
}

/// Receives one packet; its descriptors are close-on-exec. Never blocks. Length 0 is the end of
/// the stream.
///
/// An empty packet, one longer than the buffer, and one whose descriptors did not all arrive are
/// errors of the kind [`io::ErrorKind::InvalidData`]: the packet was taken out of the socket, and
/// nothing of it is kept.
pub(crate) fn receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<Received> {
    receive_into(socket, buffer, &mut [0; CONTROL_WORDS])
}

/// Room for as many descriptors as fit on one packet, in words, because a control buffer is aligned
/// like its header (cmsg(3)).
const CONTROL_WORDS: usize = {
    let bytes = limits::DESCRIPTORS_PER_PACKET * size_of::<RawFd>();
    // SAFETY: computes a size from a size.
    let descriptors = unsafe { libc::CMSG_SPACE(bytes as libc::c_uint) } as usize;
    // SAFETY: as above.
    let sender = unsafe { libc::CMSG_SPACE(size_of::<libc::ucred>() as libc::c_uint) } as usize;
    (descriptors + sender).div_ceil(size_of::<u64>())
};
const _: () = assert!(align_of::<libc::cmsghdr>() <= align_of::<u64>());

/// Not by nix: where descriptors were cut off it does not give out those that have arrived, so that
/// nobody could close them.
fn receive_into(socket: impl AsFd, buffer: &mut [u8], control: &mut [u64]) -> io::Result<Received> {
    let mut slices = [IoSliceMut::new(buffer)];
    // SAFETY: a message header is numbers and pointers, and null ones are allowed.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    // An IoSliceMut is an iovec, as the standard library promises.
    message.msg_iov = slices.as_mut_ptr().cast();
    message.msg_iovlen = slices.len() as _;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(control) as _;
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: every pointer is to something that lives until the call returns, and is as long as
    // the header says.
    let length =
        Errno::result(unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), &mut message, flags) })?;

    let (mut descriptors, mut sender) = (Vec::new(), None);
    // SAFETY: the header is as the kernel has left it, with the control buffer behind it.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(&message) };
    // SAFETY: a pointer from CMSG_FIRSTHDR or CMSG_NXTHDR is null or to a header in the buffer.
    while let Some(found) = unsafe { header.as_ref() } {
        if (found.cmsg_level, found.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) {
            // SAFETY: the kernel has put a whole ucred behind this header, which is in the buffer.
            let who = unsafe { libc::CMSG_DATA(header).cast::<libc::ucred>().read_unaligned() };
            sender = u32::try_from(who.pid).ok().filter(|pid| *pid > 0);
        }
        if (found.cmsg_level, found.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
            // SAFETY: a pointer past a header that is in the buffer.
            let first = unsafe { libc::CMSG_DATA(header) }.cast::<RawFd>();
            // SAFETY: computes a size from a size.
            let head = unsafe { libc::CMSG_LEN(0) } as usize;
            #[allow(clippy::unnecessary_cast, reason = "a u32 with musl")]
            let count = (found.cmsg_len as usize).saturating_sub(head) / size_of::<RawFd>();
            for index in 0..count {
                // SAFETY: within the data of this header; the kernel has just made this descriptor
                // for us, and nobody else knows its number.
                let fd = unsafe { OwnedFd::from_raw_fd(first.add(index).read_unaligned()) };
                descriptors.push(fd);
            }
        }
        // SAFETY: as with CMSG_FIRSTHDR, and the header is in the buffer.
        header = unsafe { libc::CMSG_NXTHDR(&message, header) };
    }

    // What has arrived of a packet like these is dropped with them, descriptors included.
    let refused = |what| Err(io::Error::new(io::ErrorKind::InvalidData, what));
    if message.msg_flags & libc::MSG_CTRUNC != 0 {
        return refused(
            "not all descriptors arrived: this process may not open more (RLIMIT_NOFILE)",
        );
    }
    if message.msg_flags & libc::MSG_TRUNC != 0 {
        return refused("an oversized handoff message");
    }
    let length = usize::try_from(length).map_err(|_| Errno::EIO)?;
    if length == 0 && !is_at_end(socket.as_fd()) {
        return refused("an empty handoff message");
    }
    Ok(Received { length, descriptors, sender })
}

/// Whether nobody writes any more: an empty packet reads like the end (recv(2)), and is not.
fn is_at_end(socket: BorrowedFd<'_>) -> bool {
    // nix has no name for it, and no set of flags that it is in.
    let end = PollFlags::from_bits_retain(libc::POLLRDHUP);
    let mut fds = [PollFd::new(socket, end)];
    // A socket that cannot be asked is of no more use than one at its end.
    poll(&mut fds, PollTimeout::ZERO) != Ok(0)
}

/// The path that this program was executed by, as it was given to execve(2) (AT_EXECFN, getauxval(3)).
pub(crate) fn executed_path() -> Option<OsString> {
    // SAFETY: asks for a number.
    let address = unsafe { libc::getauxval(libc::AT_EXECFN) } as *const libc::c_char;
    if address.is_null() {
        return None;
    }
    // SAFETY: the kernel has put a nul-terminated string there before the program began. It lies
    // beyond the stack, stays there as long as the process, and nobody owns it.
    let path = unsafe { CStr::from_ptr(address) };
    Some(OsStr::from_bytes(path.to_bytes()).to_owned())
}

/// A socket's name as the kernel writes it and reads it: the family, and what is behind it (bind(2)).
///
/// It has more room than `sockaddr_un`: behind a path that fills all the 108 bytes of `sun_path` the
/// kernel puts a NUL, and says that the name is one byte longer than that struct (unix(7), BUGS).
#[derive(Clone, Copy, Debug)]
#[repr(C, align(8))]
pub(crate) struct Name {
    bytes: [u8; Self::BYTES],
    length: usize,
}

impl Name {
    /// As `sockaddr_storage`, which any name fits into.
    const BYTES: usize = size_of::<libc::sockaddr_storage>();

    /// A name of these bytes. `None` if there are more than any name has.
    pub(crate) fn new(name: &[u8]) -> Option<Self> {
        let mut bytes = [0; Self::BYTES];
        bytes.get_mut(..name.len())?.copy_from_slice(name);
        Some(Self { bytes, length: name.len() })
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    /// Has a call fill in a name, whose length it is told and changes.
    fn filled_by<T>(
        call: impl FnOnce(*mut libc::sockaddr, *mut libc::socklen_t) -> nix::Result<T>,
    ) -> io::Result<(T, Self)> {
        let mut bytes = [0; Self::BYTES];
        let mut length = Self::BYTES as libc::socklen_t;
        let answer = call(bytes.as_mut_ptr().cast(), &mut length)?;
        // A name that does not fit is cut off, and its length is the whole one's (getsockname(2)).
        Ok((answer, Self { bytes, length: Self::BYTES.min(length as usize) }))
    }
}

const _: () = assert!(size_of::<libc::sockaddr_un>() < Name::BYTES);
const _: () = assert!(align_of::<libc::sockaddr_storage>() <= align_of::<Name>());

/// Accepts one connection, close-on-exec and non-blocking, with its peer's name (accept4(2)).
pub(crate) fn accept(listener: BorrowedFd<'_>) -> io::Result<(OwnedFd, Name)> {
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    Name::filled_by(|name, length| {
        // SAFETY: the descriptor is borrowed and stays open; the name has as much room as the length
        // says.
        let fd = unsafe { libc::accept4(listener.as_raw_fd(), name, length, flags) };
        let fd = Errno::result(fd)?;
        // SAFETY: the kernel has just made this descriptor for us, and nobody else knows its number.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    })
}

/// A socket's own name (getsockname(2)).
pub(crate) fn name_of(socket: BorrowedFd<'_>) -> io::Result<Name> {
    let ((), name) = Name::filled_by(|name, length| {
        // SAFETY: the descriptor is borrowed and stays open; the name has as much room as the length
        // says.
        Errno::result(unsafe { libc::getsockname(socket.as_raw_fd(), name, length) }).map(drop)
    })?;
    Ok(name)
}

/// Gives a socket its name (bind(2)).
pub(crate) fn bind(socket: BorrowedFd<'_>, name: &Name) -> nix::Result<()> {
    let (bytes, length) = (name.bytes.as_ptr().cast(), name.length as libc::socklen_t);
    // SAFETY: the descriptor is borrowed and stays open; the name is as long as is said.
    Errno::result(unsafe { libc::bind(socket.as_raw_fd(), bytes, length) }).map(drop)
}

/// Has a socket listen (listen(2)). Not by nix: it takes no more than the C library's SOMAXCONN, which is 128 with
/// musl, whatever the kernel allows.
pub(crate) fn listen(socket: BorrowedFd<'_>, backlog: u16) -> nix::Result<()> {
    // SAFETY: the descriptor is borrowed and stays open; no pointer is passed.
    Errno::result(unsafe { libc::listen(socket.as_raw_fd(), i32::from(backlog)) }).map(drop)
}

/// Has the kernel give new connections to the first `count` sockets that share a port, and none to those after them:
/// it counts them in the order in which they have begun to listen (SO_ATTACH_REUSEPORT_CBPF, socket(7)).
pub(crate) fn steer_to_the_first(socket: BorrowedFd<'_>, count: u32) -> io::Result<()> {
    let random = (libc::SKF_AD_OFF + libc::SKF_AD_RANDOM) as u32;
    let step = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    // A random number, modulo the count, is the answer.
    let mut steps = [
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, random),
        step(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, count),
        step(libc::BPF_RET | libc::BPF_A, 0),
    ];
    let program = libc::sock_fprog { len: steps.len() as u16, filter: steps.as_mut_ptr() };
    // SAFETY: the value is a program, which is as long as it says, and is copied before its steps go.
    unsafe { set_option(socket, libc::SOL_SOCKET, libc::SO_ATTACH_REUSEPORT_CBPF, &program) }
}

/// The opposite: all of them get new connections. No error if they do already.
pub(crate) fn steer_to_all(socket: BorrowedFd<'_>) {
    /// SO_DETACH_REUSEPORT_BPF, which libc has no name for on every system (asm-generic/socket.h).
    const DETACH: libc::c_int = 68;
    let nothing: libc::c_int = 0;
    // SAFETY: the value is an int, which is not looked at.
    let _ = unsafe { set_option(socket, libc::SOL_SOCKET, DETACH, &nothing) };
}

/// Connects a socket to a name (connect(2)).
pub(crate) fn connect(socket: BorrowedFd<'_>, name: &Name) -> nix::Result<()> {
    let (bytes, length) = (name.bytes.as_ptr().cast(), name.length as libc::socklen_t);
    // SAFETY: the descriptor is borrowed and stays open; the name is as long as is said.
    Errno::result(unsafe { libc::connect(socket.as_raw_fd(), bytes, length) }).map(drop)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use nix::fcntl::OFlag;
    use nix::sys::socket::{AddressFamily, Shutdown, SockFlag, SockType, shutdown, socketpair};
    use nix::unistd::{pipe2, read};

    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
            .expect("a pair")
    }

    /// Puts a packet into the socket with the writing ends of pipes on it, which nobody else has.
    /// Whether they are closed is seen at the reading ends.
    fn on_its_way(socket: &OwnedFd, packet: &[u8], count: usize) -> Vec<OwnedFd> {
        let (readers, writers): (Vec<_>, Vec<_>) = (0..count)
            .map(|_| pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).expect("a pipe"))
            .unzip();
        let writers: Vec<_> = writers.iter().map(OwnedFd::as_fd).collect();
        send(socket, packet, &writers).expect("sent");
        readers
    }

    fn all_closed(readers: Vec<OwnedFd>) -> bool {
        let deadline = Instant::now() + Duration::from_secs(10);
        // With a writer that is still there, it would be EAGAIN for ever. A process that another test
        // spawns has copies of everything for the moment until it executes its program.
        readers.iter().all(|reader| {
            while read(reader, &mut [0]) == Err(Errno::EAGAIN) && Instant::now() < deadline {
                std::thread::yield_now();
            }
            read(reader, &mut [0]) == Ok(0)
        })
    }

    #[test]
    fn descriptors_arrive_in_order_close_on_exec_and_as_many_as_fit_on_a_packet() {
        let (near, far) = pair();
        for count in [0, 1, 2, limits::DESCRIPTORS_PER_PACKET] {
            let readers = on_its_way(&near, b"here they are", count);
            let received = receive(&far, &mut [0; 64]).expect("a packet");
            assert_eq!((received.length, received.descriptors.len()), (13, count));
            for (reader, writer) in readers.into_iter().zip(received.descriptors) {
                let flags = fcntl(&writer, FcntlArg::F_GETFD).expect("flags");
                assert_eq!(flags, FdFlag::FD_CLOEXEC.bits());
                drop(writer);
                assert!(all_closed(vec![reader]), "it was this pipe's");
            }
        }
    }

    #[test]
    fn descriptors_that_arrive_in_part_are_closed() {
        let (near, far) = pair();
        let readers = on_its_way(&near, b"here they are", 3);
        // Room for a header and one or two descriptors.
        let error = receive_into(&far, &mut [0; 64], &mut [0; 3]).expect_err("cut off");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(all_closed(readers));
    }

    #[test]
    fn descriptors_on_an_oversized_packet_are_closed() {
        let (near, far) = pair();
        let readers = on_its_way(&near, b"more than there is room for", 3);
        let error = receive(&far, &mut [0; 4]).expect_err("cut off");
        assert_eq!(error.to_string(), "an oversized handoff message");
        assert!(all_closed(readers));
        // And the next one is as good as any.
        on_its_way(&near, b"next", 0);
        assert_eq!(receive(&far, &mut [0; 4]).expect("a packet").length, 4);
    }

    #[test]
    fn an_empty_packet_is_no_end() {
        let (near, far) = pair();
        let readers = on_its_way(&near, b"", 1);
        on_its_way(&near, b"next", 0);
        let error = receive(&far, &mut [0; 4]).expect_err("empty");
        assert_eq!(error.to_string(), "an empty handoff message");
        assert!(all_closed(readers));
        assert_eq!(receive(&far, &mut [0; 4]).expect("a packet").length, 4);
    }

    #[test]
    fn an_empty_socket_is_no_end_and_one_that_nobody_writes_to_is() {
        let (near, far) = pair();
        let error = receive(&far, &mut [0; 4]).expect_err("nothing");
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        shutdown(near.as_raw_fd(), Shutdown::Write).expect("shut down");
        assert_eq!(receive(&far, &mut [0; 4]).expect("the end").length, 0);
        drop(near);
        assert_eq!(receive(&far, &mut [0; 4]).expect("the end").length, 0);
    }
}
