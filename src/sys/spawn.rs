//! Spawns a process that shares this one's memory until it executes its program.
//!
//! This is what posix_spawn(3) does, written out for two reasons. Its chdir action is a symbol that
//! Rust's library refers to weakly, so that it is null in a program that is linked statically. And it
//! tells neither which step failed nor a descriptor of the process, which has to be opened afterwards:
//! a process that ends at once can be gone by then.

use std::ffi::{CStr, CString, c_int, c_void};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
use nix::sys::wait::{Id, WaitPidFlag, waitid, waitpid};
use nix::unistd::Pid;

/// The child's stack. It makes a few dozen system calls, one below the other, and calls nothing else.
const STACK_BYTES: usize = 64 * 1024;

/// What to execute: everything in the form that execve(2) takes it.
#[derive(Debug)]
pub(crate) struct Command {
    pub(crate) executable: CString,
    pub(crate) arguments: Vec<CString>,
    pub(crate) environment: Vec<CString>,
    /// Where to execute it. `None` if that is not known: then it is where this process is.
    pub(crate) directory: Option<CString>,
}

/// A process that was spawned: its id, and a descriptor that becomes readable when it dies.
#[derive(Debug)]
pub(crate) struct Spawned {
    pub(crate) pid: u32,
    pub(crate) process: OwnedFd,
    /// Why the process could not enter its directory, and is in this process's directory instead.
    pub(crate) not_entered: Option<Errno>,
}

/// The step that failed, in words that the program's name follows, and the system's answer.
#[derive(Debug)]
pub(crate) struct NotSpawned {
    pub(crate) step: &'static str,
    pub(crate) source: io::Error,
}

/// What the child does, in this order.
#[derive(Clone, Copy)]
enum Step {
    ResetSignals = 1,
    KeepDescriptors,
    SetSignalMask,
    Execute,
}

/// Everything that the child needs, and what it says. The parent's thread has it on its stack; the
/// child sees the same memory.
struct Birth {
    executable: *const libc::c_char,
    arguments: *const *const libc::c_char,
    environment: *const *const libc::c_char,
    /// May be null.
    directory: *const libc::c_char,
    keep: *const RawFd,
    keep_count: usize,
    /// What is to be its standard error; negative if that stays what it is.
    stderr: RawFd,
    mask: libc::sigset_t,
    last_signal: c_int,
    /// The step that failed, and its error number; 0 if none did.
    failed: AtomicI32,
    errno: AtomicI32,
    /// Why the directory could not be entered; 0 if it could.
    not_entered: AtomicI32,
}

/// Spawns a process without a copy of the page tables (CLONE_VM, clone(2)), so that its time does not
/// depend on how much memory there is. The calling thread stands still until the program is executed
/// (CLONE_VFORK); no other thread does.
///
/// Of this process's descriptors the new one gets those that are not close-on-exec, and `keep`,
/// under the numbers that they have here; and `stderr`, if there is one, as its standard error. The signals
/// in `blocked` are blocked in it, besides those that the calling thread blocks.
///
/// A directory that cannot be entered is no error: see [`Spawned::not_entered`].
pub(crate) fn spawn(
    command: &Command,
    variables: &[&CStr],
    keep: &[BorrowedFd<'_>],
    stderr: Option<BorrowedFd<'_>>,
    blocked: SigSet,
) -> Result<Spawned, NotSpawned> {
    spawn_with_mask(command, variables, keep, stderr, |mut mask| {
        mask.extend(blocked.iter());
        mask
    })
}

/// The same, in which exactly these signals are blocked: an answer to those that the calling thread blocks.
pub(crate) fn spawn_with_mask(
    command: &Command,
    variables: &[&CStr],
    keep: &[BorrowedFd<'_>],
    stderr: Option<BorrowedFd<'_>>,
    mask: impl FnOnce(SigSet) -> SigSet,
) -> Result<Spawned, NotSpawned> {
    let failed = |step| move |errno: Errno| NotSpawned { step, source: errno.into() };
    // nul-terminated vectors of pointers, as execve(2) wants them; the strings outlive the call.
    let pointers = |strings: &mut dyn Iterator<Item = &CStr>| -> Vec<*const libc::c_char> {
        strings.map(CStr::as_ptr).chain([ptr::null()]).collect()
    };
    let argv = pointers(&mut command.arguments.iter().map(CString::as_c_str));
    let envp = pointers(
        &mut command.environment.iter().map(CString::as_c_str).chain(variables.iter().copied()),
    );
    let keep: Vec<RawFd> = keep.iter().map(AsRawFd::as_raw_fd).collect();
    let stack = Stack::new().map_err(failed("map a stack for"))?;

    // A signal handler must not run in the child while it shares this process's memory.
    let mut before = SigSet::empty();
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut before))
        .map_err(failed("block signals for"))?;
    let mask = mask(before);
    let birth = Birth {
        executable: command.executable.as_ptr(),
        arguments: argv.as_ptr(),
        environment: envp.as_ptr(),
        directory: command.directory.as_ref().map_or(ptr::null(), |path| path.as_ptr()),
        keep: keep.as_ptr(),
        keep_count: keep.len(),
        stderr: stderr.as_ref().map_or(-1, AsRawFd::as_raw_fd),
        mask: *mask.as_ref(),
        last_signal: libc::SIGRTMAX(),
        failed: AtomicI32::new(0),
        errno: AtomicI32::new(0),
        not_entered: AtomicI32::new(0),
    };
    let mut process: RawFd = -1;
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD;
    // SAFETY: the child runs `child` on a stack of its own, which grows down from the top of `stack`.
    // `birth`, what it points to, and `stack` live until the end of this function, and this thread
    // stands still until the child has left that memory, by execve(2) or by _exit(2). The kernel
    // writes one descriptor to `process`. No descriptor changes hands: the child has a table of its
    // own (no CLONE_FILES), with copies.
    let result = Errno::result(unsafe {
        libc::clone(
            child,
            stack.top(),
            flags,
            ptr::from_ref(&birth).cast_mut().cast(),
            &raw mut process,
        )
    });
    // It was the mask a moment ago, so that it is one; there is no other reason to fail.
    let _ = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None);
    drop(stack);

    let pid = result.map_err(failed("make a process for"))?;
    // The kernel writes to it since Linux 5.2. A process that cannot be watched must not live. It is
    // this one's child and nobody else knows of it, so that its id means no other.
    if process < 0 {
        let child = Pid::from_raw(pid);
        let _ = nix::sys::signal::kill(child, Signal::SIGKILL);
        while waitpid(child, None) == Err(Errno::EINTR) {}
        return Err(failed("have a pidfd (Linux 5.4) of a process for")(Errno::ENOSYS));
    }
    // SAFETY: the kernel has just made this descriptor for this process, close-on-exec, and nobody
    // else knows its number.
    let process = unsafe { OwnedFd::from_raw_fd(process) };
    let failed_step = match birth.failed.load(Ordering::Relaxed) {
        0 => None,
        step if step == Step::ResetSignals as i32 => Some("reset signal handlers for"),
        step if step == Step::KeepDescriptors as i32 => Some("pass descriptors on to"),
        step if step == Step::SetSignalMask as i32 => Some("set the signal mask of"),
        _ => Some("execute"),
    };
    if let Some(step) = failed_step {
        // It has ended, or is about to. ECHILD: somebody else has taken its status.
        while waitid(Id::PIDFd(process.as_fd()), WaitPidFlag::WEXITED) == Err(Errno::EINTR) {}
        return Err(failed(step)(Errno::from_raw(birth.errno.load(Ordering::Relaxed))));
    }
    let not_entered = match birth.not_entered.load(Ordering::Relaxed) {
        0 => None,
        errno => Some(Errno::from_raw(errno)),
    };
    // Not negative, because the call has succeeded.
    Ok(Spawned { pid: pid.unsigned_abs(), process, not_entered })
}

/// Memory for the child's stack. It is asked of the kernel, because that can say no: a Rust program
/// whose allocator has none ends.
struct Stack(*mut c_void);

impl Stack {
    fn new() -> Result<Self, Errno> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK;
        // SAFETY: new memory at a place that the kernel chooses, which nobody else has.
        let place = unsafe { libc::mmap(ptr::null_mut(), STACK_BYTES, access, kind, -1, 0) };
        if place == libc::MAP_FAILED { Err(Errno::last()) } else { Ok(Self(place)) }
    }

    /// Where it grows down from; as well aligned as a page.
    fn top(&self) -> *mut c_void {
        self.0.wrapping_byte_add(STACK_BYTES)
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this length, and unmapped once. The child has left it, or never was.
        unsafe { libc::munmap(self.0, STACK_BYTES) };
    }
}

/// The child, until it executes its program. It shares its parent's memory, of which any lock may be
/// held by another thread: it makes system calls, allocates nothing, and cannot panic
/// (signal-safety(7)).
extern "C" fn child(argument: *mut c_void) -> c_int {
    // SAFETY: `spawn` passes a pointer to its `Birth`, which lives as long as this process shares the
    // memory. The parent's thread stands still, so that nobody else looks at it.
    let birth = unsafe { &*argument.cast::<Birth>().cast_const() };
    let step = run(birth);
    birth.errno.store(Errno::last_raw(), Ordering::Relaxed);
    birth.failed.store(step as i32, Ordering::Relaxed);
    // SAFETY: ends this process at once, and runs none of the parent's exit handlers.
    unsafe { libc::_exit(127) }
}

/// Answers which step failed, with its error in errno; it does not return if none did.
fn run(birth: &Birth) -> Step {
    // SAFETY: an action is numbers and a set of signals, and all of them may be 0.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // What is handled here would be handled in the memory of the parent, once signals are not blocked
    // any more; execve(2) does the same a moment later. What is ignored stays ignored.
    for signal in 1..=birth.last_signal {
        // SAFETY: with a null new action the call only fills in the old one. It fails for the
        // signals that libc keeps for itself (nptl(7)), which nobody sends to this process.
        if unsafe { libc::sigaction(signal, ptr::null(), &raw mut action) } != 0
            || action.sa_sigaction == libc::SIG_DFL
            || action.sa_sigaction == libc::SIG_IGN
        {
            continue;
        }
        action.sa_sigaction = libc::SIG_DFL;
        action.sa_flags = 0;
        // SAFETY: changes this process's own table of actions (no CLONE_SIGHAND) to no function.
        if unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) } != 0 {
            return Step::ResetSignals;
        }
    }
    // SAFETY: a nul-terminated string that lives in `spawn`.
    if !birth.directory.is_null() && unsafe { libc::chdir(birth.directory) } != 0 {
        birth.not_entered.store(Errno::last_raw(), Ordering::Relaxed);
    }
    let mut kept = 0;
    while kept < birth.keep_count {
        // SAFETY: `keep` has that many numbers, and each is of a descriptor that the caller of
        // `spawn` has borrowed. The flag is changed in this process's own table.
        if unsafe { libc::fcntl(*birth.keep.wrapping_add(kept), libc::F_SETFD, 0) } != 0 {
            return Step::KeepDescriptors;
        }
        kept = kept.wrapping_add(1);
    }
    // SAFETY: the caller of `spawn` has borrowed it, and it is no standard descriptor; the copy is made in
    // this process's own table, and stays open in the program (dup2(2)).
    if birth.stderr >= 0 && unsafe { libc::dup2(birth.stderr, libc::STDERR_FILENO) } < 0 {
        return Step::KeepDescriptors;
    }
    // SAFETY: the mask is read, and the null pointer says that the old one is not wanted.
    if unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const birth.mask, ptr::null_mut()) } != 0
    {
        return Step::SetSignalMask;
    }
    // SAFETY: a nul-terminated path, and two vectors of nul-terminated strings that end with a null
    // pointer, all of which live in `spawn`.
    unsafe { libc::execve(birth.executable, birth.arguments, birth.environment) };
    Step::Execute
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::wait::WaitStatus;

    fn command(words: &[&str], directory: Option<&str>) -> Command {
        let text = |word: &str| CString::new(word).expect("no nul");
        let words: Vec<_> = words.iter().map(|word| text(word)).collect();
        Command {
            executable: words[0].clone(),
            arguments: words,
            environment: Vec::new(),
            directory: directory.map(text),
        }
    }

    fn ending(spawned: &Spawned) -> WaitStatus {
        waitid(Id::PIDFd(spawned.process.as_fd()), WaitPidFlag::WEXITED).expect("our child")
    }

    fn exits_with(status: i32, spawned: &Spawned) -> bool {
        matches!(ending(spawned), WaitStatus::Exited(_, exited) if exited == status)
    }

    #[test]
    fn a_program_runs_in_its_directory_with_its_variable_and_the_descriptors_that_are_kept() {
        let (reader, writer) = io::pipe().expect("a pipe");
        let script = format!("test \"$WHO\" = me && pwd >/proc/self/fd/{}", writer.as_raw_fd());
        let command = command(&["/bin/sh", "-c", &script], Some("/dev/shm/."));
        let spawned = spawn(&command, &[c"WHO=me"], &[writer.as_fd()], None, SigSet::empty())
            .expect("spawned");
        drop(writer);
        assert_eq!(io::read_to_string(reader).expect("text"), "/dev/shm\n");
        assert_eq!(spawned.not_entered, None);
        assert!(exits_with(0, &spawned));
    }

    #[test]
    fn a_directory_that_is_gone_does_not_hinder() {
        let command = command(&["/bin/true"], Some("/no such directory"));
        let spawned = spawn(&command, &[c"A=b"], &[], None, SigSet::empty()).expect("spawned");
        assert_eq!(spawned.not_entered, Some(Errno::ENOENT));
        assert!(exits_with(0, &spawned));
        // And where none is known, none is missed.
        let nowhere = super::tests::command(&["/bin/true"], None);
        let spawned = spawn(&nowhere, &[c"A=b"], &[], None, SigSet::empty()).expect("spawned");
        assert_eq!(spawned.not_entered, None);
        assert!(exits_with(0, &spawned));
    }

    #[test]
    fn a_step_that_fails_is_named_with_the_system_s_answer() {
        let nothing = command(&["/no such program"], None);
        let error =
            spawn(&nothing, &[c"A=b"], &[], None, SigSet::empty()).expect_err("not executed");
        assert_eq!(error.step, "execute");
        assert_eq!(error.source.raw_os_error(), Some(libc::ENOENT));

        // SAFETY: a number that no descriptor has is only shown to the kernel, which says so.
        let closed = unsafe { BorrowedFd::borrow_raw(100_000) };
        let program = command(&["/bin/true"], None);
        let error =
            spawn(&program, &[c"A=b"], &[closed], None, SigSet::empty()).expect_err("not kept");
        assert_eq!(error.step, "pass descriptors on to");
        assert_eq!(error.source.raw_os_error(), Some(libc::EBADF));
    }

    #[test]
    fn signals_are_blocked_as_was_asked_for_and_the_mask_here_is_what_it_was() {
        let mut before = SigSet::empty();
        pthread_sigmask(SigmaskHow::SIG_SETMASK, None, Some(&mut before)).expect("a mask");
        // It would die of the first of its signals, and exits once it has sent itself both. HUP is
        // none of them: below nohup(1) everybody ignores it.
        let command = command(&["/bin/sh", "-c", "kill -USR2 $$; kill -USR1 $$; exit 3"], None);
        let blocked = [Signal::SIGUSR2, Signal::SIGUSR1].into_iter().collect();
        assert!(exits_with(3, &spawn(&command, &[c"A=b"], &[], None, blocked).expect("spawned")));
        let spawned = spawn(&command, &[c"A=b"], &[], None, SigSet::empty()).expect("spawned");
        assert!(matches!(ending(&spawned), WaitStatus::Signaled(_, Signal::SIGUSR2, _)));
        let mut after = SigSet::empty();
        pthread_sigmask(SigmaskHow::SIG_SETMASK, None, Some(&mut after)).expect("a mask");
        assert_eq!(after, before);
    }

    /// It is known by its descriptor from its first moment on, however soon it ends.
    #[test]
    fn a_program_that_ends_at_once_leaves_its_status() {
        let program = command(&["/bin/false"], None);
        for _ in 0..50 {
            let spawned = spawn(&program, &[c"A=b"], &[], None, SigSet::empty()).expect("spawned");
            assert!(exits_with(1, &spawned));
        }
    }
}
