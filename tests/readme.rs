//! What the README shows is what is there.

#![allow(clippy::expect_used, reason = "a test says what it expects")]

use std::fs;
use std::process::Command;

mod harness;

fn read(name: &str) -> String {
    let path = format!("{}/{name}", env!("CARGO_MANIFEST_DIR"));
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[test]
fn the_code_in_the_readme_is_the_minimal_example() {
    let (readme, example) = (read("README.md"), read("examples/minimal.rs"));
    let (_, code) = example.split_once("\n\n").expect("a comment, and the code");
    assert!(readme.contains(&format!("```rust,no_run\n{code}```\n")));
}

#[test]
fn the_flags_in_the_readme_are_known_to_the_tools() {
    let readme = read("README.md");
    for tool in ["demo", "hups"] {
        let help = Command::new(harness::example(tool)).arg("--help").output().expect("it starts");
        let help = String::from_utf8(help.stdout).expect("text");
        let lines = readme.replace("\\\n", "");
        for line in lines.lines().filter(|line| line.contains(&format!("--example {tool} --"))) {
            for flag in line.split(" -- ").nth(1).unwrap_or("").split(' ') {
                if flag.starts_with("--") {
                    assert!(help.contains(flag), "{tool} does not know {flag}");
                }
            }
        }
    }
}

#[test]
fn the_stated_rust_version_is_the_manifest_s() {
    let manifest = read("Cargo.toml");
    let version = manifest.split("rust-version = \"").nth(1).and_then(|v| v.split('"').next());
    assert!(read("README.md").contains(&format!("Rust {} or later", version.expect("stated"))));
}
