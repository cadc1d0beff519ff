//! The report for people: a table.

use std::fmt::Display;
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::drops::{Class, DropKind, errno_name};
use crate::report::{Report, ServerReport, median_ms, milliseconds, ratio};

pub(crate) struct Table {
    text: String,
}

impl Table {
    pub(crate) fn new(report: &Report) -> Table {
        let mut table = Table { text: String::new() };
        table.load(report);
        table.latency(report);
        table.dropped(report);
        table.signals(report);
        if let Some(server) = &report.server {
            table.server(server);
        }
        table
    }

    fn load(&mut self, report: &Report) {
        let load = &report.load;
        let seconds = report.elapsed.as_secs_f64();
        let target = report.options.target.to_string();
        let name = report.options.label();
        let name = if name == target { target } else { format!("{name}, {target}") };
        self.row("server", format!("{name}, {}", report.options.protocol.name()));
        self.row("duration", format!("{seconds:.1} s, seed {}", report.options.seed));
        self.row(
            "short connections",
            format!(
                "{} of {} completed, {} a second",
                load.counts.short_completed,
                load.short_due(),
                report.short_per_second()
            ),
        );
        self.row(
            "long connections",
            format!(
                "{}, {} of {} messages completed, {} lost, reopened {} times, {} in vain",
                report.options.long_connections,
                load.counts.long_completed,
                load.long_due(),
                load.counts.long_lost,
                load.counts.long_reopened,
                load.counts.long_reopen_failures
            ),
        );
        if report.options.protocol.may_close_when_idle() {
            let count = load.counts.closed_in_order;
            self.row("closed in order", format!("{count} long connections, by the server"));
        }
        self.row("bytes verified", load.counts.verified_bytes);
        let percent = report.client_cpu_percent();
        self.row("client processor", percent.map_or(none(), |percent| format!("{percent} %")));
    }

    fn latency(&mut self, report: &Report) {
        let latency = &report.load.latency;
        self.heading("latency, µs", &["p50", "p90", "p99", "p99.9", "max"]);
        for (name, histogram) in [
            ("short connections", &latency.short),
            ("long connections", &latency.long),
            ("before any upgrade", &latency.calm),
            ("after an upgrade", &latency.after_signal),
            ("generator late", &latency.lag),
        ] {
            let values = percentiles(histogram).map(|value| value.to_string());
            self.cells(name, &values);
        }
        if report.generator_was_late() {
            self.row(
                "MARKED",
                "the generator itself was late: these latencies say too much; see --help",
            );
        }
    }

    fn dropped(&mut self, report: &Report) {
        let drops = &report.load.drops;
        self.heading("dropped", &["short", "long", "total"]);
        for kind in DropKind::ALL {
            let short = drops.of_class(Class::Short, kind);
            let long = drops.of_class(Class::Long, kind);
            let name = kind.name().replace('_', " ");
            self.cells(&name, &[short, long, short + long].map(|count| count.to_string()));
        }
        if drops.unanswered > 0 {
            let text = "of these were closed after a request, before any of its answer";
            self.row("  unanswered", format!("{} {text}", drops.unanswered));
        }
        for (name, count) in &drops.other_errors {
            self.row(&format!("  other: {name}"), count);
        }
        for (name, count) in &drops.client_errors {
            self.row(&format!("client error {name}"), count);
        }
        for example in &drops.examples {
            let at = milliseconds(example.at.saturating_duration_since(report.began));
            let signal = report.load.latency.windows.last_signal_before(example.at);
            let signal = signal.map_or("before any upgrade".to_string(), |signal| {
                format!(
                    "{:.1} ms after an upgrade was asked for",
                    milliseconds(example.at - signal)
                )
            });
            let errno = example.failure.errno.map_or(String::new(), errno_name);
            self.row(
                &format!("  at {at:.1} ms"),
                format!(
                    "{} {} in {} after {} bytes, {signal} {errno}",
                    example.class.name(),
                    example.failure.kind.name(),
                    example.failure.stage,
                    example.received_bytes,
                ),
            );
        }
    }

    fn signals(&mut self, report: &Report) {
        let storm = &report.storm;
        self.heading("upgrades", &[]);
        self.row("asked for by", &report.options.trigger);
        match report.options.trigger.signal_name() {
            Some(name) => self.row(
                &format!("{name} sent"),
                format!(
                    "{}, {} undelivered, {} retries",
                    storm.sent, storm.undelivered, storm.retries
                ),
            ),
            None => self.commands(report),
        }
        let windows = &report.load.latency.windows;
        let name = format!("worst in {} ms", milliseconds(report.options.window));
        match windows.medians_us() {
            None => self.row(&name, none()),
            Some(medians) => self.row(
                &name,
                format!(
                    "{} µs before, {} µs after, ratio {} (medians over {} upgrades)",
                    medians.0,
                    medians.1,
                    ratio(medians),
                    windows.count()
                ),
            ),
        }
    }

    fn commands(&mut self, report: &Report) {
        let commands = &report.storm.commands;
        self.row(
            "asked for",
            format!(
                "{} times, {} failed, {} did not end",
                report.storm.sent, commands.failed, commands.unfinished
            ),
        );
        for (status, count) in &commands.statuses {
            self.row(&format!("  status {status}"), count);
        }
        self.row("time of each", times(&commands.times));
    }

    fn server(&mut self, report: &ServerReport) {
        let server = &report.server;
        if let Some((upgrades, after)) = report.upgrades().zip(report.upgrades_after_last_signal())
        {
            let text = format!("{upgrades}, {after} started after the last signal");
            self.row("upgrades seen", text);
            self.row("time to ready", times(&server.ready_times));
            self.row("time to old's end", times(&server.end_times));
        }
        let (start, left) = (server.processes_at_start, report.processes_left);
        self.row("processes left", format!("{left}, {start} at the start"));
        let (others, init) = (report.zombies.of_others, report.zombies.of_init);
        self.row("zombies", format!("{others}, and {init} that process 1 has yet to take"));
        let first = server.first.least;
        let last = server.last.least;
        self.heading("serving process", &["first", "last"]);
        let both = [first, last];
        let cells = |value: fn(crate::process::Footprint) -> u64| {
            both.map(|sample| sample.map_or(none(), |sample| value(sample).to_string()))
        };
        self.cells("descriptors", &cells(|sample| sample.descriptors));
        self.cells("anonymous, KiB", &cells(|sample| sample.anonymous_kib));
        self.cells("resident, KiB", &cells(|sample| sample.resident_kib));
    }

    fn row(&mut self, name: &str, value: impl Display) {
        self.text.push_str(format!("{name:<20} {value}").trim_end());
        self.text.push('\n');
    }

    fn heading(&mut self, name: &str, columns: &[&str]) {
        self.text.push('\n');
        self.cells(name, columns);
    }

    fn cells(&mut self, name: &str, cells: &[impl Display]) {
        let cells: String = cells.iter().map(|cell| format!("{cell:>12}")).collect();
        self.row(name, cells);
    }
}

impl Display for Table {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.text)
    }
}

fn percentiles(histogram: &Histogram<u64>) -> [u64; 5] {
    [
        histogram.value_at_quantile(0.5),
        histogram.value_at_quantile(0.9),
        histogram.value_at_quantile(0.99),
        histogram.value_at_quantile(0.999),
        histogram.max(),
    ]
}

fn times(times: &[Duration]) -> String {
    let Some(median) = median_ms(times) else {
        return none();
    };
    let longest = times.iter().max().copied().unwrap_or_default();
    let count = times.len();
    format!("{median:.1} ms median, {:.1} ms longest, of {count}", milliseconds(longest))
}

/// Stands for what could not be measured.
fn none() -> String {
    "-".to_string()
}
