//! What the log says of sessions that moved: how long it took, and how long each stood still.

use std::time::{Duration, Instant};

use crate::ledger::{HANDED_OVER, Ledger, STOOD_STILL};
use crate::limits;
use crate::report::Moved;

/// The sessions that this process has handed over to its successor.
pub(super) struct Moves {
    began: Instant,
    /// When the last of them had its answer.
    ended: Instant,
    /// For each packet, how long its sessions stood still, and how many of them moved. There are no
    /// more packets than there were sessions, because who hands over gets no new ones.
    packets: Vec<(Duration, usize)>,
    /// How many could not move in the walk at hand, and why the first of them could not.
    stuck: Option<(usize, String)>,
    /// Whether that was said.
    told: bool,
    /// How many there were when it began, how often one was refused, and how many were cut.
    sessions: usize,
    refused: usize,
    cut: usize,
}

impl Moves {
    pub(super) fn new(began: Instant, sessions: usize) -> Self {
        Self {
            began,
            ended: began,
            packets: Vec::new(),
            stuck: None,
            told: false,
            sessions,
            refused: 0,
            cut: 0,
        }
    }

    /// A packet whose first session was taken out of the loop at `since`, and whose answer is here
    /// `now`: the clock is read for packets and not for sessions, of which that is the longest time.
    pub(super) fn note(&mut self, since: Instant, now: Instant, sessions: usize) {
        if sessions > 0 {
            self.ended = now;
            self.packets.push((now.saturating_duration_since(since), sessions));
        }
    }

    /// A session could not move, and why.
    pub(super) fn note_stuck(&mut self, why: impl FnOnce() -> String) {
        match &mut self.stuck {
            Some((count, _)) => *count += 1,
            None => self.stuck = Some((1, why())),
        }
    }

    /// The walk is over: what is to be said of those that could not move, once for all of them.
    pub(super) fn stuck(&mut self) -> Option<String> {
        let (count, why) = self.stuck.take()?;
        if std::mem::replace(&mut self.told, true) {
            return None;
        }
        Some(format!("{count} sessions cannot move now, and are asked again later: {why}."))
    }

    /// The successor has not taken one.
    pub(super) fn note_refused(&mut self) {
        self.refused += 1;
    }

    /// So many are cut.
    pub(super) fn note_cut(&mut self, sessions: usize) {
        self.cut = sessions;
    }

    /// Counts how long the sessions stood still, and how many of them there were.
    pub(super) fn count_in(&self, ledger: &Ledger) {
        if !ledger.is_shared() {
            return;
        }
        let (name, help) = STOOD_STILL;
        let stood_still = ledger.histogram(name, &[], help, &limits::LEDGER_BOUNDS);
        for (took, sessions) in &self.packets {
            stood_still.observe_many(*took, *sessions as u64);
        }
        let moved: usize = self.packets.iter().map(|(_, sessions)| sessions).sum();
        let (name, help) = HANDED_OVER;
        let stayed = self.sessions.saturating_sub(moved + self.cut);
        for (outcome, count) in
            [("moved", moved), ("refused", self.refused), ("stayed", stayed), ("cut", self.cut)]
        {
            let labels = [("outcome", outcome)];
            ledger.counter(name, &labels, help).add(count as u64);
        }
    }

    /// What came of it. All that did not move, and were not cut, have come to their end here.
    pub(super) fn summary(mut self) -> Moved {
        self.packets.sort_unstable();
        let longest = self.packets.last().map_or(Duration::ZERO, |(stood_still, _)| *stood_still);
        let moved: usize = self.packets.iter().map(|(_, sessions)| sessions).sum();
        let mut so_far = 0;
        let middle = self.packets.iter().find(|(_, sessions)| {
            so_far += sessions;
            2 * so_far >= moved
        });
        let median = middle.map_or(longest, |(stood_still, _)| *stood_still);
        let took = self.ended.saturating_duration_since(self.began);
        let (refused, cut) = (self.refused, self.cut);
        let stayed = self.sessions.saturating_sub(moved + cut);
        Moved { moved, refused, stayed, cut, took, longest, median }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn milliseconds(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    #[test]
    fn nothing_is_said_if_nothing_moved() {
        let start = Instant::now();
        let mut moves = Moves::new(start, 0);
        moves.note(start, start + milliseconds(1), 0);
        assert!(moves.summary().is_nothing());
    }

    #[test]
    fn the_median_is_that_of_the_sessions_and_not_of_the_packets() {
        let start = Instant::now();
        let mut moves = Moves::new(start, 40);
        moves.note(start, start + milliseconds(1), 1);
        moves.note(start, start + milliseconds(2), 1);
        moves.note(start + milliseconds(3), start + milliseconds(8), 32);
        moves.note_refused();
        moves.note_cut(2);
        let line = moves.summary().to_string();
        assert_eq!(
            line,
            "moved 34 sessions in 8.000 ms, each stood still for at most 5.000 ms, median 5.000 ms; \
             1 refused; 4 stayed to their end; 2 cut"
        );
    }
}
