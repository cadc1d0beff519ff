//! The line that shows how the run is getting on.

use std::io::{IsTerminal, Write, stderr};
use std::time::{Duration, Instant};

use crate::load::Load;
use crate::server::Server;
use crate::storm::Storm;

pub(crate) struct ProgressLine {
    style: Style,
    next: Option<Instant>,
}

#[derive(PartialEq)]
enum Style {
    /// Writes over itself.
    Terminal,
    /// Line after line, as in a log.
    Lines,
    Silent,
}

impl ProgressLine {
    pub(crate) fn new(is_wanted: bool) -> ProgressLine {
        let style = match stderr().is_terminal() {
            true => Style::Terminal,
            false if is_wanted => Style::Lines,
            false => Style::Silent,
        };
        ProgressLine { style, next: None }
    }

    pub(crate) fn tick(
        &mut self,
        now: Instant,
        began: Instant,
        load: &Load,
        storm: &Storm,
        server: Option<&Server>,
    ) {
        if self.style == Style::Silent || self.next.is_some_and(|next| next > now) {
            return;
        }
        let pause = if self.style == Style::Terminal { 250 } else { 2000 };
        self.next = Some(now + Duration::from_millis(pause));
        let text = format!(
            "{:6.1} s  upgrades {} asked for, {} seen  short {}  long {}  dropped {}  worst {:.1} ms",
            now.saturating_duration_since(began).as_secs_f64(),
            storm.sent,
            server.map_or(0, |server| server.upgrades),
            load.counts.short_completed,
            load.counts.long_completed,
            load.drops.total(),
            load.latency.worst_us() as f64 / 1000.0,
        );
        // A terminal that is gone is no reason to end the run.
        let _ = match self.style {
            Style::Terminal => write!(stderr(), "\r\x1b[K{text}"),
            Style::Lines | Style::Silent => writeln!(stderr(), "{text}"),
        };
    }

    pub(crate) fn clear(&mut self) {
        if self.style == Style::Terminal {
            let _ = write!(stderr(), "\r\x1b[K");
        }
    }
}
