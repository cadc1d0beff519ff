//! The house stands as it is drawn: imports point down, and the wings do not look into each other.

#![allow(clippy::expect_used, reason = "a test says what it expects")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// What stands on one floor, from the ground up. Nothing imports what stands above it.
const FLOORS: [&[&str]; 4] = [
    &["address", "error", "fault", "limits", "machine", "post", "throttle", "timers", "wire"],
    &[
        "control",
        "io_event",
        "kinship",
        "pollable",
        "program",
        "room",
        "shared",
        "signals",
        "socket",
        "socket_file",
        "stream",
        "sys",
        "token",
        "user",
    ],
    &[
        "admin",
        "config",
        "handed_over",
        "handler",
        "ledger",
        "relay",
        "remote",
        "report",
        "standing",
    ],
    &["init", "server", "upgrader"],
];

fn sources() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut places = vec![PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/src"))];
    while let Some(place) = places.pop() {
        for entry in fs::read_dir(place).expect("a directory") {
            let path = entry.expect("an entry").path();
            match path.is_dir() {
                true => places.push(path),
                false => found.push(path),
            }
        }
    }
    found
}

/// The module of the first floor that a file belongs to.
fn module_of(path: &Path) -> String {
    let inside = path.strip_prefix(concat!(env!("CARGO_MANIFEST_DIR"), "/src")).expect("inside");
    let first = inside.components().next().expect("a name").as_os_str();
    first.to_str().expect("text").trim_end_matches(".rs").into()
}

/// The paths that a file's code names in this crate, without its tests.
fn imports_of(path: &Path) -> Vec<Vec<String>> {
    let text = fs::read_to_string(path).expect("text");
    let code = text.split("#[cfg(test)]\nmod tests {").next().expect("a part");
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    let code: String = lines.collect::<Vec<_>>().join("\n");
    let paths = code.split("crate::").skip(1);
    paths
        .map(|rest| {
            let end =
                rest.find(|letter: char| !(letter.is_alphanumeric() || "_:".contains(letter)));
            let path = &rest[..end.unwrap_or(rest.len())];
            path.split("::").filter(|part| !part.is_empty()).map(str::to_owned).collect()
        })
        .collect()
}

fn floor_of(module: &str) -> Option<usize> {
    FLOORS.iter().position(|floor| floor.contains(&module))
}

#[test]
fn imports_point_down() {
    let mut wrong = BTreeMap::new();
    for path in sources() {
        let module = module_of(&path);
        if module == "lib" || module == "coming_from" || module == "upgrade.svg" {
            continue;
        }
        let own = floor_of(&module).unwrap_or_else(|| panic!("{module} stands on no floor"));
        for import in imports_of(&path) {
            let [first, ..] = &import[..] else { continue };
            let Some(floor) = floor_of(first) else { continue };
            if floor > own {
                wrong.insert(format!("{module} imports {first}"), path.clone());
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The upgrader knows nothing of the server; the server knows what `upgrader.rs` shows, and nothing inside. The init
/// knows neither, and nobody knows it.
#[test]
fn the_wings_do_not_look_into_each_other() {
    for path in sources() {
        let module = module_of(&path);
        for import in imports_of(&path) {
            let import: Vec<_> = import.iter().map(String::as_str).collect();
            match (&*module, &import[..]) {
                ("upgrader", ["server" | "handler", ..])
                | ("init", ["server" | "handler" | "upgrader" | "config", ..])
                | ("server" | "upgrader", ["init", ..]) => {
                    panic!("{} imports {import:?}", path.display());
                }
                ("server", ["upgrader", inside, ..]) => {
                    let is_module = inside.starts_with(char::is_lowercase);
                    assert!(!is_module, "{} imports {import:?}", path.display());
                }
                _ => {}
            }
        }
    }
}

#[test]
fn no_struct_has_more_than_fifteen_fields() {
    for path in sources() {
        let text = fs::read_to_string(&path).expect("text");
        let mut open: Option<(String, usize)> = None;
        for line in text.lines() {
            let words: Vec<_> = line.split_whitespace().collect();
            let is_struct = words.contains(&"struct") && line.ends_with('{');
            if is_struct && !line.starts_with(' ') && !line.starts_with("//") {
                open = Some((line.into(), 0));
            } else if line == "}" {
                if let Some((name, fields)) = open.take() {
                    assert!(fields <= 15, "{}: {name} has {fields} fields", path.display());
                }
            } else if let Some((_, fields)) = &mut open {
                let is_field = line.starts_with("    ")
                    && !line.starts_with("     ")
                    && !line.trim_start().starts_with(['/', '#'])
                    && line.contains(": ");
                *fields += usize::from(is_field);
            }
        }
    }
}
