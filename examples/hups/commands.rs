//! Upgrades that are asked for by a command or at the admin endpoint: a thread waits for each, so
//! that the load does not.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use tablecloth::{Control, Controlled, control};

/// How often the thread looks whether the run is over and its command has to be killed.
const LOOK_PAUSE: Duration = Duration::from_millis(20);
/// The longest part of an answer that is kept, for the report to show.
const ANSWER_CHARACTERS_MAX: usize = 200;

/// One at a time: a command that is due while another runs waits for its end.
#[derive(Default)]
pub(crate) struct Commands {
    under_way: Option<UnderWay>,
    /// How many have ended with each status: a number, the name of a signal, or a word.
    pub(crate) statuses: BTreeMap<String, u64>,
    pub(crate) failed: u32,
    /// Why the first of those has failed.
    pub(crate) first_failure: Option<String>,
    /// How long each of those that have ended has taken.
    pub(crate) times: Vec<Duration>,
    /// Those that the end of the run has cut off.
    pub(crate) unfinished: u32,
}

struct UnderWay {
    outcome: Receiver<Outcome>,
    is_over: Arc<AtomicBool>,
    thread: thread::JoinHandle<()>,
}

struct Outcome {
    took: Duration,
    status: String,
    failure: Option<String>,
}

impl Commands {
    pub(crate) fn is_under_way(&self) -> bool {
        self.under_way.is_some()
    }

    /// Runs it by `sh -c`. What it prints on standard output is left out: the report goes there.
    pub(crate) fn run(&mut self, command: &str) -> Result<(), String> {
        let command = command.to_string();
        self.start(move |is_over| run(&command, is_over))
    }

    /// Sends `POST /upgrade` to an admin endpoint of this library.
    pub(crate) fn ask(&mut self, address: &str) -> Result<(), String> {
        let address = address.to_string();
        self.start(move |_| ask(&address))
    }

    fn start(
        &mut self,
        work: impl FnOnce(&AtomicBool) -> Outcome + Send + 'static,
    ) -> Result<(), String> {
        let (sender, outcome) = channel();
        let is_over = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&is_over);
        let thread = thread::Builder::new().name("upgrade".to_string()).spawn(move || {
            // Whoever has stopped waiting has counted it already.
            let _ = sender.send(work(&seen));
        });
        let thread = thread.map_err(|error| format!("no thread for an upgrade: {error}"))?;
        self.under_way = Some(UnderWay { outcome, is_over, thread });
        Ok(())
    }

    /// Takes what became of the one under way, if it has ended.
    pub(crate) fn collect(&mut self) {
        let Some(under_way) = &self.under_way else {
            return;
        };
        let outcome = match under_way.outcome.try_recv() {
            Ok(outcome) => outcome,
            Err(TryRecvError::Empty) => return,
            Err(TryRecvError::Disconnected) => {
                Outcome::failed(Duration::ZERO, "lost", "its thread has ended".to_string())
            }
        };
        self.under_way = None;
        *self.statuses.entry(outcome.status).or_default() += 1;
        self.times.push(outcome.took);
        if let Some(failure) = outcome.failure {
            self.failed += 1;
            self.first_failure.get_or_insert(failure);
        }
    }

    /// The run is over: a command that has not ended is killed.
    pub(crate) fn stop(&mut self) {
        self.collect();
        if let Some(under_way) = self.under_way.take() {
            self.unfinished += 1;
            under_way.is_over.store(true, Ordering::Relaxed);
            // An answer of an endpoint cannot be cut off; its thread ends with this process.
            if let Ok(Outcome { .. }) = under_way.outcome.recv_timeout(LOOK_PAUSE * 10) {
                let _ = under_way.thread.join();
            }
        }
    }
}

impl Outcome {
    fn failed(took: Duration, status: &str, failure: String) -> Outcome {
        Outcome { took, status: status.to_string(), failure: Some(failure) }
    }
}

fn run(command: &str, is_over: &AtomicBool) -> Outcome {
    let began = Instant::now();
    match wait(command, is_over) {
        Err(error) => Outcome::failed(began.elapsed(), "not_run", error.to_string()),
        Ok(status) if status.success() => {
            Outcome { took: began.elapsed(), status: "0".to_string(), failure: None }
        }
        Ok(status) => {
            let name = status.code().map_or_else(|| "signal".to_string(), |code| code.to_string());
            Outcome::failed(began.elapsed(), &name, status.to_string())
        }
    }
}

fn wait(command: &str, is_over: &AtomicBool) -> std::io::Result<ExitStatus> {
    // A group of its own: what the shell has started is killed with it, if it comes to that.
    let mut child = Command::new("sh")
        .args(["-c", command])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .process_group(0)
        .spawn()?;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pidfd = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    while let (Some(pid), Some(pidfd)) = (pid, &pidfd) {
        let pause = Timespec { tv_sec: 0, tv_nsec: LOOK_PAUSE.subsec_nanos().into() };
        match rustix::event::poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&pause)) {
            Ok(0) | Err(rustix::io::Errno::INTR) if is_over.load(Ordering::Relaxed) => {
                // It has not been waited for, so the group is still its own.
                let _ = kill_process_group(pid, Signal::KILL);
                break;
            }
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) | Err(_) => break,
        }
    }
    child.wait()
}

fn ask(address: &str) -> Outcome {
    let began = Instant::now();
    let mut answer = Vec::new();
    let controlled = control(address, Control::Upgrade, &mut answer);
    let took = began.elapsed();
    match controlled {
        Ok(Controlled::Done) => Outcome { took, status: "done".to_string(), failure: None },
        Ok(Controlled::Failed) => {
            // Its last line says what became of it.
            let answer = String::from_utf8_lossy(&answer);
            let last = answer.lines().last().unwrap_or("no answer");
            let last = last.chars().take(ANSWER_CHARACTERS_MAX).collect();
            Outcome::failed(took, "failed", last)
        }
        Err(error) => Outcome::failed(took, "no_answer", format!("{address}: {error}")),
    }
}
