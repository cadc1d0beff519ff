//! HAProxy and nginx, where they are installed.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::failed;

/// A port that nobody has at this moment: not everybody can be asked for port 0.
pub(crate) fn free_port() -> Result<SocketAddr, String> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(failed("find a port"))?;
    listener.local_addr().map_err(failed("find a port"))
}

pub(crate) fn is_installed(program: &str) -> bool {
    let mut version = Command::new(program);
    version.arg("-v").stdout(Stdio::null()).stderr(Stdio::null());
    version.status().is_ok_and(|status| status.success())
}

/// The whole path of a program, without which nginx does not find its own file again.
pub(crate) fn installed(program: &str) -> Option<PathBuf> {
    let folders = std::env::var_os("PATH")?;
    let mut paths = std::env::split_paths(&folders).map(|folder| folder.join(program));
    paths.find(|path| path.is_file())
}

/// The line of nginx's configuration that loads the stream module where it is one of its own.
pub(crate) fn nginx_stream_module() -> String {
    const MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";
    match Path::new(MODULE).exists() {
        true => format!("load_module {MODULE};\n"),
        false => String::new(),
    }
}
