//! The proxies that are measured, each with one thread, one route to the echo and one to the bulk.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::common::peers::{free_port, is_installed, nginx_stream_module};
use crate::common::process::{self, Started};
use crate::common::{failed, programs};
use crate::{SERVE_CALLS, Upstream};

/// A proxy that is ready.
pub(crate) struct Proxy {
    pub(crate) name: &'static str,
    pub(crate) rank: Rank,
    pub(crate) process: Started,
    pub(crate) upstreams: [Upstream; 2],
    pub(crate) echo: SocketAddr,
    pub(crate) bulk: SocketAddr,
}

/// What a proxy does, beside ours.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rank {
    Same,
    /// It does not pass the end of each direction on by itself.
    Less,
    /// The calls and nothing else.
    Calls,
}

/// Ours first, and then those that are installed.
pub(crate) fn start(place: &Path) -> Result<Vec<Proxy>, String> {
    let ports = || -> Result<[SocketAddr; 2], String> { Ok([free_port()?, free_port()?]) };
    let mut proxies = Vec::new();

    let ([at_echo, at_bulk], upstreams) = (ports()?, Upstream::both()?);
    let [echo, bulk] = addresses(&upstreams);
    let mut ours = Command::new(programs::example("proxy")?);
    ours.args(["--listen", &at_echo.to_string(), "--to", &echo.to_string()]);
    ours.args(["--listen", &at_bulk.to_string(), "--to", &bulk.to_string()]);
    ours.args(["--log-level=warn", "--connect-timeout=5", "--idle-timeout=600"]);
    proxies.push(Proxy::start("ours", ours, upstreams, at_echo, at_bulk)?);

    let ([at_echo, at_bulk], upstreams) = (ports()?, Upstream::both()?);
    let [echo, bulk] = addresses(&upstreams);
    let mut calls = Command::new(std::env::current_exe().map_err(failed("find this program"))?);
    calls.arg(SERVE_CALLS).args([at_echo.port().to_string(), echo.to_string()]);
    calls.args([at_bulk.port().to_string(), bulk.to_string()]);
    let calls = Proxy::start("calls", calls, upstreams, at_echo, at_bulk)?;
    proxies.push(Proxy { rank: Rank::Calls, ..calls });

    if is_installed("haproxy") {
        // As it comes, and with what it can do as ours does: splice, and no bare acknowledgement at
        // the end of a handshake.
        for (name, options) in
            [("HAProxy", ""), ("HAProxy+", " option splice-auto\n option tcp-smart-connect\n")]
        {
            let ([at_echo, at_bulk], upstreams) = (ports()?, Upstream::both()?);
            let [echo, bulk] = addresses(&upstreams);
            let file = place.join(name).with_extension("cfg");
            let text = format!(
                "global\n nbthread 1\n maxconn 5000\n\
                 defaults\n mode tcp\n timeout connect 5s\n timeout client 10m\n \
                 timeout server 10m\n{options}\
                 listen echo\n bind {at_echo}\n server s {echo}\n\
                 listen bulk\n bind {at_bulk}\n server s {bulk}\n"
            );
            fs::write(&file, text).map_err(failed(file.display()))?;
            let mut haproxy = Command::new("haproxy");
            haproxy.args(["-db", "-f"]).arg(&file);
            proxies.push(Proxy::start(name, haproxy, upstreams, at_echo, at_bulk)?);
        }
    }

    if is_installed("nginx") {
        // As it comes, where the first end closes both directions, so that a client that has ended its
        // own does not get its answer; and doing as all the others do.
        for (name, rank) in [("nginx", Rank::Less), ("nginx+", Rank::Same)] {
            let ([at_echo, at_bulk], upstreams) = (ports()?, Upstream::both()?);
            let [echo, bulk] = addresses(&upstreams);
            let file = place.join(name).with_extension("conf");
            let module = nginx_stream_module();
            let half_close = if rank == Rank::Same { "on" } else { "off" };
            let place = place.display();
            let text = format!(
                "{module}daemon off;\nmaster_process off;\n\
                 pid {place}/{name}.pid;\nerror_log {place}/{name}.log warn;\n\
                 events {{ worker_connections 16000; }}\n\
                 stream {{\nproxy_half_close {half_close};\n\
                 server {{ listen {at_echo} backlog=4096; proxy_pass {echo}; }}\n\
                 server {{ listen {at_bulk}; proxy_pass {bulk}; }}\n}}\n"
            );
            fs::write(&file, text).map_err(failed(file.display()))?;
            let mut nginx = Command::new("nginx");
            nginx.arg("-e").arg(file.with_extension("log")).arg("-c").arg(&file);
            let nginx = Proxy::start(name, nginx, upstreams, at_echo, at_bulk)?;
            proxies.push(Proxy { rank, ..nginx });
        }
    }
    Ok(proxies)
}

fn addresses(upstreams: &[Upstream; 2]) -> [SocketAddr; 2] {
    [upstreams[0].address, upstreams[1].address]
}

impl Proxy {
    fn start(
        name: &'static str,
        mut command: Command,
        upstreams: [Upstream; 2],
        echo: SocketAddr,
        bulk: SocketAddr,
    ) -> Result<Self, String> {
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.spawn().map_err(failed(format_args!("start {name}")))?;
        let process = Started::new(&child);
        // A connection on the way to the echo is closed again: it serves.
        process::await_some(name, || Ok(TcpStream::connect(echo).ok()))?;
        Ok(Self { name, rank: Rank::Same, process, upstreams, echo, bulk })
    }
}
