//! What a program says before and after it serves. A reader that has gone away, or stands still, changes
//! nothing: neither the exit status, by a panic as `println!` and `eprintln!` would raise it, nor the end.

use std::fmt::Display;
use std::io::{self, IoSlice, Write};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::{Errno, ReadWriteFlags, pwritev2};

/// How long a line on standard error waits for a reader, and how often it is tried meanwhile.
const PATIENCE: Duration = Duration::from_millis(200);
const RETRY: Duration = Duration::from_millis(5);

/// On standard output.
pub(crate) fn print(text: &dyn Display) {
    let _ = writeln!(io::stdout(), "{text}");
}

/// On standard error, in one write.
pub(crate) fn complain(program: &str, error: &dyn Display) {
    complain_in_full(format!("{program}: {error}\n").as_bytes());
}

/// A whole line on standard error, in one write.
pub(crate) fn complain_in_full(line: &[u8]) {
    let (mut left, deadline) = (line, Instant::now() + PATIENCE);
    while !left.is_empty() {
        // Where the position is, if there is one.
        let here = u64::MAX;
        match pwritev2(io::stderr(), &[IoSlice::new(left)], here, ReadWriteFlags::NOWAIT) {
            Ok(written) => left = left.get(written..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) if Instant::now() < deadline => thread::sleep(RETRY),
            // It cannot say whether it would have to be waited for: a file, or a terminal.
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::SPIPE) => {
                let _ = io::stderr().write_all(left);
                return;
            }
            Err(_) => return,
        }
    }
}
