//! What a service says, one datagram at a time: lines of `NAME=value` (sd_notify(3)).

/// As much as systemd takes, which is a page.
pub(super) const BYTES: usize = 4096;

/// A datagram.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Words {
    /// A service is ready, or has ended its upgrade.
    pub(super) ready: bool,
    pub(super) reloading: bool,
    /// The process that serves from here on.
    pub(super) main: Option<u32>,
    pub(super) is_barrier: bool,
    /// A sign of life.
    pub(super) watchdog: bool,
    /// A lifespan for what is under way, which is nothing that another worker could contradict.
    pub(super) extends: bool,
    /// What an outer manager may hear of it.
    pub(super) rest: String,
}

impl Words {
    /// Lines that are no assignment are passed over, and so is what is not text.
    pub(super) fn parse(datagram: &[u8]) -> Self {
        let mut words = Self::default();
        for line in datagram.split(|byte| *byte == b'\n') {
            let Ok(line) = std::str::from_utf8(line) else { continue };
            match line.split_once('=') {
                Some(("MAINPID", pid)) => words.main = pid.parse().ok().filter(|pid| *pid > 0),
                Some(("BARRIER", _)) => words.is_barrier = true,
                // Of processes that the outer manager does not know, or with descriptors on them.
                Some(("MAINPIDFDID" | "FDSTORE" | "FDSTOREREMOVE" | "FDNAME" | "FDPOLL", _)) => {}
                Some((name, value)) => {
                    words.ready |= (name, value) == ("READY", "1");
                    words.reloading |= (name, value) == ("RELOADING", "1");
                    words.watchdog |= (name, value) == ("WATCHDOG", "1");
                    words.extends |= name == "EXTEND_TIMEOUT_USEC";
                    words.rest.push_str(line);
                    words.rest.push('\n');
                }
                None => {}
            }
        }
        words
    }

    /// What an outer manager may hear of one among several.
    pub(super) fn without_status(&self) -> String {
        let lines = self.rest.lines().filter(|line| !line.starts_with("STATUS="));
        lines.map(|line| format!("{line}\n")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_for_the_init_is_not_for_its_manager() {
        let words =
            Words::parse(b"MAINPID=17\nREADY=1\nSTATUS=a=b\nMAINPIDFDID=4\nFDSTORE=1\n\xff=1");
        assert_eq!((words.main, words.ready, words.reloading), (Some(17), true, false));
        assert_eq!(words.rest, "READY=1\nSTATUS=a=b\n");
        assert_eq!(Words::parse(b"BARRIER=1"), Words { is_barrier: true, ..Words::default() });
        assert!(Words::parse(b"RELOADING=1\nMONOTONIC_USEC=5").reloading);
        for nobody in [&b"MAINPID=0"[..], b"MAINPID=-1", b"MAINPID=", b"MAINPID", b"", b"\n\n"] {
            assert_eq!(Words::parse(nobody), Words::default());
        }
    }
}
