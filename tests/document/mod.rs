//! The parts of a document that are generated, each between two markers.

#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Parts by their names.
pub(crate) type Parts = BTreeMap<String, Vec<String>>;

/// Every line that is in the one and not in the other, or elsewhere in it.
pub(crate) fn compare(document: &str, parts: &Parts) -> Vec<String> {
    let written = parse(document);
    let mut differences = Vec::new();
    for (name, lines) in parts {
        let Some(found) = written.get(name) else {
            differences.push(format!("the document has no part \"{name}\""));
            continue;
        };
        if found != lines {
            let only_here = lines.iter().filter(|line| !found.contains(line));
            let only_there = found.iter().filter(|line| !lines.contains(line));
            differences.push(format!("part \"{name}\" differs:"));
            differences.extend(only_here.map(|line| format!("  code:     {line}")));
            differences.extend(only_there.map(|line| format!("  document: {line}")));
        }
    }
    differences
}

/// The lines of each part, without the empty ones around them.
pub(crate) fn parse(document: &str) -> Parts {
    let mut parts = Parts::new();
    let mut current: Option<String> = None;
    for line in document.lines() {
        if let Some(name) = marker(line, "begin") {
            parts.insert(name.into(), Vec::new());
            current = Some(name.into());
        } else if marker(line, "end").is_some() {
            current = None;
        } else if let Some(lines) = current.as_ref().and_then(|name| parts.get_mut(name)) {
            lines.push(line.into());
        }
    }
    for lines in parts.values_mut() {
        let empty = |line: Option<&String>| line.is_some_and(String::is_empty);
        while empty(lines.first()) {
            lines.remove(0);
        }
        while empty(lines.last()) {
            lines.pop();
        }
    }
    parts
}

/// The document with these parts; the others stay as they are.
pub(crate) fn rewrite(document: &str, parts: &Parts) -> String {
    let mut out = String::new();
    let mut skipping = false;
    for line in document.lines() {
        if marker(line, "end").is_some() {
            skipping = false;
        }
        if !skipping {
            writeln!(out, "{line}").expect("a string takes it");
        }
        if let Some(lines) = marker(line, "begin").and_then(|name| parts.get(name)) {
            writeln!(out, "\n{}\n", lines.join("\n")).expect("a string takes it");
            skipping = true;
        }
    }
    out
}

fn marker<'a>(line: &'a str, what: &str) -> Option<&'a str> {
    line.strip_prefix(&format!("<!-- {what}: "))?.strip_suffix(" -->")
}
