//! What the tests share: a proxy that is replaced, an upstream, certificates, and clients whose records can be cut.

#![allow(dead_code, reason = "each test uses its part of it")]
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test says what it expects")]

pub(crate) mod client;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// Longer than anything takes, on a machine with neighbours.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until it is so.
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// A certificate for these names and its key, as files of that name.
pub(crate) fn certificate(place: &Path, file: &str, names: &[&str]) -> (String, String) {
    let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    let path = |ending: &str| place.join(format!("{file}.{ending}")).to_str().unwrap().to_owned();
    let (pem, key) = (path("pem"), path("key"));
    fs::write(&pem, made.cert.pem()).unwrap();
    fs::write(&key, made.key_pair.serialize_pem()).unwrap();
    (pem, key)
}

/// What a server of that name says, line by line.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<(Mutex<Vec<String>>, Condvar)>);

impl Log {
    pub(crate) fn read(&self, from: impl Read + Send + 'static) {
        let log = self.clone();
        thread::spawn(move || {
            for line in BufReader::new(from).lines().map_while(Result::ok) {
                log.0.0.lock().unwrap().push(line);
                log.0.1.notify_all();
            }
        });
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        self.0.0.lock().unwrap().clone()
    }

    /// The first line with this text, from that one on.
    pub(crate) fn wait_from(&self, from: usize, text: &str) -> String {
        let (lines, changed) = &*self.0;
        let mut lines = lines.lock().unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(line) = lines.iter().skip(from).find(|line| line.contains(text)) {
                return line.clone();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "waited in vain for {text:?} in {lines:#?}");
            lines = changed.wait_timeout(lines, left).unwrap().0;
        }
    }
}

/// A running proxy.
pub(crate) struct Proxy {
    pub(crate) place: TempDir,
    pub(crate) log: Log,
    pub(crate) address: SocketAddr,
    first: Child,
    admin: String,
}

impl Proxy {
    /// A proxy that leads to `to`, with a certificate for localhost.
    pub(crate) fn start(to: &str, arguments: &[&str]) -> Self {
        let place = TempDir::new().unwrap();
        let (pem, key) = certificate(place.path(), "localhost", &["localhost"]);
        let mut all = vec!["--listen", "127.0.0.1:0", "--to", to, "--cert", &pem, "--key", &key];
        all.extend(arguments);
        Self::with(place, &all)
    }

    /// One with exactly these arguments, and the pid file.
    pub(crate) fn with(place: TempDir, arguments: &[&str]) -> Self {
        Self::by(PROGRAM, place, arguments)
    }

    /// One that this program executes in the end.
    pub(crate) fn by(program: &str, place: TempDir, arguments: &[&str]) -> Self {
        let admin = format!("unix:{}", place.path().join("admin").display());
        let mut first = command_of(program, place.path())
            .args(arguments)
            .arg("--pid-file")
            .arg(place.path().join("pid"))
            .args(["--admin", &admin])
            .spawn()
            .unwrap();
        let log = Log::default();
        log.read(first.stderr.take().unwrap());
        let line = log.wait_from(0, "listening on ");
        let address = line.rsplit(' ').next().unwrap().parse().unwrap();
        let proxy = Self { place, log, address, first, admin };
        until("the pid file", || {
            fs::read_to_string(proxy.path("pid")).is_ok_and(|it| !it.is_empty())
        });
        proxy
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    pub(crate) fn pid(&self) -> u32 {
        let mut pid = None;
        until("a process in the pid file", || {
            pid = fs::read_to_string(self.path("pid")).ok().and_then(|it| it.trim().parse().ok());
            pid.is_some()
        });
        pid.unwrap()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid() as i32), signal).unwrap();
    }

    /// Replaces the process, and waits until the old one is gone.
    pub(crate) fn upgrade(&self) -> u32 {
        let (old, from) = (self.pid(), self.log.lines().len());
        self.signal(Signal::SIGHUP);
        self.log.wait_from(from, &format!("[{old}]"));
        until("the end of the old process", || {
            !is_alive(old) || self.log.lines()[from..].iter().any(|line| line.contains("failed"))
        });
        let new = self.pid();
        assert!(new != old && is_alive(new), "not upgraded: {:#?}", self.log.lines());
        new
    }

    /// A counter or gauge of the process that serves, summed over its labels.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let answer = self.ask("GET", "/metrics");
        let of_it =
            |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{']));
        let value = |line: &str| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap();
        answer.lines().filter(of_it).map(value).sum()
    }

    fn ask(&self, method: &str, path: &str) -> String {
        let path_of_socket = self.admin.strip_prefix("unix:").unwrap();
        let mut stream = std::os::unix::net::UnixStream::connect(path_of_socket).unwrap();
        write!(stream, "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// How many processes of it there are.
    pub(crate) fn processes(&self) -> usize {
        let place = self.place.path().to_str().unwrap();
        let is_ours = |entry: &fs::DirEntry| {
            let arguments = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&arguments).contains(place)
        };
        fs::read_dir("/proc").unwrap().filter_map(Result::ok).filter(is_ours).count()
    }

    /// Ends it, and answers how it ended; the last process has to have ended in order.
    pub(crate) fn quit(mut self) -> ExitStatus {
        self.signal(Signal::SIGQUIT);
        let status = self.first.wait().unwrap();
        until("the end of all processes", || self.processes() == 0);
        status
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{:#?}", self.log.lines());
        }
        for _ in 0..3 {
            let text = fs::read_to_string(self.path("pid")).unwrap_or_default();
            if let Ok(pid) = text.trim().parse() {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            let _ = self.first.kill();
        }
        let _ = self.first.wait();
    }
}

/// The program, with its standard error for the test.
pub(crate) fn command(place: &Path) -> Command {
    command_of(PROGRAM, place)
}

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_tls-proxy");

fn command_of(program: &str, place: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(place).stdin(Stdio::null()).stderr(Stdio::piped());
    command
}

pub(crate) fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
    !matches!(state, None | Some('Z' | 'X'))
}

/// An upstream: what it does with each connection, on a thread each.
pub(crate) fn upstream(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let serve = Arc::new(serve);
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let serve = Arc::clone(&serve);
            thread::spawn(move || serve(stream));
        }
    });
    address
}

/// An upstream that says what it hears.
pub(crate) fn echo() -> String {
    upstream(|mut stream| {
        let mut buffer = vec![0; 65536];
        while let Ok(count @ 1..) = stream.read(&mut buffer) {
            if stream.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
    })
}
