//! The other side of the admin endpoint: a command for a server, and what became of it.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
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
        let stream: Box<dyn Connection> = match address.strip_prefix("unix:") {
            Some(path) => Box::new(connect_unix(path)?),
            None => Box::new(TcpStream::connect(address)?),
        };
        match ask(stream, control, output)? {
            Some(controlled) => return Ok(controlled),
            None => std::thread::sleep(AGAIN),
        }
    }
    writeln!(output, "the server still sets itself up, or is replaced again and again")?;
    Ok(Controlled::Failed)
}

trait Connection: Read + Write {}
impl Connection for UnixStream {}
impl Connection for TcpStream {}

fn connect_unix(path: &str) -> io::Result<UnixStream> {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::SocketAddr;
    match path.strip_prefix('@') {
        Some(name) => UnixStream::connect_addr(&SocketAddr::from_abstract_name(name)?),
        None => UnixStream::connect(path),
    }
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
    let resolved = Address::resolve(address).map_err(io::Error::other)?;
    let name = resolved.first().and_then(Address::to_name).and_then(|name| Name::new(&name));
    let name = name.ok_or(io::ErrorKind::InvalidInput)?;
    // It answers at once whether there is room in the queue (unix(7)).
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    sys::connect(socket.as_fd(), &name)?;
    let mut stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    stream.set_read_timeout(Some(left))?;
    stream.set_write_timeout(Some(left))?;
    let request = format!("GET {target} HTTP/1.0\r\nHost: localhost\r\nAccept: {accept}\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = BufReader::new(stream);
    let status = read_head(&mut answer).ok_or(io::ErrorKind::UnexpectedEof)?;
    let mut body = String::new();
    answer.take(limits::ADMIN_BODY_BYTES).read_to_string(&mut body)?;
    Ok((status, body))
}

/// Asks once. `None` if the process that was asked was replaced meanwhile.
fn ask(
    mut stream: Box<dyn Connection>,
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
    // In HTTP/1.0 an answer of unknown length ends with the connection.
    let request =
        format!("{method} {target} HTTP/1.0\r\nHost: localhost\r\nAccept: text/plain\r\n\r\n");
    if stream.write_all(request.as_bytes()).is_err() {
        return Ok(None);
    }
    let mut answer = BufReader::new(stream);
    let Some(status) = read_head(&mut answer) else { return Ok(None) };
    if status == 503 && method == "POST" {
        return Ok(None);
    }
    let (mut last, mut line) = (Vec::new(), Vec::new());
    loop {
        line.clear();
        // However long the answer is, a line of it is not.
        let read =
            (&mut answer).take(limits::ADMIN_WAITING_BYTES as u64).read_until(b'\n', &mut line);
        match read {
            Ok(0) => break,
            Ok(_) => {
                output.write_all(&line)?;
                output.flush()?;
                last.clone_from(&line);
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

/// The status of an answer, whose head is read to its end.
fn read_head(answer: &mut impl BufRead) -> Option<u16> {
    let mut status = None;
    let mut head = answer.take(limits::ADMIN_HEAD_BYTES as u64);
    loop {
        let mut line = String::new();
        match head.read_line(&mut line) {
            Ok(read) if read > 0 => {}
            Ok(_) | Err(_) => return None,
        }
        if status.is_none() {
            status = Some(line.split(' ').nth(1)?.parse().ok()?);
        } else if line.trim_end().is_empty() {
            return status;
        }
    }
}
