//! The TLS proxy: it ends TLS, and it is replaced on HUP while its sessions, established connections with their
//! keys, move to the next process. README.md beside it says what that means.

#[path = "../../proxy/access.rs"]
mod access;
#[path = "../../proxy/check.rs"]
mod check;
#[allow(dead_code, reason = "each example uses its part of it")]
#[path = "../../common/mod.rs"]
mod common;
#[path = "../../proxy/connect.rs"]
mod connect;
#[path = "../../proxy/counters.rs"]
mod counters;
#[path = "../../proxy/file.rs"]
mod file;
#[path = "../../proxy/header.rs"]
mod header;
#[path = "../../proxy/options.rs"]
mod options;
#[path = "../../proxy/peer.rs"]
mod peer;
#[path = "../../proxy/routes.rs"]
mod routes;
#[path = "../../proxy/serve.rs"]
mod serve;
#[path = "../../proxy/settings.rs"]
mod settings;
#[path = "../../proxy/turns.rs"]
mod turns;
#[path = "../../proxy/upstreams.rs"]
mod upstreams;

mod about;
mod callbacks;
mod certificates;
mod channel;
mod end;
mod extra;
mod front;
mod packed;
mod proxy;
mod rest;
mod secrecy;
mod session;
mod tickets;
mod tunnel;
mod vault;

use std::process::ExitCode;

use proxy::Proxy;
use serve::Program;
use tickets::Tickets;

const USAGE: &str = "\
A proxy that ends TLS and is replaced on HUP while its sessions go on.

usage: tls-proxy --listen ADDRESS --to ADDRESS --cert FILE --key FILE [flags]
       tls-proxy --routes FILE [flags]

An address is HOST:PORT, [V6]:PORT, unix:/PATH or unix:@NAME. Host names are looked up
at the start and with every HUP; each of their addresses is an upstream.

";

fn main() -> ExitCode {
    // Before anything is read, and in the init, too, which has the keys of tickets.
    secrecy::hide_memory();
    let program = Program {
        name: "tls-proxy",
        usage: USAGE,
        flags: extra::HELP,
        schemas: packed::SCHEMAS,
        init: |init| init.file(tickets::NAME, Tickets::make),
    };
    serve::main(program, Proxy::new)
}
