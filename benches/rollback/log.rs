//! The servers' log as it arrives: what they do, and who of them has read whose message.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Pid;

/// Longer than anything here takes on a machine that is alive.
const PATIENCE: Duration = Duration::from_secs(30);
/// What the demo says of each message, before the client's address.
const MESSAGE: &str = " receive message from [";

/// A line of the log, and when it came.
pub(crate) struct Line {
    pub(crate) at: Instant,
    pub(crate) pid: Pid,
    text: String,
}

pub(crate) struct Log {
    lines: Receiver<Line>,
    /// Who has read a client's messages, and when that was heard of.
    readings: HashMap<SocketAddr, Vec<(Instant, Pid)>>,
}

impl Log {
    pub(crate) fn of(pipe: impl Read + Send + 'static) -> Self {
        let (sender, lines) = channel();
        thread::spawn(move || {
            for text in BufReader::new(pipe).lines().map_while(Result::ok) {
                let at = Instant::now();
                // `[PID] DATE TIME TEXT`; an error that ends a program begins otherwise.
                let pid = text.strip_prefix('[').and_then(|rest| rest.split_once(']'));
                let Some(pid) = pid.and_then(|(pid, _)| Pid::from_raw(pid.parse().ok()?)) else {
                    eprintln!("{text}");
                    continue;
                };
                if sender.send(Line { at, pid, text }).is_err() {
                    return;
                }
            }
        });
        Self { lines, readings: HashMap::new() }
    }

    /// Waits for a line with that text.
    pub(crate) fn wait_for(&mut self, text: &str) -> Result<Line, String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) if line.text.contains(text) => return Ok(line),
                Ok(line) => self.note(line),
                Err(RecvTimeoutError::Timeout) => {
                    return Err(format!("no line {text:?} within {PATIENCE:?}"));
                }
                Err(RecvTimeoutError::Disconnected) => return Err("the log has ended".into()),
            }
        }
    }

    /// Who has read a message of that client in that time; `None` if nobody has.
    pub(crate) fn reader_of(&mut self, client: SocketAddr, time: Range<Instant>) -> Option<Pid> {
        while let Ok(line) = self.lines.try_recv() {
            self.note(line);
        }
        let mut readings = self.readings.get(&client)?.iter();
        readings.find(|(at, _)| time.contains(at)).map(|(_, pid)| *pid)
    }

    fn note(&mut self, line: Line) {
        let client = line.text.split_once(MESSAGE).and_then(|(_, rest)| rest.split_once(']'));
        if let Some(client) = client.and_then(|(client, _)| client.parse().ok()) {
            self.readings.entry(client).or_default().push((line.at, line.pid));
        }
    }
}
