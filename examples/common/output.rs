//! What a program says before and after it serves. A reader that has gone away changes nothing: neither
//! the exit status, nor by a panic, which `println!` and `eprintln!` would raise.

use std::fmt::Display;
use std::io::{self, Write};

/// On standard output.
pub(crate) fn print(text: &dyn Display) {
    let _ = writeln!(io::stdout(), "{text}");
}

/// On standard error, in one write.
pub(crate) fn complain(program: &str, error: &dyn Display) {
    let _ = io::stderr().write_all(format!("{program}: {error}\n").as_bytes());
}
