//! The storm's clients that speak TLS: against this proxy while it is replaced, and against servers with one
//! habit each.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test says what it expects")]

mod harness;
#[path = "../../../tests/storm/report.rs"]
mod report;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Command, Output};
use std::sync::Arc;
use std::thread;

use harness::{Proxy, certificate, echo};
use report::{assert_in_order, number, report_of};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, Stream};
use serde_json::Value;
use tempfile::TempDir;

/// A short run with a light load, over TLS.
const SHORT: [&str; 16] = [
    "--tls",
    "--json",
    "--hups",
    "3",
    "--calm-seconds",
    "0.2",
    "--settle-ms",
    "500",
    "--short-rate",
    "50",
    "--long-rate",
    "100",
    "--seed",
    "7",
    "--interval-ms",
    "300",
];
/// An upgrade of a server that needs none.
const NOTHING: [&str; 2] = ["--upgrade-command", "true"];

fn hups(args: &[&str]) -> Output {
    let program = env!("CARGO_BIN_EXE_hups");
    Command::new(program).args(SHORT).args(args).output().expect("hups starts")
}

/// The report, and the exit status.
fn storm(args: &[&str]) -> (Value, Option<i32>) {
    let (report, status) = report_of(&hups(args));
    assert_eq!(report["tls"], true);
    (report, status)
}

#[test]
fn the_proxy_is_replaced_and_nobody_is_dropped() {
    let proxy = Proxy::start(&echo(), &["--probation", "0"]);
    let (address, pid_file) = (proxy.address.to_string(), proxy.path("pid"));
    let args = ["--addr", &address, "--pid-file", pid_file.to_str().unwrap(), "--long-conns", "5"];
    let (report, status) = storm(&args);
    assert_in_order(&report, status);
    assert_eq!(number(&report, &["upgrades_seen"]), 3, "{report:#}");
    assert_eq!(number(&report, &["processes_left"]), 1);
}

/// A server with this habit: it meets every connection with a thread of its own.
fn server(habit: impl Fn(TcpStream, ServerConnection) + Clone + Send + 'static) -> String {
    let place = TempDir::new().unwrap();
    let (pem, key) = certificate(place.path(), "localhost", &["localhost"]);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_file(pem).unwrap()],
            PrivateKeyDer::from_pem_file(key).unwrap(),
        );
    let config = Arc::new(config.unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            let (habit, session) = (habit.clone(), ServerConnection::new(config.clone()).unwrap());
            thread::spawn(move || habit(socket, session));
        }
    });
    address
}

#[test]
fn many_records_make_one_answer() {
    let address = server(|mut socket, mut session| {
        let mut stream = Stream::new(&mut session, &mut socket);
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = stream.read(&mut buffer) {
            if stream.write_all(&buffer[..length]).is_err() {
                return;
            }
        }
    });
    let args = [&NOTHING[..], &["--addr", &address, "--bytes", "100000"]].concat();
    let (report, status) = storm(&args);
    assert_in_order(&report, status);
    let (report, status) = storm(&[&args[..], &["--tls-name", "example.org"]].concat());
    assert_in_order(&report, status);
}

/// Answers one request with a body that only the connection's end ends.
fn answer_once(mut socket: TcpStream, mut session: ServerConnection, announces_the_end: bool) {
    let mut stream = Stream::new(&mut session, &mut socket);
    let head = BufReader::new(&mut stream).lines().map_while(Result::ok);
    if head.take_while(|line| !line.is_empty()).count() == 0 {
        return;
    }
    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello");
    if announces_the_end {
        session.send_close_notify();
    }
    while session.wants_write() && session.write_tls(&mut socket).is_ok() {}
    // Until the client has closed it: a reset could overtake the answer.
    let _ = socket.shutdown(Shutdown::Write);
    let _ = socket.read_to_end(&mut Vec::new());
}

#[test]
fn an_answer_that_tls_does_not_end_was_cut_off() {
    let http = [&NOTHING[..], &["--protocol", "http", "--long-conns", "0", "--addr"]].concat();
    let address = server(|socket, session| answer_once(socket, session, true));
    let (report, status) = storm(&[&http[..], &[&*address]].concat());
    assert_eq!(status, Some(0), "{report:#}");
    assert!(number(&report, &["short_connections_completed"]) > 0);

    let address = server(|socket, session| answer_once(socket, session, false));
    let (report, status) = storm(&[&http[..], &[&*address]].concat());
    assert_eq!(status, Some(1), "{report:#}");
    let dropped = number(&report, &["dropped", "total"]);
    assert!(dropped > 0);
    assert_eq!(number(&report, &["dropped", "end_of_file"]), dropped, "{report:#}");
}

#[test]
fn who_does_not_speak_tls_is_told_of_before_the_run() {
    let address = server(|mut socket, _| {
        let _ = socket.read(&mut [0; 64]);
        let _ = socket.write_all(b"hello, who is there?\n");
        // Until the client has ended: a reset could overtake the words.
        let _ = socket.read_to_end(&mut Vec::new());
    });
    let output = hups(&[&NOTHING[..], &["--addr", &address]].concat());
    assert_eq!(output.status.code(), Some(2));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.starts_with(&format!("hups: --addr {address}: received corrupt")), "{error}");
}
