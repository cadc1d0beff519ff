//! The proxies, each as its manual has it.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::common::failed;
use crate::common::peers::{free_port, is_installed, nginx_stream_module};
use crate::common::process;
use crate::common::replaced::{HAPROXY, Manner, NGINX, OURS, Replaced, pid_file};
use crate::harness::{PROGRAM, certificate};

/// How one of them is run.
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    command: fn(&Path, SocketAddr, &str) -> Command,
    manner: Manner,
}

/// Ours, and those that are installed.
pub(crate) fn kinds() -> Vec<Kind> {
    let haproxy = Kind { name: "HAProxy", command: haproxy, manner: HAPROXY };
    let nginx = Kind { name: "nginx", command: nginx, manner: NGINX };
    let ours = Kind { name: "ours", command: ours, manner: OURS };
    let mut kinds = vec![ours];
    kinds.extend(is_installed("haproxy").then_some(haproxy));
    kinds.extend(is_installed("nginx").then_some(nginx));
    kinds
}

impl Kind {
    /// Starts one in a directory of its own.
    pub(crate) fn start(&self, place: &Path, to: String) -> Result<Replaced, String> {
        let place = tempfile::tempdir_in(place).map_err(failed("make a directory"))?.keep();
        let address = free_port()?;
        let command = (self.command)(&place, address, &to);
        Replaced::start(self.name, self.manner, command, place, address)
    }
}

/// Processor time of all its processes.
pub(crate) fn processor_time(proxy: &Replaced) -> Result<Duration, String> {
    proxy.processes().into_iter().map(process::processor_time).sum()
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
