//! The proxy of the examples, with one thing more: it obeys the fault file that `FAULTS` in the
//! environment names, and so do its successors.

use std::process::ExitCode;

#[path = "../actor/faults.rs"]
mod faults;
#[path = "../../examples/proxy.rs"]
mod proxy;

fn main() -> ExitCode {
    if let Some(file) = std::env::var_os("FAULTS") {
        faults::obey(file.into());
    }
    proxy::main()
}
