//! The handoff messages: encoded and decoded, versioned, bounded, total.
//!
//! Each message is one packet on a `SOCK_SEQPACKET` socket (unix(7)), so there is no framing. A
//! packet is `magic (4) · protocol (2) · kind (1) · body`, numbers little-endian, texts with their
//! length in front.
//!
//! | kind | from | says |
//! | --- | --- | --- |
//! | MANIFEST | predecessor | the protocol range, who is speaking, which descriptor is which |
//! | HELLO | successor | by its header the protocol chosen; the session schemas understood, the build |
//! | REFUSE | successor | why it will not take over, in words |
//! | COMMIT | predecessor | from here on the successor accepts |
//! | SERVING | successor | it accepts, and the pid file names it |
//! | UPGRADE | both | an upgrade request that came to one of them: both know of it |
//! | STOPPING | successor | it was told to stop |
//! | PING | predecessor | does the successor still turn? |
//! | PONG | successor | it does |
//! | SESSIONS | predecessor | these are the successor's, once it has acknowledged them |
//! | ACK | successor | they are, but for those that it could not take |
//! | EXPECT | predecessor | so many sessions are still to come, at the most (from version 2 on) |
//! | RETIRE | predecessor | the successor is given up and is to end (from version 2 on) |
//! | STATE | predecessor | the application's own state, before COMMIT (from version 3 on) |
//! | TOLD | both | a message of the application's (from version 3 on) |
//!
//! Decoding never panics and never allocates more than the packet's own size in proportion:
//! hostile, truncated and oversized input gives a [`WireError`] that names the field.
//!
//! # Versions
//!
//! Two builds that know nothing of each other meet here, and at least can say that they do not
//! understand each other. For that, a part of all this is the same in every version:
//!
//! - [`VARIABLE`] and what it says, [`READY`], and that no packet is longer than
//!   [`limits::PACKET_BYTES`];
//! - the header, and the kinds 1 (MANIFEST) and 3 (REFUSE) in it;
//! - the first two fields of a MANIFEST: the oldest and the newest version that the predecessor
//!   speaks;
//! - REFUSE as a whole, with at most [`limits::TEXT_BYTES`] of text. It is understood whatever
//!   version its header says.
//!
//! Everything else may change, by these rules:
//!
//! 1. **A MANIFEST only grows.** Its writer does not know yet what its reader speaks. So it is
//!    written in the newest version of its range, which is what its header says, and a version adds
//!    fields to it only behind those of the version before. A reader reads the fields that it knows.
//!    It ignores what is behind them if the header's version is newer than every version that it
//!    speaks; otherwise nothing may be behind them. A version whose MANIFEST cannot be read like
//!    this ends the range: the build that speaks it raises its oldest version. A new kind of
//!    descriptor is no new field: a build that does not know it refuses, in words.
//! 2. **The successor chooses, once.** It takes the newest version that both speak, and writes HELLO
//!    in it: HELLO's header is the choice. From there on every packet in either direction is in
//!    exactly that version, and one in another is nonsense.
//! 3. **No version in common** is said in words: the successor sends REFUSE, names both ranges on
//!    standard error and ends with an error; the predecessor logs its words and goes on serving.
//!
//! So a side that listens has a range of versions that it takes: all that it speaks until HELLO,
//! the chosen one from there on ([`ProtocolRange::only`]). [`Message::decode`] is given that range,
//! and its newest is what [`Message::encode`] is given.
//!
//! # What version 2 has added
//!
//! A MANIFEST says of each listener by which text it was asked for, and which file its path was when
//! it was bound. EXPECT comes before COMMIT, and again when there are fewer. A session that moves
//! takes along when it is to be woken. RETIRE comes before the end of the socket, so that an
//! end without it is a crash.
//!
//! # What version 3 has added
//!
//! STATE comes before COMMIT, if the application hands something over: the form of it, in the application's
//! own count, and on the packet a descriptor of the bytes and then those of the application. TOLD carries a
//! message between the two processes, from COMMIT on, while both are there. A session that moves may have
//! descriptors beside its sockets, and a long state of it lies in a file in memory, whose descriptor rides on the
//! packet.
//!
//! # What version 4 has added
//!
//! A session that moves names the listener that it came in by. A successor that was given a pipe for its standard
//! error takes its own back when it serves.
//!
//! `cargo +nightly fuzz run --fuzz-dir tests/fuzz decode` fuzzes the decoder (`handoff` that of the
//! variable); `cargo test --test wire` decodes the corpus.

use std::collections::HashSet;
use std::fmt;
use std::rc::Rc;
use std::str::FromStr;

use crate::limits;

/// The protocol versions that this build speaks.
pub const PROTOCOL: ProtocolRange = ProtocolRange { oldest: 1, newest: 4 };

/// In the environment of a successor: the descriptors of its own standard error, and of the pipe that stands in
/// for it.
pub const STDERR_VARIABLE: &str = "TABLECLOTH_STDERR";

/// In the environment of a server below an init: which process that is.
pub const INIT_VARIABLE: &str = "TABLECLOTH_INIT";

/// In the environment of one of several workers: its number, and whether there may be fewer of them some day.
pub const WORKER_VARIABLE: &str = "TABLECLOTH_WORKER";
/// What stands behind the number then.
pub const MAY_LEAVE: &str = ",may-leave";

/// In the environment of one of several workers: where its init asks it, whatever its configuration says.
pub const ADMIN_VARIABLE: &str = "TABLECLOTH_ADMIN";

/// In the environment of a server below an init: the files that the init has opened for all its servers.
pub const SHARED_VARIABLE: &str = "TABLECLOTH_SHARED";

/// The first version with EXPECT and RETIRE, and with more in MANIFEST and SESSIONS.
const VERSION_2: u16 = 2;

/// The first version with STATE and TOLD.
pub const VERSION_3: u16 = 3;

/// The first version whose successors take their standard error back, and whose SESSIONS name listeners.
pub const VERSION_4: u16 = 4;

/// The session schemas that this build understands: none, sessions stay where they are.
pub const NO_SCHEMAS: SchemaRange = SchemaRange { oldest: 0, newest: 0 };

/// The environment variable that tells a successor where to find the handoff: a [`Handoff`].
pub const VARIABLE: &str = "TABLECLOTH_HANDOFF";

/// The one byte on the readiness pipe.
pub const READY: u8 = b'R';

const MAGIC: [u8; 4] = *b"tclo";

/// The kinds that are the same in every version.
const MANIFEST: u8 = 1;
const REFUSE: u8 = 3;

/// The kinds that version 2 has added.
const EXPECT: u8 = 12;
const RETIRE: u8 = 13;

/// The kinds that version 3 has added.
const STATE: u8 = 14;
const TOLD: u8 = 15;

/// The time of a session that does not want to be woken.
const NEVER: u64 = u64::MAX;

/// The length of a state that lies in a file.
const APART: u32 = u32::MAX;

/// The shortest entry of a MANIFEST: its kind, and a name of one byte with its length.
const ENTRY_BYTES: usize = 3;
/// And of a session.
const SESSION_BYTES: usize = 9;

/// An inclusive range of protocol versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProtocolRange {
    /// The oldest version spoken.
    pub oldest: u16,
    /// The newest version spoken.
    pub newest: u16,
}

impl ProtocolRange {
    /// One version and no other, as it is spoken once HELLO has chosen it.
    #[must_use]
    pub fn only(version: u16) -> Self {
        Self { oldest: version, newest: version }
    }

    /// The newest version that both ranges have.
    #[must_use]
    pub fn agree(self, other: Self) -> Option<u16> {
        let newest = self.newest.min(other.newest);
        (newest >= self.oldest.max(other.oldest)).then_some(newest)
    }

    /// Whether a version is spoken.
    #[must_use]
    pub fn contains(self, version: u16) -> bool {
        (self.oldest..=self.newest).contains(&version)
    }
}

impl fmt::Display for ProtocolRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}", self.oldest, self.newest)
    }
}

/// An inclusive range of session schemas; 0 stands for none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SchemaRange {
    /// The oldest schema understood.
    pub oldest: u32,
    /// The newest schema understood.
    pub newest: u32,
}

/// What the variable says: `pipe=FD,socket=FD,pid=PID`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handoff {
    /// The readiness pipe's number in the successor.
    pub pipe: i32,
    /// The handoff socket's number in the successor.
    pub socket: i32,
    /// The predecessor's process id, in its own pid namespace.
    pub pid: u32,
}

/// A handoff message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Which passed descriptor is which; the descriptors ride on the same packet, in this order.
    Manifest(Manifest),
    /// The successor understood the manifest.
    Hello(Hello),
    /// The successor will not take over, and why.
    Refuse(String),
    /// From here on the successor accepts.
    Commit,
    /// The successor accepts.
    Serving,
    /// An upgrade was requested of the predecessor.
    Upgrade,
    /// The successor was told to stop.
    Stopping,
    /// Probation is over: does the successor still turn?
    Ping,
    /// It does.
    Pong,
    /// Sessions on their way; their descriptors ride on the same packet, in their order.
    Sessions(Sessions),
    /// The sessions of a packet have a new owner.
    Ack(Ack),
    /// What the successor has to keep free.
    Expect(Expect),
    /// The successor is given up, and is to end: the predecessor goes on by itself, or both are to
    /// stop.
    Retire,
    /// The application's state, in the form of that schema; a descriptor of its bytes and those that
    /// belong to it ride on the same packet.
    State(u32),
    /// A message of the application's, at most [`limits::MESSAGE_BYTES`].
    Told(Vec<u8>),
}

/// One part of the manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// What the predecessor speaks.
    pub protocol: ProtocolRange,
    /// The successor's generation, if it is committed to.
    pub generation: u64,
    /// The predecessor's process id, in its own pid namespace.
    pub predecessor: u32,
    /// The signals blocked in the successor until it can handle them; bit n is signal n + 1.
    pub blocked: u64,
    /// How long the predecessor stays after COMMIT at the most, in milliseconds; the greatest
    /// number is for ever.
    pub stay: u64,
    /// Which part this is, from 0.
    pub part: u8,
    /// How many parts there are.
    pub parts: u8,
    /// What the descriptors on this packet are; no two have the same name.
    pub entries: Vec<Entry>,
}

/// One passed descriptor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name under which the successor claims it: 1 to [`limits::NAME_BYTES`] bytes, no control
    /// characters.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// The address by which it was asked for, at most 255 bytes; empty if that is not known. Who asks
    /// by the same text need not look the host up.
    pub asked: String,
    /// The file that a Unix socket's path was when it was bound.
    pub file: Option<FileId>,
}

/// Which file it is, among all of the machine (stat(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileId {
    /// Its device; not 0.
    pub device: u64,
    /// Its number there.
    pub inode: u64,
}

impl FileId {
    /// Stands for a file that no process of the service has made: a service manager has opened the socket,
    /// and unlinks its path when it likes. No file has that id, so that a build that does not know this
    /// word leaves the path alone, too.
    pub const MANAGERS: Self = Self { device: u64::MAX, inode: u64::MAX };
}

/// How many sessions are still to come, at the most. The successor keeps room for them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Expect {
    /// How many sessions.
    pub sessions: u32,
    /// How many sockets they have together.
    pub sockets: u32,
}

/// Sessions that move together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sessions {
    /// Counts the packets, for the answer.
    pub packet: u32,
    /// What they are.
    pub sessions: Vec<SessionEntry>,
}

impl Sessions {
    /// The packet, as that of [`Message::encode`], without being given away.
    #[must_use]
    pub fn encode(&self, protocol: u16) -> Vec<u8> {
        let mut out = head(protocol);
        self.put(&mut out, protocol);
        out
    }

    fn put(&self, out: &mut Vec<u8>, protocol: u16) {
        out.reserve(self.sessions.iter().map(SessionEntry::most_bytes).sum::<usize>());
        out.push(10);
        out.extend(self.packet.to_le_bytes());
        out.push(self.sessions.len() as u8);
        for session in &self.sessions {
            out.extend(session.schema.to_le_bytes());
            out.push(session.sockets.len() as u8);
            out.extend(session.sockets.iter().map(|family| *family as u8));
            if protocol >= VERSION_2 {
                out.extend(session.wake.unwrap_or(NEVER).to_le_bytes());
            }
            if protocol >= VERSION_3 {
                out.push(session.descriptors);
            }
            let state = session.state.as_deref();
            let length = state.map_or(APART, |state| state.len() as u32);
            out.extend(length.to_le_bytes());
            out.extend(state.unwrap_or_default());
            if protocol >= VERSION_4 {
                out.push(session.listener.len() as u8);
                out.extend(session.listener.as_bytes());
            }
        }
    }
}

/// One session that moves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionEntry {
    /// The form of `state`, by the application's own count.
    pub schema: u32,
    /// What each of its sockets is.
    pub sockets: Vec<Family>,
    /// In how many microseconds it wants to be woken, if it does.
    pub wake: Option<u64>,
    /// How many other descriptors it has, behind its sockets. None before version 3.
    pub descriptors: u8,
    /// What the session says of itself. `None`, from version 3 on: that lies in a file, whose descriptor is
    /// behind the others.
    pub state: Option<Vec<u8>>,
    /// The name of the listener that it came in by; empty if that is not known, and before version 4.
    /// Sessions that follow each other share it.
    pub listener: Rc<str>,
}

impl SessionEntry {
    /// How many descriptors of the packet are its own.
    #[must_use]
    pub fn riding(&self) -> usize {
        self.sockets.len() + usize::from(self.descriptors) + usize::from(self.state.is_none())
    }

    /// At most so many bytes of a packet are its own; of those of a fixed length version 4 has 19.
    fn most_bytes(&self) -> usize {
        let state = self.state.as_ref().map_or(0, Vec::len);
        19 + self.sockets.len() + state + self.listener.len()
    }
}

/// What a session's socket is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// A TCP connection.
    Tcp,
    /// A Unix stream connection.
    Unix,
}

/// The answer to a packet of sessions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ack {
    /// Which packet.
    pub packet: u32,
    /// The places, from 0, of the sessions in it that were not taken: they are the predecessor's.
    pub refused: Vec<u8>,
}

/// What a passed descriptor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A listening TCP socket.
    Tcp,
    /// A listening Unix stream socket.
    UnixStream,
    /// A listening Unix seqpacket socket.
    UnixSeqpacket,
    /// A bound UDP socket.
    Udp,
    /// A bound Unix datagram socket.
    UnixDatagram,
    /// Any other descriptor.
    File,
}

/// The successor's answer to the manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The session schemas that the successor can rebuild.
    pub schemas: SchemaRange,
    /// The successor's process id, in its own pid namespace.
    pub pid: u32,
    /// The successor's build, for the log.
    pub build: String,
}

/// A packet that is no message, or a variable that is no handoff, and where it stops being one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WireError {
    /// The field that does not hold.
    pub field: &'static str,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What is wrong with a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// The packet ends before the field does.
    Truncated,
    /// There are bytes behind the last field.
    TrailingBytes,
    /// More, or longer, than the limit allows.
    TooLong,
    /// Nothing, where something has to be.
    Empty,
    /// Something else in its place.
    Missing,
    /// Not a decimal number, or one that is too large.
    NotNumber,
    /// Not UTF-8.
    NotText,
    /// A character that would end or change a line of the log.
    ControlCharacter,
    /// The same as before, where each has to be different.
    Repeated,
    /// Not what the parts before it say.
    Contradiction,
    /// A value that this field cannot have.
    Unknown(u64),
    /// A protocol version that is not spoken here, or not any more.
    Protocol {
        /// What the packet says.
        said: ProtocolRange,
        /// What would have been understood.
        spoken: ProtocolRange,
    },
}

impl Handoff {
    /// Takes the variable's text apart.
    pub fn parse(text: &str) -> Result<Self, WireError> {
        let mut fields = text.split(',');
        let handoff = Self {
            pipe: number(&mut fields, "pipe")?,
            socket: number(&mut fields, "socket")?,
            pid: number(&mut fields, "pid")?,
        };
        match fields.next() {
            None => Ok(handoff),
            Some(_) => Err(WireError { field: "end", problem: Problem::TrailingBytes }),
        }
    }
}

impl fmt::Display for Handoff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pipe, socket, pid } = self;
        write!(f, "pipe={pipe},socket={socket},pid={pid}")
    }
}

/// The next of the fields, which is `NAME=NUMBER`.
fn number<T: FromStr>(
    fields: &mut std::str::Split<'_, char>,
    name: &'static str,
) -> Result<T, WireError> {
    let error = |problem| WireError { field: name, problem };
    let value = fields.next().and_then(|field| field.strip_prefix(name)?.strip_prefix('='));
    let digits = value.ok_or(error(Problem::Missing))?;
    // No sign, which a number could have elsewhere.
    match digits.parse() {
        Ok(number) if digits.bytes().all(|byte| byte.is_ascii_digit()) => Ok(number),
        Ok(_) | Err(_) => Err(error(Problem::NotNumber)),
    }
}

impl Manifest {
    /// This part and those before it, as one. They come in order, differ in their entries alone,
    /// and no name comes twice.
    pub fn behind(self, before: Option<Self>) -> Result<Self, WireError> {
        let expected = before.as_ref().map_or(Some(0), |before| before.part.checked_add(1));
        if expected != Some(self.part) {
            let problem = Problem::Unknown(self.part.into());
            return Err(WireError { field: "part", problem });
        }
        let mut entries = Vec::new();
        if let Some(before) = before {
            let same = [
                ("protocol", self.protocol == before.protocol),
                ("generation", self.generation == before.generation),
                ("predecessor", self.predecessor == before.predecessor),
                ("blocked signals", self.blocked == before.blocked),
                ("stay", self.stay == before.stay),
                ("parts", self.parts == before.parts),
            ];
            if let Some((field, _)) = same.into_iter().find(|(_, same)| !same) {
                return Err(WireError { field, problem: Problem::Contradiction });
            }
            entries = before.entries;
        }
        entries.extend(self.entries);
        let mut names = HashSet::with_capacity(entries.len());
        if !entries.iter().all(|entry| names.insert(entry.name.as_str())) {
            return Err(WireError { field: "name", problem: Problem::Repeated });
        }
        Ok(Self { entries, ..self })
    }

    /// Whether no part is to follow.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.part.checked_add(1) == Some(self.parts)
    }
}

impl Kind {
    /// Every kind, in the order of their codes.
    pub const ALL: [Self; 6] = [
        Self::Tcp,
        Self::UnixStream,
        Self::UnixSeqpacket,
        Self::Udp,
        Self::UnixDatagram,
        Self::File,
    ];
}

fn head(protocol: u16) -> Vec<u8> {
    let mut out = Vec::with_capacity(64);
    out.extend(MAGIC);
    out.extend(protocol.to_le_bytes());
    out
}

impl Message {
    /// The packet, written in that protocol version: for a MANIFEST the newest of its range, for a
    /// HELLO the one that it chooses, from there on the one chosen.
    ///
    /// Texts longer than the limit are cut; the caller keeps names and counts in bounds.
    #[must_use]
    pub fn encode(&self, protocol: u16) -> Vec<u8> {
        let mut out = head(protocol);
        match self {
            Self::Manifest(manifest) => {
                out.push(MANIFEST);
                out.extend(manifest.protocol.oldest.to_le_bytes());
                out.extend(manifest.protocol.newest.to_le_bytes());
                out.extend(manifest.generation.to_le_bytes());
                out.extend(manifest.predecessor.to_le_bytes());
                out.extend(manifest.blocked.to_le_bytes());
                out.extend(manifest.stay.to_le_bytes());
                out.extend([manifest.part, manifest.parts, manifest.entries.len() as u8]);
                for entry in &manifest.entries {
                    out.extend([entry.kind as u8, entry.name.len() as u8]);
                    out.extend(entry.name.as_bytes());
                }
                if protocol >= VERSION_2 {
                    manifest.entries.iter().for_each(|entry| put_origin(&mut out, entry));
                }
            }
            Self::Hello(hello) => {
                out.push(2);
                out.extend(hello.schemas.oldest.to_le_bytes());
                out.extend(hello.schemas.newest.to_le_bytes());
                out.extend(hello.pid.to_le_bytes());
                put_text(&mut out, &hello.build);
            }
            Self::Refuse(reason) => {
                out.push(REFUSE);
                put_text(&mut out, reason);
            }
            Self::Commit => out.push(4),
            Self::Serving => out.push(5),
            Self::Upgrade => out.push(6),
            Self::Stopping => out.push(7),
            Self::Ping => out.push(8),
            Self::Pong => out.push(9),
            Self::Sessions(sessions) => sessions.put(&mut out, protocol),
            Self::Ack(Ack { packet, refused }) => {
                out.push(11);
                out.extend(packet.to_le_bytes());
                out.push(refused.len() as u8);
                out.extend(refused);
            }
            Self::Expect(Expect { sessions, sockets }) => {
                out.push(EXPECT);
                out.extend(sessions.to_le_bytes());
                out.extend(sockets.to_le_bytes());
            }
            Self::Retire => out.push(RETIRE),
            Self::State(schema) => {
                out.push(STATE);
                out.extend(schema.to_le_bytes());
            }
            Self::Told(message) => {
                out.push(TOLD);
                out.extend((message.len() as u32).to_le_bytes());
                out.extend(message);
            }
        }
        out
    }

    /// The message in a packet, and the protocol version that it is written in, which is one of
    /// `speaks` unless the message is a MANIFEST or a REFUSE.
    pub fn decode(packet: &[u8], speaks: ProtocolRange) -> Result<(u16, Self), WireError> {
        let mut fields = Fields { rest: packet };
        let magic: [u8; 4] = fields.array("magic")?;
        if magic != MAGIC {
            let problem = Problem::Unknown(u32::from_be_bytes(magic).into());
            return Err(WireError { field: "magic", problem });
        }
        let protocol = fields.u16("protocol")?;
        let kind = fields.u8("kind")?;
        // Those two are understood in every version, if only as far as they never change.
        if !matches!(kind, MANIFEST | REFUSE) && !speaks.contains(protocol) {
            let said = ProtocolRange::only(protocol);
            let problem = Problem::Protocol { said, spoken: speaks };
            return Err(WireError { field: "protocol", problem });
        }
        let message = match kind {
            MANIFEST => Self::Manifest(fields.manifest(protocol, speaks)?),
            2 => Self::Hello(fields.hello()?),
            REFUSE => Self::Refuse(fields.text("reason")?),
            4 => Self::Commit,
            5 => Self::Serving,
            6 => Self::Upgrade,
            7 => Self::Stopping,
            8 => Self::Ping,
            9 => Self::Pong,
            10 => Self::Sessions(fields.sessions(protocol)?),
            11 => Self::Ack(fields.ack()?),
            EXPECT if protocol >= VERSION_2 => Self::Expect(fields.expect()?),
            RETIRE if protocol >= VERSION_2 => Self::Retire,
            STATE if protocol >= VERSION_3 => Self::State(fields.u32("schema")?),
            TOLD if protocol >= VERSION_3 => Self::Told(fields.told()?),
            other => {
                return Err(WireError { field: "kind", problem: Problem::Unknown(other.into()) });
            }
        };
        match fields.rest {
            [] => Ok((protocol, message)),
            // What a later version has added.
            [..] if kind == MANIFEST && protocol > speaks.newest => Ok((protocol, message)),
            [..] => Err(WireError { field: "end", problem: Problem::TrailingBytes }),
        }
    }

    /// Which packet of sessions this is, and how many there are in it: what is needed to refuse it
    /// where the rest is of no use, because its descriptors did not arrive.
    #[must_use]
    pub fn peek_sessions(packet: &[u8]) -> Option<(u32, u8)> {
        let mut fields = Fields { rest: packet };
        let head =
            (fields.array("magic").ok()?, fields.u16("protocol").ok()?, fields.u8("kind").ok()?);
        if (head.0, head.2) != (MAGIC, 10) {
            return None;
        }
        Some((fields.u32("packet").ok()?, fields.u8("sessions").ok()?))
    }

    /// Whether a packet begins as a STATE does: one whose descriptors did not arrive must not be taken for none.
    #[must_use]
    pub fn is_state(packet: &[u8]) -> bool {
        packet.starts_with(&MAGIC) && packet.get(6) == Some(&STATE)
    }

    /// Whether a packet begins as a MANIFEST does, in whatever version.
    #[must_use]
    pub fn is_manifest(packet: &[u8]) -> bool {
        packet.starts_with(&MAGIC) && packet.get(6) == Some(&MANIFEST)
    }

    /// The message's name, as in the table above.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Manifest(_) => "MANIFEST",
            Self::Hello(_) => "HELLO",
            Self::Refuse(_) => "REFUSE",
            Self::Commit => "COMMIT",
            Self::Serving => "SERVING",
            Self::Upgrade => "UPGRADE",
            Self::Stopping => "STOPPING",
            Self::Ping => "PING",
            Self::Pong => "PONG",
            Self::Sessions(_) => "SESSIONS",
            Self::Ack(_) => "ACK",
            Self::Expect(_) => "EXPECT",
            Self::Retire => "RETIRE",
            Self::State(_) => "STATE",
            Self::Told(_) => "TOLD",
        }
    }
}

/// The fields of a packet that have not been read yet.
struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    fn take(&mut self, field: &'static str, count: usize) -> Result<&'a [u8], WireError> {
        match self.rest.split_at_checked(count) {
            Some((taken, rest)) => {
                self.rest = rest;
                Ok(taken)
            }
            None => Err(WireError { field, problem: Problem::Truncated }),
        }
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], WireError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(field, N)?);
        Ok(array)
    }

    fn u8(&mut self, field: &'static str) -> Result<u8, WireError> {
        Ok(u8::from_le_bytes(self.array(field)?))
    }

    fn u16(&mut self, field: &'static str) -> Result<u16, WireError> {
        Ok(u16::from_le_bytes(self.array(field)?))
    }

    fn u32(&mut self, field: &'static str) -> Result<u32, WireError> {
        Ok(u32::from_le_bytes(self.array(field)?))
    }

    fn u64(&mut self, field: &'static str) -> Result<u64, WireError> {
        Ok(u64::from_le_bytes(self.array(field)?))
    }

    fn utf8(&mut self, field: &'static str, length: usize) -> Result<&'a str, WireError> {
        let bytes = self.take(field, length)?;
        std::str::from_utf8(bytes).map_err(|_| WireError { field, problem: Problem::NotText })
    }

    fn name(&mut self) -> Result<String, WireError> {
        let error = |problem| Err(WireError { field: "name", problem });
        let length = usize::from(self.u8("name")?);
        if length == 0 {
            return error(Problem::Empty);
        }
        if length > limits::NAME_BYTES {
            return error(Problem::TooLong);
        }
        let name = self.utf8("name", length)?;
        if name.contains(char::is_control) {
            return error(Problem::ControlCharacter);
        }
        Ok(name.into())
    }

    /// Puts another one in place of that of the session before, if it came in by another one.
    fn listener(&mut self, before: &mut Rc<str>) -> Result<(), WireError> {
        let length = usize::from(self.u8("listener")?);
        if length > limits::NAME_BYTES {
            return Err(WireError { field: "listener", problem: Problem::TooLong });
        }
        let name = self.utf8("listener", length)?;
        if *name != **before {
            *before = name.replace(char::is_control, " ").into();
        }
        Ok(())
    }

    /// A text is for the log, where it is not to end the line.
    fn text(&mut self, field: &'static str) -> Result<String, WireError> {
        let length = usize::from(self.u16(field)?);
        if length > limits::TEXT_BYTES {
            return Err(WireError { field, problem: Problem::TooLong });
        }
        Ok(self.utf8(field, length)?.replace(char::is_control, " "))
    }

    fn manifest(&mut self, written: u16, speaks: ProtocolRange) -> Result<Manifest, WireError> {
        let protocol = ProtocolRange {
            oldest: self.u16("oldest protocol")?,
            newest: self.u16("newest protocol")?,
        };
        if protocol.oldest > protocol.newest {
            let problem = Problem::Unknown(protocol.newest.into());
            return Err(WireError { field: "newest protocol", problem });
        }
        // What follows is ours to read only if there is a version that both speak.
        if speaks.agree(protocol).is_none() {
            let problem = Problem::Protocol { said: protocol, spoken: speaks };
            return Err(WireError { field: "protocol", problem });
        }
        if written != protocol.newest {
            let problem = Problem::Unknown(written.into());
            return Err(WireError { field: "protocol", problem });
        }
        let generation = self.u64("generation")?;
        let predecessor = self.u32("predecessor")?;
        let blocked = self.u64("blocked signals")?;
        let stay = self.u64("stay")?;
        let (part, parts) = (self.u8("part")?, self.u8("parts")?);
        if parts == 0 || usize::from(parts) > limits::MANIFEST_PARTS {
            return Err(WireError { field: "parts", problem: Problem::Unknown(parts.into()) });
        }
        if part >= parts {
            return Err(WireError { field: "part", problem: Problem::Unknown(part.into()) });
        }
        let count = usize::from(self.u8("count")?);
        if count > limits::DESCRIPTORS_PER_PACKET {
            return Err(WireError { field: "count", problem: Problem::TooLong });
        }
        // Not for as many as a short packet may say that it has.
        let mut entries = Vec::with_capacity(count.min(self.rest.len() / ENTRY_BYTES));
        for _ in 0..count {
            let code = self.u8("descriptor kind")?;
            let Some(&kind) = Kind::ALL.get(usize::from(code)) else {
                let problem = Problem::Unknown(code.into());
                return Err(WireError { field: "descriptor kind", problem });
            };
            entries.push(Entry { name: self.name()?, kind, asked: String::new(), file: None });
        }
        if written >= VERSION_2 && speaks.newest >= VERSION_2 {
            entries.iter_mut().try_for_each(|entry| self.origin(entry))?;
        }
        Ok(Manifest { protocol, generation, predecessor, blocked, stay, part, parts, entries })
    }

    /// Where a descriptor comes from, as version 2 says it.
    fn origin(&mut self, entry: &mut Entry) -> Result<(), WireError> {
        let length = usize::from(self.u8("asked address")?);
        let asked = self.utf8("asked address", length)?;
        if asked.contains(char::is_control) {
            return Err(WireError { field: "asked address", problem: Problem::ControlCharacter });
        }
        entry.asked = asked.into();
        let file = FileId { device: self.u64("device")?, inode: self.u64("inode")? };
        entry.file = Some(file).filter(|file| file.device != 0);
        Ok(())
    }

    fn expect(&mut self) -> Result<Expect, WireError> {
        Ok(Expect { sessions: self.u32("sessions")?, sockets: self.u32("sockets")? })
    }

    fn family(&mut self) -> Result<Family, WireError> {
        match self.u8("family")? {
            0 => Ok(Family::Tcp),
            1 => Ok(Family::Unix),
            other => Err(WireError { field: "family", problem: Problem::Unknown(other.into()) }),
        }
    }

    fn sessions(&mut self, protocol: u16) -> Result<Sessions, WireError> {
        let packet = self.u32("packet")?;
        let count = usize::from(self.u8("sessions")?);
        if count > limits::MOST_SESSIONS_PER_PACKET {
            return Err(WireError { field: "sessions", problem: Problem::TooLong });
        }
        // No more room than the packet can fill.
        let mut sessions = Vec::with_capacity(count.min(self.rest.len() / SESSION_BYTES));
        let mut listener = Rc::from("");
        for _ in 0..count {
            let schema = self.u32("schema")?;
            let sockets = usize::from(self.u8("sockets")?);
            if sockets > limits::SOURCES {
                return Err(WireError { field: "sockets", problem: Problem::TooLong });
            }
            let sockets = (0..sockets).map(|_| self.family()).collect::<Result<_, _>>()?;
            let wake = match protocol {
                VERSION_2.. => Some(self.u64("wake")?).filter(|wake| *wake != NEVER),
                _ => None,
            };
            let descriptors = match protocol {
                VERSION_3.. => self.u8("descriptors")?,
                _ => 0,
            };
            if usize::from(descriptors) > limits::SESSION_DESCRIPTORS {
                return Err(WireError { field: "descriptors", problem: Problem::TooLong });
            }
            let state = match self.u32("state")? {
                APART if protocol >= VERSION_3 => None,
                length if length as usize > limits::STATE_BYTES => {
                    return Err(WireError { field: "state", problem: Problem::TooLong });
                }
                length => Some(self.take("state", length as usize)?.to_vec()),
            };
            if protocol >= VERSION_4 {
                self.listener(&mut listener)?;
            }
            let listener = Rc::clone(&listener);
            sessions.push(SessionEntry { schema, sockets, wake, descriptors, state, listener });
        }
        Ok(Sessions { packet, sessions })
    }

    fn ack(&mut self) -> Result<Ack, WireError> {
        let packet = self.u32("packet")?;
        let count = usize::from(self.u8("refused")?);
        if count > limits::MOST_SESSIONS_PER_PACKET {
            return Err(WireError { field: "refused", problem: Problem::TooLong });
        }
        Ok(Ack { packet, refused: self.take("refused", count)?.to_vec() })
    }

    fn told(&mut self) -> Result<Vec<u8>, WireError> {
        let length = self.u32("message")? as usize;
        if length > limits::MESSAGE_BYTES {
            return Err(WireError { field: "message", problem: Problem::TooLong });
        }
        Ok(self.take("message", length)?.to_vec())
    }

    fn hello(&mut self) -> Result<Hello, WireError> {
        let schemas =
            SchemaRange { oldest: self.u32("oldest schema")?, newest: self.u32("newest schema")? };
        Ok(Hello { schemas, pid: self.u32("pid")?, build: self.text("build")? })
    }
}

/// What version 2 says of a descriptor. A text that is too long is left out: its host is looked up.
fn put_origin(out: &mut Vec<u8>, entry: &Entry) {
    let asked = Some(&entry.asked)
        .filter(|asked| asked.len() <= usize::from(u8::MAX) && !asked.contains(char::is_control));
    let asked = asked.map_or("", String::as_str);
    out.push(asked.len() as u8);
    out.extend(asked.as_bytes());
    let (device, inode) = entry.file.map_or((0, 0), |file| (file.device, file.inode));
    out.extend(device.to_le_bytes());
    out.extend(inode.to_le_bytes());
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    let mut length = text.len().min(limits::TEXT_BYTES);
    while !text.is_char_boundary(length) {
        length -= 1;
    }
    out.extend((length as u16).to_le_bytes());
    out.extend(&text.as_bytes()[..length]);
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "field \"{}\" ", self.field)?;
        match self.problem {
            Problem::Truncated => f.write_str("is cut off"),
            Problem::TrailingBytes => f.write_str("has bytes behind it"),
            Problem::TooLong => f.write_str("is longer than allowed"),
            Problem::Missing => f.write_str("is missing"),
            Problem::NotNumber => f.write_str("is not a number, or too large"),
            Problem::Empty => f.write_str("is empty"),
            Problem::NotText => f.write_str("is not UTF-8"),
            Problem::ControlCharacter => f.write_str("has a control character in it"),
            Problem::Repeated => f.write_str("comes twice"),
            Problem::Contradiction => f.write_str("is not what the parts before it say"),
            Problem::Unknown(value) => write!(f, "has the unknown value {value}"),
            Problem::Protocol { said, spoken } => {
                write!(f, "says protocol {said} where {spoken} is spoken")
            }
        }
    }
}

impl std::error::Error for WireError {}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP listener",
            Self::UnixStream => "Unix stream listener",
            Self::UnixSeqpacket => "Unix seqpacket listener",
            Self::Udp => "UDP socket",
            Self::UnixDatagram => "Unix datagram socket",
            Self::File => "file",
        })
    }
}
