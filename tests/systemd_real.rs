//! A real systemd, as process 1 of its own namespaces, and the units of `examples/systemd` as they are.
//!
//!     cargo build --example demo
//!     cargo test --test systemd_real -- --ignored --nocapture
//!
//! It takes root, unshare(1), nsenter(1) and a systemd (`apt-get install systemd`); without one of them it says
//! so and does nothing.

#![cfg(feature = "systemd")]
#![allow(clippy::expect_used, reason = "a test says what it expects")]

mod harness;

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use harness::{PATIENCE, children_of, copy_program, example, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};

const SYSTEMD: &str = "/lib/systemd/systemd";
const SERVICE: &str = "tablecloth-demo.service";
const SOCKET: &str = "tablecloth-demo.socket";

/// A manager with one service.
struct System {
    unshare: Child,
    /// Of process 1, outside.
    pid: u32,
    place: tempfile::TempDir,
    port: u16,
}

impl System {
    /// `None`, and why, where it cannot be had.
    fn boot() -> Option<Self> {
        if !geteuid().is_root() || !Path::new(SYSTEMD).exists() {
            eprintln!("skipped: it takes root and {SYSTEMD}");
            return None;
        }
        // Below /tmp and /home the service sees nothing.
        let place = tempfile::tempdir_in("/opt").expect("a directory");
        fs::set_permissions(place.path(), PermissionsExt::from_mode(0o755)).expect("open");
        let port = TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr());
        let port = port.expect("a port").port();
        let units = place.path().join("units");
        let own = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/systemd"));
        let write = |path: PathBuf, text: &str| {
            fs::create_dir_all(path.parent().expect("a directory")).expect("made");
            fs::write(path, text).expect("written");
        };
        for unit in [SERVICE, SOCKET] {
            write(units.join(unit), &fs::read_to_string(own.join(unit)).expect("a unit"));
        }
        let bare = "[Unit]\nDefaultDependencies=no\n";
        write(units.join("test.target"), &format!("{bare}AllowIsolate=yes\n"));
        let listen = format!("[Socket]\nListenStream=\nListenStream=127.0.0.1:{port}\n");
        write(units.join(format!("{SOCKET}.d/test.conf")), &format!("{bare}{listen}"));
        let at = place.path().display();
        let start = format!(
            "[Service]\nExecStart=\nExecStart={at}/demo --listen 127.0.0.1:{port} --probation 0.3 \
             --log-level debug --admin /run/tablecloth-demo/admin\nExecReload=\n\
             ExecReload={at}/ctl ctl --admin /run/tablecloth-demo/admin upgrade\nWatchdogSec=2\nTimeoutAbortSec=1\nRestart=no\n\
             StandardOutput=append:{at}/log\nStandardError=append:{at}/log\n"
        );
        write(units.join(format!("{SERVICE}.d/test.conf")), &format!("{bare}{start}"));
        let script = format!(
            "mount -t tmpfs none /run; mkdir -p /run/systemd/system; export container=test \
             SYSTEMD_UNIT_PATH={}; exec {SYSTEMD} --system --unit=test.target",
            units.display(),
        );
        let namespaces = ["--pid", "--fork", "--mount", "--uts", "--ipc", "--cgroup"];
        let unshare = Command::new("unshare")
            .args(namespaces)
            .args(["--mount-proc", "--kill-child", "sh", "-c", &script])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("unshare");
        let mut system = Self { unshare, pid: 0, place, port };
        system.deploy();
        let unshare = system.unshare.id();
        until("it is there", || match children_of(unshare).first() {
            Some((pid, _)) => {
                system.pid = *pid;
                true
            }
            None => false,
        });
        let is_up = |system: &Self| system.ask(&["is-active", "test.target"]).1.trim() == "active";
        until("it is up", || is_up(&system));
        Some(system)
    }

    /// Puts the demo where the service runs it from.
    fn deploy(&self) {
        let (new, path) = (self.place.path().join("new"), self.place.path().join("demo"));
        copy_program(&example("demo"), &new);
        fs::rename(new, path).expect("renamed");
        // What commands is there whatever is deployed.
        if !fs::exists(self.place.path().join("ctl")).expect("looked at") {
            copy_program(&example("demo"), &self.place.path().join("ctl"));
        }
    }

    /// Runs a program beside process 1.
    fn run(&self, program: &[&str]) -> (bool, String) {
        let pid = self.pid.to_string();
        let enter = ["20", "nsenter", "-t", &pid, "-m", "-p", "-u", "-i", "-C"];
        let output = Command::new("timeout").args(enter).args(program).output();
        let output = output.expect("nsenter");
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&said).into())
    }

    fn ask(&self, args: &[&str]) -> (bool, String) {
        self.run(&[&["systemctl", "--no-pager"], args].concat())
    }

    /// What has to go well.
    fn order(&self, args: &[&str]) {
        let (done, said) = self.ask(args);
        assert!(done, "{args:?}: {said}\n{}", self.log());
    }

    fn show(&self, property: &str) -> String {
        let (_, said) = self.ask(&["show", "--value", "-p", property, SERVICE]);
        said.trim().into()
    }

    fn main_pid(&self) -> u32 {
        self.show("MainPID").parse().expect("a process id")
    }

    /// Asserts that all is well, and prints what `systemctl status` shows of it.
    fn is_well(&self, step: &str) {
        let status = self.ask(&["status", "--lines=0", SERVICE]).1;
        let shown = status.lines().filter(|line| {
            ["Active:", "Main PID:", "Status:"].iter().any(|word| line.trim().starts_with(word))
        });
        eprintln!("{step}:\n{}", shown.collect::<Vec<_>>().join("\n"));
        assert_eq!(self.show("ActiveState"), "active", "{status}");
        assert_eq!(self.show("SubState"), "running", "{status}");
        assert_eq!(self.show("NRestarts"), "0", "{status}");
    }

    fn log(&self) -> String {
        fs::read_to_string(self.place.path().join("log")).unwrap_or_default()
    }

    /// Waits for that many lines with a text.
    fn logs(&self, text: &str, count: usize) {
        until(text, || self.log().matches(text).count() >= count);
    }

    fn signal(&self, pid: u32, signal: &str) {
        let (done, said) = self.run(&["kill", "-s", signal, &pid.to_string()]);
        assert!(done, "{said}");
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream
    }
}

/// It ignores TERM, and with it everything in its namespace ends.
impl Drop for System {
    fn drop(&mut self) {
        if self.pid > 0 {
            let _ = kill(Pid::from_raw(self.pid as i32), Signal::SIGKILL);
        }
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
        if thread::panicking() {
            eprintln!("the log:\n{}", self.log());
        }
    }
}

/// Clients that ask without a pause, until they are told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    dropped: Arc<AtomicU64>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    /// Half of the clients keep their connection, and the others make a new one for each message.
    fn on(port: u16) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let [answered, dropped] = [(); 2].map(|()| Arc::new(AtomicU64::new(0)));
        let clients = (0..8).map(|client| {
            let stop = Arc::clone(&stop);
            let (answered, dropped) = (Arc::clone(&answered), Arc::clone(&dropped));
            thread::spawn(move || {
                let mut kept = None;
                for message in 0_u64.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let connection = kept.take().map_or_else(|| connect(port), Ok);
                    let done = connection.and_then(|mut stream| {
                        echo(&mut stream, message)?;
                        Ok(stream)
                    });
                    match done {
                        Ok(stream) => {
                            answered.fetch_add(1, Ordering::Relaxed);
                            kept = (client % 2 == 0).then_some(stream);
                        }
                        Err(error) => {
                            eprintln!("client {client}: {error}");
                            dropped.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                    thread::sleep(Duration::from_millis(1));
                }
            })
        });
        let clients = clients.collect();
        Self { stop, answered, dropped, clients }
    }

    /// How many were answered, and how many were dropped.
    fn end(self) -> (u64, u64) {
        self.stop.store(true, Ordering::Relaxed);
        self.clients.into_iter().for_each(|client| client.join().expect("it ends"));
        (self.answered.load(Ordering::Relaxed), self.dropped.load(Ordering::Relaxed))
    }
}

fn connect(port: u16) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn echo(stream: &mut TcpStream, message: u64) -> std::io::Result<()> {
    let (message, mut answer) = (message.to_le_bytes(), [0; 8]);
    stream.write_all(&message)?;
    stream.read_exact(&mut answer)?;
    if answer == message { Ok(()) } else { Err(std::io::Error::other("another answer")) }
}

#[test]
#[ignore = "needs root and a systemd"]
fn ten_reloads_a_failure_and_a_rollback_drop_nobody_and_the_main_process_is_followed() {
    let Some(system) = System::boot() else { return };
    system.order(&["start", SERVICE]);
    system.is_well("started");
    let load = Load::on(system.port);

    let mut times = Vec::new();
    for round in 1..=10 {
        let old = system.main_pid();
        let begun = Instant::now();
        system.order(&["reload", SERVICE]);
        times.push(begun.elapsed());
        // It was told before the upgrade was done, and the reload ends after that.
        until("the main process is followed", || system.main_pid() != old);
        system.logs("finish the old process.", round);
        until("the reload is over", || system.show("SubState") == "running");
    }
    times.sort();
    eprintln!("10 reloads: median {:?}, longest {:?}", times[5], times[9]);
    let log = system.log();
    let waits = log.lines().filter_map(|line| line.split_once("leaving, ")?.1.split(' ').next());
    eprintln!("each predecessor waited to be heard: {}", waits.collect::<Vec<_>>().join(" "));
    system.is_well("reloaded ten times");

    let old = system.main_pid();
    let (new, path) = (system.place.path().join("new"), system.place.path().join("demo"));
    fs::write(&new, "#!/bin/sh\nexit 3\n").expect("written");
    fs::set_permissions(&new, PermissionsExt::from_mode(0o755)).expect("executable");
    fs::rename(new, path).expect("renamed");
    let (done, said) = system.ask(&["reload", SERVICE]);
    assert!(!done, "systemctl's exit status says that it has failed: {said}");
    system.logs("failed in set-up: the successor exited with status 3", 1);
    let why = "the last upgrade failed in set-up: the successor exited with status 3";
    until("the status says why", || system.show("StatusText").contains(why));
    assert_eq!(system.main_pid(), old);
    system.is_well("a failed upgrade");
    system.deploy();
    let (answered, dropped) = load.end();
    eprintln!("{answered} messages answered, {dropped} dropped");
    assert_eq!(dropped, 0);

    // From here on processes are killed, and what they have in hand dies with them.
    let load = Load::on(system.port);
    system.order(&["reload", SERVICE]);
    until("the successor is the main process", || system.main_pid() != old);
    system.signal(system.main_pid(), "KILL");
    until("the predecessor is again", || system.main_pid() == old);
    until("it is over", || system.show("SubState") == "running");
    assert!(system.show("StatusText").contains("the successor was killed by SIGKILL"));
    system.is_well("a rollback");

    // The predecessor is not needed for it: it dies in the probation.
    system.order(&["reload", SERVICE]);
    until("the main process is followed", || system.main_pid() != old);
    system.signal(old, "KILL");
    until("it is gone", || !system.run(&["kill", "-0", &old.to_string()]).0);
    system.is_well("a predecessor that was killed");

    // And on from there.
    let old = system.main_pid();
    system.order(&["reload", SERVICE]);
    until("the main process is followed", || system.main_pid() != old);
    system.logs("finish the old process.", 11);
    let (answered, dropped) = load.end();
    eprintln!(
        "{answered} messages answered, {dropped} lost with the two processes that were killed"
    );

    // In the middle of an upgrade.
    system.order(&["reload", SERVICE]);
    let begun = Instant::now();
    system.order(&["stop", SERVICE]);
    assert_eq!((&*system.show("ActiveState"), &*system.show("Result")), ("inactive", "success"));
    eprintln!("stopped within {:?}: {}", begun.elapsed(), system.show("Result"));
}

#[test]
#[ignore = "needs root and a systemd"]
fn a_loop_that_hangs_is_found_out_by_the_watchdog() {
    let Some(system) = System::boot() else { return };
    system.order(&["start", SERVICE]);
    // Also by that of a successor.
    let old = system.main_pid();
    system.order(&["reload", SERVICE]);
    until("the main process is followed", || system.main_pid() != old);
    system.logs("finish the old process.", 1);
    thread::sleep(Duration::from_secs(3));
    system.is_well("longer than the watchdog waits");
    let begun = Instant::now();
    system.signal(system.main_pid(), "STOP");
    until("it is found out", || system.show("Result") == "watchdog");
    eprintln!("WatchdogSec=2, found out after {:?}", begun.elapsed());
    until("it has failed", || system.show("ActiveState") == "failed");
}

#[test]
#[ignore = "needs root and a systemd"]
fn who_connects_to_the_socket_before_the_service_is_there_is_served() {
    let Some(system) = System::boot() else { return };
    system.order(&["start", SOCKET]);
    assert_eq!(system.show("ActiveState"), "inactive");
    let mut early = system.connect();
    echo(&mut early, 1).expect("an answer");
    system.is_well("started by a connection");
    let old = system.main_pid();
    system.order(&["reload", SERVICE]);
    until("the main process is followed", || system.main_pid() != old);
    system.logs("finish the old process.", 1);
    echo(&mut early, 2).expect("it has moved");
    echo(&mut system.connect(), 3).expect("it is the same socket");
    drop(early);

    // Stopped, and started by the next one who connects: the socket was always there.
    system.order(&["stop", SERVICE]);
    let mut late = system.connect();
    echo(&mut late, 4).expect("an answer");
    system.is_well("started by a connection again");
}
