//! The storm: keeps an echo server under load while a signal replaces it, again and again,
//! and tells what its clients noticed.
//!
//! It points at any echo server, whatever that is made with:
//!
//! ```sh
//! cargo run --release --example hups -- --addr 127.0.0.1:7000 --pid-file /run/echo.pid \
//!     --short-rate 2000 --long-conns 500 --hups 20 --interval-ms 500
//! ```
//!
//! The load is open loop: requests become due by the clock alone, and latency counts from when
//! a request was due, so that a server which stops for a moment cannot hide it.

#[path = "hups/connection.rs"]
mod connection;
#[path = "hups/drops.rs"]
mod drops;
#[path = "hups/lanes.rs"]
mod lanes;
#[path = "hups/latency.rs"]
mod latency;
#[path = "hups/load.rs"]
mod load;
#[path = "hups/options.rs"]
mod options;
#[allow(dead_code, reason = "it prints its tables itself")]
#[path = "common/output.rs"]
mod output;
#[path = "hups/payload.rs"]
mod payload;
#[path = "hups/process.rs"]
mod process;
#[path = "hups/progress.rs"]
mod progress;
#[path = "hups/report.rs"]
mod report;
#[path = "hups/run.rs"]
mod run;
#[path = "hups/schedule.rs"]
mod schedule;
#[path = "hups/server.rs"]
mod server;
#[path = "hups/storm.rs"]
mod storm;
#[path = "hups/table.rs"]
mod table;
#[path = "hups/target.rs"]
mod target;

use std::io::Write;
use std::process::ExitCode;

use options::{HELP, Options};
use run::Run;
use table::Table;

const DROPPED: u8 = 1;
const USAGE: u8 = 2;

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(message) => {
            output::complain("hups", &message);
            ExitCode::from(USAGE)
        }
    }
}

fn run() -> Result<ExitCode, String> {
    let Some(options) = Options::from_command_line()? else {
        print(HELP);
        return Ok(ExitCode::SUCCESS);
    };
    let is_json = options.json;
    let report = Run::new(options)?.finish()?;
    if is_json {
        print(&format!("{}\n", report.to_json()));
    } else {
        print(&Table::new(&report).to_string());
    }
    let failures = report.failures();
    for failure in &failures {
        output::complain("hups", failure);
    }
    Ok(if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(DROPPED) })
}

/// A reader that has gone away is no failure of the run.
fn print(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}
