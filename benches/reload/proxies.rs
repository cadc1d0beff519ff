//! The proxies that are replaced, each as its manual has it: how it is started, how it is told to
//! take its configuration anew, and by which words of its log a reload that was carried out is
//! counted.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

use crate::common::peers::{free_port, is_installed, nginx_stream_module};
use crate::common::process::{self, named_in};
use crate::common::{failed, programs};

/// What a proxy tells the upstream about its client.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Header {
    Nothing,
    /// By the PROXY protocol.
    Proxy,
}

/// How one of them is run.
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    command: fn(&Path, SocketAddr, SocketAddr, Header) -> Result<Command, String>,
    header: Header,
    signal: Signal,
    /// In a line of its log for each time that a process has taken over, but for the first.
    carried_out: &'static str,
    /// How many of those lines the start itself has written.
    at_start: usize,
}

/// Ours, and those that are installed.
pub(crate) fn kinds() -> Vec<Kind> {
    let haproxy = Kind {
        name: "HAProxy",
        command: haproxy,
        header: Header::Nothing,
        signal: Signal::USR2,
        carried_out: "New worker (",
        at_start: 1,
    };
    let nginx = Kind {
        name: "nginx",
        command: nginx,
        header: Header::Nothing,
        signal: Signal::HUP,
        carried_out: "start worker process ",
        at_start: 1,
    };
    let ours = |name, command| Kind {
        name,
        command,
        header: Header::Nothing,
        signal: Signal::HUP,
        carried_out: ": done; spawn ",
        at_start: 0,
    };
    let mut kinds =
        vec![ours("ours", without_probation), ours("  probation of 1 s", ours_as_it_is)];
    kinds.extend(is_installed("haproxy").then_some(haproxy));
    kinds.extend(is_installed("nginx").then_some(nginx));
    kinds
}

impl Kind {
    pub(crate) fn with(self, header: Header) -> Self {
        Self { header, ..self }
    }
}

fn without_probation(
    place: &Path,
    at: SocketAddr,
    to: SocketAddr,
    header: Header,
) -> Result<Command, String> {
    let mut command = ours_as_it_is(place, at, to, header)?;
    command.arg("--probation=0");
    Ok(command)
}

fn ours_as_it_is(
    place: &Path,
    at: SocketAddr,
    to: SocketAddr,
    header: Header,
) -> Result<Command, String> {
    let routes = place.join("routes");
    fs::write(&routes, format!("{at} -> {to}\n")).map_err(failed(routes.display()))?;
    let mut command = Command::new(programs::example("proxy")?);
    command.arg("--routes").arg(routes).arg("--pid-file").arg(pid_file(place));
    command.arg("--log-level=info");
    if header == Header::Proxy {
        command.arg("--send-proxy");
    }
    Ok(command)
}

/// In master-worker mode, which passes the listeners on.
fn haproxy(
    place: &Path,
    at: SocketAddr,
    to: SocketAddr,
    header: Header,
) -> Result<Command, String> {
    let file = place.join("haproxy.cfg");
    let send = if header == Header::Proxy { " send-proxy-v2" } else { "" };
    let text = format!(
        "global\n nbthread 1\n maxconn 8000\n\
         stats socket {}/haproxy.sock mode 600 level admin expose-fd listeners\n\
         defaults\n mode tcp\n timeout connect 5s\n timeout client 10m\n timeout server 10m\n\
         listen echo\n bind {at}\n server s {to}{send}\n",
        place.display()
    );
    fs::write(&file, text).map_err(failed(file.display()))?;
    let mut command = Command::new("haproxy");
    command.args(["-W", "-db", "-f"]).arg(&file).arg("-p").arg(pid_file(place));
    Ok(command)
}

fn nginx(place: &Path, at: SocketAddr, to: SocketAddr, header: Header) -> Result<Command, String> {
    let file = place.join("nginx.conf");
    let send = if header == Header::Proxy { "proxy_protocol on; " } else { "" };
    let text = format!(
        "{}daemon off;\nworker_processes 1;\nuser root;\npid {};\nerror_log stderr notice;\n\
         events {{ worker_connections 8000; }}\n\
         stream {{ server {{ listen {at}; proxy_pass {to}; {send}}} }}\n",
        nginx_stream_module(),
        pid_file(place).display()
    );
    fs::write(&file, text).map_err(failed(file.display()))?;
    let mut command = Command::new("nginx");
    command.args(["-e", "stderr", "-c"]).arg(&file);
    Ok(command)
}

fn pid_file(place: &Path) -> PathBuf {
    place.join("pid")
}

/// One that serves, with all the processes that it comes to.
pub(crate) struct Proxy {
    pub(crate) kind: Kind,
    place: PathBuf,
    pub(crate) address: SocketAddr,
    /// What this bench had started before it.
    others: Vec<Pid>,
}

impl Proxy {
    pub(crate) fn start(kind: Kind, place: &Path, upstream: SocketAddr) -> Result<Self, String> {
        let place = place.join(kind.name);
        fs::create_dir(&place).map_err(failed(place.display()))?;
        let others = process::descendants(rustix::process::getpid());
        let address = free_port()?;
        let mut command = (kind.command)(&place, address, upstream, kind.header)?;
        let log = File::create(place.join("log")).map_err(failed("make a log"))?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        command.spawn().map_err(failed(format_args!("start {}", kind.name)))?;
        let proxy = Self { kind, place, address, others };
        process::await_some(proxy.kind.name, || {
            let serves = TcpStream::connect(address).is_ok() && proxy.main().is_some();
            Ok(serves.then_some(()))
        })?;
        Ok(proxy)
    }

    /// The process that takes signals.
    fn main(&self) -> Option<Pid> {
        named_in(&pid_file(&self.place))
    }

    pub(crate) fn reload(&self) -> Result<(), String> {
        let main = self.main().ok_or_else(|| format!("{}: no pid file", self.kind.name))?;
        kill_process(main, self.kind.signal).map_err(failed("send a signal"))
    }

    /// How often another process has taken over, by its own word.
    pub(crate) fn reloads(&self) -> Result<usize, String> {
        let log = fs::read(self.place.join("log")).map_err(failed("read a log"))?;
        let log = String::from_utf8_lossy(&log);
        let lines = log.lines().filter(|line| line.contains(self.kind.carried_out)).count();
        Ok(lines.saturating_sub(self.kind.at_start))
    }

    /// All its processes that live.
    pub(crate) fn processes(&self) -> Vec<Pid> {
        let own = rustix::process::getpid();
        // Orphans have become this process's children, which it waits for.
        for child in process::children(own).iter().filter(|pid| !self.others.contains(pid)) {
            let _ = waitpid(Some(*child), WaitOptions::NOHANG);
        }
        let mut all = process::descendants(own);
        all.retain(|pid| !self.others.contains(pid));
        all
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // None of the numbers can mean another one before it was waited for here.
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
