//! Reports side by side: one column for each run, and what each figure is to the first run's.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// A report is some kilobytes long.
const REPORT_BYTES_MAX: u64 = 16 << 20;
const NAME_WIDTH: usize = 34;
const COLUMN_WIDTH: usize = 22;

/// A report, and what its column is called.
pub(crate) struct Column {
    pub(crate) name: String,
    pub(crate) report: Value,
}

/// A line of the comparison, and where its value is in a report.
struct Row {
    name: &'static str,
    path: &'static [&'static str],
    /// Whether it is a figure that says more as a ratio.
    has_ratio: bool,
}

const fn row(name: &'static str, path: &'static [&'static str]) -> Row {
    Row { name, path, has_ratio: false }
}

const fn figure(name: &'static str, path: &'static [&'static str]) -> Row {
    Row { name, path, has_ratio: true }
}

const ROWS: &[Row] = &[
    row("server", &["addr"]),
    row("protocol", &["protocol"]),
    row("end", &["end"]),
    row("generator was late", &["generator_was_late"]),
    figure("generator late p99, µs", &["generator_late", "p99_us"]),
    row("dropped", &["dropped", "total"]),
    row("  of short connections", &["dropped_short", "total"]),
    row("  of long connections", &["dropped_long", "total"]),
    row("  closed without an answer", &["dropped_unanswered"]),
    row("closed in order", &["closed_in_order"]),
    row("long connections reopened", &["long_connections_reopened"]),
    row("long messages lost", &["long_messages_lost"]),
    figure("short connections a second", &["short_connections_per_second"]),
    figure("short latency p50, µs", &["short_latency_us", "p50"]),
    figure("short latency p99, µs", &["short_latency_us", "p99"]),
    figure("short latency p99.9, µs", &["short_latency_us", "p99_9"]),
    figure("short latency max, µs", &["short_latency_us", "max"]),
    figure("long latency p50, µs", &["long_latency_us", "p50"]),
    figure("long latency p99, µs", &["long_latency_us", "p99"]),
    figure("long latency p99.9, µs", &["long_latency_us", "p99_9"]),
    figure("long latency max, µs", &["long_latency_us", "max"]),
    figure("before any upgrade p99, µs", &["calm_latency_us", "p99"]),
    figure("after an upgrade p99, µs", &["after_upgrade_latency_us", "p99"]),
    figure("worst before an upgrade, µs", &["worst_before_signal_us"]),
    figure("worst after an upgrade, µs", &["worst_after_signal_us"]),
    row("upgrades asked for", &["signals_sent"]),
    row("upgrades seen", &["upgrades_seen"]),
    row("commands failed", &["commands_failed"]),
    figure("command median, ms", &["command_ms", "median"]),
    figure("time to ready median, ms", &["time_to_ready_ms", "median"]),
    figure("time to old's end median, ms", &["time_to_old_end_ms", "median"]),
    row("processes left", &["processes_left"]),
    row("zombies", &["zombies"]),
    figure("memory anonymous last, KiB", &["memory_anonymous_last_kib"]),
];

/// The reports in files that `--json` was printed to.
pub(crate) fn read(files: &[PathBuf]) -> Result<Vec<Column>, String> {
    let mut columns = Vec::new();
    for file in files {
        let complain = |what: String| format!("--compare {}: {what}", file.display());
        let reports = match parse(file).map_err(complain)? {
            Value::Array(reports) => reports,
            report @ (Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::String(_)
            | Value::Object(_)) => vec![report],
        };
        if reports.is_empty() {
            return Err(complain("it holds no report".to_string()));
        }
        let are_several = reports.len() > 1;
        for (index, report) in reports.into_iter().enumerate() {
            check(&report).map_err(complain)?;
            let stem = file.file_stem().unwrap_or_default().to_string_lossy();
            // A name that was given says more than a file's.
            let name = report.get("name").filter(|name| Some(*name) != report.get("addr"));
            let name = match name.and_then(Value::as_str) {
                Some(name) => name.to_string(),
                None if are_several => format!("{stem} {}", index + 1),
                None => stem.to_string(),
            };
            columns.push(Column { name, report });
        }
    }
    match columns.len() {
        1 => Err("--compare needs two reports or more, and got one".to_string()),
        _ => Ok(columns),
    }
}

fn parse(file: &Path) -> Result<Value, String> {
    let length = fs::metadata(file).map_err(|error| error.to_string())?.len();
    if length > REPORT_BYTES_MAX {
        return Err(format!("it has {length} bytes, too many for a report"));
    }
    let text = fs::read_to_string(file).map_err(|error| error.to_string())?;
    serde_json::from_str(&text).map_err(|error| format!("it is not JSON: {error}"))
}

fn check(report: &Value) -> Result<(), String> {
    for field in ["addr", "dropped", "short_latency_us"] {
        if report.get(field).is_none() {
            return Err(format!("it is no report of hups --json: {field} is missing"));
        }
    }
    Ok(())
}

pub(crate) fn table(columns: &[Column]) -> String {
    let mut text = String::new();
    let mut line = |name: &str, cells: Vec<String>| {
        let mut line = format!("{name:<NAME_WIDTH$}");
        for cell in cells {
            let _ = write!(line, "{cell:>COLUMN_WIDTH$}");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    };
    line("", columns.iter().map(|column| shortened(&column.name)).collect());
    for row in ROWS {
        let values: Vec<&Value> = columns.iter().map(|column| find(column, row.path)).collect();
        // No run has it.
        if values.iter().all(|value| value.is_null()) {
            continue;
        }
        let first = values.first().and_then(|value| value.as_f64());
        let cells = values.iter().enumerate().map(|(index, value)| {
            let ratio = first.filter(|_| row.has_ratio && index > 0).zip(value.as_f64());
            let ratio = ratio.filter(|(first, _)| *first > 0.0);
            let ratio = ratio.map(|(first, value)| format!(" ({:.2})", value / first));
            // All in one line, below each other.
            format!("{}{:>8}", shown(value), ratio.unwrap_or_default())
        });
        line(row.name, cells.collect());
    }
    text
}

fn find<'a>(column: &'a Column, path: &[&str]) -> &'a Value {
    path.iter().fold(&column.report, |value, key| value.get(key).unwrap_or(&Value::Null))
}

fn shown(value: &Value) -> String {
    match value {
        Value::Null => "-".to_string(),
        Value::Bool(is_so) => if *is_so { "yes" } else { "no" }.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => shortened(text),
        Value::Array(_) | Value::Object(_) => "?".to_string(),
    }
}

/// Fits into a column, by its end: addresses and names differ there.
fn shortened(text: &str) -> String {
    let length = text.chars().count();
    if length < COLUMN_WIDTH {
        return text.to_string();
    }
    let end: String = text.chars().skip(length - (COLUMN_WIDTH - 4)).collect();
    format!("...{end}")
}
