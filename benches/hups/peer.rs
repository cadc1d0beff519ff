//! The peers: how each is got, started and told to upgrade, as its own manual has it.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Pid;

use crate::common::peers::{installed, nginx_stream_module};
use crate::common::{failed, programs};

/// Only within a group is like compared with like.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Group {
    /// Echo servers.
    Servers,
    /// Proxies before one echo server.
    Proxies,
}

impl Group {
    pub(crate) const ALL: [Group; 2] = [Group::Servers, Group::Proxies];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Group::Servers => "servers",
            Group::Proxies => "proxies",
        }
    }
}

/// Where its program comes from.
#[derive(Clone, Copy)]
enum Source {
    /// One of our examples.
    Ours(&'static str),
    /// `benches/peers.sh` builds it.
    Built(&'static str),
    /// A package of the distribution, and what to install.
    Installed(&'static str, &'static str),
    /// Nothing here runs it.
    Missing(&'static str),
}

/// How it is told to upgrade.
#[derive(Clone, Copy)]
pub(crate) enum Upgrade {
    /// The process in the pid file gets HUP, and names its successor there.
    Itself,
    /// Its master gets this signal, and stays. A line with these words stands in its log for each time
    /// that a process has taken over, and for so many more.
    Master { signal: &'static str, carried_out: &'static str, at_start: usize },
    /// Somebody else has to do something: a script, which is told the first process.
    Script(fn(&Setup, Pid) -> String),
}

/// One of them.
#[derive(Clone, Copy)]
pub(crate) struct Peer {
    pub(crate) name: &'static str,
    pub(crate) group: Group,
    pub(crate) upgrade: Upgrade,
    source: Source,
    command: fn(&Setup) -> Result<Command, String>,
}

/// Where one is to run.
pub(crate) struct Setup {
    /// A folder of its own.
    pub(crate) place: PathBuf,
    pub(crate) program: PathBuf,
    /// Where `benches/peers.sh` has put what it built.
    pub(crate) built: PathBuf,
    pub(crate) address: SocketAddr,
    /// The echo server behind a proxy.
    pub(crate) upstream: SocketAddr,
}

impl Setup {
    pub(crate) fn pid_file(&self) -> PathBuf {
        self.place.join("pid")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.place.join("log")
    }
}

/// All of them, in the order in which they are measured. Ours comes twice: what lies between those two
/// is noise.
pub(crate) const PEERS: [Peer; 14] = [
    Peer::server("ours", Source::Ours("demo"), ours, Upgrade::Itself),
    Peer::server("ours again", Source::Ours("demo"), ours, Upgrade::Itself),
    Peer::server("tableflip", Source::Built("tableflip"), tableflip, Upgrade::Itself),
    Peer::server("ecdysis", Source::Built("ecdysis"), flags, Upgrade::Itself),
    Peer::server("shellflip", Source::Built("shellflip"), shellflip, Upgrade::Itself),
    Peer::server("pingora", Source::Built("pingora"), flags, Upgrade::Script(pingora_upgrade)),
    Peer::server(
        "SO_REUSEPORT",
        Source::Built("reuseport"),
        flags,
        Upgrade::Script(reuseport_upgrade),
    ),
    Peer::server(
        "activation",
        Source::Built("activated"),
        activated,
        Upgrade::Script(activated_upgrade),
    ),
    Peer::proxy("ours", Source::Ours("proxy"), our_proxy, Upgrade::Itself),
    Peer::proxy("ours again", Source::Ours("proxy"), our_proxy, Upgrade::Itself),
    Peer::proxy(
        "HAProxy",
        Source::Installed("haproxy", "apt-get install haproxy"),
        haproxy,
        Upgrade::Master { signal: "USR2", carried_out: "New worker (", at_start: 1 },
    ),
    Peer::proxy(
        "nginx HUP",
        Source::Installed("nginx", "apt-get install nginx libnginx-mod-stream"),
        nginx,
        Upgrade::Master { signal: "HUP", carried_out: "start worker process ", at_start: 1 },
    ),
    Peer::proxy(
        "nginx USR2",
        Source::Installed("nginx", "apt-get install nginx libnginx-mod-stream"),
        nginx_daemon,
        Upgrade::Script(nginx_upgrade),
    ),
    Peer::proxy(
        "Envoy",
        Source::Missing(
            "Debian has no package of it; its makers have one at apt.envoyproxy.io, and nothing \
             here runs it",
        ),
        our_proxy,
        Upgrade::Itself,
    ),
];

impl Peer {
    const fn server(
        name: &'static str,
        source: Source,
        command: fn(&Setup) -> Result<Command, String>,
        upgrade: Upgrade,
    ) -> Peer {
        Peer { name, group: Group::Servers, upgrade, source, command }
    }

    const fn proxy(
        name: &'static str,
        source: Source,
        command: fn(&Setup) -> Result<Command, String>,
        upgrade: Upgrade,
    ) -> Peer {
        Peer { name, group: Group::Proxies, upgrade, source, command }
    }

    /// Ours with other flags, for a row of its own.
    pub(crate) const fn ours(
        name: &'static str,
        command: fn(&Setup) -> Result<Command, String>,
    ) -> Peer {
        Peer::server(name, Source::Ours("demo"), command, Upgrade::Itself)
    }

    /// Whether it is somebody else's.
    pub(crate) fn is_peer(&self) -> bool {
        match self.source {
            Source::Built(_) | Source::Installed(..) => true,
            Source::Ours(_) | Source::Missing(_) => false,
        }
    }

    /// Its program; or in words how to get it.
    pub(crate) fn find(&self, built: &Path) -> Result<Result<PathBuf, String>, String> {
        Ok(match self.source {
            Source::Ours(example) => Ok(programs::example(example)?),
            Source::Built(program) => {
                let path = built.join(program);
                let how = format!("not in {}: benches/peers.sh says why", built.display());
                if path.exists() { Ok(path) } else { Err(how) }
            }
            Source::Installed(program, how) => installed(program).ok_or_else(|| how.to_owned()),
            Source::Missing(how) => Err(how.to_owned()),
        })
    }

    pub(crate) fn command(&self, setup: &Setup) -> Result<Command, String> {
        (self.command)(setup)
    }
}

/// Where `benches/peers.sh` builds unless it is told otherwise.
pub(crate) fn default_folder() -> PathBuf {
    std::env::temp_dir().join("tablecloth-peers")
}

/// As most of them are called.
fn flags(setup: &Setup) -> Result<Command, String> {
    let mut command = Command::new(&setup.program);
    command.arg("--listen").arg(setup.address.to_string());
    command.arg("--pid-file").arg(setup.pid_file());
    Ok(command)
}

/// Without a probation: signals within one become one upgrade.
pub(crate) fn ours(setup: &Setup) -> Result<Command, String> {
    let mut command = with_probation(setup)?;
    command.arg("--probation=0");
    Ok(command)
}

/// As it is unless it is told otherwise: with a probation of a second.
pub(crate) fn with_probation(setup: &Setup) -> Result<Command, String> {
    let mut command = flags(setup)?;
    command.arg("--log-level=warn");
    Ok(command)
}

fn tableflip(setup: &Setup) -> Result<Command, String> {
    let mut command = Command::new(&setup.program);
    command.arg("-listen").arg(setup.address.to_string());
    command.arg("-pid-file").arg(setup.pid_file());
    Ok(command)
}

/// Its listener comes from a service manager, and it is not restarted by it.
fn shellflip(setup: &Setup) -> Result<Command, String> {
    Ok(activate(setup, &["--once"]))
}

fn activated(setup: &Setup) -> Result<Command, String> {
    Ok(activate(setup, &[]))
}

fn activate(setup: &Setup, arguments: &[&str]) -> Command {
    let mut command = Command::new(setup.built.join("activate"));
    command.args(arguments).arg("--listen").arg(setup.address.to_string()).arg(&setup.program);
    command.arg("--listen").arg(setup.address.to_string());
    command.arg("--pid-file").arg(setup.pid_file());
    command
}

fn our_proxy(setup: &Setup) -> Result<Command, String> {
    let routes = setup.place.join("routes");
    let text = format!("{} -> {}\n", setup.address, setup.upstream);
    fs::write(&routes, text).map_err(failed(routes.display()))?;
    let mut command = Command::new(&setup.program);
    command.arg("--routes").arg(routes).arg("--pid-file").arg(setup.pid_file());
    command.args(["--log-level=warn", "--probation=0"]);
    Ok(command)
}

/// In master-worker mode, which passes the listeners on.
fn haproxy(setup: &Setup) -> Result<Command, String> {
    let file = setup.place.join("haproxy.cfg");
    let text = format!(
        "global\n nbthread 1\n maxconn 8000\n\
         stats socket {}/haproxy.sock mode 600 level admin expose-fd listeners\n\
         defaults\n mode tcp\n timeout connect 5s\n timeout client 10m\n timeout server 10m\n\
         listen echo\n bind {}\n server s {}\n",
        setup.place.display(),
        setup.address,
        setup.upstream
    );
    fs::write(&file, text).map_err(failed(file.display()))?;
    let mut command = Command::new(&setup.program);
    command.args(["-W", "-db", "-f"]).arg(&file).arg("-p").arg(setup.pid_file());
    Ok(command)
}

fn nginx(setup: &Setup) -> Result<Command, String> {
    nginx_with(setup, "off")
}

/// A master that does not lose its parent at the start takes itself for a new binary whose old one is
/// still there, and ignores USR2.
fn nginx_daemon(setup: &Setup) -> Result<Command, String> {
    nginx_with(setup, "on")
}

fn nginx_with(setup: &Setup, daemon: &str) -> Result<Command, String> {
    let file = setup.place.join("nginx.conf");
    let text = format!(
        "{}daemon {daemon};\nworker_processes 1;\nuser root;\npid {};\nerror_log stderr notice;\n\
         events {{ worker_connections 8000; }}\n\
         stream {{ server {{ listen {}; proxy_pass {}; }} }}\n",
        nginx_stream_module(),
        setup.pid_file().display(),
        setup.address,
        setup.upstream
    );
    fs::write(&file, text).map_err(failed(file.display()))?;
    let mut command = Command::new(&setup.program);
    command.args(["-e", "stderr", "-c"]).arg(&file);
    Ok(command)
}

/// A script that starts a second server, does something at once, waits until the pid file names another
/// process than `$old`, and does something then.
fn second_start(setup: &Setup, before: &str, at_once: &str, then: &str) -> String {
    let start = format!(
        "{before} setsid '{}' --listen {} --pid-file '{}' >>'{}' 2>&1 </dev/null &\n",
        setup.program.display(),
        setup.address,
        setup.pid_file().display(),
        setup.log().display()
    );
    waiting(setup, &format!("{start}{at_once}"), then)
}

fn waiting(setup: &Setup, at_once: &str, then: &str) -> String {
    let pid_file = setup.pid_file();
    let pid_file = pid_file.display();
    format!(
        "old=$(cat '{pid_file}') || exit 1\n{at_once}\ntries=0\n\
         until new=$(cat '{pid_file}' 2>/dev/null) && [ -n \"$new\" ] && [ \"$new\" != \"$old\" ]; do\n\
         tries=$((tries + 1))\n[ $tries -le 1000 ] || exit 1\nsleep 0.005\ndone\n{then}\n"
    )
}

/// The new one comes with `--upgrade`, and the old one is told by QUIT to pass its listeners on.
fn pingora_upgrade(setup: &Setup, _: Pid) -> String {
    second_start(setup, "UPGRADE=1", "kill -s QUIT \"$old\"", "")
}

fn reuseport_upgrade(setup: &Setup, _: Pid) -> String {
    second_start(setup, "", "", "kill -s TERM \"$old\"")
}

/// The service manager restarts it.
fn activated_upgrade(setup: &Setup, manager: Pid) -> String {
    waiting(setup, &format!("kill -s HUP {}", manager.as_raw_pid()), "")
}

/// The binary upgrade of its manual: USR2 starts a second master, QUIT ends the first one.
fn nginx_upgrade(setup: &Setup, _: Pid) -> String {
    waiting(setup, "kill -s USR2 \"$old\"", "kill -s QUIT \"$old\"")
}
