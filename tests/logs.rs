//! Ring three: whatever becomes of the log, the service goes on, and its exit status says what it did.

#![allow(clippy::expect_used, reason = "a test says what it expects")]

mod harness;

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;

use harness::{PATIENCE, example, is_alive, place, until};
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::process::{Resource, Rlimit, getrlimit, prlimit};

/// More lines than the buffer and the pipe have room for.
const CLIENTS: usize = 6000;

struct Served {
    child: Child,
    pid_file: std::path::PathBuf,
}

impl Served {
    /// A program whose standard error is a pipe that nobody reads yet.
    fn start(program: &str, args: &[&str], place: &Path) -> Self {
        let pid_file = place.join(format!("{program}.pid"));
        let child = Command::new(example(program))
            .args(args)
            .args(["--probation", "0", "--drain-timeout", "1", "--pid-file"])
            .arg(&pid_file)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        // As small as a pipe can be.
        let stderr = child.stderr.as_ref().expect("piped");
        fcntl(stderr.as_fd(), FcntlArg::F_SETPIPE_SZ(4096)).expect("a small pipe");
        until("it serves", || pid_file.exists());
        Self { child, pid_file }
    }

    fn pid(&self) -> Option<u32> {
        fs::read_to_string(&self.pid_file).ok()?.trim().parse().ok()
    }

    fn signal(&self, signal: Signal) {
        let pid = self.pid().expect("it serves");
        kill(Pid::from_raw(pid as i32), signal).expect("it is there");
    }

    fn upgrade(&self) {
        let before = self.pid().expect("it serves");
        self.signal(Signal::SIGHUP);
        until("it is replaced", || self.pid().is_some_and(|pid| pid != before));
        until("the old one leaves", || !is_alive(before));
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if let Some(pid) = self.pid() {
            let _ = kill(Pid::from_raw(pid as i32), Signal::SIGKILL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> String {
    TcpListener::bind("127.0.0.1:0").expect("bound").local_addr().expect("an address").to_string()
}

fn echo(address: &str) {
    let mut stream = TcpStream::connect(address).expect("a connection");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream
        .write_all(b"sixty bytes, or so, that are shown in the log if there is room\n")
        .expect("sent");
    stream.shutdown(Shutdown::Write).expect("half-closed");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("an answer");
    assert_eq!(answer.len(), 63);
}

#[test]
fn a_log_that_nobody_reads_stops_nobody_and_says_later_what_it_has_lost() {
    let (place, address) = (place(), free_port());
    let mut demo = Served::start("demo", &["--listen", &address], place.path());
    (0..CLIENTS).for_each(|_| echo(&address));
    demo.upgrade();
    (0..CLIENTS).for_each(|_| echo(&address));
    let second = demo.pid().expect("it serves");
    // Somebody reads again.
    let mut stderr = demo.child.stderr.take().expect("piped");
    let reader = thread::spawn(move || {
        let mut text = String::new();
        stderr.read_to_string(&mut text).map(|_| text).expect("text")
    });
    // A line that comes when there is room again is behind the one that tells of the others.
    demo.signal(Signal::SIGTERM);
    until("it ends", || !is_alive(second));
    let text = reader.join().expect("no panic");
    // What the first one had to say went with it: nobody waits for a reader for ever.
    let theirs = format!("[{second}] ");
    let said: Vec<_> = text.lines().filter(|line| line.starts_with(&theirs)).collect();
    for word in ["listening on", "got message SIGTERM.", "finish the process."] {
        let there = said.iter().any(|line| line.contains(word));
        assert!(there, "the lines about the process are the last to go: {word}");
    }
    assert!(text.contains("lines of the log were dropped"), "{}", text.lines().count());
    assert!(text.lines().all(|line| line.starts_with('[')), "whole lines");
}

/// Lines gather before they are written to a file. A machine without a processor to spare may lose some.
#[test]
fn a_log_in_a_file_has_every_line_of_a_flood_or_counts_it() {
    const MESSAGES: usize = 3000;
    let (place, address) = (place(), free_port());
    let (log, pid_file) = (place.path().join("log"), place.path().join("pid"));
    let mut demo = Command::new(example("demo"))
        .args(["--listen", &address, "--pid-file"])
        .arg(&pid_file)
        .stdin(Stdio::null())
        .stderr(fs::File::create(&log).expect("a file"))
        .spawn()
        .expect("it starts");
    until("it serves", || pid_file.exists());
    let pid = Pid::from_raw(demo.id() as i32);
    // All of it is there at once. Each byte is shown as four.
    kill(pid, Signal::SIGSTOP).expect("it is there");
    let mut clients = Vec::new();
    for _ in 0..MESSAGES {
        let mut stream = TcpStream::connect(&address).expect("a connection");
        stream.write_all(&[0xff; 64]).expect("sent");
        clients.push(stream);
    }
    kill(pid, Signal::SIGCONT).expect("it is there");
    for mut stream in clients {
        stream.read_exact(&mut [0; 64]).expect("an answer");
    }
    kill(pid, Signal::SIGTERM).expect("it is there");
    demo.wait().expect("it ends");
    let text = fs::read_to_string(&log).expect("text");
    let lines = text.lines().filter(|line| line.contains("receive message")).count();
    let counts = text.lines().filter(|line| line.contains("lines of the log were dropped"));
    let dropped =
        counts.filter_map(|line| line.split(' ').nth(3)?.parse::<usize>().ok()).sum::<usize>();
    assert_eq!(lines + dropped, MESSAGES, "{dropped} dropped");
}

#[test]
fn a_dead_route_of_a_proxy_whose_log_nobody_reads_stops_no_other_route() {
    let (place, dead, alive, upstream) = (place(), free_port(), free_port(), free_port());
    let _demo =
        Served::start("demo", &["--listen", &upstream, "--log-level", "warn"], place.path());
    let nowhere = free_port();
    let args = ["--listen", &dead, "--to", &nowhere, "--listen", &alive, "--to", &upstream];
    let proxy = Served::start("proxy", &args, place.path());
    for _ in 0..CLIENTS / 2 {
        // It may be reset before it is known here that it was made.
        let Ok(mut stream) = TcpStream::connect(&dead) else { continue };
        let _ = stream.read(&mut [0]);
    }
    echo(&alive);
    proxy.upgrade();
    echo(&alive);
}

#[test]
fn a_client_that_fails_again_and_again_costs_some_lines_a_second() {
    let (place, dead, nowhere) = (place(), free_port(), free_port());
    let mut proxy = Served::start("proxy", &["--listen", &dead, "--to", &nowhere], place.path());
    let mut stderr = proxy.child.stderr.take().expect("piped");
    let reader = thread::spawn(move || {
        let mut text = String::new();
        stderr.read_to_string(&mut text).map(|_| text).expect("text")
    });
    let begun = std::time::Instant::now();
    for _ in 0..CLIENTS / 2 {
        // It may be reset before it is known here that it was made.
        let Ok(mut stream) = TcpStream::connect(&dead) else { continue };
        let _ = stream.read(&mut [0]);
    }
    let seconds = begun.elapsed().as_secs() as usize + 1;
    proxy.signal(Signal::SIGTERM);
    proxy.child.wait().expect("it ends");
    let text = reader.join().expect("no panic");
    let lines = text.lines().filter(|line| line.contains("no upstream")).count();
    // By the library, if it fails at once, and by the proxy, if it fails later.
    assert!((1..=20 * (seconds + 1)).contains(&lines), "{lines} lines in {seconds} s");
}

#[test]
fn the_exit_status_is_the_same_whether_or_not_somebody_reads() {
    let busy = TcpListener::bind("127.0.0.1:0").expect("bound");
    let address = busy.local_addr().expect("an address").to_string();
    for (program, args, status) in [
        ("demo", vec!["--listen", &address], 1),
        ("demo", vec!["--nonsense"], 2),
        ("proxy", vec!["--nonsense"], 2),
        ("hups", vec!["--nonsense"], 2),
        ("demo", vec!["--help"], 0),
        ("proxy", vec!["--help"], 0),
        ("hups", vec!["--help"], 0),
    ] {
        // A pipe that nobody can read any more, for both.
        let dead = || {
            let (reader, writer) = nix::unistd::pipe().expect("a pipe");
            drop(reader);
            writer
        };
        let mut command = Command::new(example(program));
        let command = command.args(&args).stdin(Stdio::null()).stdout(dead()).stderr(dead());
        let ended = command.status().expect("it starts");
        assert_eq!(ended.code(), Some(status), "{program} {args:?}");
    }
}

/// The end of a program waits for nobody, if what it has to say last is said to a reader that stands still.
#[test]
fn an_error_at_the_start_ends_the_program_although_nobody_reads_it() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("listens");
    let address = taken.local_addr().expect("an address").to_string();
    let (reader, writer) = nix::unistd::pipe().expect("a pipe");
    let mut filler = std::fs::File::from(writer.try_clone().expect("a duplicate"));
    let capacity = nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_GETPIPE_SZ).expect("a size");
    std::io::Write::write_all(&mut filler, &vec![b'x'; capacity as usize]).expect("filled");
    let mut demo = std::process::Command::new(harness::example("demo"))
        .args(["--listen", &address])
        .stderr(writer)
        .spawn()
        .expect("started");
    until("it has ended", || demo.try_wait().expect("a child").is_some());
    assert_eq!(demo.wait().expect("a status").code(), Some(1));
    drop(reader);
}

#[test]
fn a_log_file_at_its_size_limit_ends_nobody() {
    let (place, address) = (place(), free_port());
    let log = fs::File::create(place.path().join("log")).expect("a file");
    let pid_file = place.path().join("pid");
    let mut demo = Command::new(example("demo"))
        .args(["--listen", &address, "--pid-file"])
        .arg(&pid_file)
        .stdin(Stdio::null())
        .stderr(log)
        .spawn()
        .expect("it starts");
    until("it serves", || pid_file.exists());
    let pid = rustix::process::Pid::from_raw(demo.id() as i32);
    let maximum = getrlimit(Resource::Fsize).maximum;
    prlimit(pid, Resource::Fsize, Rlimit { current: Some(2048), maximum }).expect("allowed");
    (0..100).for_each(|_| echo(&address));
    assert!(is_alive(demo.id()));
    assert!(fs::metadata(place.path().join("log")).expect("a file").len() <= 2048);
    demo.kill().expect("it is there");
    demo.wait().expect("it is our child");
}

/// The server that the README shows keeps what its client does not take yet.
#[test]
fn a_client_of_the_least_server_that_reads_late_gets_everything() {
    const BYTES: usize = 8 << 20;
    let address = free_port();
    let mut minimal = Command::new(example("minimal"))
        .arg(&address)
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts");
    let mut stream = None;
    until("it listens", || {
        stream = TcpStream::connect(&address).ok();
        stream.is_some()
    });
    let mut stream = stream.expect("connected");
    let mut writer = stream.try_clone().expect("a copy");
    let sender = thread::spawn(move || {
        writer.write_all(&vec![b'x'; BYTES]).expect("sent");
        writer.shutdown(Shutdown::Write).expect("half-closed");
    });
    // Until it does, neither side can go on.
    until("the kernel's buffers are full", || {
        let mut size = 0;
        // What can be read does not grow any more.
        let mut peeked = vec![0; 1 << 16];
        if let Ok(read) = stream.peek(&mut peeked) {
            size = read;
        }
        size == peeked.len()
    });
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("all of it");
    sender.join().expect("no panic");
    assert!(answer.len() == BYTES && answer.iter().all(|byte| *byte == b'X'), "{}", answer.len());
    minimal.kill().expect("it is there");
    minimal.wait().expect("it is our child");
}
