//! What the process does so that its memory is not read by others.

use nix::sys::prctl;

/// No core dump is made of this process, and nobody but root may look into its memory (PR_SET_DUMPABLE, prctl(2)).
/// Each generation does so itself: a program that is executed begins without.
pub(crate) fn hide_memory() {
    if let Err(error) = prctl::set_dumpable(false) {
        log::warn!("keys may come into a core dump: prctl(PR_SET_DUMPABLE): {error}");
    }
}
