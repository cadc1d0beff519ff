//! The other side of the admin endpoint: a command for a server, and what became of it.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::address::Address;
use crate::limits;
use crate::sys::{self, Name};

/// What a server is asked for over its [admin endpoint](crate::Upgrader#the-admin-endpoint).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Control {
    /// An upgrade: the answer comes when the successor serves, or has failed.
    Upgrade,
    /// The same, and the answer comes when the successor is proven and the sessions have moved.
    UpgradeProven,
    /// The set-up of the program that would be next, up to the point at which it could serve. It is ended then.
    Check,
    /// How the process stands, in lines for people.
    Status,
    /// Whether the loop turns.
    Live,
    /// Whether the service serves: it has failed if it does not.
    Ready,
    /// A shutdown: the sessions come to their end.
    Shutdown,
    /// The end at once.
    Exit,
}

/// What became of what a server was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Controlled {
    /// It is done.
    Done,
    /// It has failed, was rolled back or refused, or the connection broke before it was known.
    Failed,
}

/// How often it is asked again, if the process that was asked has just been replaced, or sets itself up.
const TRIES: usize = 200;
const AGAIN: Duration = Duration::from_millis(50);

/// Asks a server for something, and waits until it is done. What it answers is written to `output`, line by
/// line and as it comes.
///
/// `address` is the server's [`Config::admin`](field@crate::Config::admin). Commands need a Unix socket. It blocks:
/// it is for a program of its own, such as `demo ctl`.
///
/// ```no_run
/// use tablecloth::{Control, Controlled, control};
///
/// let upgraded = control("unix:/run/echo-admin.sock", Control::Upgrade, &mut std::io::stdout())?;
/// assert_eq!(upgraded, Controlled::Done);
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// # Errors
///
/// Nobody is there: the system's answer to connect(2). Or `output` takes no more.
pub fn control(address: &str, control: Control, output: &mut dyn Write) -> io::Result<Controlled> {
    for _ in 0..TRIES {
        let connection = Connection::to(address)?;
        match ask(connection, address, control, output)? {
            Some(controlled) => return Ok(controlled),
            None => std::thread::sleep(AGAIN),
        }
    }
    writeln!(output, "the server still sets itself up, or is replaced again and again")?;
    Ok(Controlled::Failed)
}

/// How long a server may take to let somebody in and to begin its answer; and how long it may be silent in it, before it
/// is asked whether it lives.
const PATIENCE: Duration = Duration::from_secs(5);

enum Connection {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Connection {
    fn to(address: &str) -> io::Result<Self> {
        let connection = match address.starts_with("unix:") {
            true => Self::Unix(connect_unix(address)?),
            false => {
                let resolved = address.to_socket_addrs()?;
                let mut failed = io::ErrorKind::NotFound.into();
                let mut connected = resolved.filter_map(|one| {
                    TcpStream::connect_timeout(&one, PATIENCE).map_err(|error| failed = error).ok()
                });
                let Some(stream) = connected.next() else {
                    drop(connected);
                    return Err(failed);
                };
                Self::Tcp(stream)
            }
        };
        connection.be_patient(PATIENCE)?;
        Ok(connection)
    }

    fn be_patient(&self, patience: Duration) -> io::Result<()> {
        let patience = Some(patience.max(Duration::from_millis(1)));
        match self {
            Self::Unix(stream) => {
                stream.set_read_timeout(patience).and(stream.set_write_timeout(patience))
            }
            Self::Tcp(stream) => {
                stream.set_read_timeout(patience).and(stream.set_write_timeout(patience))
            }
        }
    }
}

impl Read for Connection {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.read(buffer),
            Self::Tcp(stream) => stream.read(buffer),
        }
    }
}

impl Write for Connection {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.write(bytes),
            Self::Tcp(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Not by the standard library: a path may have 108 bytes, and a queue may be full (unix(7)).
fn connect_unix(address: &str) -> io::Result<UnixStream> {
    let resolved = Address::resolve(address).map_err(io::Error::other)?;
    let name = resolved.first().and_then(Address::to_name).and_then(|name| Name::new(&name));
    let name = name.ok_or(io::ErrorKind::InvalidInput)?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    sys::connect(socket.as_fd(), &name)?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

fn is_late(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// Asks a server on this machine for something that is no command, until it answers or the time is over: the status
/// and the body.
pub(crate) fn fetch(
    address: &str,
    target: &str,
    accept: &str,
    deadline: Instant,
) -> io::Result<(u16, String)> {
    loop {
        match fetch_once(address, target, accept, deadline) {
            // It was replaced, or killed, after it had let this one in.
            Err(error) if is_broken(&error) && Instant::now() + AGAIN < deadline => {
                std::thread::sleep(AGAIN);
            }
            result => return result,
        }
    }
}

fn is_broken(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
}

fn fetch_once(
    address: &str,
    target: &str,
    accept: &str,
    deadline: Instant,
) -> io::Result<(u16, String)> {
    let mut stream = Connection::to(address)?;
    stream.be_patient(deadline.saturating_duration_since(Instant::now()))?;
    let request = format!("GET {target} HTTP/1.0\r\nHost: localhost\r\nAccept: {accept}\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = BufReader::new(stream);
    let (status, length) = read_head(&mut answer)?;
    let mut body = String::new();
    answer.take(limits::ADMIN_BODY_BYTES).read_to_string(&mut body)?;
    // Half of a number is another number.
    match length.is_some_and(|length| body.len() as u64 != length) {
        true => Err(io::ErrorKind::UnexpectedEof.into()),
        false => Ok((status, body)),
    }
}

/// Asks once. `None` if the process that was asked was replaced meanwhile.
fn ask(
    mut stream: Connection,
    address: &str,
    control: Control,
    output: &mut dyn Write,
) -> io::Result<Option<Controlled>> {
    let (method, target) = match control {
        Control::Upgrade => ("POST", "/upgrade"),
        Control::UpgradeProven => ("POST", "/upgrade?wait=proven"),
        Control::Check => ("POST", "/upgrade?check"),
        Control::Status => ("GET", "/status"),
        Control::Live => ("GET", "/live"),
        Control::Ready => ("GET", "/ready"),
        Control::Shutdown => ("POST", "/shutdown"),
        Control::Exit => ("POST", "/exit"),
    };
    let silent = "it is there, and does not answer";
    // In HTTP/1.0 an answer of unknown length ends with the connection.
    let request =
        format!("{method} {target} HTTP/1.0\r\nHost: localhost\r\nAccept: text/plain\r\n\r\n");
    if stream.write_all(request.as_bytes()).is_err() {
        return Ok(None);
    }
    let mut answer = BufReader::new(stream);
    let status = match read_head(&mut answer) {
        Ok((status, _)) => status,
        Err(error) if is_broken(&error) => return Ok(None),
        Err(error) if is_late(&error) => {
            writeln!(output, "{silent}")?;
            return Ok(Some(Controlled::Failed));
        }
        Err(error) => {
            writeln!(output, "{error}")?;
            return Ok(Some(Controlled::Failed));
        }
    };
    if status == 503 && method == "POST" {
        return Ok(None);
    }
    let (mut last, mut line) = (Vec::new(), Vec::new());
    loop {
        // However long the answer is, a line of it is not.
        let read =
            (&mut answer).take(limits::ADMIN_WAITING_BYTES as u64).read_until(b'\n', &mut line);
        match read {
            Ok(0) => break,
            Ok(_) => {
                output.write_all(&line)?;
                output.flush()?;
                last.clone_from(&line);
                line.clear();
            }
            // A step of an upgrade may take long: what has come of the line is kept.
            Err(error) if is_late(&error) && lives(address) => {}
            Err(error) if is_late(&error) => {
                writeln!(output, "{silent} any more")?;
                return Ok(Some(Controlled::Failed));
            }
            Err(error) => {
                writeln!(output, "the connection broke before the answer was whole: {error}")?;
                return Ok(Some(Controlled::Failed));
            }
        }
    }
    let is_upgrade = target.starts_with("/upgrade") && status == 200;
    let is_good = last.starts_with(b"done: ") || last.starts_with(b"checked: ");
    if is_upgrade
        && !is_good
        && ![&b"failed: "[..], b"rolled back: ", b"refused: "]
            .iter()
            .any(|word| last.starts_with(word))
    {
        writeln!(output, "the connection ended before it was known what became of it")?;
    }
    let done = if is_upgrade { is_good } else { (200..300).contains(&status) };
    Ok(Some(if done { Controlled::Done } else { Controlled::Failed }))
}

/// Whether somebody answers there.
fn lives(address: &str) -> bool {
    fetch(address, "/live", "*/*", Instant::now() + PATIENCE).is_ok()
}

/// The status of an answer and the length of its body, if that is said. The head is read to its end.
fn read_head(answer: &mut impl BufRead) -> io::Result<(u16, Option<u64>)> {
    let (mut status, mut length) = (None, None);
    let mut head = answer.take(limits::ADMIN_HEAD_BYTES as u64);
    loop {
        let mut line = String::new();
        if head.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match status {
            None if !line.starts_with("HTTP/1.") => {
                return Err(io::Error::other("what answers there is no admin endpoint"));
            }
            None => {
                let number = line.split(' ').nth(1).and_then(|number| number.parse().ok());
                status = Some(number.ok_or(io::ErrorKind::InvalidData)?);
            }
            Some(status) if line.trim_end().is_empty() => return Ok((status, length)),
            Some(_) => {
                let said = line.split_once(':');
                let said = said.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
                length = said.and_then(|(_, number)| number.trim().parse().ok()).or(length);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    /// Somebody who answers each request by that, and hangs up.
    fn somebody_who_answers(answer: &'static str) -> (tempfile::TempDir, String) {
        let place = tempfile::tempdir().expect("a directory");
        let path = place.path().join("s");
        let listener = UnixListener::bind(&path).expect("bound");
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let mut request = [0; 1024];
                let _ = stream.read(&mut request);
                let _ = stream.write_all(answer.as_bytes());
            }
        });
        (place, format!("unix:{}", path.display()))
    }

    #[test]
    fn half_an_answer_is_none() {
        let soon = || Instant::now() + Duration::from_millis(120);
        let (_place, whole) =
            somebody_who_answers("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\na 1234");
        assert_eq!(
            fetch(&whole, "/metrics", "*/*", soon()).expect("whole"),
            (200, "a 1234".into())
        );
        let (_place, half) =
            somebody_who_answers("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\na 12");
        let error = fetch(&half, "/metrics", "*/*", soon()).expect_err("cut off");
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn what_is_no_endpoint_is_told_from_one_that_is_silent() {
        let (_place, odd) = somebody_who_answers("220 mail.example ESMTP\r\n");
        let mut told = Vec::new();
        let controlled = control(&odd, Control::Status, &mut told).expect("somebody is there");
        assert_eq!(controlled, Controlled::Failed);
        assert_eq!(told, b"what answers there is no admin endpoint\n");
        let error = control("unix:/nowhere/at-all", Control::Live, &mut told).expect_err("nobody");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
