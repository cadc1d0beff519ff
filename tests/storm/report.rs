//! What a storm's report says: for the storm's own tests, and for those of its clients that speak TLS.

use std::process::Output;

use serde_json::Value;

/// The report of a run with `--json`, and the exit status.
pub(crate) fn report_of(output: &Output) -> (Value, Option<i32>) {
    let error = String::from_utf8_lossy(&output.stderr);
    let report = serde_json::from_slice(&output.stdout);
    (report.unwrap_or_else(|_| panic!("no report: {error}")), output.status.code())
}

pub(crate) fn number(report: &Value, path: &[&str]) -> u64 {
    let found = path.iter().try_fold(report, |value, key| value.get(key));
    found.and_then(Value::as_u64).unwrap_or_else(|| panic!("{path:?} in {report:#}"))
}

/// There was load of both kinds, and nothing was dropped.
pub(crate) fn assert_in_order(report: &Value, status: Option<i32>) {
    assert_eq!(status, Some(0), "{report:#}");
    assert_eq!(report["end"], "complete");
    assert_eq!(number(report, &["dropped", "total"]), 0);
    assert!(number(report, &["short_connections_completed"]) > 0);
    assert!(number(report, &["long_messages_completed"]) > 0);
}
