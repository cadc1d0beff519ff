//! A bound on the lines of the log that a client can cause: so many a second, and then one that says how
//! many there were.

use std::fmt;
use std::time::{Duration, Instant};

/// Lets some lines of one kind through in each second, and counts the others. A client that fails again
/// and again costs a few lines a second, whatever it does.
///
/// ```
/// use std::time::Instant;
/// use tablecloth::Throttle;
///
/// let mut refused = Throttle::default();
/// if let Some(more) = refused.line(Instant::now()) {
///     // The first time it is nothing; later it may be " (and 1234 more like it)".
///     let line = format!("no upstream for 127.0.0.1:4711{more}");
///     # assert_eq!(line, "no upstream for 127.0.0.1:4711");
/// }
/// ```
#[derive(Clone, Debug, Default)]
pub struct Throttle {
    /// The second that is running, and how many lines it has had.
    second: Option<(Instant, u32)>,
    left_out: Unsaid,
}

/// How many lines were left out before this one. Its text is empty if none was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unsaid(u64);

/// Lines of one kind in a second.
const LINES: u32 = 10;
const SECOND: Duration = Duration::from_secs(1);

impl Throttle {
    /// Whether a line is to be logged `now`, and how many were not since the last one that was.
    #[must_use]
    pub fn line(&mut self, now: Instant) -> Option<Unsaid> {
        let running =
            self.second.filter(|(began, _)| now.saturating_duration_since(*began) < SECOND);
        let (began, lines) = running.unwrap_or((now, 0));
        self.second = Some((began, lines.saturating_add(1)));
        if lines >= LINES {
            self.left_out.0 += 1;
            return None;
        }
        Some(std::mem::take(&mut self.left_out))
    }
}

impl fmt::Display for Unsaid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            count => write!(f, " (and {count} more like it)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_has_so_many_lines_and_the_next_one_says_how_many_there_were() {
        let mut throttle = Throttle::default();
        let mut now = Instant::now();
        for _ in 0..LINES {
            assert_eq!(throttle.line(now), Some(Unsaid(0)));
        }
        for _ in 0..1234 {
            now += Duration::from_micros(500);
            assert_eq!(throttle.line(now), None);
        }
        now += SECOND;
        let unsaid = throttle.line(now).expect("a line");
        assert_eq!(unsaid.to_string(), " (and 1234 more like it)");
        assert_eq!(throttle.line(now).expect("a line").to_string(), "");
    }
}
