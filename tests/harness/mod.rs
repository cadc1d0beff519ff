//! Ring three's tools: a real server process, its log as events, and what the kernel says of it.
//!
//! Nothing here waits for a time to pass: it waits for a line of the log, for an answer, for a
//! process to end. The one time limit is the patience after which a test has failed.

#![allow(clippy::expect_used, reason = "a test says what it expects")]
#![allow(dead_code, reason = "each test file uses its part")]

pub(crate) mod played;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{setsockopt, sockopt};
use nix::unistd::Pid;
use tablecloth::fault::Point;

/// How long anything may take before the test has failed. Long, because machines stall.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The process that has written a line of the log.
pub(crate) fn pid_of(line: &str) -> Option<u32> {
    line.strip_prefix('[')?.split_once(']')?.0.parse().ok()
}

/// The example of that name; cargo builds the examples with the tests.
pub(crate) fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test is a file");
    let target = test.parent().and_then(Path::parent).expect("target/PROFILE/deps/TEST");
    let path = target.join("examples").join(name);
    assert!(path.exists(), "{} is not built: cargo build --examples", path.display());
    path
}

/// A test's own directory, in memory where there is a place for that: a disk that is busy takes
/// over a second over a rename, and that is longer than the deadlines of many a test.
pub(crate) fn place() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory")
}

/// Copies a program by a process of its own: this one starts others all the time, and they would
/// inherit the copy while it is open for writing, which makes it "busy" (execve(2), ETXTBSY).
pub(crate) fn copy_program(from: &Path, to: &Path) {
    let copied = Command::new("cp").args([from, to]).status().expect("cp starts");
    assert!(copied.success(), "{} to {}", from.display(), to.display());
}

/// A server and all the processes that come after it.
pub(crate) struct Actor {
    child: Child,
    lines: Receiver<String>,
    /// Every line so far; a wait begins where the last one ended.
    pub(crate) log: Vec<String>,
    seen: usize,
    pub(crate) place: tempfile::TempDir,
}

/// How an actor is started.
pub(crate) struct Start {
    program: PathBuf,
    args: Vec<String>,
    env: Vec<(String, String)>,
    directory: Option<PathBuf>,
    name: Option<String>,
    place: tempfile::TempDir,
    /// Its standard input and output, if it is to have some.
    sockets: Vec<OwnedFd>,
}

impl Start {
    /// The actor, listening on `main` at any port.
    /// The tests' own server. With MEMORY in the environment it writes its pid file as one in memory is written, and
    /// otherwise as one on a disk.
    pub(crate) fn actor() -> Self {
        let memory = if std::env::var_os("MEMORY").is_some() { "yes" } else { "no" };
        Self::program("actor").args(&["--listen", "main=127.0.0.1:0", "--memory", memory])
    }

    pub(crate) fn program(name: &str) -> Self {
        Self::path(example(name))
    }

    pub(crate) fn path(program: PathBuf) -> Self {
        let place = place();
        let (args, env, sockets) = (Vec::new(), Vec::new(), Vec::new());
        Self { program, args, env, directory: None, name: None, place, sockets }
    }

    pub(crate) fn args(mut self, args: &[&str]) -> Self {
        self.args.extend(args.iter().map(|arg| (*arg).to_owned()));
        self
    }

    /// What generation `generation` does in its set-up.
    pub(crate) fn at(self, generation: u64, deed: &str) -> Self {
        self.args(&["--at", &format!("{generation}:{deed}")])
    }

    /// The set-up of that generation waits for [`Actor::open_gate`].
    pub(crate) fn gate(self, generation: u64) -> Self {
        let gate = self.path_of("gate");
        self.at(generation, &format!("gate:{gate}"))
    }

    /// The actor and its successors obey [`Actor::fault`].
    pub(crate) fn faults(self) -> Self {
        let path = self.path_of("faults");
        self.args(&["--faults", &path])
    }

    pub(crate) fn pid_file(self) -> Self {
        let path = self.path_of("pid");
        self.args(&["--pid-file", &path])
    }

    /// Starts in the test's own directory.
    pub(crate) fn in_its_place(mut self) -> Self {
        self.directory = Some(self.place.path().into());
        self
    }

    /// Starts under this name, whatever the program's path is.
    pub(crate) fn named(mut self, name: &str) -> Self {
        self.name = Some(name.into());
        self
    }

    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// The same program, started by a shell that does this first.
    pub(crate) fn behind(mut self, script: &str) -> Self {
        let program = std::mem::replace(&mut self.program, "/bin/sh".into());
        let program = program.to_str().expect("text").to_owned();
        let script = format!("{script} exec \"$0\" \"$@\"");
        self.args.splice(0..0, ["-c".into(), script, program]);
        self
    }

    /// It has these as its standard input and output: at most two.
    pub(crate) fn sockets(mut self, sockets: Vec<OwnedFd>) -> Self {
        self.sockets = sockets;
        self
    }

    /// A file in the test's own directory.
    pub(crate) fn path_of(&self, name: &str) -> String {
        self.place.path().join(name).to_str().expect("text").into()
    }

    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        if let Some(name) = &self.name {
            command.arg0(name);
        }
        command.args(&self.args).envs(self.env.iter().cloned());
        command.current_dir(self.directory.as_deref().unwrap_or(Path::new(".")));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut sockets = self.sockets.iter().map(|fd| fd.try_clone().expect("a copy"));
        if let Some(first) = sockets.next() {
            command.stdin(first);
        }
        if let Some(second) = sockets.next() {
            command.stdout(second);
        }
        command
    }

    /// Starts it, and does not wait for anything.
    pub(crate) fn spawn(self) -> Actor {
        let mut child = self.command().spawn().expect("the actor starts");
        let stderr = child.stderr.take().expect("piped");
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Actor { child, lines, log: Vec::new(), seen: 0, place: self.place }
    }

    /// Starts it and waits until it serves.
    pub(crate) fn serve(self) -> Actor {
        let mut actor = self.spawn();
        actor.wait_for("generation 0, successor: false");
        actor
    }

    /// Runs it to its end: exit status, and everything on standard error.
    pub(crate) fn run(self) -> (ExitStatus, String) {
        let output = self.command().output().expect("it starts");
        (output.status, String::from_utf8_lossy(&output.stderr).into())
    }
}

impl Actor {
    /// The first process's id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for a line that contains a text, from where the last wait ended.
    pub(crate) fn wait_for(&mut self, text: &str) -> String {
        self.wait_for_any(&[text])
    }

    pub(crate) fn wait_for_any(&mut self, texts: &[&str]) -> String {
        match self.hears(texts, PATIENCE) {
            Some(line) => line,
            None => panic!("no line with {texts:?} in\n{}", self.log.join("\n")),
        }
    }

    /// The same, but it may be that there is no such line within that time.
    pub(crate) fn hears(&mut self, texts: &[&str], within: Duration) -> Option<String> {
        let deadline = Instant::now() + within;
        while let Ok(line) = self.next_line(deadline) {
            if texts.iter().any(|text| line.contains(text)) {
                return Some(line);
            }
        }
        None
    }

    /// The next line, from where the last wait ended. `Disconnected` if there will never be one,
    /// because every process that could write it is gone.
    pub(crate) fn next_line(&mut self, deadline: Instant) -> Result<String, RecvTimeoutError> {
        if self.seen == self.log.len() {
            let left = deadline.saturating_duration_since(Instant::now());
            self.log.push(self.lines.recv_timeout(left)?);
        }
        self.seen += 1;
        Ok(self.log[self.seen - 1].clone())
    }

    /// Forgets the lines that a wait has looked at. A long run would keep them all.
    pub(crate) fn forget(&mut self) {
        self.log.drain(..self.seen);
        self.seen = 0;
    }

    /// How many lines so far contain a text.
    pub(crate) fn count(&mut self, text: &str) -> usize {
        self.log.extend(self.lines.try_iter());
        self.log.iter().filter(|line| line.contains(text)).count()
    }

    /// Whether a line with that text has come; lines that were waited for are looked at too.
    pub(crate) fn has(&mut self, text: &str) -> bool {
        self.count(text) > 0
    }

    /// The address of the listener whose line came first.
    pub(crate) fn address(&mut self) -> String {
        let line = self.log.iter().find(|line| line.contains("listening on")).expect("listens");
        line.rsplit(' ').next().expect("an address").to_owned()
    }

    pub(crate) fn connect(&mut self) -> Client {
        Client::connect(&self.address())
    }

    /// Asks who serves: process id and generation.
    pub(crate) fn who(&mut self) -> (u32, u64) {
        self.connect().who()
    }

    pub(crate) fn signal(&self, pid: u32, signal: Signal) {
        kill(Pid::from_raw(pid as i32), signal).expect("the process is there");
    }

    /// One upgrade, from the request to the predecessor's end; answers the new process's id.
    pub(crate) fn upgrade(&mut self) -> u32 {
        let (pid, generation) = self.who();
        self.signal(pid, Signal::SIGHUP);
        self.wait_for("alone");
        let (new, next) = self.who();
        assert_eq!(next, generation + 1);
        assert_ne!(new, pid);
        new
    }

    /// An upgrade under way with a session that stays on the predecessor: the session, and the
    /// predecessor's id.
    pub(crate) fn upgrade_around_a_session(&mut self) -> (Client, u32) {
        let mut session = self.connect();
        let (pid, _) = session.who();
        self.signal(pid, Signal::SIGHUP);
        self.wait_for("done; spawn");
        (session, pid)
    }

    /// Asks for an upgrade and waits until the successor is born; answers its id.
    pub(crate) fn give_birth(&mut self, pid: u32) -> u32 {
        self.signal(pid, Signal::SIGHUP);
        self.wait_for("Running -> Upgrading");
        let mut born = None;
        until("the successor is born", || {
            born = children_of(pid).first().map(|(child, _)| *child);
            born.is_some()
        });
        born.expect("born")
    }

    /// The next process that comes to this point of an upgrade does that, once.
    pub(crate) fn fault(&self, point: Point, deed: &str) {
        self.faults(&[(point, deed)]);
    }

    /// The same for several points, in this order: who comes to its own too early waits.
    pub(crate) fn faults(&self, deeds: &[(Point, &str)]) {
        let lines: Vec<_> = deeds.iter().map(|(at, deed)| format!("{at:?} {deed}\n")).collect();
        // It may be read at any moment, and must be there as a whole.
        let (new, path) = (self.place.path().join("faults.new"), self.place.path().join("faults"));
        fs::write(&new, lines.concat()).expect("a file");
        fs::rename(new, path).expect("renamed");
    }

    pub(crate) fn open_gate(&self) {
        fs::write(self.place.path().join("gate"), "").expect("a file");
    }

    /// Waits until the pid file names a process. It is restored beside the loop.
    pub(crate) fn is_named(&self, pid: u32) {
        let path = self.place.path().join("pid");
        let named = || fs::read_to_string(&path).is_ok_and(|said| said == format!("{pid}\n"));
        until("the pid file names it", named);
    }

    /// Waits for the first process's end.
    pub(crate) fn first_exits(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("it is our child") {
                return status;
            }
            assert!(Instant::now() < deadline, "it does not end:\n{}", self.log.join("\n"));
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Every process that has logged a line.
    pub(crate) fn pids(&mut self) -> BTreeSet<u32> {
        self.log.extend(self.lines.try_iter());
        // Once it is waited for, its number may be anybody's.
        let unwaited = self.child.try_wait().ok().is_some_and(|status| status.is_none());
        let first = unwaited.then(|| self.child.id());
        self.log.iter().filter_map(|line| pid_of(line)).chain(first).collect()
    }

    /// Those of them that are there and no zombies.
    pub(crate) fn alive(&mut self) -> Vec<u32> {
        self.pids().into_iter().filter(|pid| is_alive(*pid)).collect()
    }
}

/// Ends every process that the test has started.
impl Drop for Actor {
    fn drop(&mut self) {
        let alive = self.alive();
        // A successor that has not said anything yet is known to its predecessor only.
        let newborn: Vec<_> = alive.iter().flat_map(|pid| children_of(*pid)).collect();
        for pid in alive.into_iter().chain(newborn.into_iter().map(|(pid, _)| pid)) {
            let _ = kill(Pid::from_raw(pid as i32), Signal::SIGKILL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            self.log.extend(self.lines.try_iter());
            eprintln!("the log:\n{}", self.log.join("\n"));
        }
    }
}

/// A client of the actor.
pub(crate) struct Client {
    pub(crate) stream: TcpStream,
}

impl Client {
    pub(crate) fn connect(address: &str) -> Self {
        let stream = TcpStream::connect(address).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        Self { stream }
    }

    pub(crate) fn send(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).expect("sent");
    }

    /// One question, one answer.
    pub(crate) fn ask(&mut self, question: &str) -> String {
        self.send(question);
        self.read_line()
    }

    /// An answer.
    pub(crate) fn read_line(&mut self) -> String {
        let mut answer = String::new();
        let mut byte = [0; 1];
        while !answer.ends_with('\n') {
            self.stream.read_exact(&mut byte).expect("an answer");
            answer.push(char::from(byte[0]));
        }
        answer.trim_end().to_owned()
    }

    pub(crate) fn who(&mut self) -> (u32, u64) {
        self.send("who\n");
        self.who_said()
    }

    /// The answer to `who`.
    pub(crate) fn who_said(&mut self) -> (u32, u64) {
        let answer = self.read_line();
        let (pid, generation) = answer.split_once(' ').expect("two numbers");
        (pid.parse().expect("a process id"), generation.parse().expect("a generation"))
    }

    /// Breaks off: the other side is told by a reset.
    pub(crate) fn reset(self) {
        let at_once = nix::libc::linger { l_onoff: 1, l_linger: 0 };
        setsockopt(&self.stream, sockopt::Linger, &at_once).expect("set");
    }

    /// Whether the other side has closed the connection in order.
    pub(crate) fn is_at_end(&mut self) -> bool {
        matches!(self.stream.read(&mut [0; 1]), Ok(0))
    }
}

/// Asks the actor's UDP socket who serves.
pub(crate) fn who_by_udp(address: &str) -> String {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    socket.send_to(b"who", address).expect("sent");
    let mut buffer = [0; 64];
    let read = socket.recv(&mut buffer).expect("an answer");
    String::from_utf8_lossy(&buffer[..read]).into()
}

/// A process's state, as in the third field of /proc/PID/stat (proc(5)); `None` if there is none.
pub(crate) fn state_of(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

pub(crate) fn is_alive(pid: u32) -> bool {
    state_of(pid).is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

/// The children of a process, and their states.
pub(crate) fn children_of(pid: u32) -> Vec<(u32, char)> {
    let mut children = Vec::new();
    for entry in fs::read_dir("/proc").expect("proc").flatten() {
        let Some(child) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let Ok(stat) = fs::read_to_string(format!("/proc/{child}/stat")) else { continue };
        let Some((_, fields)) = stat.rsplit_once(") ") else { continue };
        let mut fields = fields.split(' ');
        let (state, parent) = (fields.next(), fields.next());
        if parent == Some(&pid.to_string()) {
            children.push((child, state.and_then(|s| s.chars().next()).unwrap_or('?')));
        }
    }
    children
}

/// What a process's descriptors are, without those of standard input, output and error.
pub(crate) fn descriptors_of(pid: u32) -> Vec<String> {
    let mut found: Vec<_> = fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("the process is there")
        .flatten()
        .filter(|entry| {
            entry.file_name().to_str().and_then(|name| name.parse().ok()).unwrap_or(0) > 2
        })
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .map(|target| target.to_string_lossy().into_owned())
        .collect();
    found.sort();
    found
}

/// What any child of this test inherits from whoever started the test.
pub(crate) fn inherited_by_any_child() -> Vec<String> {
    let mut cat = Command::new("cat")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("cat starts");
    // What it answers, it answers once its libraries are loaded and their files closed.
    let (stdin, stdout) = (cat.stdin.as_mut().expect("piped"), cat.stdout.as_mut().expect("piped"));
    stdin.write_all(b"?").expect("sent");
    stdout.read_exact(&mut [0]).expect("an answer");
    let kinds = kinds_of_descriptors(cat.id());
    drop(cat.stdin.take());
    cat.wait().expect("it is our child");
    kinds
}

/// The kinds of a process's descriptors: `socket`, `pipe`, `anon_inode:[eventpoll]` and so on.
pub(crate) fn kinds_of_descriptors(pid: u32) -> Vec<String> {
    let kind = |name: &String| match name.split_once(":[") {
        Some((kind, _)) if kind == "socket" || kind == "pipe" => kind.to_owned(),
        Some(_) | None => name.clone(),
    };
    descriptors_of(pid).iter().map(kind).collect()
}

/// Sets how many descriptors another process may have, and answers how many it might have before
/// (prlimit(2)).
pub(crate) fn limit_descriptors(pid: u32, most: u64) -> u64 {
    use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit { current: Some(most), maximum };
    let before = prlimit(Pid::from_raw(pid as i32), Resource::Nofile, limit).expect("allowed");
    before.current.unwrap_or(1024)
}

/// Anonymous resident memory, in KiB (proc(5)).
pub(crate) fn memory_of(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process is there");
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).expect("RssAnon");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number")
}

/// Waits until something is true that no event tells of: the kernel's own bookkeeping.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}
