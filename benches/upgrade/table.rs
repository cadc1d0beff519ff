//! A table: a row for each size, and one for what a unit more costs.

use crate::common::figures::{least, median};
use crate::server::{Seen, Server};

/// A figure of an upgrade.
type Part = fn(&Seen) -> f64;

/// The columns of times; the empty program and the ratio stand behind the first.
const COLUMNS: [(&str, Part); 4] = [
    ("HUP to accepting", |seen| seen.accepting),
    ("nobody accepts", |seen| seen.gap),
    ("old process gone", |seen| seen.gone),
    ("longest turn", |seen| seen.turn),
];

pub(crate) struct Table {
    /// What there are so many of.
    pub(crate) what: &'static str,
    /// The name of the last row, with its unit.
    pub(crate) growth: &'static str,
    /// That unit in a millisecond.
    pub(crate) factor: f64,
}

impl Table {
    pub(crate) fn print(&self, servers: &[Server]) {
        println!();
        let [accepting, gap, gone, turn] = COLUMNS.map(|(name, _)| name.to_owned());
        let (empty, ratio) = ("empty program".to_owned(), "ratio".to_owned());
        line(self.what, &[accepting, empty, ratio, gap, gone, turn]);
        println!("| --- | ---: | ---: | ---: | ---: | ---: | ---: |");
        for server in servers {
            let [accepting, gap, gone, turn] = COLUMNS.map(|(_, part)| cell(server, part));
            let of = |part: Part| median(server.seen.iter().map(part));
            let ratio = format!("{:.2}", of(|seen| seen.accepting) / of(|seen| seen.empty));
            let empty = cell(server, |seen| seen.empty);
            line(&server.size.to_string(), &[accepting, empty, ratio, gap, gone, turn]);
        }
        let [accepting, gap, gone, turn] = COLUMNS.map(|(_, part)| {
            let growth = |middle_or_least: fn(Vec<f64>) -> f64| {
                let of = |server: &Server| middle_or_least(server.seen.iter().map(part).collect());
                let points = servers.iter().map(|server| (server.size as f64, of(server)));
                let hundredths = slope(&points.collect::<Vec<_>>()) * self.factor * 100.0;
                // What is added makes 0 of -0.
                hundredths.round() / 100.0 + 0.0
            };
            format!("{:.2} ({:.2})", growth(median), growth(least))
        });
        line(self.growth, &[accepting, String::new(), String::new(), gap, gone, turn]);
        let blind = median(servers.iter().flat_map(|server| &server.seen).map(|seen| seen.blind));
        println!();
        println!("longest time without a look at the pid file: {blind:.2} ms, median");
    }
}

fn cell(server: &Server, part: Part) -> String {
    let figures = || server.seen.iter().map(part);
    format!("{:.2} ({:.2})", median(figures()), least(figures()))
}

fn line(name: &str, cells: &[String]) {
    let cells: String = cells.iter().map(|cell| format!(" {cell:>17} |")).collect();
    println!("| {name:<23} |{cells}");
}

/// How steep the line is that fits the points best, by least squares. Not a number for fewer than two.
fn slope(points: &[(f64, f64)]) -> f64 {
    let count = points.len() as f64;
    let mean = |part: fn(&(f64, f64)) -> f64| points.iter().map(part).sum::<f64>() / count;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let together: f64 = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum();
    let alone: f64 = points.iter().map(|point| (point.0 - x).powi(2)).sum();
    together / alone
}
