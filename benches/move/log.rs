//! The servers' log, as a file that is looked at again and again: a server that writes to a pipe
//! would have to wait for whoever reads it.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::Pid;

use crate::common::failed;

/// Longer than anything here takes on a machine that is alive.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks: how late a line is heard of.
const PAUSE: Duration = Duration::from_millis(1);
/// What the demo says of each message: these are not kept.
const MESSAGE: &str = " receive message from [";

/// A line of the log, and when it was seen.
pub(crate) struct Line {
    pub(crate) at: Instant,
    pub(crate) pid: Pid,
    pub(crate) text: String,
}

pub(crate) struct Log {
    file: File,
    unfinished: Vec<u8>,
    /// All that was said, but for messages.
    lines: Vec<Line>,
}

impl Log {
    pub(crate) fn open(path: &Path) -> Result<Self, String> {
        let file = File::open(path).map_err(failed(path.display()))?;
        Ok(Self { file, unfinished: Vec::new(), lines: Vec::new() })
    }

    /// How many lines there are by now: from there on a wait may look.
    pub(crate) fn mark(&mut self) -> Result<usize, String> {
        self.look()?;
        Ok(self.lines.len())
    }

    /// Waits for a line with that text, behind the mark.
    pub(crate) fn wait_for(&mut self, mark: usize, text: &str) -> Result<&Line, String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.look()?;
            if let Some(place) = self.lines[mark..].iter().position(|line| line.text.contains(text))
            {
                return Ok(&self.lines[mark + place]);
            }
            if Instant::now() >= deadline {
                return Err(format!("no line {text:?} within {PATIENCE:?}"));
            }
            sleep(PAUSE);
        }
    }

    /// What these servers do not say when all is well. The lines do not name their level, so that it
    /// is known by its words.
    pub(crate) fn complaints(&self) -> impl Iterator<Item = &str> {
        const BAD: [&str; 6] =
            ["refused", "lost", "come back", "failed", "does not read", "stay and drain"];
        let texts = self.lines.iter().map(|line| line.text.as_str());
        texts.filter(|text| BAD.iter().any(|bad| text.contains(bad)))
    }

    fn look(&mut self) -> Result<(), String> {
        let seen = self.unfinished.len();
        self.file.read_to_end(&mut self.unfinished).map_err(failed("read the log"))?;
        if self.unfinished.len() == seen {
            return Ok(());
        }
        let at = Instant::now();
        let whole =
            self.unfinished.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let rest = self.unfinished.split_off(whole);
        let whole = std::mem::replace(&mut self.unfinished, rest);
        for text in String::from_utf8_lossy(&whole).lines().filter(|text| !text.contains(MESSAGE)) {
            // `[PID] DATE TIME TEXT`; an error that ends a program begins otherwise.
            let pid = text.strip_prefix('[').and_then(|rest| rest.split_once(']'));
            match pid.and_then(|(pid, _)| Pid::from_raw(pid.parse().ok()?)) {
                Some(pid) => self.lines.push(Line { at, pid, text: text.into() }),
                None => eprintln!("{text}"),
            }
        }
        Ok(())
    }
}
