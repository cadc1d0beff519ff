//! The storm's clients that speak TLS.

use std::io::{BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, LazyLock};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, Stream};

use crate::{HTTP, NOTHING, assert_in_order, hups, line_server, number, request, server, storm};

/// A certificate that nobody has signed but its own key.
static CONFIG: LazyLock<Arc<ServerConfig>> = LazyLock::new(|| {
    let certificate = CertificateDer::from_pem_slice(include_bytes!("certificate.pem"));
    let key = PrivateKeyDer::from_pem_slice(include_bytes!("key.pem")).expect("a key");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.expect("a certificate")], key);
    Arc::new(config.expect("a configuration"))
});

fn session() -> ServerConnection {
    ServerConnection::new(CONFIG.clone()).expect("a session")
}

#[test]
fn an_echo_over_tls_is_compared_like_any_other() {
    let address = server(|mut socket| {
        let mut session = session();
        let mut stream = Stream::new(&mut session, &mut socket);
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = stream.read(&mut buffer) {
            if stream.write_all(&buffer[..length]).is_err() {
                return;
            }
        }
    });
    let args = [&NOTHING[..], &["--tls", "--addr", &address]].concat();
    let (report, status) = storm(&args);
    assert_in_order(&report, status);
    assert_eq!(report["tls"], true);
    // More than one record, and more than one write.
    let (report, status) = storm(&[&args[..], &["--bytes", "100000"]].concat());
    assert_in_order(&report, status);
    let (report, status) = storm(&[&args[..], &["--tls-name", "example.org"]].concat());
    assert_in_order(&report, status);
}

/// Answers one request with a body that only the connection's end ends.
fn answer_once(mut socket: TcpStream, announces_the_end: bool) {
    let mut session = session();
    let mut stream = Stream::new(&mut session, &mut socket);
    if request(&mut BufReader::new(&mut stream)).is_none() {
        return;
    }
    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello");
    if announces_the_end {
        session.send_close_notify();
    }
    while session.wants_write() && session.write_tls(&mut socket).is_ok() {}
    // Until the client has closed it: a reset could overtake the answer.
    let _ = socket.shutdown(std::net::Shutdown::Write);
    let _ = socket.read_to_end(&mut Vec::new());
}

#[test]
fn an_answer_that_tls_does_not_end_was_cut_off() {
    let address = server(|socket| answer_once(socket, true));
    let args = [&HTTP[..], &NOTHING, &["--tls", "--long-conns", "0", "--addr", &address]].concat();
    let (report, status) = storm(&args);
    assert_eq!(status, Some(0), "{report:#}");
    assert!(number(&report, &["short_connections_completed"]) > 0);

    let address = server(|socket| answer_once(socket, false));
    let args = [&HTTP[..], &NOTHING, &["--tls", "--long-conns", "0", "--addr", &address]].concat();
    let (report, status) = storm(&args);
    assert_eq!(status, Some(1), "{report:#}");
    let dropped = number(&report, &["dropped", "total"]);
    assert!(dropped > 0);
    assert_eq!(number(&report, &["dropped", "end_of_file"]), dropped, "{report:#}");
}

#[test]
fn who_does_not_speak_tls_is_told_of_before_the_run() {
    let address = line_server();
    let output = hups(&[&NOTHING[..], &["--tls", "--addr", &address]].concat());
    assert_eq!(output.status.code(), Some(2));
    let error = String::from_utf8(output.stderr).expect("text");
    assert!(error.contains(&format!("--addr {address}: ")), "{error}");
}
