//! `[10185] 2021/11/11 23:34:59 listening on 127.0.0.1:8080`, on standard error.
//!
//! A server must not wait for whoever reads its log. A pipe and a socket take a line at once, or say that
//! they cannot (RWF_NOWAIT, pwritev2(2)). What they did not take, and what goes to a file, waits in a
//! buffer with a bound, and a thread writes it. What does not fit is dropped and counted, lines about
//! single clients first.

use std::cell::Cell;
use std::collections::VecDeque;
use std::io::{self, IoSlice, LineWriter, Write};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use log::{Level, LevelFilter, Log, Metadata, Record};
use nix::sys::signal::SigSet;
use rustix::io::{Errno, ReadWriteFlags, pwritev2};
use simplelog::{Config, ConfigBuilder, WriteLogger};

/// Bytes that may wait to be written, and how many of them may be of lines about single clients.
const BUFFER_BYTES: usize = 256 * 1024;
const ORDINARY_BYTES: usize = BUFFER_BYTES / 2;

/// Lines are written together up to so many bytes: what two processes write into one pipe never mixes
/// then (PIPE_BUF, pipe(7)).
const WRITE_BYTES: usize = 4096;

/// How long the thread lets lines gather before it writes them: to wake it for each one would cost more
/// than the line. When so many bytes have gathered it does not wait any longer, or there would soon be
/// no room for the next ones.
const LULL: Duration = Duration::from_millis(10);
const LULL_BYTES: usize = ORDINARY_BYTES / 4;

/// How long the thread stays when there is nothing to write.
const IDLE: Duration = Duration::from_millis(200);

/// How long the end of the program waits for the log to be written, and how long for the next line of it.
const LAST_WAIT: Duration = Duration::from_secs(1);
const LAST_PATIENCE: Duration = Duration::from_millis(200);

/// Logs lines of the reference's form from here on, each of them written at once by whoever logs it: for
/// a program that is to be killed at any moment, and whose last line counts.
#[allow(dead_code, reason = "the tests' server does")]
pub(crate) fn start(level: LevelFilter) -> Result<(), String> {
    WriteLogger::init(level, form()?, LineWriter::new(io::stderr()))
        .map_err(|error| error.to_string())
}

/// Logs lines of the reference's form from here on, without ever waiting for their reader. Those that
/// have to wait themselves are written from [`go`] on.
#[allow(dead_code, reason = "the example servers do")]
pub(crate) fn start_buffered(level: LevelFilter) -> Result<(), String> {
    let inner = WriteLogger::new(level, form()?, Sink::default());
    log::set_boxed_logger(Box::new(Buffered { inner })).map_err(|error| error.to_string())?;
    log::set_max_level(level);
    // What is to be said of a panic must not wait for a reader either.
    std::panic::set_hook(Box::new(|panic| log::error!("{panic}")));
    Ok(())
}

/// Has what waits written, by a thread: not before the server is made, which changes the
/// environment, and must be the only thread for that. The thread is there while there is something to
/// write, and for a moment after that: a process of one thread is served faster by the kernel.
#[allow(dead_code, reason = "the example servers do")]
pub(crate) fn go() {
    let mut buffer = lock();
    buffer.may_start = true;
    buffer.start();
}

/// Waits until everything is written, for a bounded time, because nobody may read it: at the end of the
/// program, and before a successor says ready, so that the lines of its set-up stand where a reader
/// expects them, ahead of those by which its predecessor gives way.
#[allow(dead_code, reason = "the example servers do")]
pub(crate) fn finish() {
    go();
    let deadline = Instant::now() + LAST_WAIT;
    let mut buffer = lock();
    buffer.is_hurried = true;
    LOGGED.notify_one();
    let mut progress = (buffer.written, Instant::now() + LAST_PATIENCE);
    while buffer.is_written && !buffer.is_settled() {
        let now = Instant::now();
        if buffer.written != progress.0 {
            progress = (buffer.written, now + LAST_PATIENCE);
        }
        let left = progress.1.min(deadline).saturating_duration_since(now);
        if left.is_zero() {
            break;
        }
        buffer = WRITTEN.wait_timeout(buffer, left).unwrap_or_else(PoisonError::into_inner).0;
    }
    buffer.is_hurried = false;
}

/// What the lines look like.
pub(crate) fn form() -> Result<Config, String> {
    let worker = tablecloth::worker().map_or(String::new(), |number| format!(" worker {number}"));
    let form =
        format!("[[{}] [year]/[month]/[day] [hour]:[minute]:[second]{worker}", std::process::id());
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
    Ok(config.build())
}

/// What waits to be written.
struct Buffer {
    lines: VecDeque<Line>,
    bytes: usize,
    dropped: u64,
    /// How often lines were written, or could not be.
    written: u64,
    /// There may be a thread for it, and there is one.
    may_start: bool,
    is_written: bool,
    /// The thread has nothing in its hands.
    is_idle: bool,
    /// The thread sleeps until there is a line.
    is_asleep: bool,
    /// Somebody waits for the lines to be written.
    is_hurried: bool,
    /// Standard error is something that cannot say whether it would have to be waited for.
    may_block: bool,
}

struct Line {
    text: Vec<u8>,
    is_important: bool,
}

static BUFFER: Mutex<Buffer> = Mutex::new(Buffer {
    lines: VecDeque::new(),
    bytes: 0,
    dropped: 0,
    written: 0,
    may_start: false,
    is_written: false,
    is_idle: true,
    is_asleep: false,
    is_hurried: false,
    may_block: false,
});
static LOGGED: Condvar = Condvar::new();
static WRITTEN: Condvar = Condvar::new();

thread_local! {
    /// Whether the line that this thread is logging is one of the last to be dropped.
    static IS_IMPORTANT: Cell<bool> = const { Cell::new(false) };
}

/// Held for as long as it takes to move a line, and never while one is written.
fn lock() -> MutexGuard<'static, Buffer> {
    BUFFER.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Buffer {
    /// Starts the thread, if it is wanted and not there. Without it lines wait, and served is whoever
    /// comes.
    fn start(&mut self) {
        if self.may_start && !self.is_written && !self.lines.is_empty() {
            self.is_written = thread::Builder::new().name("log".into()).spawn(write).is_ok();
        }
    }

    /// Whether nothing is left to be written, or told.
    fn is_settled(&self) -> bool {
        self.lines.is_empty() && self.is_idle && self.dropped == 0
    }

    /// Writes a line if that can be done at once. Answers how many bytes of it are done with.
    fn write_at_once(&mut self, text: &[u8]) -> usize {
        // Lines that wait come first.
        if self.may_block || !self.is_settled() {
            return 0;
        }
        // Where the file's own position is, if it has one.
        let here = u64::MAX;
        match pwritev2(io::stderr(), &[IoSlice::new(text)], here, ReadWriteFlags::NOWAIT) {
            Ok(written) => written,
            Err(Errno::AGAIN | Errno::INTR) => 0,
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::SPIPE) => {
                self.may_block = true;
                0
            }
            // A closed standard error is nobody's business here.
            Err(_) => text.len(),
        }
    }

    fn add(&mut self, line: Line) {
        let most = if line.is_important { BUFFER_BYTES } else { ORDINARY_BYTES };
        // An important line takes the place of the oldest ones about clients.
        while line.is_important && self.bytes + line.text.len() > most {
            let Some(place) = self.lines.iter().position(|line| !line.is_important) else { break };
            self.bytes -= self.lines.remove(place).map_or(0, |line| line.text.len());
            self.dropped += 1;
        }
        if self.bytes + line.text.len() > most {
            self.dropped += 1;
            return;
        }
        self.bytes += line.text.len();
        self.lines.push_back(line);
    }

    /// Takes the next lines that make one write.
    fn take(&mut self) -> Vec<u8> {
        let mut text = Vec::new();
        while let Some(line) = self.lines.pop_front() {
            self.bytes -= line.text.len();
            text.extend_from_slice(&line.text);
            let next = self.lines.front().map_or(usize::MAX, |next| next.text.len());
            if text.len().saturating_add(next) > WRITE_BYTES {
                break;
            }
        }
        text
    }
}

/// The thread that writes, which may wait for as long as the log's reader likes.
fn write() {
    // Signals are for the server's thread, which holds them at times.
    let _ = SigSet::all().thread_block();
    loop {
        let mut buffer = lock();
        buffer.is_idle = true;
        if buffer.is_hurried {
            WRITTEN.notify_all();
        }
        // There is room again: it is told once what was lost.
        let dropped = match buffer.lines.is_empty() {
            true => std::mem::take(&mut buffer.dropped),
            false => 0,
        };
        if dropped > 0 {
            // The line about it is still to come.
            buffer.is_idle = false;
            drop(buffer);
            log::error!("{dropped} lines of the log were dropped: nobody has read it.");
            continue;
        }
        if buffer.lines.is_empty() {
            buffer.is_asleep = true;
            buffer = LOGGED.wait_timeout(buffer, IDLE).unwrap_or_else(PoisonError::into_inner).0;
            buffer.is_asleep = false;
            if !buffer.is_hurried && buffer.bytes < LULL_BYTES {
                buffer =
                    LOGGED.wait_timeout(buffer, LULL).unwrap_or_else(PoisonError::into_inner).0;
            }
        }
        if buffer.lines.is_empty() {
            buffer.is_written = false;
            return;
        }
        let text = buffer.take();
        buffer.is_idle = false;
        drop(buffer);
        // A closed standard error, or a file that is full, is nobody's business here.
        let _ = io::stderr().write_all(&text);
        lock().written += 1;
    }
}

/// Tells lines about clients from those about the process.
struct Buffered {
    inner: Box<WriteLogger<Sink>>,
}

impl Log for Buffered {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.inner.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        // What the library says is about the process, but for what it says about a connection.
        let target = record.target();
        let is_process = target.starts_with("tablecloth") && target != tablecloth::CLIENTS;
        IS_IMPORTANT.set(record.level() == Level::Error || is_process);
        self.inner.log(record);
    }

    fn flush(&self) {}
}

/// Puts together what comes piece by piece, and passes whole lines on.
#[derive(Default)]
struct Sink {
    line: Vec<u8>,
}

impl Sink {
    /// A line is there: it is written at once, or waits.
    fn pass_on(&mut self) {
        let mut buffer = lock();
        let done = buffer.write_at_once(&self.line);
        if let Some(rest) = self.line.get(done..).filter(|rest| !rest.is_empty()) {
            let before = buffer.bytes;
            buffer.add(Line { text: rest.into(), is_important: IS_IMPORTANT.get() });
            buffer.start();
            let gathered = before < LULL_BYTES && buffer.bytes >= LULL_BYTES;
            let wakes = std::mem::take(&mut buffer.is_asleep) || gathered;
            // Whoever is woken wants the lock.
            drop(buffer);
            if wakes {
                LOGGED.notify_one();
            }
        }
        self.line.clear();
    }
}

impl Write for Sink {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.line.extend_from_slice(text);
        // The end of a line comes as the end of a piece.
        if text.ends_with(b"\n") {
            self.pass_on();
        }
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The message in one printable line: a trailing line end is left out, what is not printable is
/// escaped, and what is long is cut.
#[allow(dead_code, reason = "the demo shows messages")]
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
