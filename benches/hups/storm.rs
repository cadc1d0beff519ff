//! The storm: its loads, its times, and what its report says.

use std::process::Output;

use serde_json::Value;

/// Upgrades asked for in a burst.
const BURST: u32 = 100;

/// What the clients do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Load {
    Short,
    Long,
    Both,
    /// Short ones, with upgrades asked for faster than any of them is carried out.
    Burst,
}

impl Load {
    pub(crate) const ALL: [Load; 4] = [Load::Short, Load::Long, Load::Both, Load::Burst];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Load::Short => "short",
            Load::Long => "long",
            Load::Both => "both",
            Load::Burst => "burst",
        }
    }

    pub(crate) fn words(self) -> &'static str {
        match self {
            Load::Short => "1000 short connections a second",
            Load::Long => "50 long-lived clients, 500 messages a second",
            Load::Burst => "1000 short connections a second, upgrades asked for 1 to 5 ms apart",
            Load::Both => {
                "500 short connections a second and 50 long-lived clients, 500 messages a second"
            }
        }
    }

    pub(crate) fn flags(self) -> [&'static str; 3] {
        match self {
            Load::Short | Load::Burst => ["--short-rate=1000", "--long-conns=0", "--long-rate=0"],
            Load::Long => ["--short-rate=0", "--long-conns=50", "--long-rate=500"],
            Load::Both => ["--short-rate=500", "--long-conns=50", "--long-rate=500"],
        }
    }
}

/// How long it all takes.
#[derive(Clone, Copy)]
pub(crate) struct Times {
    calm_seconds: f64,
    hups: u32,
    interval_ms: u32,
    settle_ms: u32,
    max_seconds: u32,
}

impl Times {
    pub(crate) const FULL: Times =
        Times { calm_seconds: 1.0, hups: 10, interval_ms: 200, settle_ms: 500, max_seconds: 5 };
    pub(crate) const QUICK: Times =
        Times { calm_seconds: 0.5, hups: 4, interval_ms: 200, settle_ms: 300, max_seconds: 2 };

    pub(crate) fn words(self) -> String {
        let Times { calm_seconds, hups, interval_ms, max_seconds, .. } = self;
        format!(
            "{calm_seconds} s of calm, then {hups} upgrades asked for, {interval_ms} ms apart and \
             no earlier than the command of the one before has ended; cut off after {max_seconds} s"
        )
    }

    pub(crate) fn flags(self, load: Load) -> [String; 6] {
        let Times { calm_seconds, hups, interval_ms, settle_ms, max_seconds } = self;
        let (hups, interval) = match load {
            Load::Short | Load::Long | Load::Both => (hups, interval_ms.to_string()),
            Load::Burst => (BURST, "1-5".to_owned()),
        };
        [
            format!("--calm-seconds={calm_seconds}"),
            format!("--hups={hups}"),
            format!("--interval-ms={interval}"),
            format!("--settle-ms={settle_ms}"),
            format!("--max-seconds={max_seconds}"),
            // Whoever is not answered for so long counts as dropped.
            "--timeout-ms=2000".to_owned(),
        ]
    }
}

/// Percentiles, in microseconds. `None` if there was nothing to measure.
#[derive(Clone, Copy)]
pub(crate) struct Latency {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) p99_9: f64,
    pub(crate) worst: f64,
}

/// One storm.
pub(crate) struct Outcome {
    pub(crate) asked: u64,
    pub(crate) carried_out: u64,
    /// One has started after the last was asked for. `None` where the pid file does not tell.
    pub(crate) after_last: Option<bool>,
    pub(crate) dropped: u64,
    pub(crate) due: u64,
    pub(crate) calm: Option<Latency>,
    pub(crate) after: Option<Latency>,
    /// From asking to the new process in the pid file: median and least of the storm.
    pub(crate) to_pid_ms: Option<(f64, f64)>,
    /// Of its processes: the most at a time, and those after the end.
    pub(crate) most: usize,
    pub(crate) left: usize,
    /// How late the storm itself was in sending: the 99th percentile.
    pub(crate) late_p99_us: Option<f64>,
    /// The server ended without a successor.
    pub(crate) is_gone: bool,
}

impl Outcome {
    /// What the storm has printed, and what was seen beside it. `logged` is how many upgrades the
    /// server's own log tells of.
    pub(crate) fn read(
        output: &Output,
        logged: Option<u64>,
        most: usize,
        left: usize,
    ) -> Result<Outcome, String> {
        let report: Value = serde_json::from_slice(&output.stdout).map_err(|error| {
            format!("no report ({error}): {}", String::from_utf8_lossy(&output.stderr).trim())
        })?;
        let number = |name: &str| report[name].as_u64();
        let times = &report["time_to_ready_ms"];
        Ok(Outcome {
            asked: number("signals_sent").unwrap_or(0),
            carried_out: logged.or(number("upgrades_seen")).unwrap_or(0),
            after_last: number("upgrades_started_after_last_signal").map(|count| count > 0),
            dropped: report["dropped"]["total"].as_u64().unwrap_or(0),
            due: number("short_connections_due").unwrap_or(0)
                + number("long_messages_due").unwrap_or(0),
            calm: latency(&report["calm_latency_us"]),
            after: latency(&report["after_upgrade_latency_us"]),
            to_pid_ms: times["median"].as_f64().zip(times["min"].as_f64()),
            most,
            left,
            late_p99_us: report["generator_late"]["p99_us"].as_f64(),
            is_gone: report["end"] == "server_gone",
        })
    }
}

fn latency(value: &Value) -> Option<Latency> {
    let figure = |name: &str| value[name].as_f64();
    Some(Latency {
        p50: figure("p50")?,
        p99: figure("p99")?,
        p99_9: figure("p99_9")?,
        worst: figure("max")?,
    })
}
