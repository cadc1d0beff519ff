//! `[10185] 2021/11/11 23:34:59 listening on 127.0.0.1:8080`, on standard error.

use std::io::{self, LineWriter};

use log::LevelFilter;
use simplelog::{ConfigBuilder, WriteLogger};

/// Logs lines of the reference's form from here on. Each line is one write, so that those of two
/// processes never mix.
pub(crate) fn start(level: LevelFilter) -> Result<(), String> {
    let form = format!("[[{}] [year]/[month]/[day] [hour]:[minute]:[second]", std::process::id());
    // The logger wants it for ever, and there is one for the whole process.
    let form = time::format_description::parse_borrowed::<1>(form.leak())
        .map_err(|error| format!("log format: {error}"))?;
    let mut config = ConfigBuilder::new();
    config
        .set_time_format_custom(form.leak())
        .set_max_level(LevelFilter::Off)
        .set_target_level(LevelFilter::Off)
        .set_thread_level(LevelFilter::Off)
        .set_location_level(LevelFilter::Off);
    // Local time, where the system says what that is; UTC otherwise.
    let _ = config.set_time_offset_to_local();
    WriteLogger::init(level, config.build(), LineWriter::new(io::stderr()))
        .map_err(|error| error.to_string())
}

/// The message in one printable line: a trailing line end is left out, what is not printable is
/// escaped, and what is long is cut.
pub(crate) fn printable(message: &[u8]) -> String {
    const SHOWN_BYTES: usize = 64;
    let whole = message.strip_suffix(b"\n").unwrap_or(message);
    let whole = whole.strip_suffix(b"\r").unwrap_or(whole);
    let mut line = String::new();
    for byte in whole.iter().take(SHOWN_BYTES) {
        match byte {
            b' '..=b'~' if *byte != b'\\' => line.push(char::from(*byte)),
            _ => line.extend(byte.escape_ascii().map(char::from)),
        }
    }
    if whole.len() > SHOWN_BYTES {
        line.push_str(&format!("... ({} bytes)", whole.len()));
    }
    line
}
