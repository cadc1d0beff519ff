//! What a line of the log says of an upgrade with a fault.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// This process has come to the point and does what it was told to.
    Struck(u32),
    /// It cannot do it.
    NotStruck,
    /// The successor was committed to, so that it may accept from now on.
    Committed,
    /// A process does not wait for the other one any more: whatever it was going to do about one
    /// that stands still is done.
    Decided,
    /// The upgrade is over, well or badly.
    Done,
    Failed,
    Other,
}

impl Word {
    pub(crate) fn of(line: &str) -> Self {
        if let Some((pid, _)) = line.split_once("] fault at ") {
            return Self::Struck(pid.trim_start_matches('[').parse().expect("a process id"));
        }
        let has = |text| line.contains(text);
        match () {
            () if has("] fault ") => Self::NotStruck,
            () if has(" failed in ") => Self::Failed,
            // The handler's word, which ends the line.
            () if line.ends_with(" alone") => Self::Done,
            () if has("committed to by the predecessor") => Self::Committed,
            () if has("did not commit") || has("finish the old process") => Self::Decided,
            () => Self::Other,
        }
    }
}
