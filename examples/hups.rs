//! The storm: keeps a server under load while it is replaced, again and again, and tells what its
//! clients noticed.
//!
//! It points at any server that speaks one of its protocols, whatever that is made with, and
//! replaces it by a signal, by a command, or at an admin endpoint:
//!
//! ```sh
//! cargo run --release --example hups -- --addr 127.0.0.1:7000 --pid-file /run/echo.pid \
//!     --short-rate 2000 --long-conns 500 --hups 20 --interval-ms 500
//! cargo run --release --example hups -- --addr 127.0.0.1:80 --protocol http \
//!     --upgrade-command 'nginx -s reload' --svg storm.svg
//! ```
//!
//! The load is open loop: requests become due by the clock alone, and latency counts from when
//! a request was due, so that a server which stops for a moment cannot hide it.

#![cfg_attr(
    feature = "hups",
    allow(clippy::collapsible_if, reason = "the library's Rust has no chains of let")
)]

#[path = "hups/channel.rs"]
mod channel;
#[path = "hups/commands.rs"]
mod commands;
#[path = "hups/compare.rs"]
mod compare;
#[path = "hups/connection.rs"]
mod connection;
#[path = "hups/drawing.rs"]
mod drawing;
#[path = "hups/drops.rs"]
mod drops;
#[path = "hups/help.rs"]
mod help;
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
#[path = "hups/protocol.rs"]
mod protocol;
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
#[path = "hups/timeline.rs"]
mod timeline;
#[cfg_attr(feature = "hups", path = "hups/tls.rs")]
#[cfg_attr(not(feature = "hups"), path = "hups/no_tls.rs")]
mod tls;
#[path = "hups/trigger.rs"]
mod trigger;

use std::io::Write;
use std::process::ExitCode;

use compare::Column;
use help::HELP;
use options::{CommandLine, Options, Output};
use report::{LATE_US, Report};
use run::{Run, probe};
use serde_json::Value;
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
    match CommandLine::read()? {
        CommandLine::Help => {
            print(&HELP.replace("LATE_MS", &(LATE_US / 1000).to_string()));
            Ok(ExitCode::SUCCESS)
        }
        CommandLine::Compare(files) => {
            print(&compare::table(&compare::read(&files)?));
            Ok(ExitCode::SUCCESS)
        }
        CommandLine::Storm { runs, output } => storm(runs, &output),
    }
}

/// One run after another.
fn storm(runs: Vec<Options>, output: &Output) -> Result<ExitCode, String> {
    let picture = |run: usize| output.svg.as_ref().map(|path| drawing::path_of(path, run));
    // What is wrong with the last server is told before the first one has had its run.
    for (number, options) in runs.iter().enumerate() {
        probe(options)?;
        picture(number).map_or(Ok(()), |path| drawing::try_path(&path))?;
    }
    let count = runs.len();
    let (mut columns, mut code, mut broken) = (Vec::new(), ExitCode::SUCCESS, None);
    for (number, options) in runs.into_iter().enumerate() {
        let report = match Run::new(options, output.progress).and_then(Run::finish) {
            Ok(report) => report,
            // The runs before it are told of all the same.
            Err(message) => {
                broken = Some(message);
                break;
            }
        };
        if let Some(path) = picture(number) {
            drawing::write(&report, &path)?;
        }
        if !output.json {
            print(if number > 0 { "\n" } else { "" });
            print(&Table::new(&report).to_string());
        }
        if !complain(&report, count > 1) {
            code = ExitCode::from(DROPPED);
        }
        columns.push(Column { name: report.options.label(), report: report.to_json() });
    }
    if output.json && !columns.is_empty() {
        print(&format!("{}\n", together(columns, count)));
    } else if columns.len() > 1 {
        print(&format!("\n{}", compare::table(&columns)));
    }
    broken.map_or(Ok(code), Err)
}

/// Says why a run has failed. Returns whether it has not.
fn complain(report: &Report, is_named: bool) -> bool {
    let failures = report.failures();
    for failure in &failures {
        let name = if is_named { format!("{}: ", report.options.label()) } else { String::new() };
        output::complain("hups", &format!("{name}{failure}"));
    }
    failures.is_empty()
}

/// One report as it is; several as an array.
fn together(columns: Vec<Column>, count: usize) -> Value {
    let mut reports: Vec<Value> = columns.into_iter().map(|column| column.report).collect();
    match count {
        1 => reports.pop().unwrap_or_default(),
        _ => Value::Array(reports),
    }
}

/// A reader that has gone away is no failure of the run.
fn print(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}
