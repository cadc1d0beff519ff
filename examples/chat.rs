//! A chat: what one member says, every member hears, once and in the order of whoever said it. While it is
//! being replaced its members are split between two processes, and still hear each other.
//!
//!     cargo run --release --example chat
//!     nc localhost 8080
//!
//! Each process numbers what its own members say. It tells the other one, and both keep the last lines. A
//! member that moves knows the last number of each process that it has heard, and gets the rest from the log
//! of the process that it comes to.

mod common;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{self, Read, Write};
use std::ops::RangeInclusive;
use std::process::ExitCode;
use std::time::Duration;

use common::logging;
use common::program::{Options, Program, words};
use tablecloth::{
    Accepted, Context, HandedOver, Handler, IoEvent, Packed, Server, SessionId, Stream, Verdict,
};

const PROGRAM: Program = Program {
    name: "chat",
    help: "A chat whose members are not cut off when it is replaced on HUP.\n\nusage: chat [flags]",
    listen: "127.0.0.1:8080",
};

const SCHEMA: u32 = 1;

/// Lines that are kept for members on their way.
const KEPT: usize = 10_000;
/// Bytes that may wait for a member that does not read; it is cut then.
const UNREAD: usize = 4 * 1024 * 1024;

/// How soon a member is heard again when the other process does not read.
const HOLD: Duration = Duration::from_millis(5);

/// The generation of the process whose member said something, and its number there.
type Number = (u64, u64);

/// For each generation, the last number that was heard of it.
type Heard = BTreeMap<u64, u64>;

#[derive(Default)]
struct Chat {
    /// What was said lately, the oldest first.
    log: VecDeque<(Number, Vec<u8>)>,
    /// All that was heard here.
    heard: Heard,
    members: BTreeSet<SessionId>,
}

struct Member {
    stream: Stream,
    /// A line that is not whole yet.
    line: Vec<u8>,
    /// What the member has not taken yet.
    unsent: Vec<u8>,
    /// What is in there, or was taken.
    heard: Heard,
}

impl Chat {
    /// A line that a member of this process has said, or of the other one.
    fn hear(&mut self, cx: &mut Context<'_>, number: Number, line: Vec<u8>) {
        self.heard.insert(number.0, number.1);
        self.log.push_back((number, line));
        if self.log.len() > KEPT {
            self.log.pop_front();
        }
        self.members.iter().for_each(|member| cx.wake(*member));
    }

    fn said(&mut self, cx: &mut Context<'_>, line: Vec<u8>) {
        let own = cx.generation();
        let number = (own, self.heard.get(&own).copied().unwrap_or(0) + 1);
        if cx.can_tell() {
            if let Err(error) = cx.tell(&packed_line(number, &line)) {
                log::error!("a line does not reach the other process: {error}");
            }
        }
        self.hear(cx, number, line);
    }

    /// Puts what the member has not heard into its hands, in the order of the log. That mixes the lines of two
    /// processes, and the numbers say how many of them are news.
    fn tell(&self, member: &mut Member) {
        let last = |of: &u64| member.heard.get(of).copied().unwrap_or(0);
        let mut left: u64 =
            self.heard.iter().map(|(of, number)| number.saturating_sub(last(of))).sum();
        if left == 0 {
            return;
        }
        let is_news = |(of, number): &Number| *number > last(of);
        let behind = self.log.iter().rev().take_while(|(number, _)| {
            let goes_on = left > 0;
            left -= u64::from(goes_on && is_news(number));
            goes_on
        });
        let from = self.log.len() - behind.count();
        for (_, line) in self.log.range(from..).filter(|(number, _)| is_news(number)) {
            member.unsent.extend_from_slice(line);
        }
        member.heard.clone_from(&self.heard);
    }

    fn serve(&mut self, cx: &mut Context<'_>, member: &mut Member) -> io::Result<Verdict> {
        let mut buffer = [0; 4096];
        // Nothing is heard of a member that the other process could not be told.
        let full = cx.can_tell() && cx.tell_room() < 2 * buffer.len();
        let read = if full {
            Err(io::ErrorKind::WouldBlock.into())
        } else {
            member.stream.read(&mut buffer)
        };
        if full {
            cx.wake_at(cx.now() + HOLD);
        }
        let verdict = match read {
            Ok(0) => return Ok(Verdict::Close),
            Ok(read) => {
                for byte in &buffer[..read] {
                    member.line.push(*byte);
                    if *byte == b'\n' {
                        self.said(cx, std::mem::take(&mut member.line));
                    }
                }
                Verdict::Again
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Verdict::Keep,
            Err(error) => return Err(error),
        };
        self.tell(member);
        while !member.unsent.is_empty() {
            match member.stream.write(&member.unsent) {
                Ok(sent) => drop(member.unsent.drain(..sent)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        let cut = member.unsent.len() > UNREAD || member.line.len() > buffer.len();
        Ok(if cut { Verdict::Close } else { verdict })
    }

    fn join(&mut self, cx: &mut Context<'_>) {
        self.members.extend(cx.id());
    }

    fn leave(&mut self, cx: &Context<'_>) {
        if let Some(id) = cx.id() {
            self.members.remove(&id);
        }
    }
}

impl Handler for Chat {
    type Session = Member;

    /// Who comes hears what is said from now on.
    fn open(&mut self, cx: &mut Context<'_>, accepted: Accepted) -> io::Result<Member> {
        self.join(cx);
        let (line, unsent) = (Vec::new(), Vec::new());
        Ok(Member { stream: accepted.stream, line, unsent, heard: self.heard.clone() })
    }

    fn event(&mut self, cx: &mut Context<'_>, member: &mut Member, _: IoEvent) -> Verdict {
        let verdict = self.serve(cx, member).unwrap_or(Verdict::Close);
        if verdict == Verdict::Close {
            self.leave(cx);
        }
        verdict
    }

    fn pack(
        &mut self,
        cx: &mut Context<'_>,
        member: Member,
        _: RangeInclusive<u32>,
    ) -> Result<Packed, Member> {
        self.leave(cx);
        let Member { stream, line, unsent, heard } = member;
        let mut state = packed_heard(&heard);
        put_bytes(&mut state, &line);
        state.extend(unsent);
        Ok(Packed::new(SCHEMA, state, vec![stream]))
    }

    fn unpack(&mut self, cx: &mut Context<'_>, mut packed: Packed) -> io::Result<Member> {
        let mut rest = packed.state.as_slice();
        let heard = heard_of(&mut rest).ok_or(io::ErrorKind::InvalidData)?;
        let line = bytes(&mut rest).ok_or(io::ErrorKind::InvalidData)?.to_vec();
        let stream = packed.streams.pop().ok_or(io::ErrorKind::InvalidData)?;
        self.join(cx);
        let member = Member { stream, line, unsent: rest.to_vec(), heard };
        // It may have missed something on its way.
        cx.id().into_iter().for_each(|id| cx.wake(id));
        Ok(member)
    }

    fn hand_over(
        &mut self,
        _: &mut Context<'_>,
        _: RangeInclusive<u32>,
    ) -> io::Result<Option<HandedOver>> {
        let mut state = packed_heard(&self.heard);
        self.log
            .iter()
            .for_each(|(number, line)| put_bytes(&mut state, &packed_line(*number, line)));
        Ok(Some(HandedOver::new(SCHEMA, state)))
    }

    fn take_over(&mut self, _: &mut Context<'_>, state: HandedOver) -> io::Result<()> {
        let mut rest = state.bytes.as_slice();
        self.heard = heard_of(&mut rest).ok_or(io::ErrorKind::InvalidData)?;
        while let Some(packed) = bytes(&mut rest) {
            self.log.push_back(line_of(packed).ok_or(io::ErrorKind::InvalidData)?);
        }
        Ok(())
    }

    fn told(&mut self, cx: &mut Context<'_>, message: &[u8]) {
        if let Some((number, line)) = line_of(message) {
            self.hear(cx, number, line);
        }
    }
}

fn packed_line((of, number): Number, line: &[u8]) -> Vec<u8> {
    [&of.to_le_bytes()[..], &number.to_le_bytes(), line].concat()
}

fn line_of(packed: &[u8]) -> Option<(Number, Vec<u8>)> {
    let mut rest = packed;
    let number = (number(&mut rest)?, number(&mut rest)?);
    Some((number, rest.to_vec()))
}

fn packed_heard(heard: &Heard) -> Vec<u8> {
    let mut state = (heard.len() as u64).to_le_bytes().to_vec();
    for (of, number) in heard {
        state.extend(of.to_le_bytes());
        state.extend(number.to_le_bytes());
    }
    state
}

fn heard_of(rest: &mut &[u8]) -> Option<Heard> {
    (0..number(rest)?).map(|_| Some((number(rest)?, number(rest)?))).collect()
}

fn put_bytes(state: &mut Vec<u8>, bytes: &[u8]) {
    state.extend((bytes.len() as u64).to_le_bytes());
    state.extend(bytes);
}

fn bytes<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(number(rest)?).ok()?;
    let (taken, left) = rest.split_at_checked(length)?;
    *rest = left;
    Some(taken)
}

fn number(rest: &mut &[u8]) -> Option<u64> {
    let (taken, left) = rest.split_first_chunk()?;
    *rest = left;
    Some(u64::from_le_bytes(*taken))
}

fn main() -> ExitCode {
    PROGRAM.run(|Options { listen, common }| {
        let mut server = Server::new(common.config.schemas(SCHEMA..=SCHEMA)).map_err(words)?;
        logging::go();
        server.listen_with("chat", &listen, &common.socket).map_err(words)?;
        logging::finish();
        server.run(Chat::default()).map(drop).map_err(words)
    })
}
