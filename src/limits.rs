//! Every bound, with its reason, and what the bounds must be to each other.

use std::time::Duration;

/// Events harvested by one poll. mio hands out no more than there is room for; the rest stays in
/// the kernel and comes with the next poll.
pub const EVENTS_PER_POLL: usize = 1024;

/// Session events dispatched in one turn. What is left over goes first in the next turn, after
/// signals and the handoff had their say.
pub const SESSION_EVENTS_PER_TURN: usize = 512;

/// Sessions in a row that may have their event before the first of them is to flush what it has read
/// ([`Verdict::Flush`](crate::Verdict::Flush)): enough to stay on one way through the kernel for a
/// while, few enough that the first of them waits for some microseconds only.
pub const SESSIONS_PER_BATCH: usize = 8;

/// Connections accepted in one turn, over all listeners. Bounds how long established sessions wait
/// behind a flood of new ones.
pub const ACCEPTS_PER_TURN: usize = 64;

/// Sessions told to drain, or closed, in one turn.
pub const DRAINS_PER_TURN: usize = 256;

/// How often a draining process asks its sessions whether they have come to their end. A session
/// cannot know that its client has paused but by looking again; this is short beside any drain
/// timeout and long beside a round trip.
pub const DRAIN_INTERVAL: Duration = Duration::from_millis(100);

/// Handoff messages read in one turn.
pub const MESSAGES_PER_TURN: usize = 64;

/// Sessions at one time, unless [`Config`](crate::Config) says otherwise. More than the descriptors
/// that a process is usually given, so that the kernel's limit is met first.
pub const SESSIONS: usize = 65_536;

/// Sockets of one session that can be told apart by their events: a proxied session has two.
pub const SOURCES: usize = 4;

/// What a session may say of itself when it moves, in bytes. A relay's buffers fit.
pub const STATE_BYTES: usize = 80 * 1024;

/// Sessions in one packet of the handoff: enough that its system calls do not count, and few enough
/// that a turn in which they are packed or put together is short.
pub const SESSIONS_PER_PACKET: usize = 32;

/// The longest packet of sessions, in bytes: one session's state fits in any case.
pub const SESSIONS_BYTES: usize = STATE_BYTES + 1024;

/// Packets of sessions that are sent and not acknowledged. One is put together by the successor
/// while the next is packed here; what is on its way stands still, and is not to be more than that.
pub const PACKETS_IN_FLIGHT: usize = 2;

/// What a relay reads at a time, in bytes: large enough that the calls cost little beside the
/// copying, small enough to stay in a processor's nearest caches between the read and the write, and
/// somewhat less than a TCP socket sends at once (64 KiB less the headers), so that no second, tiny
/// segment follows.
pub const RELAY_READ_BYTES: usize = 60 * 1024;

/// What a relay may always read in one direction, however much it keeps for the other one: a client
/// that does not read until its own request is taken must not wait for itself.
pub const RELAY_LEAST_BYTES: usize = 8 * 1024;

/// What a relay reads of a client that is still to be connected, in bytes: what most say first, for
/// them to be sent together with it. The rest waits in the kernel until there is an upstream.
pub const RELAY_OPENING_BYTES: usize = 4 * 1024;

/// Less than that, and no more at that moment, a relay keeps until the neighbours have read, too
/// ([`SESSIONS_PER_BATCH`]), in bytes: to copy it once more costs nothing beside the calls.
pub const RELAY_SMALL_BYTES: usize = 2 * 1024;

/// From so many bytes in one read on, the next one goes through a pipe: not to copy them is worth
/// the call more that it takes (`cargo bench --bench relay`). At 16 KiB it is worth it on one machine
/// and not on the next, and where the caches are cold and not where they are warm.
pub const RELAY_LARGE_BYTES: usize = 32 * 1024;

/// The room of that pipe, which the kernel counts in pages: 64 pieces where a page has 4 KiB, each of
/// which may be one segment. Where there are fewer, a large read takes more calls.
pub const RELAY_PIPE_BYTES: i32 = 256 * 1024;

/// What a relay moves in each direction before the others have their turn: some tenths of a
/// millisecond.
pub const RELAY_BYTES_PER_TURN: usize = 4 * RELAY_READ_BYTES;

/// What all relays of a process may keep together of what was read and could not be written,
/// unless it is said otherwise.
pub const RELAY_KEPT_BYTES: usize = 64 * 1024 * 1024;

/// What is deferred is no more than may be read, and what a client has said first is read with one
/// call.
const _: () = assert!(RELAY_SMALL_BYTES <= RELAY_LEAST_BYTES);
const _: () = assert!(RELAY_OPENING_BYTES <= RELAY_READ_BYTES);

/// What a relay keeps is carried along when its session moves, and leaves room for what the
/// application has to say of it.
const _: () = assert!(RELAY_READ_BYTES + RELAY_LEAST_BYTES + 4096 <= STATE_BYTES);

/// Descriptors that a successor needs beside what its predecessor has: what it opens in its set-up, and
/// the sessions that come meanwhile.
pub const SPARE_DESCRIPTORS: u64 = 8;

/// How long accepting pauses when the process or the machine has no descriptor left (EMFILE,
/// ENFILE, accept(2)). A session that ends meanwhile resumes it at once.
pub const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// How long the exit status of a successor that hung up may take. The kernel closes a dying
/// process's descriptors just before it tells the parent, so that this is for a process that hung
/// up and lives.
pub const STATUS_WAIT: Duration = Duration::from_millis(100);

/// How long the end of the program waits for a process that was killed with SIGKILL, so that no
/// zombie is left to somebody else. Longer than the kernel takes to free the memory of a large one.
pub const REAP_WAIT: Duration = Duration::from_secs(2);

/// How long a disk may take over a call for the pid file before that is logged, and whoever waits for
/// it goes on without: the takeover, the spawn, the end of the process. Longer than a busy disk takes
/// over a rename, and much shorter than the takeover timeout (5 s by default), so that a disk that
/// hangs costs no upgrade. Where a timeout is configured to be shorter, it is [`DISK_SHARE`] of that.
pub const DISK_WAIT: Duration = Duration::from_secs(1);

/// How much of a configured timeout is given to the disk at the most: one in so many parts.
pub const DISK_SHARE: u32 = 4;

/// Jobs that wait for a disk that does not answer. More are not given, if they can be left undone: an
/// upgrade that fails has a few of them, and there may be any number of such upgrades.
pub const DISK_JOBS: usize = 16;

/// The stack of a thread beside the loop; posix_spawn(3) brings its own for the child.
pub const THREAD_STACK_BYTES: usize = 128 * 1024;

/// The longest name of a listener or file, in bytes.
pub const NAME_BYTES: usize = 100;

/// Descriptors on one `sendmsg` (SCM_MAX_FD, unix(7)).
pub const DESCRIPTORS_PER_PACKET: usize = 253;

/// Named descriptors that a process can pass on.
pub const NAMED: usize = 4 * DESCRIPTORS_PER_PACKET;

/// The longest handoff message, in bytes.
pub const PACKET_BYTES: usize = 32 * 1024;

/// The longest text of a refusal and of a build's name, in bytes.
pub const TEXT_BYTES: usize = 1024;

/// The bytes of a MANIFEST part beside its entries, and of one entry beside its name.
pub const MANIFEST_HEAD_BYTES: usize = 64;
/// The bytes of a MANIFEST entry beside its name.
pub const ENTRY_HEAD_BYTES: usize = 4;

/// A full part of a manifest fits into one packet.
const _: () = assert!(
    MANIFEST_HEAD_BYTES + DESCRIPTORS_PER_PACKET * (ENTRY_HEAD_BYTES + NAME_BYTES) <= PACKET_BYTES
);

/// The whole manifest lies in the socket before the successor exists: the kernel's default send
/// buffer of 212,992 bytes (`net.core.wmem_default`, socket(7)) takes it, bookkeeping included.
const _: () = assert!(NAMED / DESCRIPTORS_PER_PACKET * (PACKET_BYTES + 4096) <= 212_992);

/// A name's length is one byte on the wire.
const _: () = assert!(NAME_BYTES <= u8::MAX as usize);

/// A packet of sessions fits into the socket, and so does its answer (`net.core.wmem_default`).
const _: () = assert!(PACKETS_IN_FLIGHT * (SESSIONS_BYTES + 4096) <= 212_992);

/// Every session of a packet can have all its sockets on it.
const _: () = assert!(SESSIONS_PER_PACKET * SOURCES <= DESCRIPTORS_PER_PACKET);

/// A session's place in its packet is one byte on the wire.
const _: () = assert!(SESSIONS_PER_PACKET <= u8::MAX as usize);

/// A refusal fits into one packet.
const _: () = assert!(TEXT_BYTES + 64 <= PACKET_BYTES);

/// What is carried over is bounded by the number of sessions, because the events of one merge while
/// they wait; and a session waits for no more than two turns for each poll's worth before it.
const _: () = assert!(SESSION_EVENTS_PER_TURN * 2 >= EVENTS_PER_POLL);
