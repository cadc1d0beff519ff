//! Places at which a test makes this process fail. In a release build they are nothing.
//!
//! A test sets a hook, and the hook does what it likes at the point: it kills the process, stops
//! it, takes its descriptors away. The points are the steps of an upgrade, in both roles, so that
//! every step meets every fault; state-machine.md has the table of what comes of it.

/// A step of an upgrade: just before or just after the thing that it is named for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// Predecessor: an upgrade begins, and nothing is made for it yet.
    Spawn,
    /// Predecessor, on the spawning thread: just before the spawn.
    Spawning,
    /// Predecessor, on the spawning thread: just after the spawn.
    Spawned,
    /// Predecessor: HELLO was read.
    HelloHeard,
    /// Predecessor: the ready byte was read, and the listeners are polled still.
    ReadyHeard,
    /// Predecessor: the listeners are paused, and COMMIT is not sent yet.
    Paused,
    /// Predecessor: COMMIT is sent.
    CommitSent,
    /// Predecessor: SERVING was read.
    ServingHeard,
    /// Predecessor: the probation is over, and PING is not sent yet.
    ProbationOver,
    /// Predecessor: PING is sent.
    PingSent,
    /// Predecessor: a packet of sessions is sent.
    SessionsSent,
    /// Predecessor: ACK was read, and the sessions are its own still.
    AckHeard,
    /// Predecessor: about to leave.
    Leaving,
    /// Successor: started, and nothing is adopted yet.
    Started,
    /// Successor: the descriptors are adopted, and HELLO is not said yet.
    Adopted,
    /// Successor: HELLO is said, and there is no loop yet.
    HelloSaid,
    /// Successor: set up, and the ready byte is not written yet.
    SetUp,
    /// Successor: the ready byte is written.
    ReadySaid,
    /// Successor: COMMIT was read, and nothing is done about it yet.
    CommitHeard,
    /// Successor: it accepts, and the pid file does not name it yet.
    Accepting,
    /// Successor: the pid file names it, and SERVING is not said yet.
    PidFileWritten,
    /// Successor: SERVING is said.
    ServingSaid,
    /// Successor: PING was read, and not answered yet.
    PingHeard,
    /// Successor: PONG is said.
    PongSaid,
    /// Successor: a packet of sessions was read, and nothing is done about it yet.
    SessionsHeard,
    /// Successor: ACK is said, and no byte of the sessions is touched yet.
    AckSaid,
    /// Successor: its predecessor is gone.
    Alone,
    /// A deadline's last look, in either role. No step of an upgrade, and not among [`Point::ALL`].
    LastLook,
}

impl Point {
    /// Every step, in the order of an upgrade, the predecessor's first.
    pub const ALL: [Self; 27] = [
        Self::Spawn,
        Self::Spawning,
        Self::Spawned,
        Self::HelloHeard,
        Self::ReadyHeard,
        Self::Paused,
        Self::CommitSent,
        Self::ServingHeard,
        Self::ProbationOver,
        Self::PingSent,
        Self::SessionsSent,
        Self::AckHeard,
        Self::Leaving,
        Self::Started,
        Self::Adopted,
        Self::HelloSaid,
        Self::SetUp,
        Self::ReadySaid,
        Self::CommitHeard,
        Self::Accepting,
        Self::PidFileWritten,
        Self::ServingSaid,
        Self::PingHeard,
        Self::PongSaid,
        Self::SessionsHeard,
        Self::AckSaid,
        Self::Alone,
    ];
}

#[cfg(debug_assertions)]
static HOOK: std::sync::OnceLock<fn(Point)> = std::sync::OnceLock::new();

/// Has `hook` called at every point from now on. The first hook stays. In a release build there is
/// no point to call it at.
#[cfg_attr(not(debug_assertions), allow(unused_variables, reason = "there is no point"))]
pub fn set_hook(hook: fn(Point)) {
    #[cfg(debug_assertions)]
    let _ = HOOK.set(hook);
}

#[cfg(debug_assertions)]
static ALL_ARE_DISKS: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);

/// Has a pid file in memory written as one on a disk is, from now on: tests have their files in memory. In a
/// release build nothing comes of it.
pub fn take_memory_for_disks() {
    #[cfg(debug_assertions)]
    ALL_ARE_DISKS.store(true, std::sync::atomic::Ordering::Relaxed);
}

/// Whether what is in memory is to be taken for a disk.
#[inline(always)]
pub(crate) fn takes_memory_for_disks() -> bool {
    #[cfg(debug_assertions)]
    return ALL_ARE_DISKS.load(std::sync::atomic::Ordering::Relaxed);
    #[cfg(not(debug_assertions))]
    false
}

/// The process is at this point.
#[cfg_attr(not(debug_assertions), allow(unused_variables, reason = "there is no hook"))]
#[inline(always)]
pub(crate) fn at(point: Point) {
    #[cfg(debug_assertions)]
    if let Some(hook) = HOOK.get() {
        hook(point);
    }
}
