//! The proxies that are replaced, each as its manual has it.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use crate::common::peers::{free_port, is_installed, nginx_stream_module};
use crate::common::replaced::{HAPROXY, Manner, NGINX, OURS, Replaced, pid_file};
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
    manner: Manner,
}

/// Ours, and those that are installed.
pub(crate) fn kinds() -> Vec<Kind> {
    let kind = |name, command, manner| Kind { name, command, header: Header::Nothing, manner };
    let haproxy = kind("HAProxy", haproxy, HAPROXY);
    let nginx = kind("nginx", nginx, NGINX);
    let ours = |name, command| kind(name, command, OURS);
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

    /// Starts one in a directory of its own.
    pub(crate) fn start(self, place: &Path, upstream: SocketAddr) -> Result<Replaced, String> {
        let (place, address) = (place.join(self.name), free_port()?);
        fs::create_dir(&place).map_err(failed(place.display()))?;
        let command = (self.command)(&place, address, upstream, self.header)?;
        Replaced::start(self.name, self.manner, command, place, address)
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
