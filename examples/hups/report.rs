//! What a run found out, as one JSON object and as the reasons for exit status 1.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};

use crate::drops::{Class, DropKind, errno_name};
use crate::latency::median;
use crate::load::Load;
use crate::options::Options;
use crate::process::{Footprint, Zombies};
use crate::server::Server;
use crate::storm::Storm;

/// The generator was late if one request in a hundred was sent later than this after it was due,
/// or later than this part of the latency that was measured.
pub(crate) const LATE_US: u64 = 1000;
const LATE_PART: u64 = 10;

/// Everything a run leaves behind.
pub(crate) struct Report {
    pub(crate) end: End,
    pub(crate) options: Options,
    pub(crate) load: Load,
    pub(crate) storm: Storm,
    pub(crate) server: Option<ServerReport>,
    pub(crate) began: Instant,
    pub(crate) elapsed: Duration,
    pub(crate) processor_time: Option<Duration>,
}

/// How a run came to its end.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum End {
    Complete,
    /// The serving process ended without a successor.
    ServerGone,
    /// Cut off by `--max-seconds`.
    MaxSeconds,
}

pub(crate) struct ServerReport {
    pub(crate) server: Server,
    pub(crate) processes_left: usize,
    pub(crate) zombies: Zombies,
}

impl ServerReport {
    pub(crate) fn new(mut server: Server) -> ServerReport {
        let processes_left = server.processes_left();
        let zombies = server.zombies();
        ServerReport { server, processes_left, zombies }
    }

    /// None without a pid file: a process that lasts does not show when it has upgraded.
    pub(crate) fn upgrades(&self) -> Option<u32> {
        self.server.has_pid_file().then_some(self.server.upgrades)
    }

    pub(crate) fn upgrades_after_last_signal(&self) -> Option<u32> {
        self.server.has_pid_file().then_some(self.server.upgrades_after_last_signal)
    }
}

impl Report {
    /// Why the exit status is to be 1; empty if all went well.
    pub(crate) fn failures(&self) -> Vec<String> {
        let mut failures = Vec::new();
        let drops = &self.load.drops;
        if drops.total() > 0 {
            let kinds = DropKind::ALL.iter().map(|kind| (kind.name(), self.dropped(*kind)));
            let kinds = kinds.filter(|(_, count)| *count > 0);
            let kinds: Vec<_> = kinds.map(|(name, count)| format!("{name} {count}")).collect();
            failures.push(format!("{} dropped: {}", drops.total(), kinds.join(", ")));
        }
        for (name, count) in &drops.client_errors {
            failures.push(format!(
                "the client itself failed {count} times with {name}: this load is beyond its limits"
            ));
        }
        if self.storm.undelivered > 0 {
            let count = self.storm.undelivered;
            failures.push(format!("{count} signals found no process to go to"));
        }
        let commands = &self.storm.commands;
        if commands.failed > 0 {
            let first = commands.first_failure.as_deref().unwrap_or("for an unknown reason");
            failures.push(format!(
                "{} of {} upgrades failed, by {}; the first: {first}",
                commands.failed, self.storm.sent, self.options.trigger
            ));
        }
        if commands.unfinished > 0 {
            failures.push(format!("{} had not ended", self.options.trigger));
        }
        match self.end {
            End::Complete => {}
            End::ServerGone => failures.push("the server ended without a successor".to_string()),
            End::MaxSeconds => failures.push(format!(
                "the run was cut off after --max-seconds {}: {}",
                self.options.max_run.as_secs(),
                if self.storm.sent < self.options.hups {
                    "upgrades were still to be asked for"
                } else {
                    "the server had not become quiet"
                }
            )),
        }
        failures
    }

    pub(crate) fn dropped(&self, kind: DropKind) -> u64 {
        let drops = &self.load.drops;
        drops.of_class(Class::Short, kind) + drops.of_class(Class::Long, kind)
    }

    /// Whether this program was itself so late that its figures say too much of the server.
    pub(crate) fn generator_was_late(&self) -> bool {
        let p99 = |histogram: &Histogram<u64>| histogram.value_at_quantile(0.99);
        let latency = &self.load.latency;
        let late = p99(&latency.lag);
        let measured = [&latency.short, &latency.long];
        let mut measured = measured.into_iter().filter(|histogram| !histogram.is_empty());
        late > LATE_US || measured.any(|histogram| late * LATE_PART > p99(histogram))
    }

    /// Processor time of the client, of one core.
    pub(crate) fn client_cpu_percent(&self) -> Option<f64> {
        let busy = self.processor_time?.as_secs_f64();
        Some(round(busy / self.elapsed.as_secs_f64() * 100.0))
    }

    pub(crate) fn short_per_second(&self) -> f64 {
        round(self.load.short_due() as f64 / self.load_seconds())
    }

    pub(crate) fn to_json(&self) -> Value {
        let mut report = object(json!({
            "addr": self.options.target.to_string(),
            "name": self.options.label(),
            "protocol": self.options.protocol.name(),
            "tls": self.options.tls.is_some(),
            "seed": self.options.seed,
            "end": match self.end {
                End::Complete => "complete",
                End::ServerGone => "server_gone",
                End::MaxSeconds => "max_seconds",
            },
            "failures": self.failures(),
            "duration_ms": milliseconds(self.elapsed),
        }));
        report.extend(self.dropped_json());
        report.extend(self.load_json());
        report.extend(self.generator_json());
        report.extend(self.upgrades_json());
        report.extend(self.commands_json());
        report.extend(server_json(self.server.as_ref()));
        report.into()
    }

    fn dropped_json(&self) -> Map<String, Value> {
        let drops = &self.load.drops;
        object(json!({
            "dropped": self.drops_json(|kind| self.dropped(kind)),
            "dropped_short": self.drops_json(|kind| drops.of_class(Class::Short, kind)),
            "dropped_long": self.drops_json(|kind| drops.of_class(Class::Long, kind)),
            "dropped_unanswered": drops.unanswered,
            "other_errors": drops.other_errors,
            "client_errors": drops.client_errors,
            "client_errors_total": drops.client_error_total(),
            "first_drops": self.first_drops(),
        }))
    }

    fn load_json(&self) -> Map<String, Value> {
        let load = &self.load;
        object(json!({
            "bytes_verified": load.counts.verified_bytes,
            "short_connections_due": load.short_due(),
            "short_connections_completed": load.counts.short_completed,
            "short_connections_per_second": self.short_per_second(),
            "short_latency_us": latency_json(&load.latency.short),
            "long_connections": self.options.long_connections,
            "closed_in_order": load.counts.closed_in_order,
            "long_connections_reopened": load.counts.long_reopened,
            "long_connections_reopen_failures": load.counts.long_reopen_failures,
            "long_messages_due": load.long_due(),
            "long_messages_completed": load.counts.long_completed,
            "long_messages_lost": load.counts.long_lost,
            "long_latency_us": latency_json(&load.latency.long),
            "calm_latency_us": latency_json(&load.latency.calm),
            "after_upgrade_latency_us": latency_json(&load.latency.after_signal),
        }))
    }

    /// What is to be known of this program itself.
    fn generator_json(&self) -> Map<String, Value> {
        let late = &self.load.latency.lag;
        object(json!({
            "client_lag_us": latency_json(late),
            "client_cpu_percent": self.client_cpu_percent(),
            "generator_late": {
                "p50_us": late.value_at_quantile(0.5),
                "p99_us": late.value_at_quantile(0.99),
                "max_us": late.max(),
            },
            "generator_was_late": self.generator_was_late(),
        }))
    }

    fn upgrades_json(&self) -> Map<String, Value> {
        let windows = &self.load.latency.windows;
        let medians = windows.medians_us();
        object(json!({
            "upgrade_by": self.options.trigger.name(),
            "signal": self.options.trigger.signal_name(),
            "signals_sent": self.storm.sent,
            "signals_undelivered": self.storm.undelivered,
            "signal_retries": self.storm.retries,
            "window_ms": milliseconds(self.options.window),
            "windows": windows.count(),
            "worst_before_signal_us": medians.map(|(before, _)| before),
            "worst_after_signal_us": medians.map(|(_, after)| after),
            "worst_after_to_before_ratio": medians.map(ratio),
        }))
    }

    /// What became of the upgrades whose end is told. Null if a signal asked for them.
    fn commands_json(&self) -> Map<String, Value> {
        let commands = self.options.trigger.has_outcome().then_some(&self.storm.commands);
        object(json!({
            "commands_ended": commands.map(|commands| commands.times.len()),
            "commands_failed": commands.map(|commands| commands.failed),
            "commands_unfinished": commands.map(|commands| commands.unfinished),
            "command_statuses": commands.map(|commands| &commands.statuses),
            "command_ms": commands.map(|commands| times_json(&commands.times)),
        }))
    }

    fn drops_json(&self, count: impl Fn(DropKind) -> u64) -> Value {
        let mut object = Map::new();
        for kind in DropKind::ALL {
            object.insert(kind.name().to_string(), count(kind).into());
        }
        let total: u64 = DropKind::ALL.into_iter().map(count).sum();
        object.insert("total".to_string(), total.into());
        object.into()
    }

    fn first_drops(&self) -> Vec<Value> {
        let examples = self.load.drops.examples.iter();
        let describe = examples.map(|example| {
            let signal = self.load.latency.windows.last_signal_before(example.at);
            json!({
                "at_ms": milliseconds(example.at.saturating_duration_since(self.began)),
                "after_signal_ms": signal.map(|signal| milliseconds(example.at - signal)),
                "connection": example.class.name(),
                "kind": example.failure.kind.name(),
                "stage": example.failure.stage,
                "errno": example.failure.errno.map(errno_name),
                "received_bytes": example.received_bytes,
            })
        });
        describe.collect()
    }

    /// How long requests became due.
    fn load_seconds(&self) -> f64 {
        self.load.stopped_at().map_or(self.elapsed, |at| at - self.began).as_secs_f64()
    }
}

/// All null if no process is known.
fn server_json(report: Option<&ServerReport>) -> Map<String, Value> {
    let server = report.map(|report| &report.server);
    let first = server.and_then(|server| server.first.least);
    let last = server.and_then(|server| server.last.least);
    let footprint = |sample: Option<Footprint>, value: fn(Footprint) -> u64| sample.map(value);
    object(json!({
        "server_pid": server.map(|server| server.serving.as_raw_pid()),
        "upgrades_seen": report.and_then(ServerReport::upgrades),
        "upgrades_started_after_last_signal":
            report.and_then(ServerReport::upgrades_after_last_signal),
        "time_to_ready_ms": server.map(|server| times_json(&server.ready_times)),
        "time_to_old_end_ms": server.map(|server| times_json(&server.end_times)),
        "processes_at_start": server.map(|server| server.processes_at_start),
        "processes_left": report.map(|report| report.processes_left),
        "zombies": report.map(|report| report.zombies.of_others),
        "zombies_of_init": report.map(|report| report.zombies.of_init),
        "descriptors_first": footprint(first, |sample| sample.descriptors),
        "descriptors_last": footprint(last, |sample| sample.descriptors),
        "memory_anonymous_first_kib": footprint(first, |sample| sample.anonymous_kib),
        "memory_anonymous_last_kib": footprint(last, |sample| sample.anonymous_kib),
        "memory_resident_first_kib": footprint(first, |sample| sample.resident_kib),
        "memory_resident_last_kib": footprint(last, |sample| sample.resident_kib),
    }))
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(object) => object,
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            Map::new()
        }
    }
}

fn latency_json(histogram: &Histogram<u64>) -> Value {
    if histogram.is_empty() {
        return Value::Null;
    }
    json!({
        "count": histogram.len(),
        "p50": histogram.value_at_quantile(0.5),
        "p90": histogram.value_at_quantile(0.9),
        "p99": histogram.value_at_quantile(0.99),
        "p99_9": histogram.value_at_quantile(0.999),
        "max": histogram.max(),
    })
}

/// Measured only from the first signal that a process got.
fn times_json(times: &[Duration]) -> Value {
    json!({
        "count": times.len(),
        "min": times.iter().min().copied().map(milliseconds),
        "median": median_ms(times),
        "max": times.iter().max().copied().map(milliseconds),
    })
}

pub(crate) fn median_ms(times: &[Duration]) -> Option<f64> {
    let micros = times.iter().map(|time| time.as_micros() as u64).collect();
    median(micros).map(|micros| micros as f64 / 1000.0)
}

pub(crate) fn ratio((before, after): (u64, u64)) -> f64 {
    round(after as f64 / before.max(1) as f64)
}

pub(crate) fn milliseconds(duration: Duration) -> f64 {
    (duration.as_micros() as f64) / 1000.0
}

fn round(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}
