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

/// A file's code, without its tests and comments.
fn code_of(path: &Path) -> String {
    let text = fs::read_to_string(path).expect("text");
    let code = text.split("#[cfg(test)]\nmod tests {").next().expect("a part");
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.collect::<Vec<_>>().join("\n")
}

/// The module that a file is, from the crate's root.
fn place_of(path: &Path) -> Vec<String> {
    let inside = path.strip_prefix(concat!(env!("CARGO_MANIFEST_DIR"), "/src")).expect("inside");
    let parts = inside.components().map(|part| part.as_os_str().to_str().expect("text"));
    parts.map(|part| part.trim_end_matches(".rs").to_owned()).collect()
}

/// The paths that code in that module names in this crate, each from the root. What the root shows of a module
/// is that module's.
fn imports(code: &str, place: &[String], root: &BTreeMap<String, String>) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    let is_name = |letter: char| letter.is_alphanumeric() || letter == '_';
    for (start, _) in code.match_indices("crate::").chain(code.match_indices("super::")) {
        // Not the end of a longer word, and not a `super` behind another one.
        if code[..start].ends_with(|letter: char| is_name(letter) || letter == ':') {
            continue;
        }
        let (mut base, mut rest) = (Vec::new(), &code[start..]);
        if let Some(behind) = rest.strip_prefix("crate::") {
            rest = behind;
        } else {
            base = place.to_vec();
            while let Some(behind) = rest.strip_prefix("super::") {
                base.pop();
                rest = behind;
            }
        }
        expand(rest, &base, &mut found);
    }
    for path in &mut found {
        let first = path.first().cloned().unwrap_or_default();
        if let Some(module) = root.get(&first) {
            path.insert(0, module.clone());
        }
    }
    found
}

/// Follows a path, and every branch of a `{...}` in it. Answers what stands behind.
fn expand<'a>(text: &'a str, base: &[String], found: &mut Vec<Vec<String>>) -> &'a str {
    let text = text.trim_start();
    if let Some(mut rest) = text.strip_prefix('{') {
        loop {
            rest = rest.trim_start().trim_start_matches(',').trim_start();
            if let Some(behind) = rest.strip_prefix('}') {
                return behind;
            }
            let before = rest.len();
            rest = expand(rest, base, found);
            assert!(rest.len() < before, "not read: {rest:.80}");
        }
    }
    let end = text.find(|letter: char| !(letter.is_alphanumeric() || "_*".contains(letter)));
    let (name, rest) = text.split_at(end.unwrap_or(text.len()));
    let mut path = base.to_vec();
    if name != "self" && !name.is_empty() {
        path.push(name.to_owned());
    }
    if let Some(behind) = rest.strip_prefix("::") {
        return expand(behind, &path, found);
    }
    found.push(path);
    match rest.trim_start().strip_prefix("as ") {
        Some(renamed) => {
            renamed.trim_start_matches(|letter: char| letter.is_alphanumeric() || letter == '_')
        }
        None => rest,
    }
}

/// What the root shows by a name of its own, and whose it is.
fn shown_by_the_root() -> BTreeMap<String, String> {
    let code = code_of(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src/lib.rs")));
    let mut shown = BTreeMap::new();
    for line in code.split("pub use ").skip(1) {
        let mut paths = Vec::new();
        expand(line, &[], &mut paths);
        for path in paths {
            if let [module, .., name] = &path[..] {
                shown.insert(name.clone(), module.clone());
            }
        }
    }
    shown
}

fn imports_of(path: &Path) -> Vec<Vec<String>> {
    imports(&code_of(path), &place_of(path), &shown_by_the_root())
}

#[test]
fn every_way_to_write_an_import_is_seen() {
    let place = ["upgrader", "pid_file", "holding"].map(str::to_owned);
    let root = BTreeMap::from([("Handler".to_owned(), "handler".to_owned())]);
    for (code, expected) in [
        ("use crate::server::Wing;", vec!["server::Wing"]),
        ("use crate::{server::Wing, limits};", vec!["server::Wing", "limits"]),
        (
            "use crate::server::{\n    self, crew::{Crew, Desk as Table},\n    *};",
            vec!["server", "server::crew::Crew", "server::crew::Desk", "server::*"],
        ),
        ("fn f(it: &crate::handler::Handler) {}", vec!["handler::Handler"]),
        ("use crate::Handler;", vec!["handler::Handler"]),
        ("use super::place;", vec!["upgrader::pid_file::place"]),
        ("use super::super::super::server::Wing;", vec!["server::Wing"]),
        (
            "use super::super::{disk::Disk, worker};",
            vec!["upgrader::disk::Disk", "upgrader::worker"],
        ),
        ("use std::fs; my_crate::server(); // nothing of ours", vec![]),
    ] {
        let found: Vec<_> =
            imports(code, &place, &root).iter().map(|path| path.join("::")).collect();
        assert_eq!(found, expected, "{code}");
    }
    assert_eq!(shown_by_the_root()["Handler"], "handler");
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

#[test]
fn the_picture_in_the_documentation_shows_every_module_on_its_floor() {
    let text =
        fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/src/lib.rs")).expect("text");
    let picture = text.split("//! ```text\n").nth(1).and_then(|rest| rest.split("```").next());
    let mut shown: [Vec<&str>; 4] = Default::default();
    let mut floor = 0;
    for line in picture.expect("a picture").lines() {
        let line = line.trim_start_matches("//!");
        floor = ["  ground", "  kernel", "  for both", "  wings"]
            .into_iter()
            .position(|name| line.starts_with(name))
            .unwrap_or(floor);
        shown[floor].extend(line.split_whitespace());
    }
    for (floor, modules) in FLOORS.iter().enumerate() {
        for module in *modules {
            assert!(shown[floor].contains(module), "{module} on floor {floor}");
        }
    }
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
                ("upgrader", ["server" | "handler" | "relay", ..])
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
            if words.contains(&"struct") && !line.starts_with([' ', '/']) && !line.ends_with(';') {
                open = Some((line.into(), 0));
            } else if line == "}" {
                if let Some((name, fields)) = open.take() {
                    assert!(fields <= 15, "{}: {name} has {fields} fields", path.display());
                }
            } else if let Some((_, fields)) = &mut open {
                let is_field = line.starts_with("    ")
                    && !line.starts_with("     ")
                    && !line.trim_start().starts_with(['/', '#'])
                    && line.ends_with(',')
                    && line.contains(": ");
                *fields += usize::from(is_field);
            }
        }
    }
}
