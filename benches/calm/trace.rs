//! Which system calls a server makes for what it does, counted by strace(1).

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::common::{failed, process};

/// How often each system call was made.
pub(crate) type Calls = BTreeMap<String, u64>;

/// Counts the calls of a process while `work` runs. strace attaches for that time only.
pub(crate) fn count<T>(
    pid: Pid,
    directory: &Path,
    work: impl FnOnce() -> Result<T, String>,
) -> Result<(T, Calls), String> {
    let summary = directory.join(format!("strace-{}", pid.as_raw_pid()));
    let mut strace = Command::new("strace")
        .args(["-q", "-c", "-f", "-U", "name,calls", "-p", &pid.as_raw_pid().to_string(), "-o"])
        .arg(&summary)
        .stderr(Stdio::null())
        .spawn()
        .map_err(failed("run strace"))?;
    let attached = process::await_some("strace", || {
        let ended = strace.try_wait().map_err(failed("wait for strace"))?;
        if ended.is_some() {
            return Err("strace cannot attach to the server".into());
        }
        Ok(is_traced(pid).then_some(()))
    });
    let result = attached.and_then(|()| work());
    // It lets go of the server and writes its summary.
    let _ = kill_process(Pid::from_child(&strace), Signal::INT);
    strace.wait().map_err(failed("wait for strace"))?;
    let text = fs::read_to_string(&summary).map_err(failed(summary.display()))?;
    Ok((result?, parse(&text)))
}

fn is_traced(pid: Pid) -> bool {
    let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_pid()));
    let tracer = status.as_deref().ok().and_then(|text| text.split("TracerPid:").nth(1));
    tracer.is_some_and(|rest| !rest.trim_start().starts_with('0'))
}

/// `name  calls` lines between two rules of dashes.
fn parse(summary: &str) -> Calls {
    let call = |line: &str| {
        let mut fields = line.split_whitespace();
        let (name, calls) = (fields.next()?, fields.next()?.parse().ok()?);
        (name != "total").then(|| (name.to_owned(), calls))
    };
    summary.lines().filter_map(call).collect()
}
