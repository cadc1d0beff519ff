//! Names of Unix sockets: a client chooses its own, a path fills all that there is for it, and an
//! abstract one has any bytes in it (unix(7)). All of them are served, and told as they are.

#![allow(clippy::expect_used, reason = "a test says what it expects")]

mod harness;

#[path = "../examples/proxy/header.rs"]
mod header;

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use harness::{Actor, PATIENCE, Start};
use proptest::prelude::*;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, bind, connect, socket};
use tablecloth::{Address, Server};

/// A path of exactly so many bytes in a directory.
fn path_of_length(place: &str, length: usize) -> String {
    let name = "x".repeat(length - place.len() - 1);
    format!("{place}/{name}")
}

fn name_of(address: &Address) -> SocketAddrUnix {
    match address {
        Address::Path(path) => SocketAddrUnix::new(path.as_path()),
        Address::Abstract(name) => SocketAddrUnix::new_abstract_name(name),
        Address::Internet(_) | Address::Unnamed => panic!("{address} is no name"),
    }
    .expect("it fits")
}

/// A client that has that name, if it is to have one.
fn client(own: Option<&Address>, server: &Address) -> UnixStream {
    let socket: OwnedFd = socket(AddressFamily::UNIX, SocketType::STREAM, None).expect("a socket");
    if let Some(own) = own {
        bind(&socket, &name_of(own)).expect("bound");
    }
    connect(&socket, &name_of(server)).expect("connected");
    let client = UnixStream::from(socket);
    client.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    client
}

fn echoes(client: &mut UnixStream, text: &[u8]) -> bool {
    let mut answer = vec![0; text.len()];
    client.write_all(text).expect("sent");
    client.read_exact(&mut answer).is_ok() && answer == text
}

/// A name that nobody else on this machine has, and what is odd about it.
fn abstract_name(odd: &[u8]) -> Address {
    let unique = format!("tablecloth-{}-{}", std::process::id(), fastrand::u64(..));
    Address::Abstract([odd, unique.as_bytes()].concat())
}

fn demo(listen: &str) -> Actor {
    let mut demo = Start::program("demo").args(&["--listen", listen]).spawn();
    demo.wait_for("listening on");
    demo
}

#[test]
fn a_client_whose_path_fills_sun_path_is_served_like_any_other() {
    let place = harness::place();
    let dir = place.path().to_str().expect("text");
    let server = Address::Path(place.path().join("s"));
    let mut demo = demo(&server.to_string());
    let mut bystander = client(None, &server);
    for length in [107, 108] {
        let own = path_of_length(dir, length);
        let mut client = client(Some(&Address::Path(own.clone().into())), &server);
        assert!(echoes(&mut client, b"hello\n"), "{length} bytes");
        demo.wait_for(&format!("receive message from [unix:{own}]:[hello]"));
    }
    assert!(echoes(&mut bystander, b"still\n"));
    demo.wait_for("receive message from [unix:(unnamed)]:[still]");
}

#[test]
fn a_client_with_any_bytes_in_its_name_is_one_line_of_the_log() {
    let server = abstract_name(b"");
    let mut demo = demo(&server.to_string());
    let odd = b"\0\xff\n[1] 2026/01/01 00:00:00 forged\x1b[2J";
    let mut client = client(Some(&abstract_name(odd)), &server);
    assert!(echoes(&mut client, b"hello\n"));
    let line = demo.wait_for(r"unix:@\x00\xff\x0a[1] 2026/01/01 00:00:00 forged\x1b[2J");
    assert!(line.contains("receive message from") && line.ends_with(":[hello]"), "{line}");
    assert!(!demo.log.iter().any(|line| line.starts_with("[1]")));
}

#[test]
fn a_server_listens_at_a_path_of_108_bytes() {
    let place = harness::place();
    let path = path_of_length(place.path().to_str().expect("text"), 108);
    let mut demo = demo(&format!("unix:{path}"));
    assert!(demo.has(&format!("listening on unix:{path}")));
    let mut client = client(None, &Address::Path(PathBuf::from(path)));
    assert!(echoes(&mut client, b"hello\n"));
}

#[test]
fn a_proxied_client_of_any_name_is_named_in_the_log_and_not_to_the_upstream() {
    let place = harness::place();
    let dir = place.path().to_str().expect("text");
    let listen = path_of_length(dir, 107);
    let upstream = std::os::unix::net::UnixListener::bind(place.path().join("up")).expect("bound");
    let mut proxy = Start::program("proxy")
        .args(&["--listen", &format!("unix:{listen}"), "--to", &format!("unix:{dir}/up")])
        .args(&["--send-proxy", "--session-log"])
        .spawn();
    proxy.wait_for("listening on");
    let server = Address::Path(listen.into());
    for own in [
        Address::Path(path_of_length(dir, 108).into()),
        abstract_name(b"\0\xff\n"),
        abstract_name(b"plain"),
    ] {
        let client = client(Some(&own), &server);
        let (mut stream, _) = upstream.accept().expect("the proxy comes");
        let mut told = [0; 16];
        stream.read_exact(&mut told).expect("a header");
        // LOCAL, with nothing behind it.
        assert_eq!(told[12..16], [0x20, 0x00, 0, 0]);
        drop((client, stream));
        proxy.wait_for(&format!("session of [{own}] by "));
    }
}

#[test]
fn a_server_asked_for_a_name_that_no_socket_can_have_says_so() {
    let mut server = Server::new(tablecloth::Config::default()).expect("a server");
    let long = format!("unix:/{}", "x".repeat(108));
    let abstract_one = format!("unix:@{}", "x".repeat(108));
    for asked in [long.as_str(), &abstract_one, "unix:", "unix:@", "unix:/a\0b"] {
        let error = server.listen("s", asked).expect_err(asked).to_string();
        assert!(error.contains(&format!("{asked:?}")), "{error}");
    }
}

fn any_address() -> impl Strategy<Value = Address> {
    prop_oneof![
        any::<std::net::SocketAddr>().prop_map(Address::Internet),
        // Longer than any name is, too.
        proptest::collection::vec(any::<u8>(), 0..130)
            .prop_map(|path| Address::Path(OsStr::from_bytes(&path).into())),
        proptest::collection::vec(any::<u8>(), 0..130).prop_map(Address::Abstract),
        Just(Address::Unnamed),
    ]
}

proptest! {
    #[test]
    fn a_header_is_as_long_as_it_says_whoever_is_at_both_ends(
        source in any_address(),
        destination in any_address(),
    ) {
        let header = header::encode(&source, &destination, &[]);
        prop_assert_eq!(&header[..12], b"\r\n\r\n\0\r\nQUIT\n");
        let said = usize::from(u16::from_be_bytes([header[14], header[15]]));
        prop_assert_eq!(header.len(), 16 + said);
        let form = (header[12], header[13], said);
        prop_assert!(matches!(form, (0x21, 0x11, 12) | (0x21, 0x21, 36) | (0x20, 0x00, 0)));
    }
}
