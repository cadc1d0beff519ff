//! Ring three: the chat, whose members are split between two processes while it is replaced.

#![allow(clippy::expect_used, reason = "a test says what it expects")]

mod harness;

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use harness::{PATIENCE, Start, is_alive, until};
use nix::sys::signal::Signal;

struct Talk {
    members: usize,
    /// How many of them speak, and how often each does.
    speakers: usize,
    lines: usize,
    upgrades: usize,
    probation: &'static str,
}

/// Each line comes to each member once, and those of one speaker in their order.
fn talk(talk: &Talk) {
    let Talk { members, speakers, lines, upgrades, probation } = *talk;
    let start = Start::program("chat").args(&["--listen", "127.0.0.1:0", "--probation", probation]);
    let pid_file = start.path_of("pid");
    let mut chat = start.pid_file().spawn();
    chat.wait_for("listening on ");
    let address = chat.address();
    let named = || std::fs::read_to_string(&pid_file).ok()?.trim().parse::<u32>().ok();
    until("it serves", || named().is_some());

    let all: Vec<_> = (0..members)
        .map(|_| TcpStream::connect(&address).expect("a connection"))
        .inspect(|stream| stream.set_read_timeout(Some(4 * PATIENCE)).expect("a timeout"))
        .collect();
    // Who is let in hears what is said from then on: each has heard of itself before it is counted.
    for (member, mut stream) in all.iter().enumerate() {
        stream.write_all(format!("here {member}\n").as_bytes()).expect("sent");
        let mut reader = BufReader::with_capacity(1, stream);
        let mut line = String::new();
        while line.trim() != format!("here {member}") {
            line.clear();
            reader.read_line(&mut line).expect("a line");
        }
    }
    let (begin, said) = (Arc::new(Barrier::new(speakers + 1)), Arc::new(AtomicUsize::new(0)));
    let readers: Vec<_> = all
        .iter()
        .map(|stream| {
            let reader = BufReader::new(stream.try_clone().expect("a copy"));
            thread::spawn(move || {
                let (mut next, mut heard) = (HashMap::new(), 0);
                for line in reader.lines() {
                    let line = line.expect("a line");
                    let Some((speaker, number)) = line.split_once(':') else { continue };
                    let next = next.entry(speaker.to_owned()).or_insert(0);
                    assert_eq!(number.parse::<usize>().ok(), Some(*next), "of {speaker}");
                    *next += 1;
                    heard += 1;
                    if heard == speakers * lines {
                        return;
                    }
                }
                panic!("cut off after {heard} lines");
            })
        })
        .collect();
    let writers: Vec<_> = all
        .into_iter()
        .take(speakers)
        .enumerate()
        .map(|(speaker, mut stream)| {
            let (begin, said) = (Arc::clone(&begin), Arc::clone(&said));
            thread::spawn(move || {
                begin.wait();
                for number in 0..lines {
                    stream.write_all(format!("{speaker}:{number}\n").as_bytes()).expect("sent");
                    said.fetch_add(1, Ordering::Relaxed);
                    thread::sleep(Duration::from_millis(1));
                }
                // It goes on hearing.
                stream
            })
        })
        .collect();
    begin.wait();
    for upgrade in 0..upgrades {
        // Spread over all that is said.
        let due = upgrade * speakers * lines / upgrades;
        until("they talk", || said.load(Ordering::Relaxed) >= due);
        let pid = named().expect("it serves");
        chat.signal(pid, Signal::SIGHUP);
        until("it is replaced", || named().is_some_and(|now| now != pid));
        until("the old one is gone", || !is_alive(pid));
    }
    let streams: Vec<_> = writers.into_iter().map(|it| it.join().expect("no panic")).collect();
    readers.into_iter().for_each(|reader| reader.join().expect("each line once, in order"));
    drop(streams);
    assert_eq!(chat.count("done; spawn"), upgrades);
    let last = named().expect("it serves");
    chat.signal(last, Signal::SIGINT);
    until("it ends", || !is_alive(last));
}

#[test]
fn every_member_hears_every_line_once_whatever_process_it_is_in() {
    for probation in ["0", "0.3"] {
        talk(&Talk { members: 40, speakers: 10, lines: 200, upgrades: 10, probation });
    }
}

#[test]
#[ignore = "takes a minute"]
fn three_hundred_members_hear_ten_thousand_lines_over_twenty_upgrades() {
    for probation in ["0", "1"] {
        talk(&Talk { members: 300, speakers: 20, lines: 500, upgrades: 20, probation });
    }
}
