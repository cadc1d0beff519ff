//! The proxies, each as its manual has it.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitOptions, getpid, kill_process, waitpid};

use crate::common::failed;
use crate::common::peers::{free_port, is_installed, nginx_stream_module};
use crate::common::process::{self, named_in};
use crate::harness::{PROGRAM, certificate};

/// How one of them is run.
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    command: fn(&Path, SocketAddr, &str) -> Command,
    signal: Signal,
    /// In a line of its log for each time that a process has taken over.
    carried_out: &'static str,
    /// How many of those lines the start itself has written.
    at_start: usize,
}

/// Ours, and those that are installed.
pub(crate) fn kinds() -> Vec<Kind> {
    let haproxy = Kind {
        name: "HAProxy",
        command: haproxy,
        signal: Signal::USR2,
        carried_out: "New worker (",
        at_start: 1,
    };
    let nginx = Kind {
        name: "nginx",
        command: nginx,
        signal: Signal::HUP,
        carried_out: "start worker process ",
        at_start: 1,
    };
    let ours = Kind {
        name: "ours",
        command: ours,
        signal: Signal::HUP,
        carried_out: ": done; spawn ",
        at_start: 0,
    };
    let mut kinds = vec![ours];
    kinds.extend(is_installed("haproxy").then_some(haproxy));
    kinds.extend(is_installed("nginx").then_some(nginx));
    kinds
}

fn ours(place: &Path, at: SocketAddr, to: &str) -> Command {
    let (pem, key) = certificate(place, "localhost", &["localhost"]);
    let mut command = Command::new(PROGRAM);
    command.args(["--listen", &at.to_string(), "--to", to, "--cert", &pem, "--key", &key]);
    command.arg("--pid-file").arg(pid_file(place)).arg("--probation=0");
    command
}

/// In master-worker mode, which passes the listeners on.
fn haproxy(place: &Path, at: SocketAddr, to: &str) -> Command {
    let (pem, key) = certificate(place, "localhost", &["localhost"]);
    let both = [fs::read(&pem).unwrap(), fs::read(key).unwrap()].concat();
    fs::write(&pem, both).unwrap();
    let (file, place_text) = (place.join("haproxy.cfg"), place.display());
    let text = format!(
        "global\n nbthread 1\n maxconn 8000\n \
         ssl-default-bind-ciphersuites TLS_AES_128_GCM_SHA256\n \
         stats socket {place_text}/haproxy.sock mode 600 level admin expose-fd listeners\n\
         defaults\n mode tcp\n timeout connect 5s\n timeout client 10m\n timeout server 10m\n\
         listen echo\n bind {at} ssl crt {pem}\n server s {to}\n",
    );
    fs::write(&file, text).unwrap();
    let mut command = Command::new("haproxy");
    command.args(["-W", "-db", "-f"]).arg(&file).arg("-p").arg(pid_file(place));
    command
}

fn nginx(place: &Path, at: SocketAddr, to: &str) -> Command {
    let (pem, key) = certificate(place, "localhost", &["localhost"]);
    let file = place.join("nginx.conf");
    let text = format!(
        "{}daemon off;\nworker_processes 1;\nuser root;\npid {};\nerror_log stderr notice;\n\
         events {{ worker_connections 8000; }}\n\
         stream {{ server {{ listen {at} ssl backlog=1000; ssl_certificate {pem}; \
         ssl_certificate_key {key}; ssl_protocols TLSv1.2 TLSv1.3; \
         ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256; \
         ssl_session_cache shared:s:10m; proxy_pass {to}; }} }}\n",
        nginx_stream_module(),
        pid_file(place).display()
    );
    fs::write(&file, text).unwrap();
    let mut command = Command::new("nginx");
    command.args(["-e", "stderr", "-c"]).arg(&file);
    command
}

fn pid_file(place: &Path) -> PathBuf {
    place.join("pid")
}

/// One that serves, with all the processes that it comes to.
pub(crate) struct Proxy<'a> {
    kind: &'a Kind,
    place: tempfile::TempDir,
    pub(crate) address: SocketAddr,
    others: Vec<Pid>,
}

impl<'a> Proxy<'a> {
    pub(crate) fn start(kind: &'a Kind, place: &Path, to: String) -> Result<Self, String> {
        let place = tempfile::tempdir_in(place).map_err(failed("make a directory"))?;
        let (others, address) = (process::descendants(getpid()), free_port()?);
        let mut command = (kind.command)(place.path(), address, &to);
        let log = File::create(place.path().join("log")).map_err(failed("make a log"))?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        command.spawn().map_err(failed(format_args!("start {}", kind.name)))?;
        let proxy = Self { kind, place, address, others };
        process::await_some(kind.name, || {
            let serves = TcpStream::connect(address).is_ok() && proxy.main().is_some();
            Ok(serves.then_some(()))
        })?;
        Ok(proxy)
    }

    /// The process that takes signals.
    fn main(&self) -> Option<Pid> {
        named_in(&pid_file(self.place.path()))
    }

    pub(crate) fn reload(&self) -> Result<(), String> {
        let main = self.main().ok_or_else(|| format!("{}: no pid file", self.kind.name))?;
        kill_process(main, self.kind.signal).map_err(failed("send a signal"))
    }

    /// How often another process has taken over, by its own word.
    pub(crate) fn reloads(&self) -> Result<usize, String> {
        let log = fs::read(self.place.path().join("log")).map_err(failed("read a log"))?;
        let log = String::from_utf8_lossy(&log);
        let lines = log.lines().filter(|line| line.contains(self.kind.carried_out)).count();
        Ok(lines.saturating_sub(self.kind.at_start))
    }

    /// All its processes that live.
    pub(crate) fn processes(&self) -> Vec<Pid> {
        let own = getpid();
        // Orphans have become this process's children, which it waits for.
        for child in process::children(own).iter().filter(|pid| !self.others.contains(pid)) {
            let _ = waitpid(Some(*child), WaitOptions::NOHANG);
        }
        let mut all = process::descendants(own);
        all.retain(|pid| !self.others.contains(pid));
        all
    }

    pub(crate) fn processor_time(&self) -> Result<Duration, String> {
        self.processes().into_iter().map(process::processor_time).sum()
    }

    /// Of all its processes, what is theirs and no file's, in bytes.
    pub(crate) fn memory(&self) -> Result<f64, String> {
        self.processes().into_iter().map(process::anonymous_memory).sum()
    }
}

impl Drop for Proxy<'_> {
    fn drop(&mut self) {
        loop {
            let left = self.processes();
            if left.is_empty() {
                return;
            }
            for pid in left {
                let _ = kill_process(pid, Signal::KILL);
                let _ = waitpid(Some(pid), WaitOptions::empty());
            }
        }
    }
}
