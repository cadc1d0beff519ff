//! Ring three: each command of the page for operators is run, in its order, by a shell.

#![allow(clippy::expect_used, reason = "a test says what it expects")]
#![cfg(feature = "admin")]

mod harness;

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use harness::{PATIENCE, example, place, until};

const PAGE: &str = include_str!("../examples/README.md");

/// The commands, in their order: what stands behind `$` in a block for a console.
fn commands() -> Vec<String> {
    let mut commands = Vec::new();
    let mut in_console = false;
    for line in PAGE.lines().map(str::trim) {
        match line.strip_prefix("```") {
            Some(kind) => in_console = kind == "console",
            None if in_console => commands.extend(line.strip_prefix("$ ").map(str::to_owned)),
            None => {}
        }
    }
    commands
}

/// A shell in a place where the programs are found by their names.
struct Shell {
    place: tempfile::TempDir,
    port: u16,
}

impl Shell {
    fn new() -> Self {
        let place = place();
        for program in ["demo", "hups", "proxy"] {
            symlink(example(program), place.path().join(program)).expect("a link");
        }
        fs::write(place.path().join("routes"), "127.0.0.1:8081 -> 127.0.0.1:9091\n")
            .expect("a file");
        let free = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr());
        Self { place, port: free.expect("a port").port() }
    }

    fn command(&self, text: &str) -> Command {
        // The page's port may be somebody's.
        let text = text.replace(":8080", &format!(":{}", self.port));
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = Command::new("sh");
        command.args(["-c", &text]).current_dir(self.place.path());
        command.env("PATH", format!("{}:{path}", self.place.path().display()));
        command.stdin(Stdio::null());
        command
    }

    fn run(&self, text: &str) -> Output {
        self.command(text).stderr(Stdio::null()).output().expect("a shell")
    }

    fn begin(&self, text: &str) -> Child {
        let mut command = self.command(text);
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("a shell")
    }

    fn is_there(&self) -> bool {
        self.run("demo ctl --admin ./demo.admin ready").status.success()
    }

    fn end(&self, mut child: Child) {
        assert!(self.run("demo ctl --admin ./demo.admin shutdown").status.success());
        let until = std::time::Instant::now() + PATIENCE;
        while child.try_wait().expect("our child").is_none() {
            assert!(std::time::Instant::now() < until, "it does not end");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        until_gone(&self.place.path().join("demo.admin"));
    }
}

fn until_gone(path: &Path) {
    until("the server is gone", || !fs::exists(path).expect("looked at"));
}

#[test]
fn each_command_of_the_page_does_what_it_says() {
    let shell = Shell::new();
    let commands = commands();
    assert!(commands.len() >= 8, "{commands:#?}");
    let mut server: Option<Child> = None;
    for text in &commands {
        let starts = text.starts_with("demo --") && !text.ends_with("--help");
        if starts {
            server.take().into_iter().for_each(|server| shell.end(server));
            // In the foreground of its own shell: that is what is waited for.
            server = Some(shell.begin(&format!("exec {}", text.trim_end_matches(" &"))));
            until("it answers", || shell.is_there());
            continue;
        }
        if text.starts_with("curl ") && !shell.run("curl --version").status.success() {
            eprintln!("not run, because there is no curl: {text}");
            continue;
        }
        let output = shell.run(text);
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}: {told}");
        let expected = match text {
            _ if text.ends_with(" status") => "state          Running",
            _ if text.ends_with(" check") => "checked: ",
            _ if text.ends_with(" upgrade") => "done: ",
            _ if text.ends_with("/metrics") => "tablecloth_upgrades_total{outcome=\"done\"} 1",
            _ if text.ends_with("/ready") => "ready",
            _ if text.starts_with("proxy ") => "nothing is wrong",
            _ if text.ends_with("--help") => "--admin ADDRESS",
            _ => panic!("what does {text:?} do?"),
        };
        assert!(told.contains(expected), "{text}: {told}");
        if text.ends_with(" check") {
            // A moment later the next upgrade is not kept waiting.
            until("it stands", || shell.is_there());
        }
    }
    server.into_iter().for_each(|server| shell.end(server));
}

/// Every flag that a program's help names is one that the page need not repeat; and every flag on the page is one.
#[test]
fn the_page_names_no_flag_that_there_is_not() {
    let shell = Shell::new();
    let help = ["demo --help", "proxy --help", "demo ctl --help", "hups --help"]
        .map(|text| String::from_utf8_lossy(&shell.run(text).stdout).into_owned());
    let help = help.concat();
    let words = PAGE.split(|letter: char| !(letter.is_alphanumeric() || letter == '-'));
    // Of other programs: curl's and systemctl's.
    let others = ["--silent", "--unix-socket", "--now"];
    let is_flag = |word: &&str| word.starts_with("--") && !word.trim_matches('-').is_empty();
    for flag in words.filter(is_flag).filter(|word| !others.contains(word)) {
        assert!(help.contains(flag), "{flag}");
    }
}
