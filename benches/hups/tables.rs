//! The tables: sums, medians and minima of the rounds, and ratios to ours.

use crate::common::figures::{least, median};
use crate::peer::Group;
use crate::storm::{Latency, Load, Outcome};

/// One peer: its storms, or how to get it.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) outcomes: Result<Vec<Outcome>, String>,
}

pub(crate) fn print(group: Group, load: Load, rows: &[Row]) {
    println!("\n{}: {}\n", group.name(), load.words());
    line(
        "upgrades",
        ["asked", "done", "last", "dropped", "of", "to pid, ms", "least", "ratio", "most", "left"],
    );
    let ours = rows.first().and_then(|row| row.outcomes.as_ref().ok());
    let our_time = ours.map_or(f64::NAN, |outcomes| times(outcomes).0);
    for Row { name, outcomes } in rows {
        match outcomes {
            Ok(outcomes) => upgrades(name, outcomes, our_time),
            Err(how) => println!("{name:<14} missing: {how}"),
        }
    }
    if load == Load::Burst {
        // No request is far enough from the next upgrade.
        return;
    }
    println!();
    println!("{:<14}{:^40}{:^60}", "", "in calm", "within 50 ms after it was asked");
    let percentiles = ["p50", "p99", "p99.9", "worst"];
    let mut head = [""; 11];
    head[..4].copy_from_slice(&percentiles);
    head[4..8].copy_from_slice(&percentiles);
    head[8..].copy_from_slice(&["least p99", "ratio", "own p99"]);
    line("latency, µs", head);
    let our_p99 = ours.map_or(f64::NAN, |outcomes| middle(outcomes, after, |latency| latency.p99));
    for Row { name, outcomes } in rows {
        if let Ok(outcomes) = outcomes {
            latencies(name, outcomes, our_p99);
        }
    }
}

pub(crate) fn legend() {
    println!(
        "\nasked, done, dropped, of: sums of the rounds; of: short connections and messages that were \
         due\nlast: rounds in which an upgrade has started after the last was asked for\nto pid: from asking to the new process in the pid file, median of the rounds' medians; \
         a command's own time counts\nleast: of all upgrades; latency: medians of the rounds; \
         ratio: to the first row\nmost: processes at a time; left: half a second after the clients \
         have left; the most of the rounds; a master and a service manager count\nown p99: how late \
         the storm itself has sent, which is in these latencies\ngone: in a round nobody served any \
         more"
    );
}

fn upgrades(name: &str, outcomes: &[Outcome], our_time: f64) {
    let sum = |figure: fn(&Outcome) -> u64| outcomes.iter().map(figure).sum::<u64>().to_string();
    let (middle, least) = times(outcomes);
    let most = |figure: fn(&Outcome) -> usize| outcomes.iter().map(figure).max().unwrap_or(0);
    let gone = if outcomes.iter().any(|outcome| outcome.is_gone) { " gone" } else { "" };
    let known = || outcomes.iter().filter_map(|outcome| outcome.after_last);
    let last = match known().count() {
        0 => "-".to_owned(),
        count => format!("{} of {count}", known().filter(|is_so| *is_so).count()),
    };
    let cells = [
        sum(|outcome| outcome.asked),
        sum(|outcome| outcome.carried_out),
        last,
        sum(|outcome| outcome.dropped),
        sum(|outcome| outcome.due),
        figure(middle, 2),
        figure(least, 2),
        figure(middle / our_time, 2),
        most(|outcome| outcome.most).to_string(),
        most(|outcome| outcome.left).to_string() + gone,
    ];
    line(name, cells.each_ref().map(String::as_str));
}

/// From asking to the pid file: the median and the least, in milliseconds.
fn times(outcomes: &[Outcome]) -> (f64, f64) {
    let times = || outcomes.iter().filter_map(|outcome| outcome.to_pid_ms);
    (median(times().map(|(median, _)| median)), least(times().map(|(_, least)| least)))
}

fn latencies(name: &str, outcomes: &[Outcome], our_p99: f64) {
    let figures: [fn(Latency) -> f64; 4] = [
        |latency| latency.p50,
        |latency| latency.p99,
        |latency| latency.p99_9,
        |latency| latency.worst,
    ];
    let calm = figures.map(|part| figure(middle(outcomes, calm, part), 0));
    let later = figures.map(|part| figure(middle(outcomes, after, part), 0));
    let p99 = middle(outcomes, after, |latency| latency.p99);
    let least = least(outcomes.iter().filter_map(after).map(|latency| latency.p99));
    let own = median(outcomes.iter().filter_map(|outcome| outcome.late_p99_us));
    let last = [figure(least, 0), figure(p99 / our_p99, 2), figure(own, 0)];
    let cells: Vec<&str> = calm.iter().chain(&later).chain(&last).map(String::as_str).collect();
    if let Ok(cells) = <[&str; 11]>::try_from(cells) {
        line(name, cells);
    }
}

fn calm(outcome: &Outcome) -> Option<Latency> {
    outcome.calm
}

fn after(outcome: &Outcome) -> Option<Latency> {
    outcome.after
}

fn middle(
    outcomes: &[Outcome],
    when: fn(&Outcome) -> Option<Latency>,
    part: fn(Latency) -> f64,
) -> f64 {
    median(outcomes.iter().filter_map(when).map(part))
}

fn figure(value: f64, decimals: usize) -> String {
    if value.is_nan() { "-".to_owned() } else { format!("{value:.decimals$}") }
}

/// Narrower than the tables of other benches: there are many columns.
fn line<const N: usize>(name: &str, cells: [&str; N]) {
    let width = if N > 10 { 10 } else { 11 };
    let cells: String = cells.iter().map(|cell| format!("{cell:>width$}")).collect();
    println!("{}", format!("{name:<14}{cells}").trim_end());
}
