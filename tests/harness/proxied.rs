//! The proxy, and what stands around it.

#![allow(dead_code, reason = "each test uses its part of it")]

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, getsockname, listen, socket,
};

use crate::harness::{self, Actor, PATIENCE, Start, until};

/// An upstream that says its name and then echoes; it ends with the test's process.
pub(crate) fn upstream(name: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("listens");
    let address = listener.local_addr().expect("an address").to_string();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || echo(&stream, &stream, name));
        }
    });
    address
}

/// An upstream that sends to everybody without end.
pub(crate) fn endless() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("listens");
    let address = listener.local_addr().expect("an address").to_string();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || while stream.write_all(&[7; 10_000]).is_ok() {});
        }
    });
    address
}

pub(crate) fn unix_upstream(path: &str, name: &'static str) {
    let listener = UnixListener::bind(path).expect("listens");
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || echo(&stream, &stream, name));
        }
    });
}

pub(crate) fn echo(mut from: impl Read, mut to: impl Write, name: &str) {
    let _ = to.write_all(name.as_bytes());
    let _ = std::io::copy(&mut from, &mut to);
}

/// An address that refuses.
pub(crate) fn refused() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("listens");
    listener.local_addr().expect("an address").to_string()
}

/// A proxy with a file of routes.
pub(crate) fn proxy(routes: &str, args: &[&str]) -> Actor {
    let start = Start::program("proxy");
    let file = start.path_of("routes");
    fs::write(&file, routes).expect("written");
    let mut proxy = start.args(&["--routes", &file, "--log-level", "debug"]).args(args).spawn();
    proxy.wait_for("Running: set up");
    proxy
}

/// A proxy with one route from any port.
pub(crate) fn route_to(upstreams: &str, args: &[&str]) -> Actor {
    proxy(&format!("127.0.0.1:0 -> {upstreams}"), args)
}

/// The addresses that it has listened on, in the order of the log.
pub(crate) fn addresses(proxy: &mut Actor) -> Vec<String> {
    let lines = proxy.log.iter().filter(|line| line.contains("listening on"));
    lines.map(|line| line.rsplit(' ').next().expect("an address").to_owned()).collect()
}

pub(crate) fn rewrite(proxy: &Actor, routes: &str) {
    fs::write(proxy.place.path().join("routes"), routes).expect("written");
}

pub(crate) fn connect(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).expect("a connection");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream
}

/// Who is at the other end: upstreams' names have one letter.
pub(crate) fn name(stream: &mut impl Read) -> char {
    let mut byte = [0];
    stream.read_exact(&mut byte).expect("a name");
    char::from(byte[0])
}

pub(crate) fn name_at(address: &str) -> char {
    name(&mut connect(address))
}

pub(crate) fn exchange(stream: &mut (impl Read + Write), message: &[u8]) {
    stream.write_all(message).expect("sent");
    let mut echo = vec![0; message.len()];
    stream.read_exact(&mut echo).expect("the echo");
    assert_eq!(echo, message);
}

/// A reset at once may be there before connect(2) has returned, which then tells of it.
pub(crate) fn is_reset(address: &str) {
    let read = TcpStream::connect(address).and_then(|mut stream| stream.read(&mut [0]));
    assert_eq!(read.expect_err("reset").kind(), ErrorKind::ConnectionReset);
}

/// An upstream that never answers: its queue of connections is full, and the kernel drops what comes
/// (listen(2)).
pub(crate) struct Silent {
    _listener: std::os::fd::OwnedFd,
    _clients: Vec<TcpStream>,
    pub(crate) address: String,
}

pub(crate) fn silent() -> Silent {
    use std::os::fd::AsRawFd;
    let flags = SockFlag::SOCK_CLOEXEC;
    let fd = socket(AddressFamily::Inet, SockType::Stream, flags, None).expect("a socket");
    bind(fd.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0)).expect("bound");
    listen(&fd, Backlog::new(0).expect("none")).expect("listens");
    let at: SockaddrIn = getsockname(fd.as_raw_fd()).expect("an address");
    let address = format!("127.0.0.1:{}", at.port());
    let mut clients = Vec::new();
    let target = address.parse().expect("an address");
    while let Ok(client) = TcpStream::connect_timeout(&target, Duration::from_millis(300)) {
        clients.push(client);
    }
    Silent { _listener: fd, _clients: clients, address }
}

/// One upgrade, to the end of the old process; answers nothing, for its sessions speak.
pub(crate) fn upgrade(proxy: &mut Actor) {
    let alive = proxy.alive();
    let [pid] = alive[..] else { panic!("one process: {alive:?}") };
    proxy.signal(pid, Signal::SIGHUP);
    proxy.wait_for("predecessor gone");
    until("it is gone", || !harness::is_alive(pid));
}
