//! Ring three: the static demo as process 1 of a pid namespace, in a root directory with nothing else in it.
//!
//! The test builds it, which takes its time:
//!
//!     cargo test --test container -- --ignored

#![allow(clippy::expect_used, reason = "a test says what it expects")]

mod harness;

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use harness::{Client, children_of, place, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const UPGRADES: usize = 50;
const CLIENTS: usize = 4;

/// Connections from one upgrade to the next, of all clients.
const BETWEEN: usize = 100;

/// What the init has in memory, at the most: all of it, pages of the program included.
const MOST_KIB: u64 = 2048;

/// Builds the demo without a C library beside it: with musl if Rust has that here, or else with the GNU library.
fn static_demo() -> PathBuf {
    let listed = Command::new("rustup").args(["target", "list", "--installed"]).output();
    let has_musl = listed.is_ok_and(|listed| {
        String::from_utf8_lossy(&listed.stdout).contains("x86_64-unknown-linux-musl")
    });
    let (target, flags) = match has_musl {
        true => ("x86_64-unknown-linux-musl", ""),
        false => ("x86_64-unknown-linux-gnu", "-C target-feature=+crt-static"),
    };
    let built = Command::new(env!("CARGO"))
        .args(["build", "--release", "--example", "demo", "--target", target])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("RUSTFLAGS", flags)
        .status();
    assert!(built.expect("cargo starts").success());
    let target_directory = std::env::current_exe().expect("a test is a file");
    let target_directory = target_directory.ancestors().nth(3).expect("target").to_path_buf();
    target_directory.join(target).join("release/examples/demo")
}

/// A container, as far as the kernel goes.
struct Container {
    unshare: Child,
    log: BufReader<ChildStderr>,
    /// Process 1, by its number out here.
    init: u32,
    address: String,
}

impl Container {
    fn start(root: &Path, with_proc: bool) -> Self {
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--mount", "--kill-child"]).arg("--root").arg(root);
        if with_proc {
            command.arg("--mount-proc");
        }
        command.args(["--setuid=65532", "--setgid=65532", "/demo"]);
        command.args(["--listen", "127.0.0.1:0", "--probation", "0", "--admin", "/run/admin"]);
        command.env_clear().env("PATH", "/bin:/usr/bin:/sbin:/usr/sbin");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut unshare = command.spawn().expect("unshare starts");
        let log = BufReader::new(unshare.stderr.take().expect("piped"));
        let mut container = Self { unshare, log, init: 0, address: String::new() };
        let line = container.hears("listening on");
        container.address = line.rsplit(' ').next().expect("an address").into();
        container.init = children_of(container.unshare.id())[0].0;
        container
    }

    fn hears(&mut self, text: &str) -> String {
        let (mut line, mut log) = (String::new(), String::new());
        while !line.contains(text) {
            line.clear();
            let read = self.log.read_line(&mut line).expect("a line");
            log.push_str(&line);
            assert_ne!(read, 0, "never: {text}\n{log}");
        }
        line.trim_end().into()
    }

    fn server(&self) -> u32 {
        children_of(self.init)[0].0
    }

    fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.init)).expect("there");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("counted");
        line.split_whitespace().next().and_then(|kib| kib.parse().ok()).expect("a number")
    }

    fn ends(&mut self) -> ExitStatus {
        let mut status = None;
        until("it ends", || {
            status = self.unshare.try_wait().expect("it is our child");
            status.is_some()
        });
        status.expect("ended")
    }
}

/// With it ends everything in it. What its log names are numbers of its own.
impl Drop for Container {
    fn drop(&mut self) {
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
    }
}

fn signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid as i32), signal).expect("it is there");
}

#[test]
#[ignore = "builds a server"]
fn a_static_demo_is_upgraded_as_process_one_in_an_empty_root_and_ends_with_its_server_s_status() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: only root makes a pid namespace");
        return;
    }
    let demo = static_demo();
    for with_proc in [true, false] {
        let root = place();
        fs::create_dir(root.path().join("proc")).expect("made");
        harness::copy_program(&demo, &root.path().join("demo"));
        let run = root.path().join("run");
        fs::create_dir(&run).expect("made");
        fs::set_permissions(run, fs::Permissions::from_mode(0o777)).expect("set");
        Command::new("chmod").args(["-R", "a+rx"]).arg(root.path()).status().expect("chmod starts");
        let mut container = Container::start(root.path(), with_proc);
        let memory = container.memory();
        eprintln!("with /proc: {with_proc}; the init has {memory} KiB resident");
        assert!(memory < MOST_KIB, "{memory} KiB");
        let (address, stop) = (container.address.clone(), AtomicBool::new(false));
        let (served, began) = (AtomicUsize::new(0), Instant::now());
        thread::scope(|scope| {
            let load = || {
                let mut next = Instant::now();
                while !stop.load(Ordering::Relaxed) {
                    assert_eq!(Client::connect(&address).ask("hello\n"), "hello");
                    served.fetch_add(1, Ordering::Relaxed);
                    // A thousand a second, of all of them together.
                    next += Duration::from_millis(CLIENTS as u64);
                    thread::sleep(next.saturating_duration_since(Instant::now()));
                }
            };
            let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(load)).collect();
            // Without words of the server's the init finds a successor by /proc only.
            for _ in 0..if with_proc { UPGRADES } else { 0 } {
                let (server, before) = (container.server(), served.load(Ordering::Relaxed));
                signal(container.init, Signal::SIGHUP);
                container.hears("finish the old process");
                until("the successor is alone, and no zombie is left", || {
                    let children = children_of(container.init);
                    children.len() == 1 && children[0].0 != server && children[0].1 != 'Z'
                });
                until("more were served", || served.load(Ordering::Relaxed) > before + BETWEEN);
            }
            stop.store(true, Ordering::Relaxed);
            clients.into_iter().for_each(|client| client.join().expect("no client is refused"));
        });
        let (served, time) = (served.into_inner(), began.elapsed().as_secs_f64());
        let rate = served as f64 / time;
        eprintln!("{served} connections, {rate:.0} a second, none refused");
        assert!(container.memory() < MOST_KIB, "{} KiB", container.memory());
        signal(container.init, Signal::SIGTERM);
        assert_eq!(container.ends().code(), Some(0));

        let mut killed = Container::start(root.path(), with_proc);
        signal(killed.server(), Signal::SIGKILL);
        killed.hears("was killed by SIGKILL");
        assert_eq!(killed.ends().code(), Some(137));
    }
}
