//! Every bound, with its reason, and what the bounds must be to each other.

use std::time::Duration;

/// Events harvested by one poll. mio hands out no more than there is room for; the rest stays in
/// the kernel and comes with the next poll.
pub const EVENTS_PER_POLL: usize = 1024;

/// Session events dispatched in one turn. What is left over goes first in the next turn, after
/// signals and the handoff had their say.
pub const SESSION_EVENTS_PER_TURN: usize = 512;

/// How long sessions are served in one turn whose events are soon done, and how long the others are. One of
/// each is served in any case. With what is accepted and what moves, a turn has 5 ms.
pub const LIGHT_TIME: Duration = Duration::from_millis(2);
/// See [`LIGHT_TIME`].
pub const HEAVY_TIME: Duration = Duration::from_millis(1);

/// How long connections are accepted in one turn.
pub const ACCEPTING_TIME: Duration = Duration::from_millis(1);

/// An event that takes so long is one of bulk: a small message takes some microseconds. If nobody waits behind a
/// session that answers [`Verdict::Flush`](crate::Verdict::Flush), its `flush` counts as well. A session that has
/// had so many more of them lately than of others is [served](HEAVY_TIME) as one whose events take long.
pub const HEAVY_EVENT: Duration = Duration::from_micros(40);
/// See [`HEAVY_EVENT`].
pub const HEAVY_AFTER: u8 = 4;

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

/// A session that could not move is asked again after twice as many walks each time, so often; then
/// always after as many.
pub const REST_DOUBLINGS: u32 = 5;

/// Notices kept for a program that drives an [`Upgrader`](crate::Upgrader) and does not fetch them.
pub const NOTICES: usize = 64;

/// Numbers that a service counts, its own and the application's, and four places more: each has 512 bytes, of
/// which the kernel gives those that are used.
pub const LEDGER_SLOTS: usize = 1024;

/// The bounds of the histograms of an upgrade's steps: from a tenth of a millisecond to ten seconds.
pub const LEDGER_BOUNDS: [Duration; 14] = [
    Duration::from_micros(100),
    Duration::from_micros(250),
    Duration::from_micros(500),
    Duration::from_millis(1),
    Duration::from_micros(2500),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(25),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_secs(1),
    Duration::from_secs(5),
    Duration::from_secs(10),
];

/// Clients of the admin endpoint at a time. One more takes the place of the one that has said nothing for
/// the longest time.
pub const ADMIN_CLIENTS: usize = 32;

/// The head of a request of theirs, in bytes.
pub const ADMIN_HEAD_BYTES: usize = 8 * 1024;

/// The lines of such a head.
pub const ADMIN_HEADERS: usize = 64;

/// What waits for one of them to read it, in bytes, beside one answer.
pub const ADMIN_WAITING_BYTES: usize = 64 * 1024;

/// How much of one worker's answer its init reads, in bytes.
pub const ADMIN_BODY_BYTES: u64 = 4 * 1024 * 1024;
/// How long one of them may take to send a request, and then to read the answer.
pub const ADMIN_WAIT: Duration = Duration::from_secs(5);

/// How many of them are let in in a turn, and how many are listened to.
pub const ADMIN_ACCEPTS_PER_TURN: usize = 4;
/// See [`ADMIN_ACCEPTS_PER_TURN`].
pub const ADMIN_EVENTS_PER_TURN: usize = 8;

/// What is kept of the last words of a successor on standard error, in bytes.
pub const STDERR_BYTES: usize = 4 * 1024;

/// A message of the application's to the other process of an upgrade.
pub const MESSAGE_BYTES: usize = 16 * 1024;

/// The longest word of a handoff, but for a packet of sessions: such a message, and what stands before it.
pub const WORD_BYTES: usize = MESSAGE_BYTES + 64;

/// Messages of the application's that may wait because the other process does not read, in bytes.
pub const MESSAGES_WAITING_BYTES: usize = 4 * 1024 * 1024;

/// Descriptors that go along with an application's state. One more carries its bytes.
pub const STATE_DESCRIPTORS: usize = DESCRIPTORS_PER_PACKET - 1;

/// Handoff messages read in one turn.
pub const MESSAGES_PER_TURN: usize = 64;

/// Handoff messages read of a process that is dead. It was to answer three packets of sessions and had a
/// few words to say; whatever comes beyond that is said by somebody else who has its socket.
pub const LAST_WORDS: usize = 16 * MESSAGES_PER_TURN;

/// Sessions at one time, unless [`Config`](crate::Config) says otherwise. More than the descriptors
/// that a process is usually given, so that the kernel's limit is met first.
pub const SESSIONS: usize = 65_536;

/// Sockets of one session that can be told apart by their events: a proxied session has two.
pub const SOURCES: usize = 4;

/// What a session may say of itself when it moves, in bytes. A relay's buffers fit.
pub const STATE_BYTES: usize = 80 * 1024;

/// A longer state goes through a file, unless [`Config`](crate::Config) says otherwise up to this.
pub const PACKED_BYTES: usize = 16 * 1024 * 1024;

/// Descriptors of a session beside its sockets.
pub const SESSION_DESCRIPTORS: usize = 64;

/// Sessions in one packet of the handoff: enough that its system calls count little, and few enough that what is
/// on its way stands still for a short time.
pub const SESSIONS_PER_PACKET: usize = 20;

/// As many are understood, and no more: other builds send more at a time than this one.
pub const MOST_SESSIONS_PER_PACKET: usize = 32;

/// The longest packet of sessions, in bytes: one session's state fits in any case.
pub const SESSIONS_BYTES: usize = STATE_BYTES + 1024;

/// Packets of sessions that are sent and not acknowledged. One is put together by the successor while the next
/// is packed here, and one lies between the two, so that neither sleeps for a moment and has to be woken; what is on
/// its way stands still, and is not to be more than that.
pub const PACKETS_IN_FLIGHT: usize = 3;

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

/// How often a relay reads in each direction before the others have their turn, however little each
/// read brings: a sender can see to it that it is a byte.
pub const RELAY_READS_PER_TURN: u32 = 32;

/// How long a relay whose one side has broken off waits for the other one to take what was said before,
/// since it took the last byte: what was not sent is thrown away with a reset.
pub const RELAY_LAST_WAIT: Duration = Duration::from_secs(1);

/// How often it looks: the kernel tells nobody that everything was sent.
pub const RELAY_LAST_LOOK: Duration = Duration::from_millis(10);

/// How often a Unix listener whose queue is full is asked for a place in it.
pub const QUEUE_LOOK: Duration = Duration::from_millis(10);

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

/// Descriptors that clients do not get, because an upgrade needs them: two for each of the pipe and the
/// socket, two for processes to be watched, those for a look at `/proc` and for the pid file, and what a
/// successor needs beside what its predecessor has.
pub const RESERVED_DESCRIPTORS: u64 = 12 + SPARE_DESCRIPTORS;

/// For how many descriptors the kernel's table is made at the start, at the most: 8 bytes of the kernel's
/// memory for each. Whoever may have more has a table that grows, and stands still when it does.
pub const DESCRIPTOR_SLOTS: u64 = 65_536;

/// How often it is looked at how many descriptors there may be, which somebody may change (prlimit(2)).
pub const LIMIT_INTERVAL: Duration = Duration::from_secs(1);

/// Connections accepted after the process was told to stop: more than can wait in the queues of some
/// listeners, and a bound for a flood that does not end.
pub const LAST_ACCEPTS: usize = 16_384;

/// How long nobody may come to a worker that leaves, before it closes its listeners: whoever has begun to connect when
/// it began to leave has come by then.
pub const LEAVING_QUIET: Duration = Duration::from_millis(300);
/// How long its listeners stay open at the most.
pub const LEAVING: Duration = Duration::from_secs(3);
/// How often it looks into their queues.
pub const LEAVING_LOOK: Duration = Duration::from_millis(10);
/// How long accepting pauses when the process or the machine has no descriptor left (EMFILE,
/// ENFILE, accept(2)); a session that ends meanwhile resumes it at once. And how often it is tried to
/// poll a listener that epoll has refused (ENOMEM, ENOSPC, epoll_ctl(2)).
pub const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// How long a directory in which a Unix socket is to be bound may be locked by another process. Longer
/// than it takes anybody who does the same; after that, whoever holds the lock does something else.
pub const LOCK_WAIT: Duration = Duration::from_secs(1);

/// How often it is tried to lock it.
pub const LOCK_RETRY: Duration = Duration::from_millis(1);

/// How long the exit status of a successor that hung up may take. The kernel closes a dying
/// process's descriptors just before it tells the parent, so that this is for a process that hung
/// up and lives.
pub const STATUS_WAIT: Duration = Duration::from_millis(100);

/// How long the loop sleeps at the most while a deadline runs for the other process: so a pause of
/// this process, which a sleep would hide, is noticed.
pub const HEARTBEAT: Duration = Duration::from_millis(100);

/// Who wakes up so much later than it wanted to has stood still, and so may have the other process: it
/// was stopped, or frozen, or the machine was. Longer than what a busy machine does to a process all
/// the time.
pub const STOOD_STILL: Duration = Duration::from_millis(200);

/// How often a deadline begins again after such a pause, before it is only put off.
pub const RENEWALS: u32 = 8;

/// How long the next upgrade waits after one that failed: the first time, and at the most. It is
/// doubled with each failure in a row.
pub const PAUSE_LEAST: Duration = Duration::from_millis(20);
/// See [`PAUSE_LEAST`].
pub const PAUSE_MOST: Duration = Duration::from_secs(1);
const _: () = assert!(PAUSE_LEAST.as_millis() < PAUSE_MOST.as_millis());

/// A failure that comes so long after the one before is the first of a new row.
pub const PAUSE_FORGOTTEN: Duration = Duration::from_secs(60);

/// How often words are tried again that the other process's socket has no room for.
pub const OUTBOX_RETRY: Duration = Duration::from_millis(10);

/// How often words are tried again that a service manager's socket has no room for.
pub const NOTIFY_RETRY: Duration = Duration::from_millis(10);

/// Words about who serves that wait for a service manager which does not read. The oldest go first.
pub const NOTIFY_WAITING: usize = 32;

/// How often the line that a service manager shows is said anew while the number of sessions changes.
pub const STATUS_INTERVAL: Duration = Duration::from_secs(1);

/// How long a predecessor waits for a service manager to hear who serves, before it leaves all the same. A
/// manager that is not overloaded answers within a millisecond or two.
pub const BARRIER_WAIT: Duration = Duration::from_secs(1);
/// How often it looks: nobody is served in that process any more, so that it costs nobody anything.
pub const BARRIER_LOOK: Duration = Duration::from_millis(1);

/// How often a service manager is asked for more patience, while an upgrade or a shutdown is under way:
/// often enough for the shortest timeout that makes sense.
pub const NOTIFY_EXTEND: Duration = Duration::from_secs(1);
/// And for how much. If the loop hangs meanwhile, that is how late it is noticed.
pub const NOTIFY_PATIENCE: Duration = Duration::from_secs(10);
const _: () = assert!(NOTIFY_EXTEND.as_millis() < NOTIFY_PATIENCE.as_millis());

/// How often a service manager's watchdog is told that the loop turns, at the most, whatever it asks for.
pub const WATCHDOG_LEAST: Duration = Duration::from_millis(1);

/// A method of a handler that takes so long is named in the log: nobody else was served meanwhile.
pub const SLOW_HANDLER: Duration = Duration::from_millis(100);

/// How long sessions are packed, or put together, in one turn.
pub const MOVING_TIME: Duration = Duration::from_millis(1);

/// How long a packet of sessions is filled, if there are [`FEW_SESSIONS`] in it: the first one in it stands still until
/// the last one is packed. Where a handler packs fast, a packet is full before that.
pub const FILLING_TIME: Duration = Duration::from_micros(100);
/// Fewer than that are not worth a packet, as long as there are more.
pub const FEW_SESSIONS: usize = 8;

/// How long the end of the program waits for a process that was killed with SIGKILL, so that no
/// zombie is left to somebody else. Longer than the kernel takes to free the memory of a large one.
pub const REAP_WAIT: Duration = Duration::from_secs(2);

/// How long a disk may take over a call for the pid file before that is logged, and whoever waits for
/// it goes on without: the takeover, the spawn, the end of the process. Longer than a busy disk takes
/// over a rename, and much shorter than the takeover timeout (5 s by default), so that a disk that
/// hangs costs no upgrade. Where a timeout is configured to be shorter, it is [`DISK_SHARE`] of that.
pub const DISK_WAIT: Duration = Duration::from_secs(1);

/// How long the thread that makes a disk's calls stays when there is none to be made.
pub const WORKER_IDLE: Duration = Duration::from_millis(200);

/// How long a turn waits for the paths of Unix listeners to be unlinked, before the listeners are closed:
/// on a disk that answers it is some microseconds.
pub const UNLINK_WAIT: Duration = Duration::from_millis(5);

/// How much of a configured timeout is given to the disk at the most: one in so many parts.
pub const DISK_SHARE: u32 = 4;

/// Jobs that wait for a disk that does not answer. More are not given, if they can be left undone: an
/// upgrade that fails has a few of them, and there may be any number of such upgrades.
pub const DISK_JOBS: usize = 16;

/// The stack of a thread beside the loop; the spawn brings its own for the child.
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

/// The bytes of a MANIFEST part beside its entries.
pub const MANIFEST_HEAD_BYTES: usize = 64;
/// The bytes of a MANIFEST entry beside its name and the address by which it was asked for.
pub const ENTRY_HEAD_BYTES: usize = 20;

/// The parts of a manifest. Each is filled by its bytes: with names and addresses of ordinary length
/// it takes as many descriptors as fit on a packet.
pub const MANIFEST_PARTS: usize = 16;

/// Even the longest names and addresses find their place.
const _: () = assert!(
    NAMED.div_ceil((PACKET_BYTES - MANIFEST_HEAD_BYTES) / ENTRY_BYTES) <= MANIFEST_PARTS
        && ENTRY_BYTES == ENTRY_HEAD_BYTES + NAME_BYTES + u8::MAX as usize
);
/// The longest entry of a MANIFEST.
const ENTRY_BYTES: usize = 375;

/// What is asked of the kernel as the room of a handoff socket, in bytes (SO_SNDBUF, socket(7)). The
/// kernel doubles it, for its bookkeeping, and gives no more than `net.core.wmem_max`, which is
/// 212,992 by default. The whole manifest lies in the socket before the successor exists, and packets
/// of sessions and their answers fit in.
pub const SOCKET_BYTES: usize = 425_984;
const _: () = assert!(MANIFEST_PARTS * (PACKET_BYTES + 4096) <= 2 * SOCKET_BYTES);

/// A name's length is one byte on the wire.
const _: () = assert!(NAME_BYTES <= u8::MAX as usize);

/// What the kernel counts for a packet beside its bytes, or somewhat more.
pub const PACKET_OVERHEAD_BYTES: usize = 4096;

/// What a packet of sessions has beside them, and what the kernel does not let a packet use of the
/// socket's room (EMSGSIZE, send(2)).
pub const PACKET_HEAD_BYTES: usize = 64;

/// A packet of sessions fits into the socket, and so does its answer.
const _: () = assert!(PACKETS_IN_FLIGHT * (SESSIONS_BYTES + PACKET_OVERHEAD_BYTES) <= SOCKET_BYTES);

/// Every session of a packet can have all its sockets on it.
const _: () = assert!(MOST_SESSIONS_PER_PACKET * SOURCES <= DESCRIPTORS_PER_PACKET);
const _: () = assert!(SESSIONS_PER_PACKET <= MOST_SESSIONS_PER_PACKET);

/// A session's place in its packet is one byte on the wire.
const _: () = assert!(MOST_SESSIONS_PER_PACKET <= u8::MAX as usize);

/// A refusal fits into one packet.
const _: () = assert!(TEXT_BYTES + 64 <= PACKET_BYTES);

/// What is carried over is bounded by the number of sessions, because the events of one merge while
/// they wait; and a session waits for no more than two turns for each poll's worth before it.
const _: () = assert!(SESSION_EVENTS_PER_TURN * 2 >= EVENTS_PER_POLL);

const _: () = assert!(WORD_BYTES <= PACKET_BYTES);
