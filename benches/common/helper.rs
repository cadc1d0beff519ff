//! This bench's own program once more, in a process that does something beside it and answers when it is asked.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use super::failed;

/// The other process, as this one sees it. It ends with this.
pub(crate) struct Helper {
    name: &'static str,
    child: Child,
    ask: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Helper {
    /// Starts it with these arguments, by which it knows what it is to do.
    pub(crate) fn start(name: &'static str, arguments: &[&str]) -> Result<Self, String> {
        let own = std::env::current_exe().map_err(failed("find this program"))?;
        let mut child = Command::new(own)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failed(format_args!("start {name}")))?;
        let (Some(ask), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(format!("{name}: no pipes"));
        };
        Ok(Self { name, child, ask, answers: BufReader::new(answers) })
    }

    /// Sends it an empty line, and answers with the numbers in the line that it writes.
    pub(crate) fn ask(&mut self) -> Result<Vec<u64>, String> {
        let mut answer = String::new();
        writeln!(self.ask).map_err(failed(format_args!("ask {}", self.name)))?;
        self.answers.read_line(&mut answer).map_err(failed(format_args!("hear {}", self.name)))?;
        let numbers: Result<Vec<u64>, _> = answer.split_whitespace().map(str::parse).collect();
        numbers.ok().filter(|it| !it.is_empty()).ok_or_else(|| format!("{} has ended", self.name))
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
