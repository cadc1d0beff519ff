//! What the admin endpoint answers: how the process stands, and what became of a command.

use std::fmt::Write;
use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::Upgrader;
use super::service::Service;
use crate::admin::{Answer, Ask, Asker, Request, TEXT};
use crate::machine::{Drain, Event, Predecessor, State, Wanted};

/// What is told of a process.
struct Status {
    state: State,
    generation: u64,
    pid: u32,
    predecessor: Option<u32>,
    successor: Option<u32>,
    program: String,
    uptime: f64,
    service_uptime: f64,
    /// The listeners' names, addresses, and sessions.
    listeners: Vec<(Rc<str>, String, usize)>,
    sessions: usize,
    /// Done, failed, rolled back, checked.
    upgrades: [(&'static str, u64); 4],
    last_report: Option<String>,
    ready: bool,
}

impl Upgrader {
    /// Serves the clients of the admin endpoint.
    pub(super) fn serve_admin(&mut self, service: &mut dyn Service) {
        self.poll_admin();
        let (registry, now) = (&self.standing.registry, self.standing.now);
        let Some(admin) = &mut self.announcer.admin else { return };
        for (asker, request) in admin.serve(registry, now) {
            self.answer(asker, request, service);
        }
    }

    /// Polls the endpoint, or not, as the state that the machine is in says.
    pub(super) fn poll_admin(&mut self) {
        let answers = self.answers_admin();
        if let Some(admin) = &mut self.announcer.admin {
            admin.poll(&self.standing.registry, answers);
        }
    }

    /// Whether this process is the one that lets clients of the admin endpoint in: who serves does, and at the
    /// end of the service whoever brings it to its end.
    fn answers_admin(&self) -> bool {
        self.is_serving() || self.is_shutting_down()
    }

    fn answer(&mut self, asker: Asker, request: Request, service: &mut dyn Service) {
        let answer = match request.ask {
            Ask::Status { json } => {
                let status = self.status(service);
                match json {
                    true => Answer::of(200, "application/json", status.json()),
                    false => Answer::of(200, TEXT, status.text()),
                }
            }
            Ask::Metrics => {
                let kind = "text/plain; version=0.0.4; charset=utf-8";
                Answer::of(200, kind, self.metrics_of(service))
            }
            Ask::Live => Answer::text(200, "live"),
            Ask::Ready if self.is_ready() => Answer::text(200, "ready"),
            Ask::Ready => Answer::text(503, "not ready: the service is shutting down"),
            Ask::Upgrade { .. } | Ask::Check => return self.upgrade_for(asker, request, service),
            Ask::Shutdown | Ask::Exit => {
                self.reply(asker, &Answer::text(202, "the process is shutting down"), request);
                let exit = request.ask == Ask::Exit;
                let event = if exit { Event::ExitRequested } else { Event::ShutdownRequested };
                let what = if exit { "the end at once" } else { "a shutdown" };
                log::info!("the admin endpoint was asked for {what}.");
                return self.feed(event, service);
            }
        };
        self.reply(asker, &answer, request);
    }

    fn reply(&mut self, asker: Asker, answer: &Answer, request: Request) {
        if let Some(admin) = &mut self.announcer.admin {
            admin.answer(asker, answer, request.head_only, self.standing.now);
        }
    }

    /// Whether the service serves, by this process or by the one that has taken over from it.
    fn is_ready(&self) -> bool {
        self.is_serving()
            || matches!(
                self.state(),
                State::Draining(Drain::Committed | Drain::Probation | Drain::Proven)
            )
    }

    /// Whoever asks while an upgrade is under way shares what becomes of that one.
    fn upgrade_for(&mut self, asker: Asker, request: Request, service: &mut dyn Service) {
        let is_check = request.ask == Ask::Check;
        let same = self.succession.is_check == is_check;
        let shares = match self.state() {
            State::Upgrading => same,
            State::Draining(Drain::Committed) => !is_check,
            State::Draining(Drain::Probation | Drain::Proven) => {
                let words = "this process was replaced while you asked: ask again";
                return self.reply(asker, &Answer::text(503, words), request);
            }
            State::Running | State::Draining(Drain::Shutdown) | State::Exited => false,
        };
        let machine = self.standing.machine;
        let is_free = machine.state() == State::Running
            && machine.predecessor() == Predecessor::Gone
            && machine.wanted() == Wanted::No
            && !machine.is_pausing();
        if is_check && !shares && !is_free {
            let words = "an upgrade is under way, or has ended a moment ago: ask again later";
            return self.reply(asker, &Answer::text(409, words), request);
        }
        let now = self.standing.now;
        let Some(admin) = &mut self.announcer.admin else { return };
        admin.wait(asker, request, now);
        if shares {
            let words = "it is under way already, and what becomes of it is told here, too";
            return admin.tell_one(asker, words, now);
        }
        if !is_free && !matches!(machine.state(), State::Draining(_) | State::Exited) {
            let words =
                "it waits until the last upgrade is over, and the pause behind one that failed";
            admin.tell_one(asker, words, now);
        }
        log::info!(
            "the admin endpoint was asked for {}.",
            if is_check { "a check" } else { "an upgrade" }
        );
        self.succession.checks_next = is_check;
        self.feed(Event::UpgradeRequested, service);
    }

    fn metrics_of(&mut self, service: &dyn Service) -> String {
        let (generation, state) = (self.standing.generation, self.state());
        let ledger = &self.standing.ledger;
        let gauge = |name: &str, labels: &[(&str, &str)], help: &str, value: f64| {
            ledger.gauge(name, labels, help).set(value);
        };
        let uptime = self.fate.began.elapsed().as_secs_f64();
        gauge(
            "tablecloth_generation",
            &[],
            "0 for the first process, one more in each successor.",
            generation as f64,
        );
        gauge("tablecloth_uptime_seconds", &[], "How long this process has been there.", uptime);
        let began = ledger.began() as f64 / 1e3;
        gauge(
            "tablecloth_service_start_time_seconds",
            &[],
            "When the first process began, in seconds since 1970.",
            began,
        );
        let has_predecessor = f64::from(u8::from(self.before.process.is_some()));
        gauge(
            "tablecloth_predecessor",
            &[],
            "Whether the process before this one is still there.",
            has_predecessor,
        );
        for name in ["Running", "Upgrading", "Draining", "Exited"] {
            let is_it = f64::from(u8::from(state.name() == name));
            gauge(
                "tablecloth_state",
                &[("state", name)],
                "The state that this process is in.",
                is_it,
            );
        }
        for (listener, count) in service.census() {
            let help = "Sessions of this process, by the listener that they came in by.";
            gauge("tablecloth_sessions", &[("listener", &listener)], help, count as f64);
        }
        ledger.text()
    }

    fn status(&self, service: &dyn Service) -> Status {
        let census = service.census();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |now| now.as_secs_f64());
        let ledger = &self.standing.ledger;
        let count = |name: &str| {
            census.iter().find(|(known, _)| **known == *name).map_or(0, |(_, count)| *count)
        };
        let doors = self.estate.doors();
        let listeners = doors
            .iter()
            .map(|door| (Rc::clone(&door.name), door.address.to_string(), count(&door.name)));
        let upgrades = ["done", "failed", "rolled_back", "checked"].map(|outcome| {
            let labels = [("outcome", outcome)];
            (
                outcome,
                ledger
                    .counter("tablecloth_upgrades_total", &labels, super::announcer::UPGRADES_HELP)
                    .get(),
            )
        });
        Status {
            state: self.state(),
            generation: self.standing.generation,
            pid: std::process::id(),
            predecessor: self.predecessor(),
            successor: self.succession.current.as_ref().and_then(super::Successor::pid),
            program: self.succession.command.executable.to_string_lossy().into_owned(),
            uptime: self.fate.began.elapsed().as_secs_f64(),
            service_uptime: (now - ledger.began() as f64 / 1e3).max(0.0),
            listeners: listeners.collect(),
            sessions: census.iter().map(|(_, count)| count).sum(),
            upgrades,
            last_report: ledger.last_report(),
            ready: self.is_ready(),
        }
    }
}

impl Status {
    fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let mut line = |name: &str, value: &dyn std::fmt::Display| {
            let _ = writeln!(text, "{name:14} {value}");
        };
        let nobody = || "none".to_owned();
        line("state", &self.state.name());
        line("ready", &if self.ready { "yes" } else { "no" });
        line("generation", &self.generation);
        line("pid", &self.pid);
        line("predecessor", &self.predecessor.map_or_else(nobody, |pid| pid.to_string()));
        line("successor", &self.successor.map_or_else(nobody, |pid| pid.to_string()));
        line("program", &self.program);
        line("uptime", &format!("{:.1} s", self.uptime));
        line("service uptime", &format!("{:.1} s", self.service_uptime));
        line("sessions", &self.sessions);
        for (name, address, sessions) in &self.listeners {
            line("listener", &format!("{name} on {address}, {sessions} sessions"));
        }
        let upgrades = self
            .upgrades
            .iter()
            .map(|(outcome, count)| format!("{count} {}", outcome.replace('_', " ")));
        line("upgrades", &upgrades.collect::<Vec<_>>().join(", "));
        line("last report", &self.last_report.clone().unwrap_or_else(nobody));
        text
    }

    fn json(&self) -> String {
        let number = |pid: Option<u32>| pid.map_or_else(|| "null".into(), |pid| pid.to_string());
        let listeners = self.listeners.iter().map(|(name, address, sessions)| {
            let (name, address) = (quoted(name), quoted(address));
            format!("{{\"name\":{name},\"address\":{address},\"sessions\":{sessions}}}")
        });
        let listeners = listeners.collect::<Vec<_>>().join(",");
        let upgrades =
            self.upgrades.iter().map(|(outcome, count)| format!("\"{outcome}\":{count}"));
        let upgrades = upgrades.collect::<Vec<_>>().join(",");
        let last = self.last_report.as_deref().map_or_else(|| "null".into(), quoted);
        format!(
            "{{\"state\":{},\"ready\":{},\"generation\":{},\"pid\":{},\"predecessor\":{},\
             \"successor\":{},\"program\":{},\"uptime_seconds\":{:.3},\
             \"service_uptime_seconds\":{:.3},\"sessions\":{},\"listeners\":[{listeners}],\
             \"upgrades\":{{{upgrades}}},\"last_report\":{last}}}\n",
            quoted(self.state.name()),
            self.ready,
            self.generation,
            self.pid,
            number(self.predecessor),
            number(self.successor),
            quoted(&self.program),
            self.uptime,
            self.service_uptime,
            self.sessions,
        )
    }
}

/// A text as JSON has it (RFC 8259).
fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for letter in text.chars() {
        match letter {
            '"' | '\\' => quoted.extend(['\\', letter]),
            // Writing to a string does not fail.
            control if control.is_control() => drop(write!(quoted, "\\u{:04x}", control as u32)),
            _ => quoted.push(letter),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_of_any_bytes_is_one_json_string() {
        let odd = "a\"b\\c\n\u{1b}\u{e9}";
        let read: String = serde_json::from_str(&quoted(odd)).expect("JSON");
        assert_eq!(read, odd);
    }
}
