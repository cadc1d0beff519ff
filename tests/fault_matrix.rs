//! Ring three: every step of an upgrade, in both roles, meets every fault. Real processes, real
//! clients; each fault strikes at its step and not about then, because the processes strike
//! themselves.
//!
//! ```text
//! cargo build --examples && cargo test --test fault_matrix -- --ignored --nocapture
//! ```
//!
//! plays it and prints it as it came out. What should come out is in `fault_matrix/expected.rs`;
//! what came out stands in `state-machine.md`, and `UPDATE_DOC=1` writes it there.

#![allow(clippy::expect_used, reason = "a test says what it expects")]

mod document;
mod harness;

#[path = "fault_matrix/cell.rs"]
mod cell;
#[path = "fault_matrix/expected.rs"]
mod expected;
#[path = "fault_matrix/load.rs"]
mod load;

use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use document::Parts;
use expected::{Cell, Expected, Fault, Outcome, PREDECESSOR, Row, SUCCESSOR, VOIDS};
use tablecloth::fault::Point;

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/state-machine.md");

/// Cells at a time; they mostly wait.
const AT_A_TIME: usize = 5;

#[test]
#[ignore = "takes root, to mount a disk that can be full, and a minute: run with --ignored"]
fn every_step_meets_every_fault() {
    if cfg!(not(debug_assertions)) {
        panic!("a release build has no point to be struck at");
    }
    let begun = Instant::now();
    let cells: Vec<_> =
        Cell::all().into_iter().filter(|cell| is_asked_for(cell) && !is_void(cell)).collect();
    let (next, came_out) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    let mut failures = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                while let Some(cell) = cells.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let (text, failure) = judge(*cell);
                    came_out.lock().expect("no panic").insert(cell.to_string(), text);
                    failures.lock().expect("no panic").extend(failure);
                }
            });
        }
    });
    let came_out = came_out.into_inner().expect("no panic");
    let matrix = matrix(&|cell| match cell.expected {
        Expected::Void(_) => "—".into(),
        Expected::All(_) | Expected::Losing(_) | Expected::LosingMoved(_) => {
            came_out.get(&cell.to_string()).cloned().unwrap_or_else(|| "not played".into())
        }
    });
    println!("{}\n\n{} cells in {:.1?}", matrix.join("\n"), cells.len(), begun.elapsed());
    let failures = failures.get_mut().expect("no panic");
    assert!(failures.is_empty(), "{} cells:\n{}", failures.len(), failures.join("\n"));
    if cells.len() == Cell::all().iter().filter(|cell| !is_void(cell)).count() {
        compare_with_the_document(matrix);
    }
}

/// What comes of a cell, and what is wrong with that.
fn judge(cell: Cell) -> (String, Option<String>) {
    match catch_unwind(AssertUnwindSafe(|| cell::play(cell))) {
        Ok(outcome) => {
            let wanted =
                [Expected::All(outcome), Expected::Losing(outcome), Expected::LosingMoved(outcome)];
            match wanted.contains(&cell.expected) {
                true => (cell.expected.to_string(), None),
                false => {
                    let failure = format!("{cell}: {outcome}, and should be {}", cell.expected);
                    (format!("✗ {outcome}"), Some(failure))
                }
            }
        }
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            ("✗".into(), Some(format!("{cell}: {}", text.unwrap_or("a panic"))))
        }
    }
}

/// `CELLS="kill -9,Alone"` plays those with either of the words in their name, for a closer look.
fn is_asked_for(cell: &Cell) -> bool {
    std::env::var("CELLS")
        .map_or(true, |words| words.split(',').any(|word| cell.to_string().contains(word)))
}

fn is_void(cell: &Cell) -> bool {
    matches!(cell.expected, Expected::Void(_))
}

#[test]
fn the_document_shows_the_matrix_that_is_expected() {
    if std::env::var_os("UPDATE_DOC").is_none() {
        compare_with_the_document(matrix(&|cell| cell.expected.to_string()));
    }
}

#[test]
fn every_point_has_its_row() {
    let rows = PREDECESSOR.iter().chain(SUCCESSOR).map(|row| row.point);
    assert_eq!(rows.collect::<Vec<_>>(), Point::ALL);
}

fn compare_with_the_document(matrix: Vec<String>) {
    let document = fs::read_to_string(DOCUMENT).expect("state-machine.md");
    let parts = Parts::from([("fault matrix".into(), matrix)]);
    if std::env::var_os("UPDATE_DOC").is_some() {
        fs::write(DOCUMENT, document::rewrite(&document, &parts)).expect("state-machine.md");
        return;
    }
    let differences = document::compare(&document, &parts);
    assert!(differences.is_empty(), "UPDATE_DOC=1 rewrites it:\n{}", differences.join("\n"));
}

/// Both tables and the words in them, in Markdown.
fn matrix(text: &dyn Fn(&Cell) -> String) -> Vec<String> {
    let mut lines = Vec::new();
    let cells = Cell::all();
    for (who, rows) in [("predecessor", PREDECESSOR), ("successor", SUCCESSOR)] {
        lines.push(format!("Faults of the {who}:"));
        lines.push(String::new());
        let faults: Vec<_> = Fault::ALL.iter().map(ToString::to_string).collect();
        lines.push(format!("| step | at | {} |", faults.join(" | ")));
        lines.push(format!("| --- | --- |{}", " --- |".repeat(faults.len())));
        for Row { step, point, .. } in rows {
            let row = cells.iter().filter(|cell| cell.row.point == *point);
            let texts: Vec<_> = row.map(text).collect();
            lines.push(format!("| {step} | `{point:?}` | {} |", texts.join(" | ")));
        }
        lines.push(String::new());
    }
    let meaning = |outcome: Outcome| format!("- *{outcome}*: {}.", outcome.meaning());
    lines.extend(Outcome::ALL.map(meaning));
    let lost = "connections that died with the process that had accepted them or taken them over";
    lines.push(format!("- †: {lost}."));
    lines.push(format!("- —: the fault means nothing there: {}.", VOIDS.join("; ")));
    lines
}
